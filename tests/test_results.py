"""Reading the results table: two methods' rewards at one KL, between points that were measured,
paired by prompt.
"""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from warp_lib.experiment import Experiment
from warp_lib.interactive.points import all_points
from warp_lib.points import warp_points
from warp_lib.runs import paths
from warp_lib.runs.errors import Explained
from warp_lib.runs.progress import Progress
from warp_lib.runs.results import COLUMNS, read_results, read_scores, real_positive, write_results
from warp_lib.settings import Settings
from warp_lib.study import fronts, outcomes
from warp_lib.study.fronts import Interval

ROWS = pd.DataFrame({"method": ["sft", "reinforce", "warp", "warp"]})


def drawn(seed: int, prompts: int = 100) -> dict[str, np.ndarray]:
    """Scores of `ROWS` on new prompts, whose r̃ and KL are 0, 0; 3, 6; 1, 2; 2, 4 in truth."""
    draw = np.random.default_rng(seed)
    own = draw.normal(0, 0.3, (1, prompts))  # a prompt's reward has a part that all points share
    kl = np.array([[0.0], [6.0], [2.0], [4.0]]) * (1 + draw.normal(0, 0.3, (4, prompts)))
    reward = np.array([[0.0], [3.0], [1.0], [2.0]]) + own + draw.normal(0, 0.1, (4, prompts))
    return {"reward": reward, "kl": kl}


def compared(
    scores: dict[str, np.ndarray], first: str, second: str, kl: float | None = None
) -> fronts.Matched:
    lines = (fronts.straight(ROWS, scores, method) for method in (first, second))
    return fronts.matched(*lines, kl)


def test_between_two_points_and_from_sft_on():
    """Worked by hand: at 3 nats WARP is halfway between its points, REINFORCE halfway from SFT;
    prompts differ alike, so the difference is the same on each. Guards: another method's points on
    a line, a pair of prompts torn apart."""
    up = np.array([0.5, -0.5, 0.1])
    scores = {
        "reward": np.array([[0.0], [1.2], [1.0], [1.4]]) + up,
        "kl": np.array([[0.0], [6.0], [2.0], [4.0]]) * np.ones(3),
    }
    at = compared(scores, "warp", "reinforce", kl=3.0)
    assert (at.kl, at.difference.mean, at.difference.low, at.difference.high) == pytest.approx(
        (3, 0.6, 0.6, 0.6)
    )
    assert str(at.difference) == "+0.600 (95% CI +0.600 to +0.600)" and at.difference.side == 1
    assert compared(scores, "reinforce", "warp", kl=3.0).difference.mean == pytest.approx(-0.6)
    largest = compared(scores, "warp", "reinforce")
    assert (largest.kl, largest.difference.mean) == pytest.approx((4, 1.4 - 0.8))
    with pytest.raises(
        ValueError, match="kl must be from 0 to what both methods reach, 4.00 and 6.00, not 5.00"
    ):
        compared(scores, "warp", "reinforce", kl=5.0)


def test_with_known_kl_the_interval_is_that_of_paired_differences():
    """The oracle is Student's interval of each prompt's difference on the lines. Guards: errors
    added as if independent.
    """
    scores = drawn(0)
    scores["kl"] = scores["kl"].mean(1)[:, None] * np.ones(100)
    places = [(scores["kl"][rows, 0], scores["reward"][rows]) for rows in ([0, 2, 3], [0, 1])]
    a, b = (fronts.weights(kl, [2.5])[:, 0] @ reward for kl, reward in places)
    found = compared(scores, "warp", "reinforce", kl=2.5).difference
    expected = Interval.of(a - b)
    assert (found.mean, found.n) == pytest.approx((expected.mean, 100))
    assert found.high - found.mean == pytest.approx(expected.high - expected.mean, rel=0.05)


def test_policies_that_have_not_moved_are_compared_at_sft():
    """Guards: a slope over no KL at all, which is not a number."""
    still = {"reward": np.array([[0.0], [1.0], [2.0], [2.0]]) * np.ones(3), "kl": np.zeros((4, 3))}
    found = compared(still, "warp", "reinforce")
    assert found.kl == 0 and found.difference.mean in (1, 2)


@pytest.mark.parametrize("kl", [2.5, None])
def test_the_interval_holds_the_truth_where_kl_is_estimated(kl):
    """300 draws of test prompts; in truth both lines are r̃ = KL / 2. Guards: the KL of the points
    taken as known, which misses the truth more often than 1 time in 20."""
    intervals = [compared(drawn(seed), "warp", "reinforce", kl).difference for seed in range(300)]
    assert 0.92 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.98


def score(kl: float, prompts: int = 2) -> dict[str, np.ndarray]:
    """Of one point."""
    return {"reward": np.zeros((1, prompts)), "kl": np.full((1, prompts), kl)}


def test_parts_make_one_table(store):
    """Each notebook replaces its own rows only; without both notebooks there is no table to
    read.
    """
    write_results("toy", "03_warp", [{"method": "warp", "kl": 1.0}], score(1.0), [], {})
    with pytest.raises(ValueError, match="name='toy' has no results of 04_reinforce_baseline yet"):
        read_results(paths.RUNS / "toy")
    write_results(
        "toy", "04_reinforce_baseline", [{"method": "reinforce", "kl": 2.0}], score(2.0), [], {}
    )
    write_results("toy", "03_warp", [{"method": "warp", "kl": 3.0}], score(3.0), [], {})
    table = read_results(paths.RUNS / "toy")
    assert list(table.columns) == list(COLUMNS) and dict(
        zip(table["method"], table["kl"], strict=True)
    ) == {"warp": 3.0, "reinforce": 2.0}
    assert read_scores(paths.RUNS / "toy")["kl"].tolist() == [[3.0, 3.0], [2.0, 2.0]]
    assert not list(paths.RUNS.rglob("*.tmp"))


def test_results_without_scores_ask_for_the_notebook_again(store):
    """Guards: a crash, or methods compared on other prompts than each other's, where a part is of
    an older run.
    """
    write_results("toy", "03_warp", [{"method": "warp", "kl": 1.0}], score(1.0), [], {})
    write_results(
        "toy",
        "04_reinforce_baseline",
        [{"method": "reinforce", "kl": 2.0}],
        score(2.0, prompts=3),
        [],
        {},
    )
    with pytest.raises(
        ValueError,
        match=(
            "name='toy' has results on different numbers of test prompts: run 03_warp and"
            " 04_reinf.* again"
        ),
    ):
        read_scores(paths.RUNS / "toy")
    (store / "toy" / "results" / "03_warp.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=(
            "name='toy' was made before rewards were kept prompt by prompt, .*: run 03_warp again"
        ),
    ):
        read_scores(paths.RUNS / "toy")
    # one that was killed between the two files
    two = {name: np.repeat(values, 2, 0) for name, values in score(1.0).items()}
    save_file(two, store / "toy" / "results" / "03_warp.safetensors")
    with pytest.raises(ValueError, match="is not of the table beside it: run 03_warp again"):
        read_scores(paths.RUNS / "toy")


def test_what_is_measured_is_kept_prompt_by_prompt(folders, store):
    """Guards: scores of another point than the row's, of completions and not of prompts, without
    the judges.
    """
    experiment = Experiment(Settings.profile("smoke", **folders, name="toy", learning_rate=0.03))
    rewards = experiment.rewards(Progress())
    points = warp_points(
        experiment.theta_sft,
        experiment.warp(experiment.aligner(rewards["reward"], Progress())),
        experiment.settings,
    )
    table = experiment.measure("03_warp", points, rewards, Progress())
    scores = load_file(store / "toy" / "results" / "03_warp.safetensors")
    for score in ("reward", "kl", "judge_tfidf"):
        assert scores[score].shape == (len(table), experiment.settings.test_prompts)
        assert (
            np.allclose(scores[score].mean(1), table[score], atol=1e-5)
            and table[score].nunique() > 3
        )
    assert (
        json.loads((store / "toy" / "results" / "03_warp.json").read_text())["scorers"].keys()
        == rewards.keys()
    )


DAMAGE = {
    "half a table": lambda file: file.write_text(file.read_text()[: len(file.read_text()) // 2]),
    "a table without its last row": lambda file: file.write_text(
        "".join(file.read_text().splitlines(keepends=True)[:-1])
    ),
    "an empty table": lambda file: file.write_text(""),
    "a table of noise": lambda file: file.write_bytes(bytes(range(256))),
    "another table": lambda file: file.write_text("a,b\n1,2\n"),
    "half a JSON file": lambda file: file.with_suffix(".json").write_text('{"scorers": {"reward'),
    "a JSON file that is a list": lambda file: file.with_suffix(".json").write_text("[]"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_table_of_one_run_breaks_nothing_else(store, monkeypatch, capsys, damage):
    """It is passed over and named, once, by whoever reads all runs; and written anew with its
    notebook. Guards: fewer points, silently.
    """
    monkeypatch.setattr(outcomes, "FOLDER", store / "none")  # one's own runs alone
    row = {"method": "warp", "seed": 3, "reward": 1.0, "kl": 2.0}
    for name in ("bad", "good"):
        write_results(name, "03_warp", [row, row | {"kl": 4.0}], score(2.0), [{"point": 0}], {})
    file = store / "bad" / "results" / "03_warp.csv"
    damage(file)
    for _ in range(2):
        sources = set(all_points()["source"])
        assert "your run good" in sources and "your run bad" not in sources
    write_results(
        "bad", "04_reinforce_baseline", [row | {"method": "reinforce"}], score(2.0), [], {}
    )
    assert capsys.readouterr().err.count(str(file)) == 1
    if not file.is_dir():
        write_results("bad", "03_warp", [row, row | {"kl": 4.0}], score(2.0), [{"point": 0}], {})
        assert read_results(paths.RUNS / "bad")["kl"].tolist() == [2.0, 4.0, 2.0]


def test_a_damaged_own_table_is_one_sentence(store):
    for part in ("03_warp", "04_reinforce_baseline"):
        write_results(
            "own",
            part,
            [{"method": "warp", "seed": 3, "reward": 1.0, "kl": 2.0}],
            score(2.0),
            [],
            {},
        )
    (store / "own" / "results.csv").write_text("method,kl")
    with pytest.raises(ValueError, match="results.csv cannot be read.* Run 03_warp"):
        read_results(paths.RUNS / "own")
    scores = store / "own" / "results" / "03_warp.safetensors"
    scores.write_bytes(scores.read_bytes()[:50])
    with pytest.raises(Explained, match="03_warp.safetensors is damaged: run 03_warp again.$"):
        read_scores(paths.RUNS / "own")
    (store / "own" / "real_positive.json").write_text("{")
    with pytest.raises(ValueError, match="real_positive.json cannot be read"):
        real_positive(paths.RUNS / "own")
