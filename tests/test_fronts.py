"""Fronts: which points make one, its mean reward over a range of KL, intervals of paired
differences.
"""

import math

import numpy as np
import pytest
from bootstrap import bootstrap
from scipy import integrate, stats

from warp_lib.study.fronts import (
    Effect,
    Interval,
    along,
    half_width,
    over_kl,
    pareto,
    shares,
)


def test_pareto_leaves_out_what_another_point_beats():
    """Guards: a dominated point on the front, a point lost to a tie, the order of KL."""
    #     SFT  worse than SFT  good  same reward, more KL  same KL, less reward  best
    kl = [0.0, 0.5, 2.0, 3.0, 2.0, 5.0]
    reward = [0.0, -0.1, 1.0, 1.0, 0.9, 1.2]
    assert pareto(kl, reward) == [0, 2, 5]
    order = [5, 3, 1, 0, 4, 2]
    assert [order[k] for k in pareto([kl[k] for k in order], [reward[k] for k in order])] == [
        0,
        2,
        5,
    ]


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
        expected = integrate.trapezoid(np.interp(grid, kl[order], reward[order]), grid) / (
            6.1 - 1.3
        )
        assert shares(kl, 1.3, 6.1) @ reward == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("low, high", [(1, 5.1), (-0.1, 2), (2, 2), (3, 2)])
def test_nothing_is_extrapolated(low, high):
    with pytest.raises(ValueError, match="from 0 to 5"):
        shares([0.0, 2.0, 5.0], low, high)


def test_interval_is_students():
    """The oracle is scipy's one-sample t test."""
    x = [0.1, -0.2, 0.4, 0.05, 0.3]
    got, expected = Interval.of(x), stats.ttest_1samp(x, 0).confidence_interval()
    assert (got.mean, got.low, got.high, got.n) == pytest.approx(
        (0.13, expected.low, expected.high, 5)
    )
    assert str(got) == f"+0.130 (95% CI −{-got.low:.3f} to +{got.high:.3f})"
    one = Interval.of([0.2])
    assert one.mean == 0.2 and math.isnan(one.low) and "no interval" in str(one)


# of seeds, of prompts and of the rest, as standard deviations of a value → the most that its
# coverage may be
SPREADS = {
    "seeds only": ((0.5, 0.0, 0.1), 0.965),
    "prompts only": ((0.0, 1.0, 0.1), 0.965),
    "seeds, and a large rest": ((0.3, 0.0, 1.0), 0.965),
    "all, as far apart in the mean": ((0.1, 0.5, 0.3), 0.975),
    "all, seeds further": ((0.2, 0.5, 0.5), 0.975),
    # Too wide with three seeds, 0.97, for whose few means Student's quantile is large whatever
    # share of the error they have.
    "all, prompts further": ((0.05, 0.5, 0.2), 0.98),
    # Where seeds hardly differ, the rest makes the seeds' means vary, and the interval is no
    # narrower than theirs alone: it is too wide.
    "hardly seeds, and a large rest": ((0.05, 0.3, 1.0), 0.985),
    "the rest only": ((0.0, 0.0, 1.0), 0.992),
}


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("regime", SPREADS)
def test_an_interval_over_seeds_and_prompts_holds_the_truth_in_19_of_20_studies(regime, seeds):
    """4,000 simulated studies each. Guards: the rest counted twice (once with the seeds, once with
    the prompts), or not at all.
    """
    (of_seeds, of_prompts, of_rest), most = SPREADS[regime]
    draw, studies, prompts = np.random.default_rng(seeds), 4000, 100
    table = of_rest * draw.standard_normal((studies, seeds, prompts))
    table += of_seeds * draw.standard_normal(
        (studies, seeds, 1)
    ) + of_prompts * draw.standard_normal((studies, 1, prompts))
    assert 0.93 <= (abs(table.mean((1, 2))) <= half_width(table)).mean() <= most


def test_an_interval_over_both_is_never_narrower_than_over_one():
    """The oracle is scipy's t test, over the means of the seeds and over those of the prompts."""
    draw = np.random.default_rng(0)
    for spread in (0.0, 0.1, 1.0):
        values = draw.normal(0.3, 1, (4, 30)) + spread * draw.normal(size=(4, 1))
        found = Effect(dict(enumerate(values)))
        ends = [
            stats.ttest_1samp(values.mean(axis), 0).confidence_interval().high for axis in (1, 0)
        ]
        highs = [Interval.of(values.mean(axis)).high for axis in (1, 0)]
        assert highs == pytest.approx(ends) and found.both.high >= max(ends) - 1e-12
        assert (found.both.mean, found.both.n) == pytest.approx((values.mean(), 4))
        assert found.by_seed[2].mean == pytest.approx(values[2].mean())
        assert str(found) == str(found.both) and found.rows("x") == {"x": found.both}


def test_fewer_than_three_seeds_take_no_side():
    """All values are above 0 by far. Guards: an interval or a side from two seeds; one seed's
    prompts taken for seeds.
    """
    values = np.random.default_rng(0).normal(5, 0.1, (3, 30))
    assert Effect(dict(enumerate(values))).side == 1
    for n in (1, 2):
        found = Effect({seed + 4: values[seed] for seed in range(n)})
        assert (
            found.side == found.both.side == 0
            and math.isnan(found.both.low)
            and found.both.mean == pytest.approx(values[:n].mean())
        )
        assert found.rows("x") == {
            f"x, seed {k + 4} (over prompts)": Interval.of(values[k]) for k in range(n)
        }
    one, two = Effect({4: values[0]}), Effect({4: values[0], 5: values[1]})
    assert one.widest == Interval.of(values[0]) and "over prompts, one seed" in str(one)
    first, second = two.by_seed.values()
    assert (
        str(two)
        == f"{values[:2].mean():+.3f} (seed 4: {first}; seed 5: {second}; two seeds decide nothing)"
    )
    assert math.isnan(two.widest.low) and "no interval" in str(two.widest)


def test_a_bootstrapped_mean_has_students_interval():
    """Guards: draws of a prompt alone and not of all its numbers, the n − 1 of a variance, a normal
    quantile for Student's.
    """
    a, b = np.random.default_rng(0).normal(0.3, 1, (2, 12)) + 3 * np.random.default_rng(1).normal(
        size=12
    )
    found, expected = bootstrap(lambda share: share @ a - share @ b, 12), Interval.of(a - b)
    assert found.mean == pytest.approx(expected.mean) and found.high - found.mean == pytest.approx(
        expected.high - expected.mean, rel=0.05
    )
    assert found == bootstrap(lambda share: share @ a - share @ b, 12) and found.n == 12


def test_a_fronts_interval_counts_that_its_kl_is_measured():
    """The oracle is the bootstrap, in which both are means over the drawn prompts. Guards: KL taken
    as known, whose interval is narrower here; the sign of what a point's KL does.
    """
    draw = np.random.default_rng(3)
    far = draw.normal(size=200)
    own_kl = np.array([[0.0], [1.5], [3.0]]) * (1 + 0.4 * far)
    reward = np.array([[0.0], [1.0], [1.4]]) + 0.5 * draw.normal(size=200) - 0.2 * far
    kl = own_kl.mean(1)
    found = Interval.of(along(kl, reward, 1.0, 2.5, own_kl))
    expected = bootstrap(lambda s: shares(own_kl @ s, 1.0, 2.5) @ (reward @ s), 200)
    assert found.mean == pytest.approx(expected.mean)
    known = Interval.of(shares(kl, 1.0, 2.5) @ reward)
    assert found.high - found.mean == pytest.approx(expected.high - expected.mean, rel=0.05)
    assert known.high - known.mean < 0.9 * (found.high - found.mean)


def test_an_interval_up_to_where_a_line_ends_counts_that_the_end_is_measured():
    """The oracle is the bootstrap, in which the end moves with the drawn prompts. Guards: a slope
    at a range's end that is neither one-sided slope, by which it is 1.3 times too wide here.
    """
    draw = np.random.default_rng(5)
    far = draw.normal(size=200)

    def line(*kl: float, shape: float):
        own_kl = np.array([[0.0], *([x] for x in kl)]) * (1 + 0.3 * far)
        means = shape * np.sqrt([0.0, *kl])[:, None]
        return own_kl, means + 0.1 * draw.normal(size=200)

    first, second = line(2.0, 4.0, 6.0, shape=1.1), line(2.5, 5.0, 7.0, shape=1.0)

    def difference(share: np.ndarray) -> float:
        ends = [own_kl @ share for own_kl, _ in (first, second)]
        high = min(kl[-1] for kl in ends)
        a, b = (
            shares(kl, 1.0, high) @ (reward @ share)
            for kl, (_, reward) in zip(ends, (first, second), strict=True)
        )
        return a - b

    values, (_, end) = over_kl(first, second, 1.0)
    assert end == first[0][-1].mean()
    found, expected = Interval.of(values), bootstrap(difference, 200)
    assert found.mean == pytest.approx(expected.mean)
    assert found.high - found.mean == pytest.approx(expected.high - expected.mean, rel=0.05)


def test_a_detectable_effect_is_seen_nine_times_out_of_ten():
    """By simulation: many studies of six seeds, whose mean is shifted by what one study says."""
    draw = np.random.default_rng(0)
    tables = draw.normal(size=(400, 6, 50)) * 0.2 + draw.normal(size=(400, 6, 1))
    effects = [Effect(dict(enumerate(table))) for table in tables]
    shift = float(np.mean([effect.detectable for effect in effects]))
    seen = np.mean([effect.both.low + shift > 0 for effect in effects])
    assert 0.85 < seen < 0.95
