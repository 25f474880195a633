"""Reward/KL fronts: their points, their mean reward over KL, differences and their intervals.

A front is read linearly between its points and never beyond them. Reading it needs no torch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from ..runs.errors import Explained

FEWEST = 3  # seeds from which an interval over seeds is given, and a side taken


def pareto(kl: ArrayLike, reward: ArrayLike) -> list[int]:
    """The points that no other beats (at least as much reward at no more KL), by increasing KL."""
    kl, reward = np.asarray(kl, dtype=float), np.asarray(reward, dtype=float)
    best, chosen = -math.inf, []
    for k in sorted(range(len(kl)), key=lambda k: (kl[k], -reward[k])):
        if reward[k] > best:
            best = reward[k]
            chosen.append(k)
    return chosen


def shares(kl: ArrayLike, low: float, high: float) -> np.ndarray:
    """The share of each point of a front in its mean reward over KL ∈ [low, high] nats, (points,).

    They add up to 1. The mean of the line through the points is linear in their rewards, so the
    same shares hold for every prompt's reward by itself.

    Args:
        kl: the points' KL, in any order, (points,), nats.

    Raises ValueError when the range is empty or the points do not span it.
    """
    kl = np.asarray(kl, dtype=float)
    if not (kl.min() <= low < high <= kl.max()):
        raise Explained(
            f"a mean from {low:g} to {high:g} nats needs points on both sides, and these go from"
            f" {kl.min():g} to {kl.max():g}."
        )
    # between two of these every line is straight
    grid = np.union1d(kl[(low < kl) & (kl < high)], [low, high])
    return np.trapezoid(weights(kl, grid), grid, axis=1) / (high - low)


def along(
    kl: np.ndarray, reward: np.ndarray, low: float, high: float, own_kl: np.ndarray
) -> np.ndarray:
    """Each prompt's part in the mean reward along a front over KL ∈ [low, high], (prompts,).

    Their mean is the front's. The points' KL are means over the same prompts, so a prompt also
    counts by how it moves them: to first order (the delta method), by the mean's derivative with
    respect to each point's KL times how far the prompt's KL is from it. With that, the variance
    over prompts is that of the front and not of a front whose KL is known.

    Args:
        kl: the points' KL, (points,), nats.
        reward: (points, prompts).
        own_kl: the KL of each point and prompt, (points, prompts), of mean `kl`.
    """
    of, mean, step = shares(kl, low, high), reward.mean(1), 1e-5
    slopes = np.zeros(len(kl))
    for k, this in enumerate(np.eye(len(kl))):
        # a point at an end of the range moves outwards only: inwards the others would not span it
        moves = [
            move
            for move in (-step, 0.0, step)
            if (kl + move * this).min() <= low and high <= (kl + move * this).max()
        ]
        first, last = (shares(kl + move * this, low, high) @ mean for move in (moves[0], moves[-1]))
        slopes[k] = (last - first) / (moves[-1] - moves[0])
    return of @ reward + slopes @ (own_kl - own_kl.mean(1, keepdims=True))


def weights(kl: ArrayLike, at: ArrayLike) -> np.ndarray:
    """How much each point counts where the line through them is read: (points, KLs read at).

    Each column adds up to 1.

    Args:
        kl: the points' KL, in any order, (points,), nats.
        at: the KLs to read at, nats; outside of the points' the nearest of them counts alone.
    """
    kl, at = np.asarray(kl, dtype=float), np.asarray(at, dtype=float)
    order = np.argsort(kl, kind="stable")
    return np.stack([np.interp(at, kl[order], column) for column in np.eye(len(kl))[:, order]])


def at(kl: float, own_kl: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A score of a line's points read at one KL, on each prompt, (prompts,).

    The points' KL are means over the same prompts, so a prompt also counts by how it moves them (to
    first order, as in `along`).

    own_kl, values: KL and score of each point, by increasing mean KL, on each prompt, both (points,
    prompts).
    """
    share = weights(own_kl.mean(1), [kl])[:, 0]
    return share @ values - _slope(kl, own_kl, values) * (share @ own_kl - kl)


def gap(
    reward: np.ndarray, policy_kl: np.ndarray, own_kl: np.ndarray, values: np.ndarray
) -> np.ndarray | None:
    """How much more a policy earns than a line at the policy's KL, on each prompt, (prompts,); None
    where its KL is beyond the line.

    Its variance over prompts counts that the policy's KL and the line's are means over the same
    prompts: a prompt on which the policy's KL exceeds the line's counts less, by the line's slope
    times the excess.

    reward, policy_kl: the policy's r̃ and KL on each prompt, (prompts,). own_kl, values: the line's,
    see `at`.
    """
    kl = policy_kl.mean()
    if kl > own_kl.mean(1)[-1]:
        return None
    slope = _slope(kl, own_kl, values)
    return reward - at(kl, own_kl, values) - slope * (policy_kl - kl)


def _slope(kl: float, own_kl: np.ndarray, values: np.ndarray) -> float:
    """How quickly a line's mean score rises with KL at one KL, a nat."""
    points, means = own_kl.mean(1), values.mean(1)
    below = int(np.clip(np.searchsorted(points, kl) - 1, 0, len(points) - 2))
    rise, run = (x[below + 1] - x[below] for x in (means, points))
    return float(rise / run) if run else 0.0  # at one KL, as policies that have not moved


@dataclass(frozen=True)
class Interval:
    """A mean over `n` paired differences and its 95% interval (Student's t), nan without one."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, differences: ArrayLike) -> "Interval":
        """The interval of independent differences, one a seed (or one a prompt)."""
        x = np.asarray(differences, dtype=float)
        half = math.nan
        if len(x) > 1:
            half = stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x))
        return cls(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))

    @property
    def side(self) -> int:
        """1 or −1 where the interval lies on one side of 0; 0 else, or without an interval."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{signed(self.mean)} (no interval)"
        return f"{signed(self.mean)} (95% CI {signed(self.low)} to {signed(self.high)})"


def signed(number: float, digits: int = 3) -> str:
    """A difference: with its sign, a true minus."""
    return f"{number:+z.{digits}f}".replace("-", "−")


def half_width(table: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of a table's mean, over other seeds and other prompts at once.

    A two-way random-effects model: a value is the mean, plus an effect of its seed, plus one of its
    prompt, plus the rest (interaction and sampling noise). The variance of the seeds' means / seeds
    and that of the prompts' means / prompts each hold the rest once, so their sum less the rest /
    (seeds · prompts) is the variance of the mean. Each part has the t quantile of its own degrees
    of freedom: seeds − 1 for what the seeds add, prompts − 1 for the prompts' means. The interval
    is never narrower than the one over seeds alone or over prompts alone.

    Args:
        table: values in any unit, (…, seeds, prompts), at least two each.

    Returns:
        Half widths in that unit, (…).
    """
    seeds, prompts = table.shape[-2:]
    by_seed, by_prompt = table.mean(-1), table.mean(-2)
    rest = (
        table - by_seed[..., None] - by_prompt[..., None, :] + table.mean((-1, -2))[..., None, None]
    )
    rest = (rest**2).sum((-1, -2)) / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)
    of_seeds, of_prompts = by_seed.var(-1, ddof=1) / seeds, by_prompt.var(-1, ddof=1) / prompts
    t_seeds, t_prompts = stdtrit(seeds - 1, 0.975), stdtrit(prompts - 1, 0.975)
    both = t_seeds**2 * np.maximum(of_seeds - rest, 0) + t_prompts**2 * of_prompts
    return np.sqrt(np.maximum(both, t_seeds**2 * of_seeds))


@dataclass(frozen=True, eq=False)
class Effect:
    """A number measured on each seed and prompt, with its errors over both.

    With fewer than `FEWEST` seeds each seed stands by itself, with its interval over prompts, and
    there is no interval for other seeds: two say next to nothing of how far apart seeds are.

    by_prompt: seed → the number on each prompt, (prompts,), on the same prompts for all seeds.
    """

    by_prompt: dict[int, np.ndarray]

    def __sub__(self, other: "Effect") -> "Effect":
        """Paired by prompt, on the seeds that both have."""
        shared = sorted(self.by_prompt.keys() & other.by_prompt.keys())
        return Effect({s: self.by_prompt[s] - other.by_prompt[s] for s in shared})

    def __neg__(self) -> "Effect":
        return Effect({seed: -values for seed, values in self.by_prompt.items()})

    @classmethod
    def mean_of(cls, effects: Iterable["Effect"]) -> "Effect":
        """The mean of several numbers of the same seeds and prompts."""
        first, *others = effects
        added = {s: sum([e.by_prompt[s] for e in others], x) for s, x in first.by_prompt.items()}
        return cls({seed: x / (1 + len(others)) for seed, x in added.items()})

    @property
    def by_seed(self) -> dict[int, Interval]:
        """Seed → its interval over prompts."""
        return {seed: Interval.of(values) for seed, values in self.by_prompt.items()}

    @property
    def few(self) -> bool:
        """Whether there are too few seeds for an interval over them."""
        return len(self.by_prompt) < FEWEST

    @property
    def both(self) -> Interval:
        """The 95% interval over seeds and prompts together (see `half_width`); n is of seeds.

        There is none for fewer than `FEWEST`.
        """
        table = np.array(list(self.by_prompt.values()), dtype=float)  # (seeds, prompts)
        mean, half = float(table.mean()), math.nan if self.few else float(half_width(table))
        return Interval(mean, mean - half, mean + half, len(table))

    @property
    def widest(self) -> Interval:
        """The interval over seeds and prompts, or over a single seed's prompts; two have none."""
        return self.both if len(self.by_prompt) != 1 else next(iter(self.by_seed.values()))

    @property
    def side(self) -> int:
        """The side of `both`: 0 with fewer than `FEWEST` seeds."""
        return self.both.side

    @property
    def detectable(self) -> float:
        """The smallest true effect of which the interval leaves out 0 nine times out of ten."""
        both = self.both
        more = stdtrit(both.n - 1, 0.9) / stdtrit(both.n - 1, 0.975)
        return float((both.high - both.mean) * (1 + more))

    def __str__(self) -> str:
        if len(self.by_prompt) == 2:
            each = "; ".join(f"seed {seed}: {i}" for seed, i in self.by_seed.items())
            return f"{signed(self.both.mean)} ({each}; two seeds decide nothing)"
        return f"{self.widest}{' over prompts, one seed' if self.few else ''}"

    def rows(self, name: str) -> dict[str, Interval]:
        """For a figure: its interval over seeds and prompts, or too few seeds' over prompts."""
        if self.few:
            return {f"{name}, seed {seed} (over prompts)": i for seed, i in self.by_seed.items()}
        return {name: self.both}


@dataclass(frozen=True, eq=False)
class Matched:
    """The difference of two methods' rewards at one KL (nats), on one seed, in r̃ on each test
    prompt, (prompts,).
    """

    kl: float
    by_prompt: np.ndarray

    @property
    def difference(self) -> Interval:
        """Over test prompts. It counts that a KL is a mean over the same prompts (see `gap`)."""
        return Interval.of(self.by_prompt)


OnPrompts = tuple[np.ndarray, np.ndarray]
"""A method's points on one seed by increasing KL: KL and r̃ of each on each prompt, both (points,
prompts). Between them it is read straight."""


def matched(first: OnPrompts, second: OnPrompts, kl: float | None = None) -> Matched:
    """The rewards of two methods at one KL.

    kl: where to compare, nats; None for the largest KL that both reach. There one of the two is a
    policy itself; elsewhere a path of few checkpoints is read too low.

    Raises ValueError where one of them does not reach this KL: nothing is extrapolated.
    """
    (kl_a, a), (kl_b, b) = first, second
    if kl is None:
        if (ahead := gap(a[-1], kl_a[-1], kl_b, b)) is not None:
            return Matched(float(kl_a[-1].mean()), ahead)
        behind = gap(b[-1], kl_b[-1], kl_a, a)
        assert behind is not None  # one of the two ends first
        return Matched(float(kl_b[-1].mean()), -behind)
    reach = [own_kl[-1].mean() for own_kl in (kl_a, kl_b)]
    if not 0 <= kl <= min(reach):
        raise Explained(
            f"kl must be from 0 to what both methods reach, {reach[0]:.2f} and {reach[1]:.2f},"
            f" not {kl:.2f}."
        )
    return Matched(kl, at(kl, kl_a, a) - at(kl, kl_b, b))


def over_kl(
    first: OnPrompts, second: OnPrompts, low: float, high: float = math.inf
) -> tuple[np.ndarray, tuple[float, float]]:
    """The mean difference of two methods' rewards over KL, on each test prompt of one seed,
    (prompts,); and from where to where it goes, nats.

    Both are read straight between all their points, for there are no other prompts to choose a
    front on: their points should lie equally close, as two LITI lines' do. It goes from `low`, or
    from SFT where less than half a nat would be left, to `high`, or as far as both reach.
    """
    end = min(high, *(own_kl[-1].mean() for own_kl, _ in (first, second)))
    start = low if end >= low + 0.5 else 0.0
    a, b = (along(own_kl.mean(1), r, start, end, own_kl) for own_kl, r in (first, second))
    return a - b, (start, float(end))


def straight(results: pd.DataFrame, scores: Mapping[str, np.ndarray], method: str) -> OnPrompts:
    """A method's points on one seed, SFT the first.

    results: a table (`read_results`); scores: reward (r̃) and kl (nats) of each of its rows and each
    prompt, (rows, prompts) (`read_scores`). Raises ValueError where there are none.
    """
    if not (results["method"] == method).any():
        raise Explained(f"there are no points of {method} to compare.")
    of = results["method"].isin(["sft", method]).to_numpy()
    order = np.argsort(scores["kl"][of].mean(1), kind="stable")
    return scores["kl"][of][order], scores["reward"][of][order]
