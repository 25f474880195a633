"""WARP, the loop over iterations and runs (arXiv 2406.16768, Algorithm 1), and the types of what is
passed into it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .merging import Weights, interpolate


@dataclass(frozen=True)
class RunId:
    """Which training of which pipeline: it names the run's random streams and its store entry.

    Args:
        seed: of training's draws (see `Settings.seed`).
        method: "warp", "reinforce", "dpo" …
        iteration, run: i and m, counted from 1; None where the method has no such thing.

    Raises ValueError for a run without an iteration, whose streams would be an iteration's.
    """

    seed: int
    method: str
    iteration: int | None = None
    run: int | None = None

    def __post_init__(self):
        if self.run is not None and self.iteration is None:
            raise ValueError(f"run {self.run} of {self.method} needs its iteration.")

    @property
    def role(self) -> tuple[str | int, ...]:
        """How the names of the run's random streams begin (see `runs.seeds`)."""
        parts = (self.seed, self.method, self.iteration, self.run)
        return tuple(part for part in parts if part is not None)

    def __str__(self) -> str:
        """For people: "warp, i = 1, m = 2"."""
        numbers = (("i", self.iteration), ("m", self.run))
        return ", ".join([self.method, *(f"{n} = {k}" for n, k in numbers if k is not None)])


@dataclass(frozen=True)
class Run:
    """A trained policy: its weights, those along the way (step → weights), the history of its
    steps, and the seconds it took when it ran.
    """

    weights: Weights
    checkpoints: dict[int, Weights]
    history: list[dict[str, float]]
    seconds: float


class Aligner(Protocol):
    """Trains one policy from θ_init: `reinforce` and `dpo` with the rest bound are two.

    steps: instead of the settings'; keep_every: keep a checkpoint every so many steps. WARP itself
    gives neither.
    """

    def __call__(
        self,
        theta_init: Weights,
        run_id: RunId,
        /,
        *,
        steps: int | None = None,
        keep_every: int | None = None,
    ) -> Run: ...


class Merge(Protocol):
    """Averages tuned weights θ_1 … θ_M, relative to their initialisation (see `merging.slerp`)."""

    def __call__(self, base: Weights, tuned: Sequence[Weights], /) -> Weights: ...


Map = Callable[..., Iterable[Run]]
"""Calls an aligner on each θ_init and run, as the built-in `map` does; or side by side, as that of
`runs.cluster`.
"""


@dataclass(frozen=True)
class Iteration:
    """One iteration: where it began, what it trained, what it merged, where the next begins."""

    number: int
    init: Weights
    runs: list[Run]
    merged: Weights
    liti: Weights

    @property
    def seconds(self) -> float:
        """Time its runs trained, one after the other."""
        return sum(run.seconds for run in self.runs)


def warp(
    theta_sft: Weights,
    align: Aligner,
    *,
    iterations: int,
    runs: int,
    eta: float,
    merge: Merge,
    seed: int,
    map: Map = map,
) -> Iterator[Iteration]:
    """Yield each iteration as it ends. The last one's `merged` is WARP's policy; its front is
    `interpolate(theta_sft, merged, η)`.

    Algorithm 1, and where each line of it is::

        θ_init ← θ_sft                                      here
        for i = 1 … I, for m = 1 … M                        here
            θ_m, θ_ema ← θ_init                             aligner.train
            for t = 1 … T                                   aligner.train
                y ~ π_θm(· | x)                             policy.Policy.sample
                r_β ← r(x, y) − β log π_θm(y|x)/π_ema(y|x)  reinforce.reinforce
                θ_m ← optimiser step along r_β ∇ log π_θm   reinforce (loss), aligner (optimiser)
                θ_ema ← (1 − μ) θ_ema + μ θ_m               aligner.train
        θ_slerp ← slerp(θ_init, {θ_m}, 1/M)                 merging.slerp
        θ_init ← (1 − η) θ_init + η θ_slerp                 merging.interpolate

    The paper's REINFORCE has no baseline; here the mean r_β of the other completions is subtracted
    (`reinforce.leave_one_out`) unless the settings say baseline="none".

    Args:
        theta_sft: the supervised policy's weights, where everything begins.
        align: trains one run; any trainer will do, `reinforce.reinforce` is the paper's.
        iterations, runs, eta: I, M, η.
        merge: averages the runs relative to their initialisation.
        seed: of training's draws. Run m of iteration i draws from streams of its own.
        map: maps `align` over an iteration's M runs, one after another or on other machines (see
            `Map`). They need nothing of each other.
    """
    theta_init = theta_sft
    for i in range(1, iterations + 1):
        run_ids = [RunId(seed, "warp", i, m) for m in range(1, runs + 1)]
        trained = list(map(align, [theta_init] * runs, run_ids))
        merged = merge(theta_init, [run.weights for run in trained])
        liti = interpolate(theta_init, merged, eta)
        yield Iteration(i, theta_init, trained, merged, liti)
        theta_init = liti
