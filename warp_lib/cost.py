"""What a run of WARP would cost here, before it begins: its steps, how many of them are stored already, and the minutes of the rest."""

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch

from .aligner import Run, Seed
from .experiment import Experiment
from .live import duration
from .merging import Weights
from .progress import NotStored, OnlyStored, Progress, Stopped
from .reward import Reward
from .store import records, remember, surroundings

TIMED = 3  # steps that are timed where none is on record; the first is not counted, it warms up


@dataclass(frozen=True)
class Cost:
    """A run's optimiser steps and those that are stored; its M · I runs; seconds a step takes, and whether an earlier run says so."""

    steps: int
    stored: int
    runs: int
    pace: float
    recorded: bool

    @property
    def seconds(self) -> float:
        """Training time that is left."""
        return (self.steps - self.stored) * self.pace

    def __str__(self) -> str:
        whole = f"{self.steps:,} steps in {self.runs} {'runs' if self.runs > 1 else 'run'}"
        if self.stored == self.steps:
            return f"{whole}, all of them stored: nothing to train, only to evaluate."
        source = "as an earlier run took" if self.recorded else f"measured on {TIMED - 1} steps"
        left = f"{self.steps - self.stored:,} take about {duration(self.seconds)} here ({self.pace:.2g} s a step, {source})"
        return f"{whole}, {self.stored:,} of them stored; the other {left}, and the evaluation comes after them."


def cost(experiment: Experiment, rewards: dict[str, Reward]) -> Cost:
    """The cost of WARP with the experiment's settings.

    Nothing is trained, unless this machine has no run of this size on record: then the first steps of the run itself are timed, once, and
    kept. A run that another process is training is waited for.

    Args:
        rewards: as `Experiment.rewards` gave them, under whatever temperature.
    """
    s = experiment.settings
    stored = _stored(experiment, rewards)
    pace, recorded = recorded_pace(experiment), True
    if pace is None:
        reward = experiment.standardised(rewards, Progress())["reward"]
        inputs = _size(experiment) | {"threads": torch.get_num_threads()}
        timed = remember("pace", inputs, lambda _: {"seconds": _timed_pace(experiment, reward)})
        pace, recorded = timed.record["seconds"], False
        stored = _stored(experiment, rewards)
    return Cost(s.iterations * s.runs * s.steps, stored, s.iterations * s.runs, pace, recorded)


def recorded_pace(experiment: Experiment) -> float | None:
    """Seconds a step took in the latest stored run of this policy, batch and length on as many threads; None if there is none."""
    like, threads = surroundings() | _size(experiment), torch.get_num_threads()
    for record in records("run"):
        if record.get("threads") == threads and all(record["inputs"].get(name) == value for name, value in like.items()):
            return statistics.median(row["seconds"] for row in record["result"]["history"])
    return None


def _size(experiment: Experiment) -> dict[str, str | int]:
    """What a step's time depends on most, beside the machine. The reward model's size is not on a run's record."""
    s = experiment.settings
    return {"policy": experiment.policy.identity, "batch_size": s.batch_size, "max_new_tokens": s.max_new_tokens}


def _stored(experiment: Experiment, rewards: dict[str, Reward]) -> int:
    """Steps of the runs in the store, in their order up to the first that is missing, and those of its checkpoint.

    What comes after a missing run is not known: another initialisation follows from it.
    """
    lookup, found = OnlyStored(), 0
    try:
        align = experiment.aligner(experiment.standardised(rewards, lookup)["reward"], lookup)

        def count(theta: Weights, seed: Seed) -> Run:
            nonlocal found
            run = align(theta, seed)
            found += len(run.history)
            return run

        experiment.warp(count)
    except NotStored as missing:
        found += missing.steps
    return found


class _Watch(Progress):
    """Notes when steps end, and stops after `TIMED`."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def begin(self, title: str, done: int, total: int) -> None:
        self.began = time.perf_counter()

    def advance(self) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) == TIMED:
            self.stop.set()


def _timed_pace(experiment: Experiment, reward: Reward) -> float:
    """Seconds a step takes, from the first steps of the first run that is not stored; its checkpoint keeps them."""
    watch = _Watch()
    with suppress(Stopped):
        experiment.warp(experiment.aligner(reward, watch))
    moments = watch.ends if len(watch.ends) > 1 else [watch.began, *watch.ends]
    return statistics.median(b - a for a, b in pairwise(moments))
