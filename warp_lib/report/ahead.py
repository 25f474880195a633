"""What a report on a large policy costs here, said before it begins."""

import time

import torch

from ..fast import machine
from ..policy import Policy
from ..runs.progress import a_step, duration
from ..runs.seeds import torch_stream
from ..settings import PROFILES, Settings

SIZES = (4, 12)  # completions that are timed, of each size twice: the first time warms up
PROMPT = 10  # tokens


def cost(settings: Settings, profile: str) -> str:
    """A sentence on the hours that a report with these settings takes on this machine: its
    training's and its evaluation's, timed on a few completions. Nothing is kept.

    profile: the settings' own; if there is a smaller one of its name, it is named.

    Raises ValueError where the policy cannot be loaded.
    """
    s, policy = settings, Policy.from_name(settings.policy)
    steps = 2 * s.iterations * s.runs * s.steps  # WARP's, and REINFORCE's as many
    # SFT, runs, merges and LITI points; the baseline's checkpoints; two fronts
    points = 1 + s.iterations * (2 * s.runs + 2) + 2 * s.front_points
    step = _seconds(policy, s, s.batch_size, s.precision, learns=True)
    point = _seconds(policy, s, s.test_prompts * s.test_samples, "float32", learns=False)
    millions = sum(p.numel() for p in policy.model.parameters()) / 1e6
    small = f"{profile}-small"
    smaller = f"; --profile {small} is a smaller version" if small in PROFILES else ""
    return (
        f"{s.policy} has {millions:.0f} million parameters. Here {steps:,} steps of {s.batch_size}"
        f" completions take about {duration(steps * step)} ({a_step(step)}), and evaluating"
        f" {points} policies on {s.test_prompts * s.test_samples} completions"
        f" {duration(points * point)}. What is finished is kept: stop it at any time{smaller}."
    )


def _seconds(policy: Policy, s: Settings, rows: int, precision: str, learns: bool) -> float:
    """Seconds for so many completions: sampled, scored by two policies and, where one learns,
    differentiated. Proportional to the rows beyond what is timed.
    """
    took = []
    for size in SIZES:
        for _ in range(2):
            generator = torch_stream("ahead", size, device=machine.device())
            began = time.perf_counter()
            with machine.passes(precision):
                y = policy.sample([[1] * PROMPT] * size, s.max_new_tokens, s.temperature, generator)
                with torch.no_grad():
                    policy.log_probs(y, s.temperature)
                with torch.set_grad_enabled(learns):
                    log_pi = policy.log_probs(y, s.temperature).sum()
            if learns:
                log_pi.backward()
                policy.model.zero_grad()
            log_pi.item()  # waits for an accelerator
            seconds = time.perf_counter() - began
        took.append(seconds)
    each = max(0.0, took[1] - took[0]) / (SIZES[1] - SIZES[0])
    return took[0] + each * (rows - SIZES[0])
