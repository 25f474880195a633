"""The student report's plot: cells of I and M, and REINFORCE beside them, read from the study's
tables.
"""

import numpy as np
import pandas as pd
import pytest
from conftest import across_prompts, across_seeds, keep
from safetensors.numpy import load_file, save_file

from warp_lib.report import study_plots
from warp_lib.study import cells, outcomes
from warp_lib.study.fronts import Interval

SPREAD = {"liti": (0.2, -0.2), "reinforce": (-0.1, 0.1)}  # of two prompts around the mean, in r̃


def unit(
    folder,
    experiment: str,
    arm: str,
    seed: int,
    points: list[tuple[float, float]],
    places: list[dict],
) -> None:
    """A unit with points (KL, r̃) at these places of its table. On validation prompts r̃ and KL are
    5 more.
    """
    keep(
        folder, experiment, arm, seed, [(kl + 5, reward + 5) for kl, reward in points], test=points
    )
    file = folder / experiment / f"{arm}-{seed}.csv"
    table = pd.read_csv(file)
    pd.concat([table.drop(columns="method"), pd.DataFrame(places * 2)], axis=1).to_csv(
        file, index=False
    )
    scores = load_file(file.with_suffix(".safetensors"))
    for k, (place, (_, reward)) in enumerate(zip(places, points, strict=True)):
        scores["test.reward"][k] = reward + np.array(SPREAD.get(place["method"], (0, 0)))
    save_file(scores, file.with_suffix(".safetensors"))


def warp_unit(
    folder, experiment: str, arm: str, m: int, seed: int, up: float, iterations: int = 3
) -> None:
    """r̃ = KL / 2 + up at the LITI points, which lie at I · M / 2 nats; runs and merges
    elsewhere.
    """
    points, places = [(0, 0)], [{"method": "sft", "steps": 0, "completions": 0}]
    for i in range(1, iterations + 1):
        cost = {"iteration": i, "steps": 100 * i * m, "completions": 6400 * i * m}
        points += [(5, 0.1), (4, 0.2), (i * m / 2, i * m / 4 + up)]
        places += [{"method": method} | cost for method in ("run", "slerp", "liti")]
    unit(folder, experiment, arm, seed, points, places)


def long_unit(folder, experiment: str, arm: str, seed: int, steps: int) -> None:
    """r̃ = KL / 2 along its way, half a nat every 100 steps; its line to SFT goes from 0 to the
    same end.
    """
    path = [
        {"method": "reinforce", "steps": t, "completions": 64 * t}
        for t in range(100, steps + 1, 100)
    ]
    line = [{"method": "reinforce-liti", "steps": steps, "completions": 64 * steps}] * 2
    unit(
        folder,
        experiment,
        arm,
        seed,
        [(t / 200, t / 400) for t in [*range(100, steps + 1, 100), 0, steps]],
        path + line,
    )


@pytest.fixture
def grid(folder):
    """The grid on seeds 5 and 6; of the primary contrast, seeds 1 and 5."""
    for seed, up in ((5, 0.1), (6, 0.3)):
        for m in cells.MANY:
            warp_unit(folder, cells.GRID, f"warp-m{m}", m, seed, up * m)
        long_unit(folder, cells.GRID, "reinforce-900", seed, 900)
    for seed in (1, 5):
        # of seed 5 the grid's is shown
        warp_unit(folder, cells.PRIMARY, "warp", 2, seed, 7.0 if seed == 5 else 0.4, iterations=2)
        long_unit(folder, cells.PRIMARY, "reinforce", seed, 400)
    return folder


def test_cells_are_liti_points_with_their_cost(grid):
    """Guards: runs or merges taken for the cells, M for I, validation for test, depth of all runs,
    seeds that do not count.
    """
    warp, reinforce = cells.warp_cells(), cells.reinforce_cells()
    assert list(warp) == [(i, m) for m in (1, 2, 3) for i in (1, 2, 3)] and list(reinforce) == [
        100 * k for k in range(1, 10)
    ]
    cell = warp[2, 3]
    assert (cell.steps, cell.depth, cell.completions) == (600, 200, 38400)
    assert (reinforce[600].steps, reinforce[600].depth, reinforce[600].completions) == (
        600,
        600,
        38400,
    )
    assert cell.kl[5] == pytest.approx([3, 3]) and cell.reward[6] == pytest.approx([2.6, 2.2])
    assert sorted(warp[2, 2].reward) == [1, 5, 6] and warp[2, 2].reward[5].mean() == pytest.approx(
        1.2
    )
    assert (
        sorted(warp[3, 2].reward) == [5, 6]
        and sorted(reinforce[400].reward) == [1, 5, 6]
        and sorted(reinforce[500].reward) == [5, 6]
    )
    assert cells.shared_by([*warp.values(), *reinforce.values()]) == [5, 6]


def test_claims_are_paired_by_seed_and_prompt(grid):
    """Guards: another REINFORCE than of as many steps, seeds or prompts that are not paired, the
    sign, KL for r̃.
    """
    found = cells.claims(cells.warp_cells(), cells.reinforce_cells())
    assert [name for name in found if "REINFORCE" in name] == [
        f"I = M = {m} less REINFORCE's {100 * m * m} steps" for m in (1, 2, 3)
    ]
    equal = found["I = M = 2 less REINFORCE's 400 steps"]
    assert list(equal["r̃"].by_seed) == [1, 5, 6] and equal["r̃"].by_seed[6].mean == pytest.approx(
        0.6, abs=1e-6
    )
    assert equal["KL, nats"].both.mean == pytest.approx(0, abs=1e-6)
    # prompts differ in both
    assert across_prompts(equal["r̃"]).high == pytest.approx(
        Interval.of([0.4 + 0.3, 0.4 - 0.3]).high, abs=1e-6
    )
    runs = found["M = 3 less M = 1, I = 2"]
    assert runs["KL, nats"].both.mean == pytest.approx(2) and list(runs["r̃"].by_seed) == [5, 6]
    assert across_seeds(runs["r̃"]).high == pytest.approx(Interval.of([1.2, 1.6]).high)
    # both cells have the same prompts' spread
    assert across_prompts(runs["r̃"]).high == pytest.approx(across_prompts(runs["r̃"]).mean, abs=1e-6)
    assert found["M = 2 less M = 1, I = 2"]["KL, nats"].both.mean == pytest.approx(1)
    assert found["I = 3 less I = 1, M = 2"]["r̃"].both.mean == pytest.approx(1.0, abs=1e-6)


def test_gaps_are_to_the_longest_runs_front(grid):
    """Guards: another run's front, an interval that leaves out the seeds that lie beyond it, a
    gap of REINFORCE to itself.
    """
    warp = cells.warp_cells()
    assert {s: i.mean for s, i in warp[2, 3].gap().by_seed.items()} == pytest.approx(
        {5: 0.3, 6: 0.9}, abs=1e-6
    )
    rows = {row["policy"]: row for row in cells.rows(warp, cells.reinforce_cells())}
    row = rows["WARP, I = 2, M = 3"]
    assert (row["steps"], row["depth"], row["completions"]) == (600, 200, "38,400")
    assert (
        row["r̃"].startswith("+2.100")
        and row["KL, nats"].startswith("+3.000")
        and row["over REINFORCE's front"].startswith("+0.600")
    )
    assert rows["REINFORCE, 600 steps"]["over REINFORCE's front"] == ""
    # on one of two seeds it ends before 4.5 nats
    long_unit(grid, cells.GRID, "reinforce-900", 6, 800)
    outcomes.outcome.cache_clear()
    assert cells.warp_cells()[3, 3].gap() is None and cells.warp_cells()[2, 3].gap() is not None


def test_what_has_ended_is_shown(folder):
    """Guards: a crash, or a claim, before a cell's counterpart has ended."""
    assert (
        cells.warp_cells() == {} == cells.reinforce_cells()
        and cells.claims({}, {}) == {}
        and cells.rows({}, {}) == []
    )
    warp_unit(folder, cells.GRID, "warp-m1", 1, 4, 0.1)
    warp_unit(folder, cells.GRID, "warp-m3", 3, 5, 0.1)
    warp = cells.warp_cells()
    # M = 3 has another seed
    assert list(cells.claims(warp, {})) == [
        f"I = {i} less I = 1, M = {m}" for m in (1, 3) for i in (2, 3)
    ]
    assert warp[1, 3].gap() is None and cells.shared_by(warp.values()) == [] == cells.shared_by([])


def test_the_figure_has_the_shared_seeds(grid):
    """Guards: axes or error bars exchanged, intervals' ends for half widths, all seeds in a figure
    of some.
    """
    figure = study_plots.cells(
        cells.warp_cells(), cells.reinforce_cells(), [6], {"mean": 0.3, "p99": 1.4}, "x"
    )
    assert [trace.name for trace in figure.data] == [
        "WARP, M = 1",
        "WARP, M = 2",
        "WARP, M = 3",
        "REINFORCE (steps)",
    ]
    trace = figure.data[2]
    assert list(trace.x) == pytest.approx([1.5, 3.0, 4.5]) and list(trace.y) == pytest.approx(
        [1.65, 2.4, 3.15]
    )
    half = Interval.of([0.2, -0.2]).high
    assert list(trace.error_y.array) == pytest.approx([half] * 3, rel=1e-5)
    assert list(trace.error_x.array) == pytest.approx([0] * 3, abs=1e-6)
    assert (
        trace.text[0] == "I = 1" and "600 steps, 200 deep, 38,400 completions" in trace.customdata
    )
