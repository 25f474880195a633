"""What a run of WARP would cost here, before it begins: its steps, how many of them are stored
already, and the minutes of the rest.
"""

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ..experiment import Experiment
from ..merging import Weights
from ..reward import Reward
from ..runs.checkpoint import steps_done
from ..runs.progress import Progress, Stopped, duration
from ..runs.store import NotStored, only_stored, records, remember, surroundings
from ..warp import Run, RunId

TIMED = 3  # steps that are timed where none is on record; the first is not counted, it warms up


@dataclass(frozen=True)
class Cost:
    """A run's optimiser steps and those that are stored; its M · I runs; the seconds a step takes
    here, and who says so.
    """

    steps: int
    stored: int
    runs: int
    pace: float | None = None  # None where nothing is left to train
    source: str = ""

    @property
    def seconds(self) -> float:
        """Training time that is left."""
        return (self.steps - self.stored) * (self.pace or 0.0)

    def __str__(self) -> str:
        whole = f"{self.steps:,} steps in {self.runs} {'runs' if self.runs > 1 else 'run'}"
        if self.stored == self.steps:
            return f"{whole}, all of them stored: nothing to train, only to evaluate."
        left = (
            f"{self.steps - self.stored:,} take about {duration(self.seconds)} here"
            f" ({self.pace:.2g} s a step, {self.source})"
        )
        return (
            f"{whole}, {self.stored:,} of them stored; the other {left}, and the evaluation comes"
            " after them."
        )


def cost(experiment: Experiment, rewards: dict[str, Reward]) -> Cost:
    """The cost of WARP with the experiment's settings.

    Nothing is trained, unless something is left to train and this machine has no run of this size
    on record: then the first steps of the run itself are timed, once, and kept.

    Args:
        rewards: as `Experiment.rewards` gave them, under whatever temperature.
    """
    s = experiment.settings
    runs = s.iterations * s.runs
    whole = Cost(runs * s.steps, _stored(experiment, rewards), runs)
    if whole.stored == whole.steps:
        return whole
    if found := recorded_pace(experiment):
        pace, threads = found
        elsewhere = "" if threads == torch.get_num_threads() else f" with OMP_NUM_THREADS={threads}"
        return replace(whole, pace=pace, source=f"as an earlier run took{elsewhere}")
    reward = experiment.standardised(rewards, Progress())["reward"]
    inputs = _size(experiment) | {"threads": torch.get_num_threads()}
    timed = remember("pace", inputs, lambda _: {"seconds": _timed_pace(experiment, reward)})
    stored = _stored(experiment, rewards)
    return replace(
        whole, stored=stored, pace=timed.record["seconds"], source=f"measured on {TIMED - 1} steps"
    )


def recorded_pace(experiment: Experiment) -> tuple[float, int] | None:
    """Seconds a step took in the latest stored run of this policy, batch and length, and on how
    many threads: on as many as here if there is one. None if there is no such run."""
    like, here, elsewhere = surroundings() | _size(experiment), torch.get_num_threads(), None
    for record in records("run"):
        if all(record["inputs"].get(name) == value for name, value in like.items()):
            found = (
                statistics.median(row["seconds"] for row in record["result"]["history"]),
                record["threads"],
            )
            if record["threads"] == here:
                return found
            elsewhere = elsewhere or found
    return elsewhere


def _size(experiment: Experiment) -> dict[str, str | int]:
    """What a step's time depends on most, beside the machine. The reward model's size is not on a
    run's record.
    """
    s = experiment.settings
    return {
        "policy": experiment.policy.identity,
        "batch_size": s.batch_size,
        "max_new_tokens": s.max_new_tokens,
    }


def _stored(experiment: Experiment, rewards: dict[str, Reward]) -> int:
    """Steps of the runs in the store, in their order up to the first that is missing, and those of
    its checkpoint.

    What comes after a missing run is not known: another initialisation follows from it.
    """
    found = 0
    try:
        with only_stored():
            align = experiment.aligner(
                experiment.standardised(rewards, Progress())["reward"], Progress()
            )

            def count(theta: Weights, run_id: RunId, **_: int | None) -> Run:
                nonlocal found
                run = align(theta, run_id)
                found += len(run.history)
                return run

            experiment.warp(count)
    except NotStored as missing:
        found += steps_done(missing.part) if missing.kind == "run" else 0
    return found


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
    """Seconds a step takes, from the first steps of the first run that is not stored; its
    checkpoint keeps them.
    """
    watch = _Watch()
    with suppress(Stopped):
        experiment.warp(experiment.aligner(reward, watch))
    if len(watch.moments) == 1:  # no step was left: another process has just trained them
        return time.perf_counter() - watch.moments[0]
    return statistics.median(
        b - a for a, b in pairwise(watch.moments[1 if len(watch.moments) > 2 else 0 :])
    )
