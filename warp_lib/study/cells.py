"""The student report's plot, redone from the study's tables. Needs no torch.

WARP with I and M of 1 to 3 beside one long run of REINFORCE.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from .fronts import Effect
from .outcomes import ArmId, finished

MANY = (1, 2, 3)  # I and M
# Which arms have policies of M runs, with every I on their way, and which are long runs with every
# T on theirs.
GRID, PRIMARY = "grid", "primary"
WARP: dict[int, list[ArmId]] = {m: [(GRID, f"warp-m{m}")] for m in MANY}
WARP[2].append((PRIMARY, "warp"))
LONGEST: ArmId = (GRID, "reinforce-900")
LONG: list[ArmId] = [LONGEST, (PRIMARY, "reinforce")]


@dataclass(frozen=True)
class Cell:
    """A policy of the plot, on test prompts.

    steps: of all its runs together; depth: of those that follow one another, I · T; completions:
    scored in training. reward, kl: seed → r̃ and KL to SFT of each prompt, (prompts,).
    """

    steps: int
    depth: int
    completions: int
    reward: dict[int, np.ndarray]
    kl: dict[int, np.ndarray]

    def over(self, seeds: Iterable[int]) -> dict[str, Effect]:
        """Its r̃ and its KL on some of its seeds."""
        seeds, numbers = list(seeds), {"r̃": self.reward, "KL, nats": self.kl}
        return {name: Effect({s: by_seed[s] for s in seeds}) for name, by_seed in numbers.items()}

    def less(self, other: "Cell") -> dict[str, Effect]:
        """What it has over another cell in r̃ and in KL, paired, on the seeds that both have."""
        pairs = (("r̃", self.reward, other.reward), ("KL, nats", self.kl, other.kl))
        return {name: Effect(mine) - Effect(its) for name, mine, its in pairs}

    def gap(self) -> Effect | None:
        """Its r̃ less that of the longest run's front at the same KL, on the seeds that both have.

        None where there is none, or where a seed's KL is beyond its front.
        """
        rivals = finished(*LONGEST)
        seeds = sorted(self.reward.keys() & rivals.keys())
        gaps = {s: rivals[s].gap(self.reward[s], self.kl[s]) for s in seeds}
        reached = {s: gap for s, gap in gaps.items() if gap is not None}
        return Effect(reached) if gaps and len(reached) == len(gaps) else None


def shared_by(cells: Iterable[Cell]) -> list[int]:
    """The seeds that all of the cells have."""
    each = [set(cell.reward) for cell in cells]
    return sorted(set.intersection(*each)) if each else []


def warp_cells() -> dict[tuple[int, int], Cell]:
    """(I, M) → WARP after I iterations of M runs each, where a seed has finished.

    That is the last one's LITI point, where the next iteration begins.
    """
    cells = {
        (i, m): _cell(WARP[m], f"method == 'liti' and iteration == {i}", runs=m)
        for m, i in product(MANY, MANY)
    }
    return {size: cell for size, cell in cells.items() if cell}


def reinforce_cells() -> dict[int, Cell]:
    """Steps → REINFORCE after so many of them, every T that a finished seed has been through."""
    runs = [unit.of("test") for arm in LONG for unit in finished(*arm).values()]
    steps = sorted({int(t) for run in runs for t in run.query("method == 'reinforce'")["steps"]})
    cells = {t: _cell(LONG, f"method == 'reinforce' and steps == {t}", runs=1) for t in steps}
    return {t: cell for t, cell in cells.items() if cell}


def _cell(arms: list[ArmId], where: str, runs: int) -> Cell | None:
    """The one policy among the arms' test rows `where` a condition holds, on all seeds with it.

    None where none has. Where two arms passed through it, with the same runs, it is the first's.
    """
    reward, kl, steps, completions = {}, {}, 0, 0
    for arm in reversed(arms):
        for seed, unit in finished(*arm).items():
            points = unit.of("test").query(where)
            if not points.empty:
                ((k, row),) = points.iterrows()
                steps, completions = int(row["steps"]), int(row["completions"])
                reward[seed], kl[seed] = (unit.scores[f"test.{s}"][k] for s in ("reward", "kl"))
    return Cell(steps, steps // runs, completions, reward, kl) if reward else None


def claims(
    warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]
) -> dict[str, dict[str, Effect]]:
    """What the student report claims, as differences in r̃ and in KL, where cells share a seed.

    WARP's less REINFORCE's after as many steps; more iterations less one; more runs less one.
    """
    diagonal = {m: warp[m, m] for m in MANY if (m, m) in warp}
    pairs = {
        f"I = M = {m} less REINFORCE's {cell.steps} steps": (cell, reinforce.get(cell.steps))
        for m, cell in diagonal.items()
    }
    pairs |= {
        f"I = {i} less I = 1, M = {m}": (warp.get((i, m)), warp.get((1, m)))
        for m, i in product(MANY, (2, 3))
    }
    pairs |= {
        f"M = {m} less M = 1, I = {i}": (warp.get((i, m)), warp.get((i, 1)))
        for m, i in product((2, 3), MANY)
    }
    return {name: a.less(b) for name, (a, b) in pairs.items() if a and b and shared_by([a, b])}


def rows(warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]) -> list[dict[str, Any]]:
    """For reading: each policy's cost and place, and WARP's gap to REINFORCE's longest run."""

    def row(name: str, cell: Cell, gap: Effect | None = None) -> dict[str, Any]:
        numbers = {column: str(effect) for column, effect in cell.over(cell.reward).items()}
        cost = {"steps": cell.steps, "depth": cell.depth, "completions": f"{cell.completions:,}"}
        return {"policy": name} | cost | numbers | {"over REINFORCE's front": str(gap or "")}

    merged = [row(f"WARP, I = {i}, M = {m}", c, c.gap()) for (i, m), c in warp.items()]
    return merged + [row(f"REINFORCE, {t} steps", cell) for t, cell in reinforce.items()]
