"""DPO: losses as TRL computes them, pairs ranked by reward, and an aligner that WARP cannot tell
from REINFORCE.
"""

import math
import shutil
from functools import partial

import pytest
import torch
from conftest import END, padded, plain_log_probs, tiny_policy, token_ids

from warp_lib.dpo import (
    Pairs,
    best_against_worst,
    dpo,
    every_pair,
    for_all_runs,
    hinge_loss,
    ipo_loss,
    make_pairs,
    sigmoid_loss,
)
from warp_lib.fast import machine
from warp_lib.interactive.live import Watched
from warp_lib.merging import slerp
from warp_lib.policy import pad_and_concat
from warp_lib.reward import Reward
from warp_lib.runs.progress import Progress, Stopped
from warp_lib.runs.store import digest
from warp_lib.settings import Settings
from warp_lib.warp import RunId, warp

PROMPTS = [[5, 2, 7, 1, 9], [4, 4, 1], [8, 8, 0, 2], [6, 11, 10, 2, 1, 5, 7], [1, 10]]
SETTINGS = {
    "max_new_tokens": 4,
    "temperature": 0.7,
    "batch_size": 8,
    "learning_rate": 0.03,
    "beta": 0.5,
    "mu": 0.0,
    "pair_completions": 3,
}


class Sum:
    """A scorer: the sum of the words' numbers."""

    identity = digest("sum")

    def __call__(self, texts) -> torch.Tensor:
        return torch.tensor([float(sum(token_ids(text))) for text in texts])


REWARD = Reward(Sum(), 0.0, 1.0)
ITERATION, FIRST = RunId(0, "warp", 1), RunId(0, "warp", 1, 1)


def made(
    run_id=ITERATION,
    theta=None,
    rank=best_against_worst,
    prompts=PROMPTS,
    reward=None,
    **settings,
) -> Pairs:
    """Pairs of the tiny policy's completions."""
    policy = tiny_policy()
    return make_pairs(
        policy.weights() if theta is None else theta,
        run_id,
        policy=policy,
        prompts=prompts,
        count=len(prompts),
        reward=reward or REWARD,
        rank=rank,
        settings=Settings(**SETTINGS | settings),
        progress=Progress(),
    )


def aligned(pairs, run_id=FIRST, steps=4, loss=sigmoid_loss, progress=None, **settings):
    """A run from the tiny policy."""
    policy = tiny_policy()
    return dpo(
        policy.weights(),
        run_id,
        policy=policy,
        pairs=lambda *_: pairs,
        loss=loss,
        settings=Settings(**SETTINGS | settings),
        steps=steps,
        progress=progress or Progress(),
    )


# --- The losses -----------------------------------------------------------------------------------


def by_formula(phase: float):
    """A tiny policy whose weights are a formula, so that another program can have the same; its EOS
    has a logit of about -1000.
    """
    policy = tiny_policy(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = policy.model
    with torch.no_grad():
        for n, (name, p) in enumerate(model.named_parameters()):
            wave = 0.4 * torch.sin(
                torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.1 * n) + phase
            )
            p.copy_(wave.view_as(p) + (1.0 if "ln" in name and "weight" in name else 0.0))
        model.transformer.ln_f.bias[0] = 10.0
        model.transformer.wte.weight[END] = 0
        model.transformer.wte.weight[END, 0] = -100.0
    return policy


def test_losses_are_trls(float32):
    """What TRL 1.16's DPOTrainer.compute_loss gave on the same batch, β = 0.3, τ = 1, without
    dropout. Its IPO divides by the length, 4.

    Guards: chosen and rejected swapped, the reference left out, prompt tokens counted, β in the
    wrong place.
    """
    prompts = [[5, 2, 7], [10], [4, 8, 8, 0, 9]]
    chosen = padded(prompts, [[1, 9, 4, 4], [2, 2, 5, 11], [0, 1, 2, 4]])
    rejected = padded(prompts, [[8, 0, 2, 6], [6, 7, 1, 1], [11, 10, 9, 8]], wider=2)
    policy, reference = by_formula(0.0), by_formula(0.5)
    y = pad_and_concat([chosen, rejected])
    with torch.no_grad():
        better, worse = (
            policy.log_probs(y, 1.0).sum(1) - reference.log_probs(y, 1.0).sum(1)
        ).chunk(2)
    h = better - worse
    assert sigmoid_loss(h, 0.3).mean().item() == pytest.approx(1.352879524230957, abs=1e-4)
    assert hinge_loss(h, 0.3).mean().item() == pytest.approx(1.8147016763687134, abs=1e-4)
    assert ipo_loss(h, 0.3 / 4).mean().item() / 4**2 == pytest.approx(6.691529750823975, abs=1e-4)


def test_first_step_is_at_log_two(store, float32):
    """Policy and reference are the same there: h = 0 for every pair."""
    history = aligned(made(), steps=1).history
    assert (
        history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and history[0]["log_ratio"] == 0
    )


# --- Pairs ----------------------------------------------------------------------------------------


def test_ranks():
    """Guards: ties kept, better and worse exchanged, completions of different prompts paired."""
    rewards = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, -1.0]])
    assert best_against_worst(rewards).tolist() == [[0, 1, 0], [2, 0, 2]]
    assert sorted(every_pair(rewards).tolist()) == [
        [0, 1, 0],
        [0, 1, 2],
        [0, 2, 0],
        [2, 0, 2],
        [2, 1, 2],
    ]


@pytest.mark.parametrize("rank", [best_against_worst, every_pair])
def test_pairs_share_a_prompt_and_differ_in_reward(store, rank):
    """Rewards counted anew from the texts. Guards: rows mixed up between batches of different
    width.
    """
    policy = tiny_policy()
    pairs = made(rank=rank)
    assert len(pairs) >= 3 and (pairs.margin > 0).all()
    better, worse = (REWARD(policy.texts(part)) for part in (pairs.chosen, pairs.rejected))
    assert torch.equal(better - worse, pairs.margin)
    prompts = [
        [t[m][:-4].tolist() for t, m in zip(part.tokens, part.mask, strict=True)]
        for part in (pairs.chosen, pairs.rejected)
    ]
    assert prompts[0] == prompts[1] and {tuple(p) for p in prompts[0]} <= {
        tuple(p) for p in PROMPTS
    }


def test_pairs_can_be_read(store):
    """Guards: chosen and rejected exchanged, padding or a part of the prompt shown as text."""
    pairs = made()
    rows = pairs.readable(tiny_policy(), 2)
    assert len(rows) == 2 and all(token_ids(row["prompt"]) in PROMPTS for row in rows)
    for row, margin in zip(rows, pairs.margin.tolist(), strict=False):
        assert (
            sum(token_ids(row["chosen"])) - sum(token_ids(row["rejected"]))
            == row["margin, r̃"]
            == margin
        )
        assert len(token_ids(row["chosen"])) == len(token_ids(row["rejected"])) == 4


def test_pairs_are_made_once_for_their_inputs(store, monkeypatch):
    """Every input is in the key; the same pairs come from the store."""
    first = made()
    other = {name: t + 0.5 for name, t in tiny_policy().weights().items()}
    changes = [
        dict(run_id=RunId(0, "warp", 2)),
        dict(theta=other),
        dict(rank=every_pair),
        dict(prompts=PROMPTS[:-1]),
        dict(temperature=1.0),
    ]
    changes += [
        dict(pair_completions=4),
        dict(max_new_tokens=5),
        dict(batch_size=3),
        dict(reward=Reward(Sum(), 1.0, 2.0)),
    ]
    assert all(made(**change).identity != first.identity for change in changes)
    monkeypatch.setattr("warp_lib.policy.Policy.sample", lambda *_: pytest.fail("sampled again"))
    assert made().identity == first.identity


def test_no_pairs_is_said(store):
    with pytest.raises(ValueError, match="pair_completions"):
        make_pairs(
            tiny_policy().weights(),
            RunId(0, "x"),
            policy=tiny_policy(),
            prompts=PROMPTS,
            count=5,
            reward=Reward(Flat(), 0.0, 1.0),
            rank=best_against_worst,
            settings=Settings(**SETTINGS),
            progress=Progress(),
        )


class Flat(Sum):
    identity = digest("flat")

    def __call__(self, texts) -> torch.Tensor:
        return torch.zeros(len(texts))


# --- Training -------------------------------------------------------------------------------------


def log_ratio(policy, reference, rollouts) -> torch.Tensor:
    """log π/ref of each completion by the plain forward."""
    rows = [t[m].tolist() for t, m in zip(rollouts.tokens, rollouts.mask, strict=True)]
    return torch.stack(
        [
            (plain_log_probs(policy, r, 4, 0.7) - plain_log_probs(reference, r, 4, 0.7)).sum()
            for r in rows
        ]
    )


def test_training_orders_the_pairs(store, float32):
    """Guards: a gradient of the wrong sign, a policy that is not the one returned."""
    pairs = made()
    run = aligned(pairs, steps=20)
    before = tiny_policy()
    after = tiny_policy().load(run.weights)
    with torch.no_grad():
        h = log_ratio(after, before, pairs.chosen) - log_ratio(after, before, pairs.rejected)
    assert (h > 0).all() and run.history[-1]["loss"] < 0.3 < run.history[0]["loss"]


def test_step_by_hand(store, float32):
    """One step of AdamW along the gradient of the mean loss, from the plain forward. Guards: τ left
    out, a moved reference.
    """
    pairs = made()
    run = aligned(pairs, steps=1, batch_size=2 * len(pairs))
    policy, reference = tiny_policy(), tiny_policy()
    h = log_ratio(policy, reference, pairs.chosen) - log_ratio(policy, reference, pairs.rejected)
    optimiser = torch.optim.AdamW(policy.model.parameters(), 0.03 / 10, weight_decay=0.0)
    sigmoid_loss(h, 0.5).mean().backward()
    optimiser.step()
    # Adam's first step is a sign, of rounding where it is 0
    counts = {n: p.grad.cpu().abs() > 1e-4 for n, p in policy.model.named_parameters()}
    assert sum(c.sum().item() for c in counts.values()) > 1000
    for name, expected in policy.weights().items():
        assert torch.allclose(run.weights[name][counts[name]], expected[counts[name]], atol=1e-5), (
            name
        )


def test_second_step_by_hand(store, float32):
    """The loss after one step, from the plain forward of the weights then. Guards: a β without
    effect, a sum for a mean.
    """
    pairs = made()
    runs = [aligned(pairs, steps=n, batch_size=2 * len(pairs)) for n in (1, 2)]
    moved, reference = tiny_policy().load(runs[0].weights), tiny_policy()
    with torch.no_grad():
        h = log_ratio(moved, reference, pairs.chosen) - log_ratio(moved, reference, pairs.rejected)
    assert (
        runs[1].history[1]["loss"] == pytest.approx(sigmoid_loss(h, 0.5).mean().item(), abs=1e-5)
        and h.abs().max() > 1e-2
    )


def test_run_key(store):
    """Every input of a run is in its key. Guards: runs on other pairs, or with another loss, taken
    for this one.
    """
    base, other = made(), made(run_id=RunId(0, "warp", 2))
    first = aligned(base)
    changes = [
        dict(loss=hinge_loss),
        dict(temperature=0.8),
        dict(batch_size=4),
        dict(beta=0.4),
        dict(mu=0.1),
        dict(learning_rate=0.02),
    ]
    changes += [dict(steps=3), dict(run_id=RunId(0, "warp", 1, 2), batch_size=4)]
    for run in (aligned(other), *(aligned(base, **change) for change in changes)):
        assert any(
            not torch.equal(run.weights[name], first.weights[name]) for name in first.weights
        )


def test_bad_input_is_refused_in_words(store):
    with pytest.raises(ValueError, match="beta must be above 0"):
        aligned(made(), beta=0.0)
    with pytest.raises(ValueError, match="lower pair_prompts"):
        make_pairs(
            tiny_policy().weights(),
            RunId(0, "x"),
            policy=tiny_policy(),
            prompts=PROMPTS,
            count=6,
            reward=REWARD,
            rank=best_against_worst,
            settings=Settings(**SETTINGS),
            progress=Progress(),
        )


def test_reference_is_the_anchor(store, float32):
    """With μ = 1 the reference is the policy itself after each step, so every step begins at log 2;
    with μ = 0 it stays.
    """
    pairs = made()
    moving, fixed = (aligned(pairs, steps=4, mu=mu, learning_rate=0.1).history for mu in (1.0, 0.0))
    assert all(row["loss"] == pytest.approx(math.log(2), abs=1e-5) for row in moving)
    assert fixed[-1]["loss"] < 0.9 * math.log(2)


class StopAfter(Progress):
    """Asks to stop after so many steps; notes where a loop that was begun before goes on."""

    def __init__(self, steps: int):
        super().__init__()
        self.left, self.done = steps, 0

    def begin(self, title: str, done: int, total: int) -> None:
        self.done = max(self.done, done)

    def log(self, **numbers: float) -> None:
        self.left -= 1
        if not self.left:
            self.stop.set()


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_a_stopped_run_goes_on_bit_for_bit(store, mu):
    """Guards: a reference that stays, read anew from the policy as it was stopped or in other
    batches.
    """
    pairs, shape = made(), {"steps": 6, "batch_size": 4, "mu": mu}
    whole = aligned(pairs, **shape).weights
    shutil.rmtree(store / "store")
    with pytest.raises(Stopped):
        aligned(pairs, **shape, progress=StopAfter(3))
    resumed = aligned(pairs, **shape, progress=(second := StopAfter(9))).weights
    assert second.done == 3 and all(torch.equal(w, whole[name]) for name, w in resumed.items())


def test_loss_is_in_the_key_and_runs_see_other_orders(store):
    pairs = made()
    by_loss = [aligned(pairs, loss=loss).weights for loss in (sigmoid_loss, hinge_loss, ipo_loss)]
    by_run = [aligned(pairs, run_id=RunId(0, "warp", 1, m), batch_size=4).weights for m in (1, 2)]
    for a, b in ((by_loss[0], by_loss[1]), (by_loss[0], by_loss[2]), by_run):
        assert any(not torch.equal(a[name], b[name]) for name in a)


def test_two_identities_are_two_functions(store):
    """Guards: a loss or a ranking whose results are those of another one of its name."""

    def identified(identity, function):
        function.identity = identity
        return function

    ranks = (lambda r: best_against_worst(r), lambda r: best_against_worst(r)[:2])
    first, second = (made(rank=identified(f"rank {k}", rank)) for k, rank in enumerate(ranks))
    assert len(first) > len(second) == 2
    losses = (lambda h, beta: (1 - h).square(), lambda h, beta: (1 + h).square())
    of = [identified(f"loss {k}", loss) for k, loss in enumerate(losses)]
    a, b = (aligned(first, loss=loss, steps=1).weights for loss in of)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_warp_runs_dpo_as_it_is(store):
    """Pairs are re-made before each iteration and shared by its runs; WARP knows nothing of it.
    Guards: bars side by side that say "pairs" and not whose.
    """
    policy, asked, said = tiny_policy(), [], Watched()

    def make(theta, seed):
        asked.append((digest(theta), seed))
        return make_pairs(
            theta,
            seed,
            policy=policy,
            prompts=PROMPTS,
            count=5,
            reward=REWARD,
            rank=best_against_worst,
            settings=settings,
            progress=said,
        )

    settings = Settings(**SETTINGS)
    sft = policy.weights()
    align = partial(
        dpo,
        policy=policy,
        pairs=for_all_runs(make),
        settings=settings,
        steps=3,
        progress=Progress(),
    )
    iterations = list(warp(sft, align, iterations=2, runs=2, eta=0.5, merge=slerp, seed=0))
    titles = [loop.title for loop in said.loops]
    assert titles == ["warp, i = 1, pairs", "warp, i = 2, pairs"]
    assert [run_id for _, run_id in asked] == [RunId(0, "warp", 1)] * 2 + [RunId(0, "warp", 2)] * 2
    assert (
        len({theta for theta, _ in asked}) == 2
        and asked[0][0] == digest(sft)
        and asked[2][0] == digest(iterations[0].liti)
    )
    assert any(not torch.equal(iterations[1].merged[n], sft[n]) for n in sft)


def test_rollouts_together():
    """Shorter prompts are padded on the left, and padding stays padding."""
    a, b = padded([[5, 2, 7]], [[1, 9]]), padded([[4]], [[2, 2]])
    both = pad_and_concat([a, b]).to(machine.device())
    assert both.tokens.tolist() == [[5, 2, 7, 1, 9], [0, 0, 4, 2, 2]] and both.mask.tolist() == [
        [True] * 5,
        [False] * 2 + [True] * 3,
    ]
    assert both.rows(torch.tensor([1])).tokens.tolist() == [[0, 0, 4, 2, 2]] and both.new == 2
