"""The policies of a run that are measured: checkpoints, merges, and steps from SFT to the last."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .merging import Weights, interpolate
from .settings import Settings
from .warp import Iteration, Run


@dataclass(frozen=True)
class Point:
    """Weights to evaluate, and their place in the results table (see `results.COLUMNS`).

    made: the weights; or what makes them when they are asked for, so that the eleven policies of a
    front do not lie in memory together.
    """

    method: str
    made: Weights | Callable[[], Weights]
    steps: int
    seconds: float
    iteration: int | None = None
    runs: int | None = None
    run: int | None = None
    eta: float | None = None

    @property
    def theta(self) -> Weights:
        """Its weights."""
        return self.made() if callable(self.made) else self.made

    @property
    def columns(self) -> dict[str, Any]:
        """Its place, by the names of the table's columns."""
        return {name: value for name, value in vars(self).items() if name != "made"}


def warp_points(
    theta_sft: Weights, iterations: list[Iteration], settings: Settings
) -> Iterator[Point]:
    """SFT, every iteration's runs, merge and LITI point, and the final front over η."""
    yield Point("sft", theta_sft, 0, 0.0)
    s, steps, seconds = settings, 0, 0.0
    for i in iterations:
        here = {"iteration": i.number, "runs": s.runs}
        for m, run in enumerate(i.runs, start=1):
            yield Point("run", run.weights, steps + s.steps, seconds + run.seconds, run=m, **here)
        steps, seconds = steps + s.runs * s.steps, seconds + i.seconds
        yield Point(s.merge, i.merged, steps, seconds, eta=1.0, **here)
        yield Point("liti", i.liti, steps, seconds, eta=s.eta, **here)
    for eta in np.linspace(0, 1, s.front_points):
        theta = partial(interpolate, theta_sft, i.merged, eta)
        yield Point("warp", theta, steps, seconds, eta=eta, **here)


def reinforce_points(
    theta_sft: Weights, run: Run, settings: Settings, method: str = "reinforce"
) -> Iterator[Point]:
    """One long run along its way, and its own LITI line."""
    pace = run.seconds / len(run.history)
    for steps, theta in run.checkpoints.items():
        yield Point(method, theta, steps, steps * pace)
    for eta in np.linspace(0, 1, settings.front_points):
        yield Point(
            f"{method}-liti",
            partial(interpolate, theta_sft, run.weights, eta),
            len(run.history),
            run.seconds,
            eta=eta,
        )
