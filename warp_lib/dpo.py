"""DPO as an aligner: preference pairs from the policy's own completions, ranked by the reward
model, and the losses that learn from them.

The student report's hypothesis: in REINFORCE's place, with pairs made anew from θ_init before each
WARP iteration (SLiC-HF's recipe, arXiv 2305.10425), DPO (arXiv 2305.18290) gains more from WARP
than REINFORCE does, because its data become more on-policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .aligner import train
from .fast import machine
from .merging import Weights
from .policy import Policy, Rollouts, pad_and_concat
from .reinforce import batch
from .reward import Reward
from .runs.errors import Explained
from .runs.identities import function_identity
from .runs.progress import Progress
from .runs.seeds import numpy_stream, torch_stream
from .runs.store import digest, memoise, save_tensors
from .settings import Settings
from .warp import Run, RunId


@dataclass(frozen=True)
class Pairs:
    """Two completions of each prompt, (n,) rows: the chosen one has the higher reward, by `margin`
    r̃.
    """

    chosen: Rollouts
    rejected: Rollouts
    margin: Tensor

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def identity(self) -> str:
        """A digest of the pairs, for keys."""
        return digest(self.chosen.tokens, self.rejected.tokens, self.chosen.mask, self.margin)

    def readable(self, policy: Policy, count: int) -> list[dict[str, str | float]]:
        """The first `count` pairs for a person to read: prompt, both completions and the margin, a
        row each.
        """
        decode, new = policy.tokenizer.batch_decode, self.chosen.new
        starts = [
            tokens[mask][len(policy.bos_ids) : -new].tolist()
            for tokens, mask in zip(
                self.chosen.tokens[:count], self.chosen.mask[:count], strict=True
            )
        ]
        texts = zip(
            decode(starts),
            decode(self.chosen.completions[:count]),
            decode(self.rejected.completions[:count]),
            strict=True,
        )
        margins = self.margin[:count].tolist()
        return [
            {"prompt": x, "chosen": y, "rejected": z, "margin, r̃": m}
            for (x, y, z), m in zip(texts, margins, strict=True)
        ]


Rank = Callable[[Tensor], Tensor]
"""From the rewards of each prompt's completions, (prompts, completions), the pairs to learn from,
(pairs, 3): prompt, better, worse.
"""


def best_against_worst(rewards: Tensor) -> Tensor:
    """A pair a prompt; none where all completions have the same reward."""
    best, worst = rewards.argmax(1), rewards.argmin(1)
    pairs = torch.stack([torch.arange(len(rewards)), best, worst], 1)
    return pairs[rewards.amax(1) > rewards.amin(1)]


def every_pair(rewards: Tensor) -> Tensor:
    """All pairs of a prompt's completions that differ in reward (SLiC's)."""
    return (rewards[:, :, None] > rewards[:, None, :]).nonzero()


def make_pairs(
    theta: Weights,
    run_id: RunId,
    *,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    count: int,
    reward: Reward,
    rank: Rank,
    settings: Settings,
    progress: Progress,
) -> Pairs:
    """Sample completions from π_θ, rank them by reward and pair them, or take the pairs from the
    store.

    Args:
        theta: the policy that writes the completions; `policy` is overwritten with it.
        run_id: names the random streams: which prompts, what is sampled.
        prompts: token ids, of which `count` are drawn.
        rank: `best_against_worst`, `every_pair` or your own (see `function_identity`).
        settings: max_new_tokens, temperature, batch_size (completions sampled at a time),
            pair_completions.

    Raises ValueError when there are fewer prompts, or no two completions of a prompt differ in
    reward.
    """
    s, n = settings, settings.pair_completions
    if count > len(prompts):
        raise Explained(
            f"pairs of {count} prompts need as many, and there are {len(prompts)}: lower"
            " pair_prompts."
        )
    drawn = [
        prompts[k]
        for k in numpy_stream(*run_id.role, "pair prompts").permutation(len(prompts))[:count]
    ]
    inputs = {
        "policy": policy.identity,
        "theta": digest(theta),
        "prompts": digest(list(map(list, drawn))),
        "reward": reward.identity,
        "seed": list(run_id.role),
        "new": s.max_new_tokens,
        "temperature": s.temperature,
        "completions": n,
        "at_once": s.batch_size,
        "rank": function_identity(rank),
        "precision": s.precision,
    }

    def make(folder) -> dict:
        policy.load(theta)
        rows, parts, scores = max(1, s.batch_size // n), [], []
        for k in progress.track(range(0, len(drawn), rows), f"{run_id}, pairs"):
            x = [prompt for prompt in drawn[k : k + rows] for _ in range(n)]
            generator = torch_stream(*run_id.role, "pairs", k, device=machine.device())
            with machine.passes(s.precision):
                parts.append(policy.sample(x, s.max_new_tokens, s.temperature, generator, progress))
            scores.append(reward(texts := policy.texts(parts[-1])).view(-1, n))
            progress.show(texts, scores[-1].flatten().tolist())
            progress.log(reward=scores[-1].mean().item())
        rewards, y = torch.cat(scores), pad_and_concat(parts)
        prompt, better, worse = rank(rewards).unbind(1)
        if not len(prompt):
            raise Explained(
                "no pairs: all completions of a prompt have the same reward; ask for more"
                " pair_completions."
            )
        tensors = {"margin": rewards[prompt, better] - rewards[prompt, worse]}
        for name, row in (("chosen", prompt * n + better), ("rejected", prompt * n + worse)):
            tensors |= {f"{name}.tokens": y.tokens.cpu()[row], f"{name}.mask": y.mask.cpu()[row]}
        save_tensors(folder / "pairs.safetensors", tensors)
        return {"pairs": len(prompt)}

    t = memoise("pairs", inputs, make).tensors("pairs")
    chosen, rejected = (
        Rollouts(t[f"{name}.tokens"], t[f"{name}.mask"], s.max_new_tokens)
        for name in ("chosen", "rejected")
    )
    return Pairs(chosen, rejected, t["margin"])


class MakePairs(Protocol):
    """From θ_init and a run's name, the pairs that the run learns from."""

    def __call__(self, theta: Weights, run_id: RunId, /) -> Pairs: ...


def for_all_runs(make: MakePairs) -> MakePairs:
    """Pairs made anew from each θ_init, the same ones for all M runs of an iteration."""
    return lambda theta, run_id: make(theta, replace(run_id, run=None))


PairLoss = Callable[[Tensor, float], Tensor]
"""A loss of each pair, (n,), from h = log[π(y⁺)/ref(y⁺)] − log[π(y⁻)/ref(y⁻)], (n,), and β."""


def sigmoid_loss(h: Tensor, beta: float) -> Tensor:
    """−log σ(βh): DPO (arXiv 2305.18290, equation 7)."""
    return -F.logsigmoid(beta * h)


def hinge_loss(h: Tensor, beta: float) -> Tensor:
    """max(0, 1 − βh): SLiC's, against the reference (arXiv 2309.06657)."""
    return F.relu(1 - beta * h)


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h − 1/2β)²: IPO (arXiv 2310.12036, equation 17), with h summed over the completion's
    tokens.
    """
    return (h - 1 / (2 * beta)).square()


def dpo(
    theta_init: Weights,
    run_id: RunId,
    *,
    policy: Policy,
    pairs: MakePairs,
    loss: PairLoss = sigmoid_loss,
    settings: Settings,
    steps: int | None = None,
    keep_every: int | None = None,
    progress: Progress,
) -> Run:
    """Train from θ_init to θ on pairs, or take the run from the store.

    Each step: batch_size / 2 pairs, so as many completions as a step of REINFORCE; θ ← AdamW along
    −∇ of the mean loss; the reference is the run's anchor: θ_init as long as μ = 0, else its moving
    average.

    Args:
        theta_init: where the run and its reference begin.
        run_id: names the order in which the run sees the pairs, each once before any comes again.
        policy: lends its architecture and tokenizer; its weights are overwritten.
        pairs: from θ_init and the run's name, made anew (see `for_all_runs`) or always the same.
        loss: `sigmoid_loss`, `hinge_loss`, `ipo_loss`, or your own (see `function_identity`).
        settings: temperature, batch_size, learning_rate, beta, mu, precision; steps unless given.
        keep_every: keep the weights along the way every so many steps.

    Raises ValueError for β = 0, and for a loss that has no identity.
    """
    s = settings
    if not s.beta:
        raise Explained("beta must be above 0 for DPO: at 0 no pair is worth anything.")
    named = function_identity(loss)  # before pairs are made, which takes minutes
    preferences, count = pairs(theta_init, run_id), steps or s.steps
    used = {name: getattr(s, name) for name in ("temperature", "batch_size", "beta", "precision")}
    inputs = used | {"pairs": preferences.identity, "loss": named}

    def rows(t: int) -> list[int]:
        return batch(range(len(preferences)), s.batch_size // 2, 1, run_id, t)

    def both(chosen: list[int]) -> Rollouts:
        picked = torch.tensor(chosen)
        return pad_and_concat(
            [
                part.rows(picked).to(machine.device())
                for part in (preferences.chosen, preferences.rejected)
            ]
        )

    def log_p(model: Policy, y: Rollouts) -> Tensor:
        with machine.passes(s.precision):
            return model.step_log_probs(y, s.temperature).sum(1)

    # pair → log π_ref of its completions, (2,), where the reference stays
    fixed: dict[int, Tensor] = {}

    @torch.no_grad()
    def log_reference(t: int, y: Rollouts, anchor: Policy) -> Tensor:
        if s.mu:
            return log_p(anchor, y)
        # once for all pairs that the run will see, so that a resumed run has the same to the last
        # digit
        if not fixed:
            seen = sorted({k for t in range(count) for k in rows(t)})
            for start in progress.track(
                range(0, len(seen), s.batch_size // 2), "the reference's log-probabilities"
            ):
                few = seen[start : start + s.batch_size // 2]
                fixed.update(zip(few, log_p(anchor, both(few)).view(2, -1).T, strict=True))
        return torch.stack([fixed[k] for k in rows(t)], 1).flatten()

    def step(t: int, learner: Policy, anchor: Policy) -> tuple[Tensor, dict[str, float]]:
        y = both(rows(t))
        better, worse = (log_p(learner, y) - log_reference(t, y, anchor)).chunk(2)
        value, h = loss(better - worse, s.beta).mean(), (better - worse).detach()
        return value, {
            "loss": value.item(),
            "accuracy": (h > 0).float().mean().item(),
            "log_ratio": better.mean().item(),
        }

    return train(
        step,
        inputs,
        theta_init,
        run_id,
        policy=policy,
        settings=s,
        steps=count,
        keep_every=keep_every,
        progress=progress,
    )
