"""The student report's plot, redone: WARP with I and M of 1 to 3 beside one long run of REINFORCE, from the study's tables.

Needs no torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .fronts import Effect, weights
from .outcomes import finished_seeds, outcome

EXPERIMENT, LONG = "grid", "reinforce-900"
MANY = (1, 2, 3)  # I and M


@dataclass(frozen=True)
class Cell:
    """A policy of the plot, on test prompts.

    steps: of all its runs together; depth: of those that follow one another, I · T; completions: scored in training. reward, kl: seed → r̃
    and KL to SFT of each prompt, (prompts,).
    """

    steps: int
    depth: int
    completions: int
    reward: dict[int, np.ndarray]
    kl: dict[int, np.ndarray]

    def less(self, other: "Cell") -> dict[str, Effect]:
        """What it has over another cell in r̃ and in KL, paired by seed and prompt. Nothing where no seed has both."""
        shared = self.reward.keys() & other.reward.keys()
        pairs = {"r̃": (self.reward, other.reward), "KL, nats": (self.kl, other.kl)}
        return {name: Effect.of({seed: a[seed] - b[seed] for seed in sorted(shared)}) for name, (a, b) in pairs.items() if shared}

    def height(self) -> Effect | None:
        """Its r̃ less that of REINFORCE's front at the same KL (see `Outcome.line`), over the seeds that have both; None where there is
        none, or where a seed's KL is beyond its front."""
        found = {}
        for seed in sorted(self.reward.keys() & set(finished_seeds(EXPERIMENT, [LONG]))):
            (kl, line), own = outcome(EXPERIMENT, LONG, seed).line("test"), self.kl[seed].mean()
            if own > kl[-1]:
                return None
            found[seed] = self.reward[seed] - weights(kl, [own])[:, 0] @ line
        return Effect.of(found) if found else None


def warp_cells() -> dict[tuple[int, int], Cell]:
    """(I, M) → WARP after I iterations of M runs each: the last one's LITI point, which the student report shows and where the next begins.

    Those that have a finished seed.
    """
    found = {}
    for m in MANY:
        arm = f"warp-m{m}"  # it passes through every I on its way
        for i in MANY if finished_seeds(EXPERIMENT, [arm]) else ():
            found[i, m] = _cell(arm, f"method == 'liti' and iteration == {i}", runs=m)
    return found


def reinforce_cells() -> dict[int, Cell]:
    """Steps → REINFORCE after so many of them, every T up to the largest I · M · T. Empty before a seed has finished."""
    seeds = finished_seeds(EXPERIMENT, [LONG])
    path = outcome(EXPERIMENT, LONG, seeds[0]).of("test").query("method == 'reinforce'") if seeds else {"steps": []}
    return {int(t): _cell(LONG, f"method == 'reinforce' and steps == {t}", runs=1) for t in sorted(path["steps"])}


def _cell(arm: str, where: str, runs: int) -> Cell:
    """The one policy among an arm's test rows `where` a condition holds."""
    reward, kl = {}, {}
    for seed in finished_seeds(EXPERIMENT, [arm]):
        one = outcome(EXPERIMENT, arm, seed)
        row = one.of("test").query(where)
        place, steps, completions = row.index.item(), int(row["steps"].item()), int(row["completions"].item())
        reward[seed], kl[seed] = one.scores["test.reward"][place], one.scores["test.kl"][place]
    return Cell(steps, steps // runs, completions, reward, kl)


def claims(warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]) -> dict[str, dict[str, Effect]]:
    """What the student report claims, as differences in r̃ and in KL: WARP's less REINFORCE's after as many steps; three iterations less
    one; three runs less one. Those whose cells share a seed."""
    equal = {(m, m): reinforce.get(cell.steps) for (i, m), cell in warp.items() if i == m}
    pairs = {f"I = M = {m} less REINFORCE's {r.steps} steps": (warp[m, m], r) for (_, m), r in equal.items() if r}
    pairs |= {f"I = 3 less I = 1, M = {m}": (warp[3, m], warp[1, m]) for m in MANY if (1, m) in warp}
    pairs |= {f"M = 3 less M = 1, I = {i}": (warp[i, 3], warp[i, 1]) for i in MANY if {(i, 1), (i, 3)} <= warp.keys()}
    return {name: found for name, (a, b) in pairs.items() if (found := a.less(b))}


def rows(warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]) -> list[dict[str, Any]]:
    """For reading: what each cell cost, where it lies, and its height over REINFORCE's front at the same KL."""
    named = {f"WARP, I = {i}, M = {m}": cell for (i, m), cell in warp.items()}
    named |= {f"REINFORCE, {t} steps": cell for t, cell in reinforce.items()}
    return [
        {
            "policy": name, "steps": cell.steps, "depth": cell.depth, "completions": f"{cell.completions:,}",
            "r̃": str(Effect.of(cell.reward)), "KL, nats": str(Effect.of(cell.kl)),
            "over REINFORCE's front": str(cell.height() or "") if name.startswith("WARP") else "",
        }
        for name, cell in named.items()
    ]  # fmt: skip
