"""REINFORCE with a moving anchor: the inner loop of WARP (paper, Algorithm 1, lines 3 to 10), and
by itself the baseline.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .aligner import train
from .fast import machine
from .merging import Weights
from .policy import Policy
from .reward import Reward
from .runs.progress import Progress
from .runs.seeds import numpy_stream, torch_stream
from .runs.store import digest
from .settings import Settings
from .warp import Run, RunId

# the KL to SFT is logged every so many steps: it costs a forward pass, and nothing depends on it
SFT_EVERY = 5
Item = TypeVar("Item")


def reinforce(
    theta_init: Weights,
    run_id: RunId,
    *,
    policy: Policy,
    theta_sft: Weights,
    prompts: Sequence[Sequence[int]],
    reward: Reward,
    settings: Settings,
    steps: int | None = None,
    keep_every: int | None = None,
    progress: Progress,
) -> Run:
    """Train from θ_init to θ, or take the run from the store.

    Each step: y ~ π_θ(·|x); r_β = r(x, y) − β Σ_s log[π_θ(y_s) / π_anchor(y_s)]; θ ← AdamW along
    (r_β − baseline) ∇ log π_θ(y|x); anchor ← (1−μ) anchor + μ θ.

    Args:
        theta_init: where the run and its anchor begin.
        run_id: names the run's random streams: which prompts it sees, and what it samples.
        policy: lends its architecture and tokenizer; its weights are overwritten.
        theta_sft: only watched (kl_sft in the history).
        prompts: token ids to draw batches from, each once before any comes again.
        reward: texts → r̃ (n,).
        settings: max_new_tokens, temperature, batch_size, completions_per_prompt, baseline,
            learning_rate, beta, mu, precision; steps unless given.
        keep_every: keep the weights along the way every so many steps.
    """
    s = settings
    used = (
        "max_new_tokens",
        "temperature",
        "batch_size",
        "completions_per_prompt",
        "baseline",
        "beta",
        "precision",
    )
    inputs = {n: getattr(s, n) for n in used} | {
        "prompts": digest(list(map(list, prompts))),
        "reward": reward.identity,
        "sft": digest(theta_sft),
    }
    sft = policy.holding(theta_sft)

    def loss(t: int, learner: Policy, anchor: Policy) -> tuple[Tensor, dict[str, float]]:
        x = batch(prompts, s.batch_size, s.completions_per_prompt, run_id, t)
        generator = torch_stream(*run_id.role, "sampling", t, device=machine.device())
        with machine.passes(s.precision):
            y = learner.sample(x, s.max_new_tokens, s.temperature, generator, progress)
        r = reward(texts := learner.texts(y)).to(machine.device())
        progress.show(texts, r.tolist())
        progress.check()  # often, so that Stop answers within a second
        with machine.passes(s.precision):
            log_pi = learner.step_log_probs(y, s.temperature).sum(1)
            progress.check()
            with torch.no_grad():
                kl = log_pi - anchor.step_log_probs(y, s.temperature).sum(1)
                numbers = {}
                if t % SFT_EVERY == 0:
                    log_sft = sft.step_log_probs(y, s.temperature).sum(1)
                    numbers = {"kl_sft": (log_pi - log_sft).mean().item()}
        progress.check()
        value = policy_gradient_loss(
            log_pi,
            r - s.beta * kl,
            s.completions_per_prompt if s.baseline == "leave-one-out" else None,
        )
        return value, {"reward": r.mean().item(), "kl_anchor": kl.mean().item()} | numbers

    return train(
        loss,
        inputs,
        theta_init,
        run_id,
        policy=policy,
        settings=s,
        steps=steps or s.steps,
        keep_every=keep_every,
        progress=progress,
    )


def policy_gradient_loss(log_pi: Tensor, r_beta: Tensor, per_prompt: int | None) -> Tensor:
    """A loss whose gradient is minus the REINFORCE estimate: −mean[(r_β − baseline) log π_θ(y|x)].

    Args:
        log_pi: log π_θ(y|x) of each completion, (n,), with gradients.
        r_beta: rewards after the KL penalty, (n,), constants.
        per_prompt: k for the leave-one-out baseline (see `leave_one_out`); None: no baseline.
    """
    baseline = 0.0 if per_prompt is None else leave_one_out(r_beta.detach(), per_prompt)
    return -((r_beta.detach() - baseline) * log_pi).mean()


def leave_one_out(rewards: Tensor, per_prompt: int) -> Tensor:
    """Each completion's baseline, (n,): the mean of the others' rewards.

    The others are those of the same prompt, `per_prompt` ≥ 2 consecutive ones (RLOO, arXiv
    2402.14740), or for `per_prompt` = 1 the whole batch. Either way independent of the completion
    itself, so the gradient stays unbiased.
    """
    groups = rewards.view(-1, per_prompt) if per_prompt > 1 else rewards.view(1, -1)
    return ((groups.sum(1, keepdim=True) - groups) / (groups.shape[1] - 1)).flatten()


def batch(items: Sequence[Item], size: int, per_item: int, run_id: RunId, step: int) -> list[Item]:
    """What one step learns from, prompts or pairs, each `per_item` times: all items in the run's
    own order, reshuffled when used up.
    """
    distinct = size // per_item
    chosen = []
    for k in range(step * distinct, (step + 1) * distinct):
        epoch, position = divmod(k, len(items))
        chosen += [items[_order(len(items), run_id, epoch)[position]]] * per_item
    return chosen


@lru_cache(maxsize=4)
def _order(count: int, run_id: RunId, epoch: int) -> np.ndarray:
    return numpy_stream(*run_id.role, "prompts", epoch).permutation(count)
