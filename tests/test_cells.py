"""The student report's plot: cells of I and M, and REINFORCE beside them, read from the study's tables."""

import pandas as pd
import pytest
from conftest import keep

from warp_lib import cells, outcomes, plots
from warp_lib.fronts import Interval


def unit(folder, arm: str, seed: int, points: list[tuple[float, float]], places: list[dict]) -> None:
    """A unit of the grid whose points (KL, r̃) stand at these places of its table, in both splits; on validation prompts r̃ is 5 more."""
    keep(folder, "grid", arm, seed, [(kl, reward + 5) for kl, reward in points], test=points)
    file = folder / "grid" / f"{arm}-{seed}.csv"
    table = pd.read_csv(file)
    pd.concat([table.drop(columns="method"), pd.DataFrame(places * 2)], axis=1).to_csv(file, index=False)


def warp_unit(folder, m: int, seed: int, up: float) -> None:
    """r̃ = KL / 2 + up at the LITI points, which lie at I · M / 2 nats; runs and merges elsewhere."""
    points, places = [(0, 0)], [{"method": "sft", "steps": 0, "completions": 0}]
    for i in (1, 2, 3):
        cost = {"iteration": i, "steps": 100 * i * m, "completions": 6400 * i * m}
        points += [(5, 0.1), (4, 0.2), (i * m / 2, i * m / 4 + up)]
        places += [{"method": method} | cost for method in ("run", "slerp", "liti")]
    unit(folder, f"warp-m{m}", seed, points, places)


def reinforce_unit(folder, seed: int) -> None:
    """r̃ = KL / 2 along its way, half a nat every 100 steps; the last point of its line to SFT is its end."""
    path = [{"method": "reinforce", "steps": 100 * k, "completions": 6400 * k} for k in range(1, 10)]
    line = [{"method": "reinforce-liti", "steps": 900, "completions": 57600}] * 2
    unit(folder, "reinforce-900", seed, [(k / 2, k / 4) for k in range(1, 10)] + [(0, 0), (4.5, 2.25)], path + line)


def test_cells_are_liti_points_compared_seed_by_seed(folder):
    """Guards: runs or merges taken for the cells, M for I, validation for test, seeds that are not shared, the sign, cost of one run."""
    assert cells.warp_cells() == {} == cells.reinforce_cells() and cells.claims({}, {}) == {}
    for seed, up in ((5, 0.1), (6, 0.3)):
        for m in (1, 2, 3):
            warp_unit(folder, m, seed, up * m)
        reinforce_unit(folder, seed)
    warp_unit(folder, 1, 7, 9.0)  # alone: it has no M = 3 to be compared with
    warp, reinforce = cells.warp_cells(), cells.reinforce_cells()
    assert list(warp) == [(i, m) for m in (1, 2, 3) for i in (1, 2, 3)] and list(reinforce) == [100 * k for k in range(1, 10)]
    cell = warp[2, 3]
    assert (cell.steps, cell.depth, cell.completions) == (600, 200, 38400) and reinforce[600].depth == 600
    assert cell.kl[5].mean() == pytest.approx(3.0) and cell.reward[6].mean() == pytest.approx(1.5 + 0.9)
    assert cell.height().by_seed[5].mean == pytest.approx(0.3, abs=1e-6)
    assert list(warp[1, 1].reward) == [5, 6, 7] and list(warp[1, 1].height().by_seed) == [5, 6]

    found = cells.claims(warp, reinforce)
    assert [name for name in found if "REINFORCE" in name] == [f"I = M = {m} less REINFORCE's {100 * m * m} steps" for m in (1, 2, 3)]
    last = found["I = M = 3 less REINFORCE's 900 steps"]
    assert last["r̃"].both.mean == pytest.approx(0.6, abs=1e-6) and last["KL, nats"].both.mean == pytest.approx(0, abs=1e-6)
    runs = found["M = 3 less M = 1, I = 2"]
    assert runs["KL, nats"].both.mean == pytest.approx(2) and list(runs["r̃"].by_seed) == [5, 6]
    assert runs["r̃"].over_seeds.high == pytest.approx(Interval.of([1.2, 1.6]).high)
    assert found["I = 3 less I = 1, M = 2"]["r̃"].both.mean == pytest.approx(1.0, abs=1e-6)

    row = cells.rows(warp, reinforce)[7]
    assert row["policy"] == "WARP, I = 2, M = 3" and row["depth"] == 200 and row["over REINFORCE's front"].startswith("+0.600")
    figure = plots.cells(warp, reinforce, {"mean": 0.3, "p99": 1.4})
    assert [trace.name for trace in figure.data] == ["WARP, M = 1", "WARP, M = 2", "WARP, M = 3", "REINFORCE"]
    assert list(figure.data[2].x) == pytest.approx([1.5, 3.0, 4.5]) and figure.data[2].text[0] == "I = 1"
    assert "600 steps, 200 deep, 38,400 completions" in figure.data[2].customdata


def test_no_cell_is_compared_beyond_the_long_runs_front(folder):
    warp_unit(folder, 3, 5, 0.0)
    assert cells.warp_cells()[1, 3].height() is None  # there is no long run yet
    reinforce_unit(folder, 5)
    assert cells.warp_cells()[3, 3].height().by_seed[5].mean == pytest.approx(0, abs=1e-6)
    keep(folder, "grid", "reinforce-900", 5, [(0, 0), (4.4, 2)], method="reinforce")
    outcomes.outcome.cache_clear()
    assert cells.warp_cells()[3, 3].height() is None
