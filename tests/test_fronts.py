"""Fronts: which points make one, its mean reward over a range of KL, intervals of paired differences."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from warp_lib.fronts import Effect, Interval, hypervolume, pareto, shares


def test_pareto_leaves_out_what_another_point_beats():
    """Guards: a dominated point on the front, a point lost to a tie, the order of KL."""
    #     SFT  worse than SFT  good  same reward, more KL  same KL, less reward  best
    kl = [0.0, 0.5, 2.0, 3.0, 2.0, 5.0]
    reward = [0.0, -0.1, 1.0, 1.0, 0.9, 1.2]
    assert pareto(kl, reward) == [0, 2, 5]
    order = [5, 3, 1, 0, 4, 2]
    assert [order[k] for k in pareto([kl[k] for k in order], [reward[k] for k in order])] == [0, 2, 5]


def test_hypervolume_counts_what_points_dominate():
    """The oracle is counting: the share of random places in the box that some point beats."""
    draw = np.random.default_rng(0)
    kl, score = draw.uniform(0, 12, 15), draw.normal(0.5, 1, 15)  # some beyond the corner, some below it
    corner, top = (10.0, 0.2), 4.0
    places = draw.uniform((0, corner[1]), (corner[0], top), (200_000, 2))
    beaten = ((kl[:, None] <= places[:, 0]) & (score[:, None] >= places[:, 1])).any(0)
    box = corner[0] * (top - corner[1])
    assert score.max() < top and hypervolume(kl, score, corner) == pytest.approx(beaten.mean() * box, abs=4 * box / math.sqrt(len(places)))
    assert hypervolume([0.0, 4.0], [1.0, 3.0], (10.0, 0.0)) == 4 * 1 + 6 * 3 and hypervolume([11.0, 1.0], [5.0, -1.0], (10.0, 0.0)) == 0


def test_mean_of_straight_lines_in_closed_form():
    """Guards: a mean over points instead of KL, the range's ends ignored."""
    kl = np.array([4.0, 0.0, 1.0])  # given in any order
    reward = np.array([2.5, 0.0, 1.0])  # from (0, 0) to (1, 1) to (4, 2.5)
    assert shares(kl, 0, 1) @ reward == pytest.approx(0.5)
    assert shares(kl, 1, 4) @ reward == pytest.approx(1.75)
    assert shares(kl, 0.5, 2) @ reward == pytest.approx((0.5 * 0.75 + 1 * 1.25) / 1.5)
    assert shares(kl, 0.5, 2).sum() == pytest.approx(1) and shares(kl, 1, 4)[1] == pytest.approx(0)


def test_mean_is_the_integral_of_the_interpolation():
    """The oracle is numerical integration of numpy's interpolation."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        kl = np.concatenate([[0.0, 8.0], draw.uniform(0, 8, 9)])
        reward = draw.normal(size=11)
        order = np.argsort(kl)
        grid = np.linspace(1.3, 6.1, 200_001)
        expected = integrate.trapezoid(np.interp(grid, kl[order], reward[order]), grid) / (6.1 - 1.3)
        assert shares(kl, 1.3, 6.1) @ reward == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("low, high", [(1, 5.1), (-0.1, 2), (2, 2), (3, 2)])
def test_nothing_is_extrapolated(low, high):
    with pytest.raises(ValueError, match="from 0 to 5"):
        shares([0.0, 2.0, 5.0], low, high)


def test_interval_is_students():
    """The oracle is scipy's one-sample t test."""
    x = [0.1, -0.2, 0.4, 0.05, 0.3]
    got, expected = Interval.of(x), stats.ttest_1samp(x, 0).confidence_interval()
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((0.13, expected.low, expected.high, 5))
    assert str(got).startswith("+0.130 (") and "n = 5" in str(got)
    one = Interval.of([0.2])
    assert one.mean == 0.2 and math.isnan(one.low) and "no interval" in str(one)


def test_an_effect_adds_the_errors_of_seeds_and_prompts():
    """The oracle is scipy's t test, over the means of the seeds and over those of the prompts."""
    values = np.random.default_rng(0).normal(0.3, 1, (4, 30))
    found = Effect.of(dict(enumerate(values)))
    seeds, prompts = (stats.ttest_1samp(values.mean(axis), 0).confidence_interval() for axis in (1, 0))
    half = math.hypot(*(interval.high - values.mean() for interval in (seeds, prompts)))
    assert (found.both.mean, found.both.high, found.both.n) == pytest.approx((values.mean(), values.mean() + half, 4))
    assert found.by_seed[2].mean == pytest.approx(values[2].mean())
    assert math.isnan(Effect.of({0: values[0]}).both.low)
