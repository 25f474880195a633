"""The study: units that run once and are kept whole; settings chosen on validation prompts; fronts compared on test prompts."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from warp_lib import outcomes, study
from warp_lib.merging import interpolate
from warp_lib.outcomes import chosen_trial, contrast, finished_seeds, highest, outcome
from warp_lib.progress import Progress, Stopped
from warp_lib.reinforce import Run
from warp_lib.settings import PROFILES, Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data/study."""
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(outcomes, "FOLDER", tmp_path)
    outcome.cache_clear()
    yield tmp_path
    outcome.cache_clear()


def keep(folder, experiment, arm, seed, validation, test=None, method="warp"):
    """A finished unit whose points are (KL, reward) on validation and test prompts; two prompts, 0.1 above and below."""
    rows, scores = [], {}
    for split, points in (("validation", validation), ("test", test or validation)):
        rows += [{"arm": arm, "split": split, "method": method, "kl": kl, "reward": reward} for kl, reward in points]
        scores[f"{split}.reward"] = np.array([[reward + 0.1, reward - 0.1] for _, reward in points], dtype=np.float32)
    file = folder / experiment / f"{arm}-{seed}.json"
    file.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(file.with_suffix(".csv"), index=False)
    save_file(scores, file.with_suffix(".safetensors"))
    file.write_text("{}")


def test_a_unit_runs_once_and_leaves_rows_scores_and_a_record(folder, monkeypatch):
    """WARP and REINFORCE on real reviews in the smoke profile's sizes.

    Guards: unequal compute, scores that are not the rows', a second run.
    """
    monkeypatch.setattr(study, "COMMON", PROFILES["smoke"])
    monkeypatch.setattr(study, "TRIALS", {"only": {"beta": 0.2}})
    monkeypatch.setattr(study, "PRIMARY", {n: study.PRIMARY[n] for n in ("warp", "reinforce")})
    study.run(["tuning"], Progress())
    assert sorted(p.name for p in (folder / "tuning").glob("*.json")) == ["reinforce-only-999.json", "warp-only-999.json"]
    for arm in ("warp-only", "reinforce-only"):
        rows = pd.read_csv(folder / "tuning" / f"{arm}-999.csv")
        scores = load_file(folder / "tuning" / f"{arm}-999.safetensors")
        assert set(rows["split"]) == {"validation"} and rows["steps"].max() == 16 and rows["completions"].max() == 16 * 8
        assert scores["validation.reward"].shape == (len(rows), 8)
        for column in ("reward", "kl", "judge_tfidf", "entropy"):
            assert np.allclose(scores[f"validation.{column}"].mean(1), rows[column], atol=1e-5)
    record = json.loads((folder / "tuning" / "warp-only-999.json").read_text())
    assert record["settings"]["beta"] == 0.2 and record["commit"] and record["seconds"] > 0 and record["machine"]["threads"]
    assert {row["iteration"] for row in record["geometry"]} == {1, 2}
    assert {one["point"] for one in record["completions"]} == set(range(len(pd.read_csv(folder / "tuning" / "warp-only-999.csv"))))
    monkeypatch.setattr(study, "run_unit", lambda *_: pytest.fail("a finished unit was run again"))
    study.run(["tuning"], Progress())


def test_a_stopped_unit_leaves_nothing_behind(folder):
    progress = Progress()
    progress.stop.set()
    with pytest.raises(Stopped):
        study.run_unit(study.Unit("x", "warp", study.by_warp, Settings.profile("smoke", seed=12345)), progress)
    assert not list(folder.rglob("*.json"))


def test_merges_line_up_with_slerp(monkeypatch):
    """With one angle for the model, SLERP of two runs is LERP made 1/cos(Ω/2) times as long: the same policy, told by its KL."""
    monkeypatch.setattr(study, "COMMON", PROFILES["smoke"] | {"learning_rate": 1e-3})
    experiment = study.Experiment(Settings.profile(**study.COMMON, name="study-test"))
    found, record = study.by_merging(experiment, experiment.aligner(experiment.reward(Progress()), Progress()))
    points = list(found)
    (omega,) = [row["degrees"] for row in record["geometry"] if row["layer"] == "model"]
    longer = 1 / math.cos(math.radians(omega) / 2)
    by_name = {(point.method, point.eta): point.theta for point in points if point.eta}
    sft = next(point.theta for point in points if point.method == "sft")
    expected = interpolate(sft, by_name["lerp", 1.0], longer)
    got = by_name["slerp-model", 1.0]
    assert longer > 1.05 and all(torch.allclose(got[name], expected[name], atol=1e-6) for name in got)
    assert len(points) == 1 + 4 * len(study.ETAS)


def test_every_experiment_has_units_of_different_files(folder):
    """Guards: two units that would write one file, settings that are refused only when their turn comes."""
    for name in study.PRIMARY:
        for trial in study.TRIALS:
            keep(folder, "tuning", f"{name}-{trial}", 999, [(0, 0), (2, 1), (4, 1.5)])
    units = [unit for experiment in study.EXPERIMENTS.values() for unit in experiment()]
    assert len({unit.file for unit in units}) == len(units) == 6 + 24 + 20 + 5 + 12 + 12 + 1 + 3


def test_every_arm_spends_the_same_completions(monkeypatch):
    """Guards: the rival of twice the batch taking twice the compute, or a path that is looked at more often."""
    spent, seen = {}, {}
    theta = {"w": torch.zeros(1)}

    def align(init, seed, steps=None, keep_every=None):
        steps = steps or s.steps
        spent[name] = spent.get(name, 0) + steps * s.batch_size
        along = {t: theta for t in range(keep_every, steps + 1, keep_every)} if keep_every else {}
        return Run(theta, along, [{}] * steps, 1.0)

    monkeypatch.setattr(study, "geometry", lambda *_: [])
    for name, arm in study.PRIMARY.items():
        s = Settings.profile(**study.COMMON | arm.changes)
        points, _ = arm.train(SimpleNamespace(settings=s, theta_sft=theta, merge=lambda init, finals: theta), align)
        found = list(points)
        line = {round(p.eta, 3) for p in found if p.method in ("warp", "reinforce-liti")}
        seen[name] = len(line) + len({(p.method, p.steps, p.eta) for p in found if p.method in ("slerp", "liti", "reinforce")}) - 1
    assert set(spent.values()) == {400 * 64} and set(seen.values()) == {14}, (spent, seen)


def test_unknown_experiments_are_named():
    with pytest.raises(ValueError, match="no experiment 'tunning'; there are tuning, primary"):
        study.run(["tunning"], Progress())


def test_primary_waits_for_its_settings(folder):
    with pytest.raises(ValueError, match="study tuning"):
        study.run(["primary"], Progress())


def test_trial_with_the_higher_front_on_validation_prompts_is_chosen(folder):
    """Guards: test prompts choosing, or a trial winning by its reach alone."""
    keep(folder, "tuning", "warp-a", 999, [(0, 0), (2, 1), (9, 1.1)], test=[(0, 0), (2, 5), (9, 9)])
    keep(folder, "tuning", "warp-b", 999, [(0, 0), (2, 1.2), (4.7, 1.3)], test=[(0, 0), (2, 0), (4.7, 0)])
    assert chosen_trial("warp") == "b"
    keep(folder, "tuning", "reinforce-a", 999, [(0, 0), (2, 1), (4.2, 1.1)])
    keep(folder, "tuning", "reinforce-2b-a", 999, [(0, 0), (2, 1), (3, 1.1)])
    assert highest(["warp"]) == 4.5 and highest(["warp", "reinforce"]) == 4.0 and highest(["reinforce-2b"]) == 3.0


def test_contrast_is_the_difference_of_the_fronts(folder):
    """Worked by hand: straight lines. Guards: points chosen on test prompts, extrapolation, a rival chosen for being weak."""
    for seed, lift in ((0, 0.0), (1, 0.2)):
        # On validation prompts the point at (2, 0) is beaten; on test prompts it would look best.
        keep(folder, "e", "warp", seed, [(0, 0), (2, -0.1), (4, 4)], test=[(0, 0), (2, 9 + lift), (4, 4 + lift)])
        keep(folder, "e", "weak", seed, [(0, 0), (6, 1)])
        keep(folder, "e", "strong", seed, [(0, 0), (6, 3)])
    keep(folder, "e", "warp", 2, [(0, 0), (4, 4)])  # its rivals have not finished
    found = contrast("e", "warp", ["weak", "strong"], high=3.0)
    assert found.rival == "strong" and finished_seeds("e", ["warp", "weak", "strong"]) == [0, 1]
    # From 1 to 3 nats: WARP's line has slope 1 (seed 1: 1.05), the rival's 0.5, both through 0.
    assert [found.by_seed[k].mean for k in (0, 1)] == pytest.approx([1.0, 1.1], abs=1e-6)
    assert found.over_seeds.mean == pytest.approx(1.05) and found.over_seeds.n == 2
    # Beyond what WARP reaches, both are compared as far as it goes: from 1 to 4.
    assert contrast("e", "warp", ["strong"], high=5.0).by_seed[0].mean == pytest.approx(2.5 - 1.25, abs=1e-6)
    with pytest.raises(ValueError, match="no seed"):
        contrast("e", "warp", ["absent"], high=3.0)


def test_an_arm_is_not_taken_for_another_whose_name_begins_alike(folder):
    keep(folder, "e", "reinforce-2b", 0, [(0, 0), (2, 1)])
    keep(folder, "e", "reinforce", 1, [(0, 0), (2, 1)])
    assert finished_seeds("e", ["reinforce"]) == [1] and finished_seeds("e", ["reinforce-2b"]) == [0]


def test_single_runs_are_not_on_the_front(folder):
    keep(folder, "e", "a", 0, [(0, 0), (3, 2)], method="run")
    assert len(outcome("e", "a", 0).kl("test")) == 0
