"""Reading the results table: rewards at one KL, between points that were measured."""

import pandas as pd
import pytest

from warp_lib import paths
from warp_lib.results import COLUMNS, matched, read_results, reward_at, write_results

ROWS = pd.DataFrame(
    [
        {"method": "sft", "kl": 0.0, "reward": 0.0, "reward_se": 0.1},
        {"method": "warp", "kl": 2.0, "reward": 1.0, "reward_se": 0.3},
        {"method": "warp", "kl": 4.0, "reward": 1.4, "reward_se": 0.4},
        {"method": "reinforce", "kl": 6.0, "reward": 1.2, "reward_se": 0.3},
    ]
)


def test_between_two_points():
    """Linear between neighbours; a path begins at SFT, so a KL below its first checkpoint is between, not outside."""
    assert reward_at(ROWS, "warp", 3.0) == pytest.approx((1.2, 0.35))
    assert reward_at(ROWS, "reinforce", 3.0) == pytest.approx((0.6, 0.2))


def test_nothing_is_extrapolated():
    with pytest.raises(ValueError, match="kl must be within the KL that warp reaches, 0.00 to 4.00, not 5.00"):
        reward_at(ROWS, "warp", 5.0)


def test_matched_at_the_largest_common_kl():
    """At KL 4: 1.4 against 0.8, and an interval of 1.96 times the two standard errors together."""
    at = matched(ROWS, "warp", "reinforce")
    error = 1.96 * (0.4**2 + (0.1 + 0.2 * 4 / 6) ** 2) ** 0.5
    assert (at.kl, at.difference, at.low, at.high) == pytest.approx((4.0, 0.6, 0.6 - error, 0.6 + error))
    assert matched(ROWS, "warp", "reinforce", kl=2.0).difference == pytest.approx(1.0 - 0.4)


def test_parts_make_one_table(store):
    """Each notebook replaces its own rows only; without both notebooks there is no table to read."""
    write_results("toy", "03_warp", [{"method": "warp", "kl": 1.0}], [], {})
    with pytest.raises(ValueError, match="name='toy' has no results of 04_reinforce_baseline yet"):
        read_results("toy")
    write_results("toy", "04_reinforce_baseline", [{"method": "reinforce", "kl": 2.0}], [], {})
    write_results("toy", "03_warp", [{"method": "warp", "kl": 3.0}], [], {})
    table = read_results("toy")
    assert list(table.columns) == list(COLUMNS) and dict(zip(table["method"], table["kl"], strict=True)) == {"warp": 3.0, "reinforce": 2.0}
    assert not list(paths.RUNS.rglob("*.tmp"))
