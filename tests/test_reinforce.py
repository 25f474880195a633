"""REINFORCE against exact enumeration, against a plain second implementation, and by what it leaves
alone.
"""

import math
import shutil
from copy import deepcopy
from functools import partial

import pytest
import torch
from conftest import END, every_completion, padded, plain_log_probs, tiny_policy, token_ids
from torch import Tensor

import warp_lib.aligner
from warp_lib.fast import machine
from warp_lib.fast.log_probs import masked
from warp_lib.policy import Policy
from warp_lib.reinforce import batch, leave_one_out, policy_gradient_loss, reinforce
from warp_lib.reward import Reward
from warp_lib.runs.checkpoint import Checkpoint
from warp_lib.runs.progress import Progress
from warp_lib.runs.store import digest, records
from warp_lib.settings import Settings
from warp_lib.warp import Run, RunId

TAU, V = 0.7, 6  # V: a vocabulary so small that the 5² completions of two tokens can be enumerated
PROMPTS = [[5, 2, 7, 1, 9], [4, 4, 1], [8, 8, 0, 2], [6, 11, 10, 2, 1, 5, 7], [1, 10]]
SETTINGS = {
    "max_new_tokens": 4,
    "temperature": TAU,
    "batch_size": 8,
    "learning_rate": 0.03,
    "beta": 0.5,
    "mu": 0.1,
}


class Scores:
    """A scorer that remembers what it was shown: by default a number per text with nothing regular
    about it.
    """

    def __init__(self, score=lambda ids: math.sin(1 + sum(v * (k + 2) for k, v in enumerate(ids)))):
        self.score, self.identity, self.shown = score, digest("scores"), []

    def __call__(self, texts) -> Tensor:
        self.shown.append([token_ids(text) for text in texts])
        return torch.tensor([float(self.score(ids)) for ids in self.shown[-1]])


FIRST = RunId(0, "warp", 1, 1)


def train(
    scores: Scores,
    run_id=FIRST,
    prompts=PROMPTS,
    init=None,
    sft=None,
    steps=3,
    keep_every=None,
    **settings,
) -> Run:
    """A run from the tiny policy of seed 1, SFT being that of seed 2, on the raw scores."""
    policy = tiny_policy()
    init = policy.weights() if init is None else init
    sft = tiny_policy(seed=2).weights() if sft is None else sft
    settings = Settings(**SETTINGS | settings)
    return reinforce(
        init,
        run_id,
        policy=policy,
        theta_sft=sft,
        prompts=prompts,
        reward=Reward(scores, 0.0, 1.0),
        settings=settings,
        steps=steps,
        keep_every=keep_every,
        progress=Progress(),
    )


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The gradient, by enumeration


def objective(
    policy: Policy, anchor: Policy, prompt: list[int], rewards: Tensor, beta: float
) -> Tensor:
    """E[r] − β KL(π‖anchor) over all completions of the prompt, exactly, from the plain forward."""
    every, _ = every_completion(prompt, 2, V)
    log_p = torch.stack([plain_log_probs(policy, tokens, 2, TAU).sum() for tokens in every])
    log_q = torch.stack(
        [plain_log_probs(anchor, tokens, 2, TAU).sum() for tokens in every]
    ).detach()
    return (log_p.exp() * (rewards - beta * (log_p - log_q))).sum()


def terms(
    policy: Policy, anchor: Policy, prompt: list[int], rewards: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of all completions of the prompt: probability, log π with its gradient, r_β."""
    _, y = every_completion(prompt, 2, V)
    log_pi, log_anchor = policy.log_probs(y, TAU).sum(1), anchor.log_probs(y, TAU).sum(1)
    return log_pi.exp().detach(), log_pi, (rewards - beta * (log_pi - log_anchor)).detach()


def gradient(policy: Policy, value: Tensor) -> Tensor:
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(value, list(policy.model.parameters()))]
    )


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_expected_gradient_is_that_of_the_exact_objective(beta):
    """Guards: sign, p·log(p/q) for log(p/q), a β without effect, τ missing on one side: E over all
    completions, no sampling error.
    """
    policy, anchor = tiny_policy(vocabulary=V), tiny_policy(vocabulary=V, seed=2)
    rewards = torch.randn(25, generator=torch.manual_seed(0)).to(machine.device())
    exact = gradient(policy, objective(policy, anchor, [5, 2, 1], rewards, beta))
    p, log_pi, r_beta = terms(policy, anchor, [5, 2, 1], rewards, beta)
    expected = gradient(
        policy,
        sum(
            p[k] * policy_gradient_loss(log_pi[k : k + 1], r_beta[k : k + 1], None)
            for k in range(25)
        ),
    )
    assert exact.norm() > 0.1
    torch.testing.assert_close(-expected, exact, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("per_prompt", "prompts"),
    [(2, [[5, 2], [5, 2]]), (1, [[5, 2], [5, 2]]), (1, [[5, 2], [1, 4, 4]])],
)
def test_leave_one_out_leaves_the_gradient_unbiased(per_prompt, prompts):
    """Guards: a baseline that holds its own reward (half the gradient here), over all pairs of
    completions of one prompt or of two.
    """
    policy, anchor, beta = tiny_policy(vocabulary=V), tiny_policy(vocabulary=V, seed=2), 0.5
    rewards = torch.randn(25, generator=torch.manual_seed(0)).to(machine.device())
    exact = gradient(policy, sum(objective(policy, anchor, x, rewards, beta) for x in prompts) / 2)
    (p, log_pi, r_beta), (p_2, log_pi_2, r_beta_2) = (
        terms(policy, anchor, x, rewards, beta) for x in prompts
    )
    losses = [
        p[a]
        * p_2[b]
        * policy_gradient_loss(
            torch.stack([log_pi[a], log_pi_2[b]]), torch.stack([r_beta[a], r_beta_2[b]]), per_prompt
        )
        for a in range(25)
        for b in range(25)
    ]
    torch.testing.assert_close(-gradient(policy, sum(losses)), exact, atol=2e-5, rtol=1e-4)


def test_leave_one_out_values():
    """Guards: own reward in the baseline, groups that mix prompts, or that stride instead of being
    consecutive.
    """
    r = torch.tensor([1.0, 2.0, 3.0, 6.0])
    for per_prompt, expected in (
        (2, [2, 1, 6, 3]),
        (4, [11 / 3, 10 / 3, 3, 2]),
        (1, [11 / 3, 10 / 3, 3, 2]),
    ):
        torch.testing.assert_close(
            leave_one_out(r, per_prompt), torch.tensor(expected, dtype=torch.float32)
        )


def test_loss_is_a_mean_whose_rewards_are_constants():
    """Guards: a sum that scales the step with the batch; a gradient that leaks through the reward
    or the baseline.
    """
    log_pi = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    # as r_β would be if someone forgot to detach it
    r = log_pi * 2 + torch.tensor([0.0, 1.0, 4.0, 9.0])
    policy_gradient_loss(log_pi, r, None).backward()
    torch.testing.assert_close(log_pi.grad, -r.detach() / 4)


# Batches


def test_batch_uses_every_prompt_once_before_any_again():
    """Guards: prompts drawn with replacement, lost at the end of an epoch, or in the same order in
    every epoch.
    """
    prompts = [[n] for n in range(7)]
    used = [x for t in range(7) for x in batch(prompts, 6, 2, RunId(0, "warp", 1, 1), t)]
    assert used[::2] == used[1::2]  # each twice, neighbours
    epochs = [[x[0] for x in used[::2][k : k + 7]] for k in (0, 7, 14)]
    assert [sorted(e) for e in epochs] == [[*range(7)]] * 3 and epochs[0] != epochs[1] != epochs[2]


def test_batch_repeats_each_prompt_per_prompt_times():
    """Guards: RLOO groups that hold several prompts."""
    for k in (1, 2, 4):
        x = batch([[n] for n in range(50)], 8, k, RunId(0, "x"), 3)
        assert (
            len(x) == 8
            and all(x[j] == x[j - j % k] for j in range(8))
            and len({v[0] for v in x}) == 8 // k
        )


def test_batch_differs_by_run_and_not_by_anything_else():
    """Guards: M runs on one shuffle; a resumed run on another shuffle than before."""
    prompts = [[n] for n in range(50)]
    roles = [
        RunId(0, "warp", 1, 1),
        RunId(0, "warp", 1, 2),
        RunId(0, "warp", 2, 1),
        RunId(1, "warp", 1, 1),
        RunId(0, "reinforce"),
    ]
    first = [batch(prompts, 8, 1, role, 2) for role in roles]
    assert all(a != b for k, a in enumerate(first) for b in first[:k])
    assert [batch(prompts, 8, 1, role, 2) for role in reversed(roles)] == first[::-1]


# The loop


@pytest.mark.parametrize(
    ("baseline", "k"), [("none", 1), ("leave-one-out", 1), ("leave-one-out", 2)]
)
def test_three_steps_equal_a_plain_second_implementation(baseline, k, store, float32):
    """Guards: τ, mask, anchor on another completion, sign, baseline, a clone that is trained, EMA
    late, early, never or inverted.
    """
    run = train(scores := Scores(), baseline=baseline, completions_per_prompt=k)
    policy, anchor, sft = tiny_policy(), tiny_policy(), tiny_policy(seed=2)
    adam = torch.optim.Adam(policy.model.parameters(), eps=1e-8)
    new = SETTINGS["max_new_tokens"]
    n = SETTINGS["batch_size"]

    def total(model: Policy, ids: list[int]) -> Tensor:
        return plain_log_probs(model, ids, new, TAU).sum()

    for t, ids in enumerate(scores.shown):
        log_pi = [total(policy, s) for s in ids]
        with torch.no_grad():
            r = [scores.score(s) for s in ids]
            kl = [log_pi[j].item() - total(anchor, s).item() for j, s in enumerate(ids)]
            kl_sft = [log_pi[j].item() - total(sft, s).item() for j, s in enumerate(ids)]
        value = [r[j] - SETTINGS["beta"] * kl[j] for j in range(n)]
        others = [
            [i for i in range(n) if i != j and (k == 1 or i // k == j // k)] for j in range(n)
        ]
        base = [
            sum(value[i] for i in o) / len(o) if baseline == "leave-one-out" else 0.0
            for o in others
        ]
        adam.param_groups[0]["lr"] = SETTINGS["learning_rate"] * (t + 1) / 10
        adam.zero_grad()
        (-sum((value[j] - base[j]) * log_pi[j] for j in range(n)) / n).backward()
        adam.step()
        with torch.no_grad():
            for a, p in zip(anchor.model.parameters(), policy.model.parameters(), strict=True):
                a.copy_(0.9 * a + 0.1 * p)
        seen = run.history[t]
        assert seen["kl_anchor"] == pytest.approx(sum(kl) / n, abs=1e-5) and seen[
            "reward"
        ] == pytest.approx(sum(r) / n, abs=1e-6)
        assert t or seen["kl_sft"] == pytest.approx(sum(kl_sft) / n, abs=1e-5)
    assert abs(sum(kl)) > 1e-3  # so the anchor was elsewhere than the policy

    # compared by what it computes: a key's bias computes nothing and moves by rounding only
    trained = tiny_policy().load(run.weights)
    y = padded(PROMPTS, [[5, 2, 1, 7]] * len(PROMPTS))
    with torch.no_grad():
        logits, expected, before = (
            masked(m.logits(y), TAU, [END]) for m in (trained, policy, tiny_policy())
        )
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (expected - before).abs().max() > 0.1


def spy_on_anchor(monkeypatch) -> dict[str, torch.nn.Module]:
    """The modules of the last run."""
    modules = {}

    class Spy(Checkpoint):
        def __init__(self, folder, given, optimisers):
            modules.update(given)
            super().__init__(folder, given, optimisers)

    monkeypatch.setattr(warp_lib.aligner, "Checkpoint", Spy)
    return modules


@pytest.mark.parametrize("mu", [0.0, 0.1, 1.0])
def test_anchor_is_the_moving_average_of_the_policy(mu, store, monkeypatch):
    """Guards: EMA never updated, inverted (0.9 for 0.1), or the policy itself: (1−μ) anchor + μ θ_t
    by hand; still at μ=0, θ_T at μ=1.
    """
    modules, init = spy_on_anchor(monkeypatch), tiny_policy().weights()
    run = train(Scores(), keep_every=1, mu=mu)
    assert sorted(run.checkpoints) == [1, 2, 3] and modules["anchor"] is not modules["policy"]
    ema = {name: t.double() for name, t in init.items()}
    for theta in run.checkpoints.values():
        ema = {name: (1 - mu) * ema[name] + mu * theta[name].double() for name in ema}
    anchor = dict(modules["anchor"].named_parameters())
    for name, expected in ema.items():
        torch.testing.assert_close(anchor[name].detach().cpu(), expected.float(), atol=1e-6, rtol=0)
    if mu in (0.0, 1.0):
        assert equal(
            {name: p.detach().cpu() for name, p in anchor.items()}, init if mu == 0 else run.weights
        )


def test_a_run_moves_the_policy_and_nothing_else(store):
    """Guards: an optimiser that holds a clone or never steps; θ_init or θ_sft trained in place;
    weights along the way that alias.
    """
    init, sft = tiny_policy().weights(), tiny_policy(seed=2).weights()
    copies = deepcopy(init), deepcopy(sft)
    run = train(Scores(), init=init, sft=sft, keep_every=1)
    assert equal(init, copies[0]) and equal(sft, copies[1])
    thetas = [init, *run.checkpoints.values()]
    assert all(
        (b[name] - a[name]).abs().max() > 1e-4
        for a, b in zip(thetas, thetas[1:], strict=False)
        for name in a
    )
    assert equal(run.weights, run.checkpoints[3]) and len(run.history) == 3


def test_the_policy_starts_at_theta_init_and_not_at_what_it_held(store):
    """Guards: a second run that goes on from the first one's weights."""
    run = train(scores := Scores(), init=tiny_policy(seed=5).weights(), steps=1, learning_rate=1e-8)
    assert run.history[0]["kl_anchor"] == 0.0 and scores.shown
    assert all(
        (run.weights[n] - t).abs().max() < 1e-6 for n, t in tiny_policy(seed=5).weights().items()
    )


def test_runs_differ_in_prompts_and_in_samples_by_their_seed_alone(store):
    """Guards: all M runs on one seed; a run that is not reproducible bit for bit."""
    runs, shown = [], []
    for run_id in (RunId(0, "warp", 1, 1), RunId(0, "warp", 1, 2), RunId(0, "warp", 1, 1)):
        shutil.rmtree(store / "store", ignore_errors=True)
        runs.append(train(scores := Scores(), run_id=run_id))
        shown.append(scores.shown)
    openings = [[s[:-4] for s in shown[k][0]] for k in range(3)]
    assert openings[0] != openings[1] and shown[0] != shown[1]
    assert (
        shown[0] == shown[2]
        and equal(runs[0].weights, runs[2].weights)
        and not equal(runs[0].weights, runs[1].weights)
    )


def test_samples_differ_by_run_and_step_even_on_one_prompt(store):
    """Guards: one sampling stream for all runs or for all steps, hidden by the prompts' own
    shuffle.
    """
    shown = []
    for m in (1, 2):
        train(
            scores := Scores(),
            run_id=RunId(0, "warp", 1, m),
            prompts=[[5, 2, 7]],
            steps=2,
            learning_rate=1e-8,
            temperature=2.0,
        )
        shown += scores.shown
    assert all(a != b for k, a in enumerate(shown) for b in shown[:k])
    # nor are a batch's completions alike
    assert all(len({tuple(s) for s in ids}) > 4 for ids in shown)


def test_training_raises_the_reward_of_its_own_samples(store):
    """Guards: the sign of the loss; samples from the anchor or from SFT (μ=0: those would never
    change).
    """
    run = train(Scores(lambda ids: ids[-4:].count(5)), steps=30, beta=0.0, mu=0.0, batch_size=16)
    rewards = torch.tensor([row["reward"] for row in run.history])
    assert rewards[:5].mean() < 1 and rewards[-5:].mean() > 2


def test_beta_keeps_the_policy_near_its_anchor(store, float32):
    """Guards: β without effect or of the wrong sign: on noise as reward it keeps the exact KL
    several times lower.
    """
    kl = {0.0: 0.0, 1.0: 0.0}
    anchor = tiny_policy()
    y = padded(PROMPTS, [[5, 2, 1, 7]] * len(PROMPTS))
    for beta in kl:
        for m in range(4):
            noise = partial(torch.randn, (), generator=torch.Generator().manual_seed(m))
            run = train(
                Scores(lambda ids, noise=noise: noise()),
                run_id=RunId(m, "walk"),
                steps=20,
                beta=beta,
                mu=0.0,
                learning_rate=0.01,
            )
            policy = tiny_policy().load(run.weights)
            with torch.no_grad():
                log_p, log_q = (m.log_distribution(m.logits(y), TAU) for m in (policy, anchor))
            kl[beta] += (log_p.exp() * (log_p - log_q)).sum(-1).mean().item() / 4
    assert kl[0.0] > 0.2 and kl[1.0] < kl[0.0] / 3, kl


def test_a_finished_run_is_not_trained_again(store):
    """Guards: compute wasted, or a stored run mistaken for another one: each input of the run is in
    its key.
    """
    first = train(scores := Scores(), keep_every=2)
    (stored,) = records("run")  # under another name, everybody's runs would be trained again
    assert stored["inputs"]["aligner"] == "warp_lib.reinforce.reinforce.<locals>.loss"
    again = train(scores, keep_every=2)
    assert (
        len(scores.shown) == 3
        and equal(again.weights, first.weights)
        and again.history == first.history
    )
    others = [
        {"beta": 0.4},
        {"mu": 0.2},
        {"learning_rate": 0.02},
        {"temperature": 0.8},
        {"steps": 2},
        {"baseline": "none"},
        {"max_new_tokens": 3},
        {"batch_size": 4},
        {"completions_per_prompt": 2},
        {"prompts": PROMPTS[1:]},
        {"run_id": RunId(1, "warp", 1, 1)},
        {"init": tiny_policy(seed=3).weights()},
        {"sft": tiny_policy(seed=3).weights()},
        {"keep_every": 1},
    ]
    for other in others:
        before = len(scores.shown)
        train(scores, **{"keep_every": 2} | other)
        assert len(scores.shown) > before, other
    scores.identity, before = digest("another reward"), len(scores.shown)
    train(scores, keep_every=2)
    assert len(scores.shown) > before


def test_an_input_of_a_loss_cannot_take_a_runs_name(store):
    """Guards: a loss's own "seed" or "mu" left out of the key, and another run served."""
    policy = tiny_policy()
    of_run = dict(policy=policy, settings=Settings(**SETTINGS), steps=1, keep_every=None)
    with pytest.raises(ValueError, match="an input of a loss cannot be named 'mu'"):
        warp_lib.aligner.train(
            lambda t, learner, anchor: (torch.tensor(0.0), {}),
            {"mu": 1},
            policy.weights(),
            FIRST,
            progress=Progress(),
            **of_run,
        )


def test_completions_never_hold_eos(store):
    """Guards: EOS enabled in training, so that completions end early."""
    train(scores := Scores(), steps=2)
    assert all(END not in s[-4:] for ids in scores.shown for s in ids)
