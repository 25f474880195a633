"""One run of an aligner: a policy that learns, its moving anchor, the optimiser and the
checkpoints. What it learns from is passed in.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .merging import Weights
from .policy import Policy
from .runs.checkpoint import Checkpoint
from .runs.progress import Progress
from .runs.store import digest, memoise, save_tensors
from .settings import Settings
from .warp import Run, RunId

WARM_UP = 10  # steps in which the learning rate rises to its value

Loss = Callable[[int, Policy, Policy], tuple[Tensor, dict[str, float]]]
"""A step's loss, and its numbers for the history, from the step's number, the learning policy and
its anchor.
"""


def train(
    loss: Loss,
    inputs: dict[str, Any],
    theta_init: Weights,
    run_id: RunId,
    *,
    policy: Policy,
    settings: Settings,
    steps: int,
    keep_every: int | None,
    progress: Progress,
) -> Run:
    """Train from θ_init to θ, or take the run from the store. Each step: θ ← AdamW along −∇loss;
    anchor ← (1−μ) anchor + μ θ.

    Args:
        loss: of a step (see `Loss`).
        inputs: what the loss depends on besides the weights and `run_id`: JSON values. Losses of
            one module and name with equal inputs are taken for one.
        theta_init: where the run and its anchor begin.
        run_id: which run it is.
        policy: lends its architecture and tokenizer; its weights are overwritten.
        settings: learning_rate, mu.
        keep_every: keep the weights along the way every so many steps.

    Raises ValueError where `inputs` uses a name that every run's inputs have anyway ("mu", "steps"
    …): one of the two would be left out of the run's key.
    """
    s = settings
    of_every_run = {
        # another aligner's run of the same inputs is another run
        "aligner": f"{loss.__module__}.{getattr(loss, '__qualname__', type(loss).__qualname__)}",
        "learning_rate": s.learning_rate,
        "mu": s.mu,
        "policy": policy.identity,
        "init": digest(theta_init),
        "seed": list(run_id.role),
        "steps": steps,
        "keep_every": keep_every,
    }
    if twice := sorted(inputs.keys() & of_every_run.keys()):
        raise ValueError(
            f"an input of a loss cannot be named {twice[0]!r}: every run has one of that name."
        )
    inputs = inputs | of_every_run

    def make(folder) -> dict[str, Any]:
        learner = policy.load(theta_init)
        anchor = learner.clone()
        optimiser = torch.optim.AdamW(
            learner.model.parameters(), s.learning_rate, weight_decay=0.0, fused=True
        )
        update_anchor = get_ema_multi_avg_fn(decay=1 - s.mu)
        checkpoint = Checkpoint(
            folder, {"policy": learner.model, "anchor": anchor.model}, [optimiser]
        )
        with checkpoint:
            for t in checkpoint.steps(progress, steps, str(run_id)):
                began = time.perf_counter()
                value, numbers = loss(t, learner, anchor)
                optimiser.param_groups[0]["lr"] = s.learning_rate * min(1.0, (t + 1) / WARM_UP)
                optimiser.zero_grad()
                value.backward()
                progress.check()  # the last place from which nothing of the step remains
                checkpoint.refuse_not_finite(value, numbers)
                optimiser.step()
                optimiser.zero_grad()  # not to be in memory while the next step samples
                with torch.no_grad():
                    update_anchor(
                        list(anchor.model.parameters()), list(learner.model.parameters()), t
                    )
                if keep_every and (t + 1) % keep_every == 0:
                    save_tensors(folder / f"step-{t + 1}.safetensors", learner.weights())
                progress.log(**numbers)
                checkpoint.history.append(numbers | {"seconds": time.perf_counter() - began})
        save_tensors(folder / "policy.safetensors", learner.weights())
        return {"history": checkpoint.history}

    entry = memoise("run", inputs, make)
    history = entry.record["history"]
    kept = range(keep_every, steps + 1, keep_every) if keep_every else ()
    checkpoints = {t: entry.tensors(f"step-{t}") for t in kept}
    seconds = sum(row["seconds"] for row in history)
    return Run(entry.tensors("policy"), checkpoints, history, seconds)
