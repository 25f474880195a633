"""Reward/KL fronts compared: which points make a front, its mean reward over a range of KL, and the difference of two over seeds.

A front is read linearly between its points and never beyond them. Reading it needs no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import stdtrit


def pareto(kl: Sequence[float], reward: Sequence[float]) -> list[int]:
    """The points that no other one beats (at least as much reward at no more KL), by increasing KL."""
    best, chosen = -math.inf, []
    for k in sorted(range(len(kl)), key=lambda k: (kl[k], -reward[k])):
        if reward[k] > best:
            best = reward[k]
            chosen.append(k)
    return chosen


def hypervolume(kl: Sequence[float], score: Sequence[float], corner: tuple[float, float]) -> float:
    """Area between the points' front and a corner (KL, score) that is worse than all of them: the best score at no more than each KL,
    above the corner's, summed over KL up to the corner's. Points beyond the corner count nothing.

    Args:
        kl, score: of the points, (points,), in nats and in any unit. The area is in nats times that unit.
    """
    inside = [k for k in pareto(kl, score) if kl[k] < corner[0] and score[k] > corner[1]]
    ends = [kl[k] for k in inside] + [corner[0]]
    return float(sum((score[k] - corner[1]) * (end - start) for k, (start, end) in zip(inside, pairwise(ends), strict=True)))


def shares(kl: Sequence[float], low: float, high: float) -> np.ndarray:
    """How much each point of a front counts in its mean reward over KL ∈ [low, high] nats: (points,), of sum 1.

    The mean of the line through the points is linear in their rewards, so the same shares hold for every prompt's reward by itself.

    Args:
        kl: the points' KL, in any order, (points,), nats.

    Raises ValueError when the range is empty or the points do not span it.
    """
    kl = np.asarray(kl, dtype=float)
    if not (kl.min() <= low < high <= kl.max()):
        raise ValueError(
            f"a mean from {low:g} to {high:g} nats needs points on both sides, and these go from {kl.min():g} to {kl.max():g}."
        )
    grid = np.union1d(kl[(low < kl) & (kl < high)], [low, high])  # between two of these every line is straight
    return np.trapezoid(weights(kl, grid), grid, axis=1) / (high - low)


def weights(kl: Sequence[float], at: Sequence[float]) -> np.ndarray:
    """How much each point counts where the line through them is read: (points, places), each column of sum 1.

    Args:
        kl: the points' KL, in any order, (points,), nats.
        at: the KLs to read at, (places,), nats; outside of the points' the nearest of them counts alone.
    """
    kl = np.asarray(kl, dtype=float)
    order = np.argsort(kl, kind="stable")
    return np.stack([np.interp(at, kl[order], column) for column in np.eye(len(kl))[:, order]])


@dataclass(frozen=True)
class Interval:
    """A mean over `n` paired differences and its 95% interval (Student's t): low and high are nan for a single one."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> "Interval":
        """The interval of independent differences, one a seed (or one a prompt)."""
        x = np.asarray(differences, dtype=float)
        half = stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
        return cls(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))

    @property
    def side(self) -> int:
        """1 or −1 where the interval lies on one side of 0, else 0; a single difference has no side."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        span = f"{self.low:+z.3f} to {self.high:+z.3f}" if self.n > 1 else "no interval"
        return f"{self.mean:+z.3f} ({span}, n = {self.n})"


@dataclass(frozen=True)
class Effect:
    """A number measured on each seed and prompt: its mean, and its errors over both.

    by_seed: seed → its interval over prompts. over_seeds: of the seeds' means, over training runs on the same prompts; over_prompts: of the
    prompts' means, over prompts with the same runs.
    """

    by_seed: dict[int, Interval]
    over_seeds: Interval
    over_prompts: Interval

    @classmethod
    def of(cls, by_prompt: dict[int, np.ndarray]) -> "Effect":
        """From each seed's numbers on the same prompts, (prompts,)."""
        by_seed = {seed: Interval.of(values) for seed, values in by_prompt.items()}
        over_prompts = Interval.of(np.mean(list(by_prompt.values()), axis=0))
        return cls(by_seed, Interval.of([i.mean for i in by_seed.values()]), over_prompts)

    @property
    def both(self) -> Interval:
        """The 95% interval over seeds and prompts together, whose errors add up; its n is of seeds, and a single one has none."""
        mean, seeds, prompts = self.over_seeds.mean, self.over_seeds, self.over_prompts
        half = math.hypot(seeds.high - mean, prompts.high - prompts.mean)
        return Interval(mean, mean - half, mean + half, seeds.n)

    @property
    def widest(self) -> Interval:
        """The interval of most that there is: over seeds and prompts, or over the prompts of a single seed."""
        return self.both if self.over_seeds.n > 1 else self.over_prompts

    def __str__(self) -> str:
        over = f"seeds and prompts, n = {self.over_seeds.n}" if self.over_seeds.n > 1 else "prompts, one seed"
        return f"{self.widest.mean:+z.3f} ({self.widest.low:+z.3f} to {self.widest.high:+z.3f} over {over})"

    def named(self, name: str) -> dict[str, Interval]:
        """Its intervals for a figure: over prompts, over seeds, and over both."""
        return {f"{name}, over prompts": self.over_prompts, f"{name}, over seeds": self.over_seeds, f"{name}, over both": self.both}
