"""The student report's plot, redone: WARP with I and M of 1 to 3 beside one long run of REINFORCE,
from the study's tables.

Needs no torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fronts import Effect
from .outcomes import EARLIER, SEEDS, Outcome, Place, finished_seeds, outcome

MANY = (1, 2, 3)  # I and M
# Which arms have policies of M runs, with every I on their way, and which are long runs with every
# T on theirs.
WARP: dict[int, list[Place]] = {m: [("grid", f"warp-m{m}")] for m in MANY}
WARP[2].append(("primary", "warp"))
LONGEST: Place = ("grid", "reinforce-900")
LONG: list[Place] = [LONGEST, ("primary", "reinforce")]


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
        seeds = list(seeds)
        return {
            n: Effect({s: by_seed[s] for s in seeds})
            for n, by_seed in (("r̃", self.reward), ("KL, nats", self.kl))
        }

    def less(self, other: "Cell") -> dict[str, Effect]:
        """What it has over another cell in r̃ and in KL, paired by seed and prompt, on the seeds
        that both have.
        """
        seeds = shared_by([self, other])
        pairs = (("r̃", self.reward, other.reward), ("KL, nats", self.kl, other.kl))
        return {name: Effect({s: a[s] - b[s] for s in seeds}) for name, a, b in pairs}

    def height(self) -> Effect | None:
        """Its r̃ less that of the longest run's front at the same KL, on the seeds that both have;
        None where there is none, or where a seed's KL is beyond its front."""
        rivals = _units(LONGEST)
        lines = {
            s: rivals[s].front_at([self.kl[s].mean()])
            for s in sorted(self.reward.keys() & rivals.keys())
        }
        if not lines or any(line is None for line in lines.values()):
            return None
        return Effect({s: self.reward[s] - line[0] for s, line in lines.items()})


def shared_by(cells: Iterable[Cell]) -> list[int]:
    """The seeds that all of the cells have."""
    each = [set(cell.reward) for cell in cells]
    return sorted(set.intersection(*each)) if each else []


def warp_cells() -> dict[tuple[int, int], Cell]:
    """(I, M) → WARP after I iterations of M runs each: the last one's LITI point, where the next
    begins. Those with a finished seed.
    """
    found = {
        (i, m): _cell(WARP[m], f"method == 'liti' and iteration == {i}", runs=m)
        for m in MANY
        for i in MANY
    }
    return {place: cell for place, cell in found.items() if cell}


def reinforce_cells() -> dict[int, Cell]:
    """Steps → REINFORCE after so many of them, every T that a finished seed has been through."""
    units = [one for place in LONG for one in _units(place).values()]
    steps = {
        int(t) for one in units for t in one.of("test").query("method == 'reinforce'")["steps"]
    }
    return {
        t: _cell(LONG, f"method == 'reinforce' and steps == {t}", runs=1) for t in sorted(steps)
    }


def _units(place: Place) -> dict[int, Outcome]:
    """Seed → an arm's finished unit, of the seeds that count."""
    experiment, arm = place
    return {
        seed: outcome(experiment, arm, seed)
        for seed in finished_seeds(experiment, [arm])
        if seed in EARLIER + SEEDS
    }


def _cell(places: list[Place], where: str, runs: int) -> Cell | None:
    """The one policy among the arms' test rows `where` a condition holds, on all seeds that have
    it; None where none has. Where two arms passed through it, with the same runs, it is the first
    one's."""
    reward, kl, cost = {}, {}, (0, 0)
    for place in reversed(places):
        for seed, one in _units(place).items():
            row = one.of("test").query(where)
            if len(row):
                at, cost = (
                    row.index.item(),
                    (
                        int(row["steps"].item()),
                        int(row["completions"].item()),
                    ),
                )
                reward[seed], kl[seed] = one.scores["test.reward"][at], one.scores["test.kl"][at]
    steps, completions = cost
    return Cell(steps, steps // runs, completions, reward, kl) if reward else None


def claims(
    warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]
) -> dict[str, dict[str, Effect]]:
    """What the student report claims, as differences in r̃ and in KL: WARP's less REINFORCE's after
    as many steps; more iterations less one; more runs less one. Those whose cells share a seed."""
    diagonal = {m: warp[m, m] for m in MANY if (m, m) in warp}
    pairs = {
        f"I = M = {m} less REINFORCE's {cell.steps} steps": (cell, reinforce.get(cell.steps))
        for m, cell in diagonal.items()
    }
    pairs |= {
        f"I = {i} less I = 1, M = {m}": (warp.get((i, m)), warp.get((1, m)))
        for m in MANY
        for i in (2, 3)
    }
    pairs |= {
        f"M = {m} less M = 1, I = {i}": (warp.get((i, m)), warp.get((i, 1)))
        for m in (2, 3)
        for i in MANY
    }
    return {name: a.less(b) for name, (a, b) in pairs.items() if a and b and shared_by([a, b])}


def rows(warp: dict[tuple[int, int], Cell], reinforce: dict[int, Cell]) -> list[dict[str, Any]]:
    """For reading: what each policy cost, where it lies, and how high WARP's are over the front of
    REINFORCE's longest run.
    """

    def row(name: str, cell: Cell, height: Effect | None = None) -> dict[str, Any]:
        place = {column: str(effect) for column, effect in cell.over(cell.reward).items()}
        cost = {"steps": cell.steps, "depth": cell.depth, "completions": f"{cell.completions:,}"}
        return {"policy": name} | cost | place | {"over REINFORCE's front": str(height or "")}

    return [
        row(f"WARP, I = {i}, M = {m}", cell, cell.height()) for (i, m), cell in warp.items()
    ] + [row(f"REINFORCE, {t} steps", cell) for t, cell in reinforce.items()]
