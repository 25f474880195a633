"""What a run of WARP would cost here: its steps, those that are stored, the minutes of the rest."""

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..experiment import Experiment
from ..merging import Weights
from ..reward import Reward
from ..runs.checkpoint import steps_done
from ..runs.progress import Progress, Stopped, a_step, duration
from ..runs.store import NotStored, memoise, only_stored, records, surroundings
from ..warp import Run, RunId

TIMED = 3  # steps that are timed where none is on record; the first is not counted, it warms up


@dataclass(frozen=True)
class Cost:
    """Optimiser steps, those of them that are stored, M · I runs, and the seconds a step takes."""

    steps: int
    stored: int
    runs: int
    pace: float | None = None  # None where nothing is left to train
    source: str = ""  # of the pace, in words

    @property
    def seconds(self) -> float:
        """Training time that is left."""
        return (self.steps - self.stored) * (self.pace or 0.0)

    def __str__(self) -> str:
        whole = f"{self.steps:,} steps in {self.runs} {'runs' if self.runs > 1 else 'run'}"
        if self.stored == self.steps:
            return f"{whole}, all of them stored: nothing to train, only to evaluate."
        steps = "steps" if self.stored > 1 else "step"
        stored = f", {self.stored:,} {steps} stored" if self.stored else ""
        return (
            f"{whole}{stored}: about {duration(self.seconds)} here ({a_step(self.pace or 0.0)},"
            f" {self.source}), and the evaluation comes on top."
        )


def cost(experiment: Experiment, rewards: dict[str, Reward]) -> Cost:
    """The cost of WARP with the experiment's settings.

    Nothing is trained, unless something is left to train and this machine has no run of this size
    on record: then the first steps of the run itself are timed, once, and kept.

    Args:
        rewards: as `Experiment.rewards` gave them, under whatever temperature.
    """
    _ = experiment.train_prompts  # which are no training, stored or not
    s = experiment.settings
    runs = s.iterations * s.runs
    steps, stored, here = runs * s.steps, _stored(experiment, rewards), torch.get_num_threads()
    if stored == steps:
        return Cost(steps, stored, runs)
    if recorded := recorded_pace(experiment):
        pace, threads = recorded
        elsewhere = "" if threads == here else f" with OMP_NUM_THREADS={threads}"
        return Cost(steps, stored, runs, pace, f"as an earlier run took{elsewhere}")
    reward = experiment.standardised(rewards, Progress())["reward"]
    inputs = _size(experiment) | {"threads": here}
    timed = memoise("pace", inputs, lambda _: {"seconds": _timed_pace(experiment, reward)})
    source = f"measured on {TIMED - 1} steps"
    return Cost(steps, _stored(experiment, rewards), runs, timed.record["seconds"], source)


def recorded_pace(experiment: Experiment) -> tuple[float, int] | None:
    """Seconds a step took in the latest stored run of this policy, batch and length, and on how
    many threads.

    On as many as here if there is one; None if there is no such run.
    """
    like, here, elsewhere = surroundings() | _size(experiment), torch.get_num_threads(), None
    for run in records("run"):
        if like.items() <= run["inputs"].items():
            pace = statistics.median(row["seconds"] for row in run["result"]["history"])
            if run["threads"] == here:
                return pace, here
            elsewhere = elsewhere or (pace, run["threads"])
    return elsewhere


def _size(experiment: Experiment) -> dict[str, str | int]:
    """What a step's time depends on most, beside the machine.

    The reward model's size is not on a run's record.
    """
    s = experiment.settings
    return {
        "policy": experiment.policy.identity,
        "batch_size": s.batch_size,
        "max_new_tokens": s.max_new_tokens,
    }


def _stored(experiment: Experiment, rewards: dict[str, Reward]) -> int:
    """Steps of the stored runs, up to the first that is missing, and those of its checkpoint.

    What comes after a missing run is not known: another initialisation follows from it.
    """
    steps = 0

    def count(theta: Weights, run_id: RunId, **_: int | None) -> Run:
        nonlocal steps
        run = align(theta, run_id)
        steps += len(run.history)
        return run

    try:
        with only_stored():
            reward = experiment.standardised(rewards, Progress())["reward"]
            align = experiment.aligner(reward, Progress())
            experiment.warp(count)
    except NotStored as missing:
        steps += steps_done(missing.part) if missing.kind == "run" else 0
    return steps


class _Watch(Progress):
    """Notes when the last loop began and its steps ended, and stops after `TIMED`."""

    def __init__(self) -> None:
        super().__init__()
        self.moments = [time.perf_counter()]

    def begin(self, title: str, done: int, total: int) -> None:
        self.moments = [time.perf_counter()]

    def advance(self) -> None:
        self.moments.append(time.perf_counter())
        if len(self.moments) > TIMED:
            self.stop.set()


def _timed_pace(experiment: Experiment, reward: Reward) -> float:
    """Seconds a step takes, from the first steps of the first run that is not stored.

    Its checkpoint keeps them.
    """
    watch = _Watch()
    with suppress(Stopped):
        experiment.warp(experiment.aligner(reward, watch))
    if len(watch.moments) == 1:  # no step was left: another process has just trained them
        return time.perf_counter() - watch.moments[0]
    first = 1 if len(watch.moments) > 2 else 0
    return statistics.median(b - a for a, b in pairwise(watch.moments[first:]))
