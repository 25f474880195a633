"""WARP, the loop over iterations and runs (arXiv 2406.16768, Algorithm 1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .aligner import Aligner, Run
from .merging import Weights, interpolate

Merge = Callable[[Weights, Sequence[Weights]], Weights]


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
                θ_m ← optimiser step along r_β ∇ log π_θm   reinforce.reinforce (loss),
                aligner.train (AdamW) θ_ema ← (1 − μ) θ_ema + μ θ_m               aligner.train
        θ_slerp ← slerp(θ_init, {θ_m}, 1/M)                 merging.slerp
        θ_init ← (1 − η) θ_init + η θ_slerp                 merging.interpolate

    Args:
        theta_sft: the supervised policy's weights, where everything begins.
        align: trains one run from initial weights and a seed. Any trainer will do;
            `reinforce.reinforce` is the paper's.
        iterations, runs, eta: I, M, η.
        merge: averages the runs over their initialisation: `merging.slerp`, `merging.lerp`.
        seed: of the whole pipeline; run m of iteration i draws from the streams (seed, "warp", i,
            m).
    """
    theta_init = theta_sft
    for i in range(1, iterations + 1):
        trained = [align(theta_init, (seed, "warp", i, m)) for m in range(1, runs + 1)]
        merged = merge(theta_init, [run.weights for run in trained])
        liti = interpolate(theta_init, merged, eta)
        yield Iteration(i, theta_init, trained, merged, liti)
        theta_init = liti
