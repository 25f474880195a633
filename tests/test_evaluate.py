"""The evaluation's numbers against closed forms and exact enumeration, and what must be the same
for every policy.
"""

import math
import shutil

import pytest
import torch
from conftest import (
    END,
    every_completion,
    padded,
    plain_log_probs,
    plain_logits,
    tiny_policy,
    token_ids,
)
from torch import Tensor

from warp_lib.evaluate import (
    Evaluation,
    distinct_pairs,
    evaluate,
    exact_kl,
    language_loss,
    measures,
    summarise,
)
from warp_lib.fast import machine
from warp_lib.fast.log_probs import MASKED
from warp_lib.merging import Weights
from warp_lib.policy import Policy
from warp_lib.reward import Reward
from warp_lib.runs.seeds import torch_stream
from warp_lib.runs.store import digest

TAU, V, NEW, SAMPLES = 0.7, 6, 8, 4
PROMPTS = [[5, 2, 7, 1, 9], [4, 4, 1], [8, 8, 0, 2], [6, 11, 10, 2, 1, 5, 7], [1, 10]]
COMPLETIONS = [[5, 2, 1, 7], [1, 1, 6, 0], [8, 2, 2, 4], [0, 7, 9, 10], [11, 5, 4, 2]]
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


class Scores:
    """A scorer that counts its calls: the first token of the text, so that each prompt has its own
    score.
    """

    def __init__(self):
        self.identity, self.calls = digest("first token"), 0

    def __call__(self, texts) -> Tensor:
        self.calls += 1
        return torch.tensor([float(token_ids(text)[0]) for text in texts])


def measure(theta: Weights, raw: Scores | None = None, **options) -> Evaluation:
    """θ, of the tiny policy of seed 1, against SFT, that of seed 2."""
    rewards = {"reward": Reward(raw or Scores(), 0.0, 1.0)}
    given = {
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "new": NEW,
        "temperature": TAU,
        "rewards": rewards,
    }
    return evaluate(
        theta, policy=tiny_policy(), sft=tiny_policy(seed=2), **{"split": "test"} | given | options
    )


# KL


def test_exact_kl_in_closed_form():
    """Guards: sums over the wrong axes, KL the wrong way round, p·log(p/q) without p, nan from the
    EOS mask.
    """
    p = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]])
    q = torch.tensor([[0.25, 0.75, 0.0], [0.9, 0.1, 0.0]])
    log_p, log_q = (t.log().clamp(min=MASKED) for t in (p, q))
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    second = 0.9 * math.log(0.9 / 0.25) + 0.1 * math.log(0.1 / 0.75)
    seen = {
        first: exact_kl(p[None, :1], log_p[None, :1], log_q[None, :1]),
        first + second: exact_kl(p[None], log_p[None], log_q[None, [0, 0]]),
        back: exact_kl(q[None, :1], log_q[None, :1], log_p[None, :1]),
    }
    for expected, kl in seen.items():
        torch.testing.assert_close(kl.sum(1), torch.tensor([expected]))
    # two completions of a token each
    two = exact_kl(p[:, None], log_p[:, None], log_q[[0, 0], None])
    torch.testing.assert_close(two, torch.tensor([[first], [second]]))


@pytest.mark.parametrize("prompt", [[5, 2], [1, 4, 4, 2, 0]])
def test_kl_entropy_and_nll_are_unbiased(prompt, float32):
    """Guards: KL of the sampled token only, of the prompt, at another τ, with EOS; sums for means.
    E over all 5² completions, exactly.
    """
    policy, sft = tiny_policy(vocabulary=V), tiny_policy(vocabulary=V, seed=2)
    every, y = every_completion(prompt, 2, V)
    with torch.no_grad():
        log_p, log_q = (
            torch.stack([plain_log_probs(m, tokens, 2, TAU).sum() for tokens in every])
            .double()
            .cpu()
            for m in (policy, sft)
        )
    p = log_p.exp()
    kl, entropy, cross = (p * (log_p - log_q)).sum(), -(p * log_p).sum(), -(p * log_q).sum()
    seen = measures(policy, sft, y, TAU)
    mean = {name: (p * values.double()).sum() for name, values in seen.items()}
    expected = {"kl": kl, "kl_k1": kl, "entropy": entropy / 2, "nll_sft": cross / 2}
    assert kl > 0.1
    for name, value in expected.items():
        torch.testing.assert_close(
            mean[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    spread = {name: (p * (seen[name] - kl) ** 2).sum() for name in ("kl", "kl_k1")}
    assert spread["kl"] < spread["kl_k1"]  # Rao–Blackwell
    torch.testing.assert_close(seen["kl_k1"].double(), log_p - log_q, atol=1e-5, rtol=0)


def test_prompts_and_padding_do_not_count(float32):
    """Guards: KL summed over prompt or padding: more padding, or company of a longer prompt,
    changes no number.
    """
    policy, sft = tiny_policy(), tiny_policy(seed=2)
    together = measures(policy, sft, padded(PROMPTS, COMPLETIONS), TAU)
    wider = measures(policy, sft, padded(PROMPTS, COMPLETIONS, wider=9), TAU)
    alone = [
        measures(policy, sft, padded([p], [c]), TAU)
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    for name, values in together.items():
        torch.testing.assert_close(wider[name], values, atol=2e-5, rtol=0)
        torch.testing.assert_close(torch.cat([a[name] for a in alone]), values, atol=2e-5, rtol=0)


def test_scoring_in_chunks_changes_nothing(float32, monkeypatch):
    """Guards: rollouts lost or mixed up between chunks."""
    policy, sft, y = tiny_policy(), tiny_policy(seed=2), padded(PROMPTS, COMPLETIONS)
    whole = measures(policy, sft, y, TAU)
    monkeypatch.setattr("warp_lib.evaluate.CHUNK", 2)
    for name, values in measures(policy, sft, y, TAU).items():
        torch.testing.assert_close(values, whole[name], atol=1e-6, rtol=1e-5)


def test_logits_kept_from_sampling_are_those_of_a_pass(float32):
    """Guards: logits of another token, row, τ or with EOS masked already; rows beyond those that
    were kept.
    """
    policy = tiny_policy()
    sft = tiny_policy(seed=2)
    prompts = [p for p in PROMPTS for _ in range(3)]
    kept = torch.full(
        (len(prompts) - 1, 6, policy.model.config.vocab_size), torch.nan, device=machine.device()
    )
    y = policy.sample(prompts, 6, TAU, torch_stream("kept", device=machine.device()), kept=kept)
    torch.testing.assert_close(kept, policy.logits(y)[:-1], atol=1e-5, rtol=1e-4)
    plain = policy.sample(prompts, 6, TAU, torch_stream("kept", device=machine.device()))
    assert torch.equal(plain.tokens, y.tokens)
    evaluated = []
    # the last as for a vocabulary of which not one row fits
    for some in (None, kept, kept[:6], kept[:0]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warp_lib.evaluate.CHUNK", 4)
            evaluated.append(measures(policy, sft, y, TAU, some))
    for name, values in evaluated[0].items():
        for other in evaluated[1:]:
            torch.testing.assert_close(other[name], values, atol=1e-5, rtol=1e-4)


@dtypes
def test_kl_of_sft_to_itself_is_exactly_zero(dtype, store, monkeypatch):
    """Guards: policy and SFT scored differently (dtype, dropout, τ, mask): any difference is a bias
    of every reported KL.
    """
    monkeypatch.setattr(machine, "fast_dtype", lambda: dtype)
    sft = tiny_policy(seed=2).weights()
    seen = measure(sft)
    assert seen.summary["kl"] == seen.summary["kl_k1"] == seen.summary["kl_se"] == 0.0
    assert (seen.scores["kl"] == 0).all() and measure(tiny_policy().weights()).summary["kl"] > 0.1


@dtypes
def test_k1_agrees_on_the_policys_own_samples(dtype, store, monkeypatch):
    """Guards: completions of another policy, or another τ in sampling than in scoring: k1's mean is
    KL only on the policy's own samples.
    """
    monkeypatch.setattr(machine, "fast_dtype", lambda: dtype)
    seen = measure(tiny_policy().weights(), samples=200)
    difference = (seen.scores["kl_k1"] - seen.scores["kl"]).flatten()
    assert (
        difference.mean().abs()
        < 4 * difference.std() / len(difference) ** 0.5
        < 0.05 * seen.summary["kl"]
    )
    assert all(math.isfinite(v) for v in seen.summary.values()) and all(
        s.isfinite().all() for s in seen.scores.values()
    )


# Summary


def test_standard_errors_are_clustered_by_prompt():
    """Guards: completions of one prompt counted as independent: here they are copies, and the naive
    error is 0.29 instead of 0.5.
    """
    scores = {
        "reward": torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
        "kl": torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
    }
    nll = {"nll_sft": torch.tensor([[1.0, 2.0], [2.0, 5.0]])}
    summary = summarise(
        scores | nll, torch.tensor([[[1, 2, 1, 2], [1, 2, 3, 1]], [[1, 1, 1, 1], [1, 1, 1, 1]]])
    )
    assert summary["reward"] == 0.5 and summary["reward_se"] == pytest.approx(0.5)
    assert summary["kl"] == 0.5 and summary["kl_se"] == 0.0  # the prompts agree
    assert summary["perplexity"] == pytest.approx(math.exp(2.5)) and summary[
        "perplexity_se"
    ] == pytest.approx(math.exp(2.5) * 1.0)
    assert summary["distinct2"] == pytest.approx((4 / 6 + 1 / 6) / 2) and summary[
        "distinct2_se"
    ] == pytest.approx((4 / 6 - 1 / 6) / 2)
    assert not {"nll_sft", "nll_sft_se"} & summary.keys()


def test_distinct_pairs_by_hand():
    """Guards: pairs across two completions, pairs without order, tokens for pairs."""
    # 12 21 12 · 12 23 31
    assert distinct_pairs(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 1]])) == 4 / 6
    assert distinct_pairs(torch.tensor([[1, 1, 1], [1, 1, 1]])) == 1 / 4
    assert distinct_pairs(torch.tensor([[1, 2], [3, 4]])) == 1.0
    assert distinct_pairs(torch.tensor([[1], [2]])) == 0.0


def test_scores_stand_at_their_own_prompt(store):
    """Guards: prompts and samples transposed, which would also spoil the clustering and the paired
    differences.
    """
    seen = measure(tiny_policy().weights())
    assert torch.equal(
        seen.scores["reward"],
        torch.tensor([[p[0]] * SAMPLES for p in PROMPTS], dtype=torch.float32),
    )
    assert seen.summary["reward"] == sum(p[0] for p in PROMPTS) / len(PROMPTS)
    rows = [
        tokens[mask].tolist()
        for tokens, mask in zip(seen.rollouts.tokens, seen.rollouts.mask, strict=True)
    ]
    assert [row[:-NEW] for row in rows] == [p for p in PROMPTS for _ in range(SAMPLES)]
    assert len({tuple(row) for row in rows}) > 0.9 * len(rows) and all(
        END not in row[-NEW:] for row in rows
    )


@torch.no_grad()
def test_numbers_are_those_of_the_plain_forward(store, float32):
    """Guards: anything between completions and reported numbers: KL and perplexity again from the
    kept rollouts, unpadded.
    """
    theta = tiny_policy(seed=4).weights()
    seen, policy, sft = measure(theta), tiny_policy(seed=4), tiny_policy(seed=2)
    kl, nll = [], []
    for tokens, mask in zip(seen.rollouts.tokens, seen.rollouts.mask, strict=True):
        ids = tokens[mask].tolist()
        keep = [v for v in range(12) if v != END]
        p, q = (
            (plain_logits(m, ids, NEW)[:, keep] / TAU).double().softmax(-1) for m in (policy, sft)
        )
        kl.append((p * (p / q).log()).sum().item())
        nll.append(-plain_log_probs(sft, ids, NEW, TAU).mean().item())
    assert seen.summary["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-4)
    assert seen.scores["kl"].flatten().tolist() == pytest.approx(kl, abs=1e-4)
    assert seen.summary["perplexity"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)


# The same for every policy


def test_a_result_comes_from_the_store(store):
    """Guards: an evaluation that differs between two looks at it, or a stored one taken for another
    θ, prompt set or length.
    """
    theta, raw = tiny_policy().weights(), Scores()
    first, again = measure(theta, raw), measure(theta, raw)
    assert (
        raw.calls == 1
        and again.summary == first.summary
        and torch.equal(again.rollouts.tokens, first.rollouts.tokens)
    )
    assert (
        all(torch.equal(again.scores[name], s) for name, s in first.scores.items())
        and again.scores.keys() == first.scores.keys()
    )
    shutil.rmtree(store / "store")
    # and made anew it is the same
    assert measure(theta, raw).summary == first.summary and raw.calls == 2
    others = (
        {"prompts": PROMPTS[::-1]},
        {"samples": 2},
        {"new": 4},
        {"temperature": 1.0},
        {"split": "validation"},
        {"precision": "split"},
    )
    for other in others:
        measure(theta, raw, **other)
    measure(tiny_policy(seed=4).weights(), raw)
    raw.identity = digest("another reward")
    measure(theta, raw)
    evaluate(
        theta,
        policy=tiny_policy(),
        sft=tiny_policy(seed=5),
        prompts=PROMPTS,
        split="test",
        samples=SAMPLES,
        new=NEW,
        temperature=TAU,
        rewards={"reward": Reward(raw, 0.0, 1.0)},
    )
    assert raw.calls == 11


def test_splits_have_streams_of_their_own(store, float32):
    """Guards: validation and test prompts whose completions are drawn from the same random
    numbers.
    """
    theta = tiny_policy().weights()
    test, validation = (
        measure(theta, split=split).rollouts.completions for split in ("test", "validation")
    )
    assert not torch.equal(test, validation)


def test_what_is_measured_is_the_policy_of_the_float32_weights(store, monkeypatch):
    """On a machine that is fast in bfloat16, a task vector below its spacing; KL by a plain float32
    forward on the same tokens. Guards: any rounding in a measuring pass (one in bfloat16 loses most
    of this KL)."""
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    sft = tiny_policy(seed=2)
    base = {name: t.bfloat16().float() for name, t in sft.weights().items()}
    sft.load(base)
    draw = torch.manual_seed(0)
    theta = {
        name: t + 1.5e-3 * t.abs() * torch.randn(t.shape, generator=draw)
        for name, t in base.items()
    }
    given = {
        "policy": tiny_policy(),
        "sft": sft,
        "prompts": PROMPTS,
        "split": "test",
        "samples": 40,
        "new": NEW,
        "temperature": TAU,
    }
    seen = {
        precision: evaluate(theta, rewards={}, precision=precision, **given)
        for precision in ("float32", "bfloat16")
    }
    plain, before = tiny_policy().load(theta), tiny_policy().load(base)
    kl, rollouts = [], seen["float32"].rollouts
    possible = [token for token in range(12) if token != END]
    for tokens, mask in zip(rollouts.tokens, rollouts.mask, strict=True):
        with torch.no_grad():
            logits = (
                plain_logits(one, tokens[mask].tolist(), NEW)[:, possible]
                for one in (plain, before)
            )
        log_p, log_q = ((one / TAU).log_softmax(-1) for one in logits)
        kl.append((log_p.exp() * (log_p - log_q)).sum())
    exact = torch.stack(kl).mean().item()
    assert abs(seen["float32"].summary["kl"] / exact - 1) < 0.01
    assert abs(seen["bfloat16"].summary["kl"] / exact - 1) > 0.2


def test_all_policies_share_one_random_stream(store, float32):
    """Guards: a stream per θ, which makes paired differences as noisy as unpaired ones: near
    policies draw nearly the same completions.
    """
    theta = tiny_policy().weights()
    near = {
        name: t + 1e-4 * torch.randn(t.shape, generator=torch.manual_seed(0))
        for name, t in theta.items()
    }
    far = tiny_policy(seed=4).weights()
    base, *others = (measure(t, samples=40).rollouts.completions for t in (theta, near, far))
    same = [(base == other).all(1).float().mean().item() for other in others]
    assert same[0] > 0.95 and same[1] < 0.05


def test_evaluation_leaves_sft_and_theta_alone(store):
    """Guards: SFT overwritten by θ, so that the next KL is to something else."""
    policy, sft, theta = tiny_policy(), tiny_policy(seed=2), tiny_policy(seed=4).weights()
    before, copy = sft.weights(), {name: t.clone() for name, t in theta.items()}
    evaluate(
        theta,
        policy=policy,
        sft=sft,
        prompts=PROMPTS,
        split="test",
        samples=2,
        new=2,
        temperature=TAU,
        rewards={},
    )
    for a, b in ((sft.weights(), before), (theta, copy), (policy.weights(), theta)):
        assert all(torch.equal(a[name], b[name]) for name in b)


@torch.no_grad()
def test_language_loss_is_that_of_transformers(float32):
    """Guards: τ or the EOS mask in plain language modelling, a shift by one, short reviews
    counted.
    """
    policy = tiny_policy()
    reviews = [" ".join(f"w{(k * n + n) % 12}" for k in range(12)) for n in range(1, 90)]
    losses = []
    for review in reviews:
        ids = torch.tensor([token_ids(review)[:10]], device=machine.device())
        losses.append(policy.model(ids, labels=ids).loss.item())
    loss, error = language_loss(policy, [*reviews, "w1 w2 w3"], 10)
    with pytest.raises(ValueError, match="at least 10 tokens, and fewer than two"):
        language_loss(policy, [reviews[0], "w1 w2 w3"], 10)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert error == pytest.approx(torch.tensor(losses).std().item() / len(losses) ** 0.5, rel=1e-4)


def test_policies_of_other_architectures_are_evaluated_too(store, float32):
    """Guards: an evaluation that only works for GPT-2."""
    options = {
        "prompts": PROMPTS,
        "split": "test",
        "samples": 2,
        "new": 3,
        "temperature": TAU,
        "rewards": {},
    }
    policies: list[Policy] = [tiny_policy("llama", seed=k) for k in (1, 2)]
    theta, sft = (p.weights() for p in policies)
    assert evaluate(theta, policy=policies[0], sft=policies[1], **options).summary["kl"] > 0.1
    assert evaluate(sft, policy=policies[0], sft=policies[1], **options).summary["kl"] == 0.0
