"""Reading the results table: rewards at one KL, between points that were measured."""

import pandas as pd
import pytest

from warp_lib import paths
from warp_lib.points import all_points
from warp_lib.results import COLUMNS, matched, read_results, real_positive, reward_at, write_results

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


DAMAGE = {
    "half a table": lambda file: file.write_text(file.read_text()[: len(file.read_text()) // 2]),
    "a table without its last row": lambda file: file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1])),
    "an empty table": lambda file: file.write_text(""),
    "a table of noise": lambda file: file.write_bytes(bytes(range(256))),
    "another table": lambda file: file.write_text("a,b\n1,2\n"),
    "half a JSON file": lambda file: file.with_suffix(".json").write_text('{"scorers": {"reward'),
    "a JSON file that is a list": lambda file: file.with_suffix(".json").write_text("[]"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_table_of_one_run_breaks_nothing_else(store, capsys, damage):
    """It is passed over and named, once, by whoever reads all runs; and written anew with its notebook. Guards: fewer points, silently."""
    row = {"method": "warp", "seed": 3, "reward": 1.0, "kl": 2.0}
    for name in ("bad", "good"):
        write_results(name, "03_warp", [row, row | {"kl": 4.0}], [{"point": 0}], {})
    file = store / "bad" / "results" / "03_warp.csv"
    damage(file)
    for _ in range(2):
        sources = set(all_points()["source"])
        assert "your run good" in sources and "your run bad" not in sources
    write_results("bad", "04_reinforce_baseline", [row | {"method": "reinforce"}], [], {})
    assert capsys.readouterr().err.count(str(file)) == 1
    if not file.is_dir():
        write_results("bad", "03_warp", [row, row | {"kl": 4.0}], [{"point": 0}], {})
        assert read_results("bad")["kl"].tolist() == [2.0, 4.0, 2.0]


def test_a_damaged_own_table_is_one_sentence(store):
    for part in ("03_warp", "04_reinforce_baseline"):
        write_results("own", part, [{"method": "warp", "seed": 3, "reward": 1.0, "kl": 2.0}], [], {})
    (store / "own" / "results.csv").write_text("method,kl")
    with pytest.raises(ValueError, match="results.csv cannot be read.* Run 03_warp"):
        read_results("own")
    (store / "own" / "real_positive.json").write_text("{")
    with pytest.raises(ValueError, match="real_positive.json cannot be read"):
        real_positive("own")
