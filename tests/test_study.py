"""The study: units that run once and are kept whole; settings chosen on validation prompts; fronts
compared on test prompts.
"""

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from bootstrap import bootstrap
from conftest import GIVEN, across_prompts, across_seeds, keep
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from warp_lib.__main__ import main
from warp_lib.experiment import Experiment
from warp_lib.fast import machine
from warp_lib.interactive.points import all_points
from warp_lib.merging import angle, interpolate, slerp, slerp_without_order, task_vector
from warp_lib.report import answers, study_plots, tables
from warp_lib.runs.errors import Explained
from warp_lib.runs.jobs import Job, run_here
from warp_lib.runs.progress import Progress
from warp_lib.runs.store import digest
from warp_lib.settings import PROFILES, Settings
from warp_lib.study import arms, contrasts, kept_reward, outcomes, plan, run, units
from warp_lib.study.contrasts import Contrast, contrast
from warp_lib.study.fronts import Effect, Interval
from warp_lib.study.outcomes import (
    angle_rows,
    finished_seeds,
    outcome,
    settle,
    settled,
    trial_rows,
)
from warp_lib.tools import task_vectors
from warp_lib.warp import Run, RunId


def short(found: contrasts.Contrast) -> dict[int, float]:
    """The seeds that are not compared as far as all of it, and how far they are."""
    return {seed: end for seed, end in found.ends.items() if end < found.high}


def test_a_unit_runs_once_and_leaves_rows_scores_and_a_record(folder, monkeypatch, folders):
    """WARP and REINFORCE in the smoke profile's sizes.

    Guards: unequal compute, scores that are not the rows', a second run.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders)
    monkeypatch.setattr(plan, "TRIALS", {"only": {"beta": 0.2}})
    monkeypatch.setattr(plan, "PRIMARY", {n: plan.PRIMARY[n] for n in ("warp", "reinforce")})
    monkeypatch.setattr(plan, "TUNED", {"tuning": ("warp", "reinforce")})
    # in four steps nothing moves
    monkeypatch.setattr(outcomes, "settle", lambda *_: {"high": 2.5, "chosen": {}})
    run.run(["tuning"], Progress())
    assert settled("tuning") == {"high": 2.5, "chosen": {}}
    assert sorted(p.name for p in (folder / "tuning").glob("*.json")) == [
        "reinforce-only-999.json",
        "warp-only-999.json",
    ]
    for arm in ("warp-only", "reinforce-only"):
        rows = pd.read_csv(folder / "tuning" / f"{arm}-999.csv")
        scores = load_file(folder / "tuning" / f"{arm}-999.safetensors")
        assert (
            set(rows["split"]) == {"validation"}
            and rows["steps"].max() == 16
            and rows["completions"].max() == 16 * 8
        )
        assert scores["validation.reward"].shape == (len(rows), 8)
        for column in ("reward", "kl", "judge_tfidf", "entropy"):
            assert np.allclose(scores[f"validation.{column}"].mean(1), rows[column], atol=1e-5)
    record = json.loads((folder / "tuning" / "warp-only-999.json").read_text())
    assert (
        record["settings"]["beta"] == 0.2
        and record["commit"]
        and record["seconds"] > 0
        and record["machine"]["threads"]
    )
    assert {row["iteration"] for row in record["geometry"]} == {1, 2}
    assert {one["point"] for one in record["completions"]} == set(
        range(len(pd.read_csv(folder / "tuning" / "warp-only-999.csv")))
    )
    monkeypatch.setattr(units, "run_unit", lambda *_: pytest.fail("a finished unit was run again"))
    run.run(["tuning"], Progress())
    monkeypatch.setattr(plan, "TRIALS", {"only": {"beta": 0.3}})
    with pytest.raises(
        ValueError, match="warp-only, seed 999 was run with beta=0.2, and is now listed with 0.3"
    ):
        run.run(["tuning"], Progress())


def test_a_seeds_arms_have_one_reward_model_or_are_refused_before_they_are_trained(
    folder, monkeypatch, capsys, folders
):
    """Guards: arms of a seed that cannot be compared, within an experiment and across; a seed
    refused for what another one was made with; a trial for another experiment's; best-of-n, which
    is paired with no run, or a run for it."""
    unit = units.Training(
        "x",
        "warp",
        Settings.profile("smoke", **folders, name="study", seed=4),
        lambda *_: pytest.fail("trained"),
    )
    trial = replace(unit, settings=replace(unit.settings, seed=outcomes.TUNING_SEED))
    keep(folder, "best-of-n", "sft", 4, [(0, 0), (2, 1)])
    for beside, of_a_trial in (("x", "another reward_model"), ("y", "trained")):
        keep(folder, beside, "reinforce", 4, [(0, 0), (2, 1)])
        keep(folder, beside, "reinforce", outcomes.TUNING_SEED, [(0, 0), (2, 1)])
        with pytest.raises(
            ValueError,
            match=(
                f"x: warp, seed 4 would be made with another reward_model than {beside}/reinforce-4"
            ),
        ):
            units.run_unit(unit, Progress())
        with pytest.raises((ValueError, pytest.fail.Exception), match=of_a_trial):
            units.run_unit(trial, Progress())
        for file in (folder / beside).glob("*.json"):
            file.rename(file.with_stem(f"reinforce-14{file.stem[-1]}"))
    file = folder / "x" / "other-4.json"
    made = json.loads((folder / "x" / "reinforce-144.json").read_text())
    made |= {
        "reward_model": kept_reward.read(unit.settings).identity,
        "sft": digest(Experiment(unit.settings).theta_sft),
    }
    monkeypatch.setattr(
        plan,
        "EXPERIMENTS",
        {"x": lambda: [unit, replace(unit, arm="next", settings=replace(unit.settings, seed=5))]},
    )
    # as units from before are
    rounded = {name: value for name, value in made.items() if name != "measured_in"}
    here, elsewhere = {"dtype": str(machine.fast_dtype())}, {"dtype": "torch.float8"}
    for other, refusal in (
        (rounded | {"machine": here}, "another measured_in than x/other-4"),
        (made | {"machine": here}, "trained"),
        (made | {"machine": elsewhere}, "another dtype than x/other-4"),
    ):
        file.write_text(json.dumps(other))
        with pytest.raises((pytest.fail.Exception, ValueError), match=refusal):
            units.run_unit(unit, Progress())
    monkeypatch.setattr(units.BestOfN, "measure", lambda *_: pytest.fail("sampled"))
    with pytest.raises(pytest.fail.Exception, match="sampled"):
        units.run_unit(units.BestOfN("best-of-n", "sft", unit.settings), Progress())
    with pytest.raises(pytest.fail.Exception, match="trained"):  # the next seed's turn comes
        run.run(["x"], Progress())
    assert (
        "[2/2] x: next, seed 5" in (said := capsys.readouterr().out)
        and "Left out: x: warp, seed 4 would be made with another dtype" in said
    )


def test_the_hypothesis_pair_of_dpo_comes_first_on_every_seed(folder):
    """Guards: controls of one seed before the next seed of what the question compares."""
    chosen = {arm: {"trial": "a"} | GIVEN for arm in ("warp-dpo", "dpo")}
    (folder / "dpo-tuning.json").write_text(json.dumps({"high": 3.0, "chosen": chosen}))
    names = [unit.arm for unit in plan.dpo()]
    assert set(names[:10]) == {"warp-dpo", "dpo"}
    assert names[10:] == ["warp-dpo-once", "dpo-iterated"] * 2
    assert len({(unit.arm, unit.settings.seed) for unit in plan.dpo()}) == len(names)


def test_the_first_units_reward_model_is_every_machines(folder, monkeypatch, folders):
    """Guards: a reward model trained anew on another machine."""
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders)

    def unit(experiment: str, seed: int = 0) -> units.Training:
        names = {"tuning": "warp-a", "primary": "warp"}
        return units.Training(
            experiment,
            names[experiment],
            Settings.profile("smoke", **folders, name="study", steps=1, seed=seed),
            arms.by_warp,
        )

    units.run_unit(unit("tuning"), Progress())
    with monkeypatch.context() as another_machine:
        another_machine.setattr(Experiment, "reward", lambda *_: pytest.fail("trained anew"))
        units.run_unit(unit("primary", seed=1), Progress())
    assert (
        outcome("tuning", "warp-a", 0).record["reward_model"]
        == outcome("primary", "warp", 1).record["reward_model"]
    )


def test_a_kept_reward_model_rewards_alike(folder, folders):
    """Guards: tensors left out, the standardisation of another machine, a changed file or other
    settings taken for the kept one.
    """
    settings = Settings.profile(
        "smoke", **folders, name="study", reward_layers=2, reward_trained=1, reward_steps=2
    )
    reward = Experiment(settings).reward(Progress())
    assert kept_reward.read(settings) is None
    reward = replace(reward, mean=5.0, sd=2.0)  # as another machine's completions might give
    kept_reward.write(reward, settings)
    kept_reward.write(replace(reward, mean=6.0), settings)  # comes too late
    kept = kept_reward.read(settings)
    texts = [
        "A wonderful film.",
        "Awful, from the first minute to the last.",
    ]
    assert torch.equal(kept(texts), reward(texts)) and kept.identity == reward.identity
    for change in ({"reward_steps": 3}, {"temperature": 1.0}):
        assert kept_reward.read(replace(settings, **change)) is None
    tensors = load_file(kept_reward.file())
    with safe_open(kept_reward.file(), "np") as opened:
        said = opened.metadata()
    assert (
        0
        < sum(t.size for t in tensors.values())
        < 0.2 * sum(p.numel() for p in reward.raw.model.parameters())
    )
    save_file({name: t + np.float32(1e-3) for name, t in tensors.items()}, kept_reward.file(), said)
    with pytest.raises(ValueError, match="not the one that was kept"):
        kept_reward.read(settings)


def test_committed_units_have_the_reward_model_that_they_are_compared_by():
    """The kept one reads back and rewarded all units, and all were measured in float32."""
    kept = kept_reward.read(task_vectors.settings()).identity
    models = {}
    for file in outcomes.FOLDER.glob("**/*-*.json"):
        if "settings" in (record := json.loads(file.read_text())):
            models[file] = record["reward_model"]
            assert record["measured_in"] == "float32"
    assert set(models.values()) == {kept} and outcomes.FOLDER / "primary/warp-20.json" in models


def test_nothing_of_the_first_three_orders_is_left(capsys):
    """Guards: a unit that was not committed; a command that ends without a word."""
    assert all(unit.finished for name in plan.NOW for unit in plan.EXPERIMENTS[name]())
    assert main(["study"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "dpo: nothing to do, 14 of 14 units have ended." in said and len(said) == len(plan.NOW)
    left = {row["command"].split()[-1] for row in outcomes.waiting()}
    assert left.isdisjoint(plan.NOW) and left <= {"anchors", "long-run", "turnover"}


def test_both_splits_of_a_unit_are_kept_apart(folder, monkeypatch, folders):
    """Guards: rows of one split read with the scores of the other."""
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders)
    unit = units.Training(
        "primary",
        "reinforce",
        Settings.profile("smoke", **folders, name="study", judge_steps=1, seed=outcomes.SEEDS[0]),
        arms.by_reinforce,
    )
    units.run_unit(unit, Progress())
    found = outcome("primary", "reinforce", outcomes.SEEDS[0])
    # choosing needs no judge
    assert "test.judge" in found.scores and "validation.judge" not in found.scores
    assert found.record["judges"].keys() == {"judge", "judge_tfidf"}
    for split in ("validation", "test"):
        rows = found.points(split)
        # after each of 4, 8, 12, 16 steps; a line of three
        assert len(rows) == 1 + 3 + 3 and set(rows["split"]) == {split}
        assert np.allclose(found.reward(split).mean(1), rows["reward"], atol=1e-5)
        assert np.allclose(
            found.reward(split, "judge_tfidf").mean(1), rows["judge_tfidf"], atol=1e-5
        )
    assert not np.allclose(found.reward("validation"), found.reward("test"))
    reviews = {one["review"] for one in found.record["completions"]}
    assert len(reviews) == 8 and {one["split"] for one in found.record["completions"]} == {"test"}


def test_a_unit_that_was_cut_short_is_run_again(folder, monkeypatch, folders):
    """Guards: a unit taken for finished because some of its files are there."""
    unit = units.Training(
        "x", "warp", Settings.profile("smoke", **folders, name="study"), arms.by_warp
    )
    with monkeypatch.context() as patch:
        patch.setattr(units, "save_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            units.run_unit(unit, Progress())
    assert [file.suffix for file in (folder / "x").iterdir()] == [".csv"] and not unit.finished
    units.run_unit(unit, Progress())
    assert unit.finished and finished_seeds("x", ["warp"]) == [0]


def test_merges_line_up_with_slerp(monkeypatch, folders):
    """With one angle for the model, SLERP of two runs is LERP made 1/cos(Ω/2) times as long: the
    same policy, told by its KL.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders | {"learning_rate": 1e-3})
    experiment = Experiment(Settings.profile(**arms.COMMON, name="study-test"))
    found, record = arms.by_merging(experiment, experiment.reward(Progress()), Progress())
    points = list(found)
    (omega,) = [row["degrees"] for row in record["geometry"] if row["layer"] == "model"]
    longer = 1 / math.cos(math.radians(omega) / 2)
    by_name = {(point.method, point.eta): point.theta for point in points if point.eta}
    sft = next(point.theta for point in points if point.method == "sft")
    expected = interpolate(sft, by_name["lerp", 1.0], longer)
    got = by_name["slerp-model", 1.0]
    assert longer > 1.05 and all(
        torch.allclose(got[name], expected[name], atol=1e-6) for name in got
    )
    assert len(points) == 1 + 4 * len(arms.ETAS)


def test_other_averages_are_of_the_runs_they_name(monkeypatch, folders):
    """Guards: checkpoints of another run or in another order, a line from SFT taken for one from
    the iteration's beginning.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders | {"learning_rate": 1e-3})
    s = Settings.profile(**arms.COMMON, name="study-test")
    experiment = Experiment(s)
    reward = experiment.reward(Progress())

    def trained(train: arms.Train, **changes) -> dict[tuple, dict]:
        found, _ = train(experiment.under(replace(s, **changes)), reward, Progress())
        return {(p.method, p.runs, p.eta): p.theta for p in found}

    def same(a: dict, b: dict) -> bool:
        return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)

    align = experiment.aligner(reward, Progress())
    kept = experiment.long_run(align, "reinforce", s.steps).checkpoints
    found = trained(arms.by_averaging_checkpoints)
    assert {runs for method, runs, _ in found if method == "checkpoints"} == {
        1,
        2,
        len(kept),
    } and len(kept) == 4
    assert same(found["checkpoints", 1, 1.0], kept[16])
    assert same(
        found["checkpoints", 2, 1.0], {n: (kept[12][n] + kept[16][n]) / 2 for n in kept[16]}
    )
    assert same(
        found["checkpoints", 4, 1.0],
        {n: sum(theta[n] for theta in kept.values()) / 4 for n in kept[16]},
    )
    first, last = experiment.warp(align)
    found = trained(arms.by_stepping_back)
    assert same(found["from-init", 2, 0.0], first.liti) and same(
        found["from-sft", 2, 0.0], experiment.theta_sft
    )
    assert same(found["from-init", 2, 1.0], last.merged) and same(
        found["from-sft", 2, 1.0], last.merged
    )
    assert same(found["from-init", 2, 0.4], interpolate(first.liti, last.merged, 0.4))
    found = trained(arms.by_merging_without_order, runs=3)
    runs = [align(experiment.theta_sft, RunId(s.seed, "warp", 1, m)).weights for m in (1, 2, 3)]
    assert same(
        found["slerp-without-order", 3, 1.0], slerp_without_order(experiment.theta_sft, runs)
    )
    assert same(found["slerp-layer", 3, 1.0], slerp(experiment.theta_sft, runs))


def test_angles_are_between_seeds_at_the_same_step(folder, monkeypatch, folders):
    """Guards: runs of one seed, another step's weights, seeds under other names, one batch for both
    arms.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders | {"judge_steps": 0})
    monkeypatch.setattr(
        plan,
        "REINFORCE",
        plan.REINFORCE | {"reinforce-2b": arms.Arm(arms.by_reinforce, {"batch_size": 16})},
    )
    chosen = {arm: {"trial": "a"} | GIVEN for arm in plan.PRIMARY}
    (folder / "tuning.json").write_text(json.dumps({"high": 3.0, "chosen": chosen}))
    (unit,) = plan.angles()
    units.run_unit(unit, Progress())
    found = outcomes.between_seeds("angles")
    assert len(found) == 3 * (4 + 4) and set(found["completions"]) == {32, 64, 96, 128}
    assert {tuple(pair) for pair in found[["a", "b"]].to_numpy()} == {(20, 21), (20, 22), (21, 22)}
    two = [
        Experiment(replace(unit.settings, seed=seed, batch_size=16, **GIVEN)) for seed in (20, 22)
    ]
    along = [
        e.long_run(e.aligner(kept_reward.read(e.settings), Progress()), "reinforce", 2).checkpoints
        for e in two
    ]
    omega = angle(*(list(task_vector(two[0].theta_sft, run[4]).values()) for run in along))
    assert found.query("arm == 'reinforce-2b' and steps == 4 and a == 20 and b == 22")[
        "degrees"
    ].item() == pytest.approx(math.degrees(omega))
    keep(folder, "primary", "reinforce", 9, [(0, 0), (1, 1)])
    assert set(all_points()["source"]) == {"primary"} and outcomes.finished_seeds(
        "angles", ["seeds"]
    ) == [20]
    # with another reward model than the kept one
    keep(folder, "primary", "reinforce", 22, [(0, 0), (1, 1)])
    with pytest.raises(
        ValueError,
        match=(
            "angles: seeds, seed 20 would be made with another reward_model than"
            " primary/reinforce-22"
        ),
    ):
        units.run_unit(unit, Progress())


def test_what_angles_would_be_if_noise_averaged_out():
    """60° after 10 completions: as much noise as signal, so a third of it after 20, cos Ω = ⅔.
    Guards: means of degrees, the last pairs.
    """
    angles = pd.DataFrame({"completions": [20, 10, 10], "degrees": [70.0, 60.0, 60.0]})
    found = outcomes.averaged_out(angles)
    assert found.to_dict() == pytest.approx({10: 60, 20: math.degrees(math.acos(2 / 3))})


def test_growth_is_that_of_signal_and_noise():
    """s = 1 and v = 10 a completion: ‖δ‖² = n² + 10 n. Guards: angles or norms of another arm,
    growth of norms squared.
    """
    n = np.array([10, 20, 40])
    measured = {
        "degrees": np.degrees(np.arccos(n / (n + 10))),
        "norm_a": np.sqrt(n**2 + 10 * n),
        "norm_b": np.sqrt(n**2 + 10 * n),
    }
    rows = outcomes.growth_rows(pd.DataFrame({"arm": "x", "completions": n} | measured))
    assert (
        [row["times the first"] for row in rows]
        == [row["if all counted alike"] for row in rows]
        == ["1.00", "1.73", "3.16"]
    )
    assert (
        [row["Ω, degrees"] for row in rows]
        == [row["if noise averaged out"] for row in rows]
        == ["60.0", "48.2", "36.9"]
    )


def test_reading_straight_between_points_favours_the_closer_ones(folder):
    """Both lines on √KL, one with five points and one with two between 1 and 4. Guards: the sign;
    another curve for either line.
    """
    lines = {"few": [0, 1, 4], "many": [0, 1, 1.5, 2, 3, 4]}
    keep(folder, "averages", "x", 6, [(kl, kl**0.5) for line in lines.values() for kl in line])
    file = folder / "averages" / "x-6.csv"
    methods = [name for name, line in lines.items() for _ in line]
    pd.read_csv(file).query("split == 'test'").assign(method=methods, runs=2, eta=1.0).to_csv(
        file, index=False
    )
    more = contrasts.by_reading(
        outcomes.finished("averages", "x"), ("many", 2), ("few", 2), 4.0
    ).mean
    less = contrasts.by_reading(
        outcomes.finished("averages", "x"), ("few", 2), ("many", 2), 4.0
    ).mean
    # √KL's own mean there is 1.556, its chord's 1.5
    assert more > 0.02 and less == pytest.approx(-0.054, abs=0.01)
    assert (
        contrasts.by_reading(outcomes.finished("averages", "x"), ("few", 2), ("few", 2), 4.0).mean
        == 0
    )


def test_a_line_is_compared_from_where_it_begins(folder):
    """A line from an initialisation of 2 nats, half a unit above one from SFT that ends at 5."""
    points = {"from-sft": [(0, 0), (5, 5)], "from-init": [(2, 2.5), (6, 6.5)]}
    keep(folder, "averages", "step-back", 6, [point for line in points.values() for point in line])
    file = folder / "averages" / "step-back-6.csv"
    methods = [name for name, line in points.items() for _ in line]
    rows = pd.read_csv(file).query("split == 'test'").assign(method=methods, runs=2, eta=1.0)
    rows.to_csv(file, index=False)
    lines = ("from-init", 2), ("from-sft", 2)
    finished = outcomes.finished("averages", "step-back")
    found = contrasts.line_over_line(finished, *lines, 9.0)
    assert found.by_seed[6].mean == pytest.approx(0.5, abs=1e-6) and found.ends == {6: 5}
    assert contrasts.by_reading(
        outcomes.finished("averages", "step-back"), *lines, 9.0
    ).mean == pytest.approx(0)


def test_every_experiment_has_units_of_different_files(folder):
    """Guards: two units that would write one file, settings that are refused only when their turn
    comes.
    """
    rates = dict(
        zip(
            ["warp", "warp-eta-0.8", "reinforce", "reinforce-2b", "warp-dpo", "dpo"],
            [1e-5, 1.5e-5, 2e-5, 3e-5, 4e-5, 5e-5],
            strict=True,
        )
    )
    for name, tuned in plan.TUNED.items():
        chosen = {arm: {"trial": "b", "learning_rate": rates[arm], "beta": 0.7} for arm in tuned}
        (folder / f"{name}.json").write_text(json.dumps({"high": 3.0, "chosen": chosen}))
    listed = [unit for experiment in plan.EXPERIMENTS.values() for unit in experiment()]
    assert (
        len({unit.file for unit in listed})
        == len(listed)
        == 16 + 32 + 1 + 12 + 3 + 9 + 1 + 8 + 14 + 9 + 6 + 4 + 4 + 6
    )
    given = {
        (u.experiment, u.arm): (u.settings.learning_rate, u.settings.beta)
        for u in listed
        if isinstance(u, units.Training)
        and "tuning" not in u.experiment
        and u.experiment not in ("defaults", "long-run")
    }
    borrowed = {"dpo-iterated": "dpo", "warp-dpo-once": "warp-dpo"}
    borrowed |= {"checkpoints": "reinforce", "step-back": "warp", "without-order": "warp"}
    for (experiment, arm), (rate, beta) in given.items():
        like = "reinforce" if experiment == "anchors" else borrowed.get(arm, arm)
        like = like if like in rates else like.split("-")[0]
        assert rate == rates[like] and (beta == 0.7 or experiment == "anchors"), (experiment, arm)
    assert {unit.settings.held_out for unit in listed if "tuning" in unit.experiment} == {
        "validation"
    }


def test_what_waits_is_what_has_not_ended(folder):
    """Guards: a question off the list once one unit has ended, counts that the list of experiments
    does not have.
    """
    for name, tuned in plan.TUNED.items():
        chosen = {arm: {"trial": "a"} | GIVEN for arm in tuned}
        (folder / f"{name}.json").write_text(json.dumps({"high": 3.0, "chosen": chosen}))
    assert {name: count for name, (_, count) in outcomes.ASKED.items()} == {
        n: len(plan.EXPERIMENTS[n]()) for n in outcomes.ASKED
    }
    assert [row["question"] for row in outcomes.waiting()] == [
        w for w, _ in outcomes.ASKED.values()
    ]
    keep(folder, "merges", "warp-m3", 20, [(0, 0), (1, 1)])
    keep(folder, "best-of-n", "sft", 20, [(0, 0), (1, 1)])
    waiting = {row["question"]: row for row in outcomes.waiting()}
    assert waiting["SLERP against LERP"] == {
        "question": "SLERP against LERP",
        "units left": 2,
        "of": 3,
        "command": "python -m warp_lib study merges",
    }
    assert "best-of-n" not in waiting


def test_every_arm_spends_the_same_completions(monkeypatch):
    """Guards: the rival of twice the batch taking twice the compute, or a path that is looked at
    more often.
    """
    spent, seen = {}, {}
    theta = {"w": torch.zeros(1)}

    def align(init, seed, steps=None, keep_every=None):
        steps = steps or s.steps
        spent[name] = spent.get(name, 0) + steps * s.batch_size
        along = {t: theta for t in range(keep_every, steps + 1, keep_every)} if keep_every else {}
        return Run(theta, along, [{}] * steps, 1.0)

    monkeypatch.setattr(arms, "geometry", lambda *_: [])
    for name, arm in plan.PRIMARY.items():
        s = Settings.profile(**arms.COMMON | arm.changes)
        lent = SimpleNamespace(
            settings=s, theta_sft=theta, merge=lambda init, tuned: theta, aligner=lambda *_: align
        )
        lent.warp = partial(Experiment.warp, lent)
        lent.long_run = partial(Experiment.long_run, lent)
        points, _ = arm.train(lent, None, None)
        found = list(points)
        line = {round(p.eta, 3) for p in found if p.method in ("warp", "reinforce-liti")}
        seen[name] = (
            len(line)
            + len(
                {
                    (p.method, p.steps, p.eta)
                    for p in found
                    if p.method in ("slerp", "liti", "reinforce")
                }
            )
            - 1
        )
    assert set(spent.values()) == {400 * 64} and set(seen.values()) == {14}, (spent, seen)
    batches = {unit.arm: unit.settings.batch_size for unit in plan.primary()}
    assert batches == {"warp": 64, "warp-eta-0.8": 64, "reinforce": 64, "reinforce-2b": 128}


def test_dpo_arms_spend_the_same(monkeypatch, folder, folders):
    """Optimiser steps, pairs of a step, and completions sampled. Guards: pairs made once from fewer
    completions than those made anew.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders)
    reward, spent, given = None, {}, {}
    # a seed each, or one would find another's pairs in the store
    for seed, (name, arm) in enumerate(plan.DPO.items(), 77):
        shorter = (
            {"steps": arm.changes["steps"] * PROFILES["smoke"]["steps"] // 100}
            if "steps" in arm.changes
            else {}
        )
        changes = arm.changes | shorter | {"pair_prompts": 6, "pair_completions": 2, "mu": 0.0}
        experiment = Experiment(
            Settings.profile(**arms.COMMON | changes, name="study-test", seed=seed)
        )
        reward = reward or experiment.reward(Progress())
        sampled, sample = [], experiment.policy.sample

        def counted(prompts, *rest, sampled=sampled, sample=sample):
            sampled.append(len(prompts))
            return sample(prompts, *rest)

        monkeypatch.setattr(experiment.policy, "sample", counted)
        points, record = arm.train(experiment, reward, Progress())
        found = list(points)
        line = {round(p.eta, 3) for p in found if p.method in ("warp", "dpo-liti")}
        seen = (
            len(line)
            + len(
                {(p.method, p.steps, p.eta) for p in found if p.method in ("slerp", "liti", "dpo")}
            )
            - 1
        )
        spent[name] = (
            max(point.steps for point in found),
            sum(sampled),
            record["pairs_from"],
            seen,
        )
        assert all(one["count"] and one["margin"] > 0 for one in record["pairs"])
        given[name] = [one["identity"] for one in record["pairs"]]
        assert all(torch.isfinite(w).all() for point in found for w in point.theta.values())
        theta = {p.steps: p.theta for p in found if p.method == "dpo"}
        assert len({digest(t) for t in theta.values()}) == len(theta), name
    assert set(spent.values()) == {(16, 2 * 6 * 2, 2 * 6 * 2, 6)}, spent
    # How many runs there are, and how many different pairs they get.
    different = {name: (len(runs), len(set(runs))) for name, runs in given.items()}
    assert different == {
        "warp-dpo": (4, 2),
        "dpo": (1, 1),
        "warp-dpo-once": (4, 1),
        "dpo-iterated": (2, 2),
    }


def test_unknown_experiments_are_named():
    with pytest.raises(
        ValueError, match="no experiment 'tunning'; there are tuning, primary, best-of-n, grid"
    ):
        run.run(["tunning"], Progress())


def test_primary_waits_for_its_settings(folder):
    with pytest.raises(ValueError, match="study tuning"):
        run.run(["primary"], Progress())


def test_settings_and_range_are_chosen_on_validation_prompts(folder):
    """Guards: test prompts choosing, another window for each method, a trial chosen that reaches
    nothing, a later trial moving it.
    """
    misleading = [(0, 0), (2, 9), (9, 9)]
    keep(folder, "tuning", "warp-a", 999, [(0, 0), (2, 1), (9, 1.1)], test=misleading)
    keep(folder, "tuning", "warp-b", 999, [(0, 0), (2, 1.2), (4.7, 1.3)])
    keep(folder, "tuning", "warp-c", 999, [(0, 0), (1.8, 5)])
    keep(folder, "tuning", "reinforce-a", 999, [(0, 0), (2, 1), (4.2, 1.1)])
    keep(folder, "tuning", "reinforce-b", 999, [(0, 0), (2, 0.9), (3.9, 1)])
    # All trials but warp-c reach 3.9 nats, the chosen ones 4.2, so comparisons end at 4 - 0.5.
    chosen = {"warp": {"trial": "b"} | GIVEN, "reinforce": {"trial": "a"} | GIVEN}
    expected = {"high": 3.5, "judged_to": 3.9, "chosen": chosen}
    assert settle("tuning", ["warp", "reinforce"]) == expected
    with pytest.raises(ValueError, match="study tuning"):
        settled("tuning")
    (folder / "tuning.json").write_text(json.dumps(expected))
    rows, mean = trial_rows("tuning", ["warp", "reinforce"]), "mean r̃ from 1 to 3.90 nats"
    assert [row["chosen"] for row in rows] == ["", "yes", "", "yes", ""] and rows[2][
        mean
    ] == "reaches too little"
    # By hand: from (1, 0.6) to (2, 1.2) to (3.9, 1.2 + 1.9 · 0.1 / 2.7).
    assert rows[1][mean] == pytest.approx((0.9 + 1.9 * (1.2 + 0.95 * 0.1 / 2.7)) / 2.9, abs=1e-6)
    keep(folder, "tuning", "slow-a", 999, [(0, 0), (1.4, 1)])
    with pytest.raises(ValueError, match="no trial of slow"):
        settle("tuning", ["warp", "slow"])


def test_contrast_is_the_difference_of_the_fronts(folder):
    """Worked by hand: straight lines. Guards: points or the rival chosen on test prompts, seeds
    counted that are not whole.
    """
    for seed, lift in ((0, 0.0), (1, 0.2)):
        # On validation prompts the point at (2, -0.1) is beaten; on test prompts it would look
        # best.
        keep(
            folder,
            "e",
            "warp",
            seed,
            [(0, 0), (2, -0.1), (4, 4)],
            test=[(0, 0), (2, 9 + lift), (4, 4 + lift)],
        )
        keep(folder, "e", "weak", seed, [(0, 0), (6, 1)], test=[(0, 0), (6, 30)])
        keep(folder, "e", "strong", seed, [(0, 0), (6, 3)])
    keep(folder, "e", "warp", 2, [(0, 0), (4, 4)])  # its rivals have not finished
    found = contrast("e", ["warp"], ["weak", "strong"], high=3.0)
    assert (
        found.rival == "strong"
        and finished_seeds("e", ["warp", "weak", "strong"]) == [0, 1]
        and not short(found)
    )
    # From 1 to 3 nats: WARP's line has slope 1 (seed 1: 1.05), the rival's 0.5, both through 0.
    assert [found.by_seed[k].mean for k in (0, 1)] == pytest.approx([1.0, 1.1], abs=1e-6)
    assert across_seeds(found).mean == pytest.approx(1.05) and across_seeds(found).n == 2
    # Every prompt has the same difference, so over prompts it is certain; over two seeds 0.1 apart
    # it is not.
    assert (
        across_prompts(found).low == pytest.approx(1.05, abs=1e-6) and across_seeds(found).low < 0.5
    )
    with pytest.raises(ValueError, match="no seed"):
        contrast("e", ["warp"], ["absent"], high=3.0)


def test_each_side_has_its_own_choice_on_validation_prompts(folder):
    """Guards: an arm chosen on test prompts, or seed by seed, or only the rival chosen."""
    lines = {"warp": (1.0, 1.0), "warp-2": (1.2, 0.5), "rival": (0.3, 0.9), "rival-2": (0.4, 0.4)}
    for seed in (0, 1):
        for arm, (validation, test) in lines.items():
            odd = 0.5 if (arm, seed) == ("warp", 1) else 0  # better on one seed, worse over both
            points = [(0, 0), (4, 4 * (validation - 0.3 * (arm == "warp") + odd))]
            keep(folder, "e", arm, seed, points, test=[(0, 0), (4, 4 * test)])
    found = contrast("e", ["warp", "warp-2"], ["rival", "rival-2"], high=3.0)
    assert (found.arm, found.rival) == ("warp-2", "rival-2")
    assert found.both.mean == pytest.approx(2 * (0.5 - 0.4), abs=1e-6)


def test_a_comparison_goes_to_every_end_and_on_fewer_points(folder):
    """Guards: an end beyond the shorter front, the arm's points restricted for the rival's."""
    for seed in range(3):
        keep(folder, "e", "warp", seed, [(0, 0), (4.2, 4.2)])
        keep(folder, "e", "rival", seed, [(0, 0), (2, 2), (3.7, 2)])
        file = folder / "e" / f"rival-{seed}.csv"
        rows = pd.read_csv(file).assign(
            method=["reinforce-liti", "reinforce", "reinforce-liti"] * 2
        )
        rows.assign(eta=[0, math.nan, 1] * 2).to_csv(file, index=False)
    pair = ("e", "warp"), ("e", "rival")
    ends = contrasts.by_end(*pair)
    assert list(ends) == [2, 2.5, 3, 3.5]
    # equal to 2 nats; then the rival's reward stays at 2
    assert ends[2].both.mean == pytest.approx(0, abs=1e-6)
    assert ends[3].both.mean == pytest.approx(0.5 / 2, abs=1e-6)
    line = contrasts.difference(*pair, 3.0, where=contrasts.LITI_LINE)
    assert line.both.mean == pytest.approx(2 * (1 - 2 / 3.7), abs=1e-6)
    half = contrasts.difference(*pair, 3.0, where="eta == 0 or method == 'reinforce'")
    assert half.ends == {seed: 2.0 for seed in range(3)}
    apart = contrasts.by_kl(*pair)
    assert list(apart) == [k / 4 for k in range(1, 15)]
    expected = {1.0: 0, 2.0: 0, 2.75: 0.75, 3.5: 1.5}
    assert {kl: apart[kl].both.mean for kl in expected} == pytest.approx(expected, abs=1e-6)


def test_a_front_that_ends_early_shortens_its_seed_and_says_so(folder):
    """Guards: extrapolation; a rival's window of its own."""
    keep(folder, "e", "warp", 0, [(0, 0), (4, 4)])
    keep(folder, "e", "rival", 0, [(0, 0), (6, 3)])
    found = contrast("e", ["warp"], ["rival"], high=5.0)
    # from 1 to 4
    assert short(found) == {0: 4.0} and found.by_seed[0].mean == pytest.approx(2.5 - 1.25, abs=1e-6)
    # A point of more KL and no more reward is no front, but a front is no shorter for it: it keeps
    # its reward.
    keep(folder, "f", "warp", 0, [(0, 0), (4, 4), (8, 4)])
    keep(folder, "f", "rival", 0, [(0, 0), (8, 4)])
    found = contrast("f", ["warp"], ["rival"], high=6.0)
    assert not short(found) and found.by_seed[0].mean == pytest.approx(
        (1.5 * 1 + 2.5 + 3.5 + 4 * 2) / 5 - 1.75, abs=1e-6
    )


def test_arms_are_compared_where_one_reward_model_scored_both(folder):
    """Guards: a seed whose arms had different reward models taken for a pair; one left out because
    another seed had another.
    """
    for seed in range(3):
        keep(folder, "e", "warp", seed, [(0, 0), (4, 4)])
        keep(folder, "e", "rival", seed, [(0, 0), (6, 3)])
    for name in ("rival-0", "rival-1", "warp-1"):
        file = folder / "e" / f"{name}.json"
        file.write_text(file.read_text().replace("kept", "another"))
    assert contrast("e", ["warp"], ["rival"], high=3.0).by_seed.keys() == {1, 2}
    found = contrasts.difference(("e", "warp"), ("e", "rival"), 3.0)
    assert found.by_seed.keys() == {1, 2}
    pair = {"e": (("e", "warp"), ("e", "rival"))}
    assert contrasts.differences(pair, 3.0, [0, 2])["e"].by_seed.keys() == {
        2
    } and not contrasts.differences(pair, 3.0, [0])
    for seed, other in ((1, {"sft": "other"}), (2, {"machine": {"dtype": "torch.float8"}})):
        record = json.loads((folder / "e" / f"warp-{seed}.json").read_text()) | other
        (folder / "e" / f"warp-{seed}.json").write_text(json.dumps(record))
    outcome.cache_clear()
    with pytest.raises(
        ValueError,
        match=r"no seed has finished all of warp \(e\), rival \(e\), scored by one reward",
    ):
        contrast("e", ["warp"], ["rival"], high=3.0)


def test_a_judge_reads_the_fronts_that_the_reward_chose(folder):
    """Guards: the front or the better rival taken from the judge's scores."""
    for arm, points, judge in (
        ("warp", [(0, 0), (4, 4)], 0.5),
        ("weak", [(0, 0), (6, 1)], 30.0),
        ("strong", [(0, 0), (6, 3)], 0.5),
    ):
        keep(folder, "e", arm, 0, points)
        file = folder / "e" / f"{arm}-0.safetensors"
        scores = load_file(file)
        save_file(scores | {"test.judge": np.float32(judge) * scores["test.reward"]}, file)
    for arm in ("warp", "weak", "strong"):  # a second seed, one arm of which another machine judged
        for end in (".csv", ".json", ".safetensors"):
            shutil.copy(folder / "e" / f"{arm}-0{end}", folder / "e" / f"{arm}-1{end}")
    record = json.loads((folder / "e" / "weak-1.json").read_text())
    (folder / "e" / "weak-1.json").write_text(json.dumps(record | {"judges": {"judge": "another"}}))
    assert contrast("e", ["warp"], ["weak", "strong"], high=3.0).by_seed.keys() == {0, 1}
    found = contrast("e", ["warp"], ["weak", "strong"], high=3.0, scorer="judge")
    assert found.by_seed.keys() == {0}
    assert found.rival == "strong" and found.by_seed[0].mean == pytest.approx(
        0.5 * (2.0 - 1.0), abs=1e-6
    )


def test_difference_of_gains_is_that_of_the_contrasts_on_shared_seeds(folder):
    """Worked by hand with straight lines through 0: mean r̃ from 1 to h is the slope times (1 + h)
    / 2.
    """
    for seed, slope in ((0, 2.0), (1, 2.2), (2, 9.0)):
        for experiment, arm, rise in (
            ("dpo", "warp-dpo", slope),
            ("dpo", "dpo", 1.0),
            ("rl", "warp", 1.5),
        ):
            keep(folder, experiment, arm, seed, [(0, 0), (8, 8 * rise)])
    for seed in (0, 1):  # the third seed lacks its baseline; the second ends at 2 nats
        keep(folder, "rl", "reinforce", seed, [(0, 0), (2 if seed else 8, 2 if seed else 8)])
    of, than = (("dpo", "warp-dpo"), ("dpo", "dpo")), (("rl", "warp"), ("rl", "reinforce"))
    found = contrasts.difference_of_gains(of, than, high=3.0)
    assert [found.by_seed[seed].mean for seed in (0, 1)] == pytest.approx(
        [0.5 * 2, 0.7 * 1.5], abs=1e-5
    ) and short(found) == {1: 2.0}
    assert (
        across_seeds(found).n == 2
        and found.arm == "warp-dpo − dpo"
        and found.rival == "warp − reinforce"
    )
    with pytest.raises(ValueError, match=r"no seed has finished all of warp-dpo \(dpo\)"):
        contrasts.difference_of_gains(of, (("rl", "warp"), ("rl", "absent")), high=3.0)
    pairs = {
        "there": (("dpo", "warp-dpo"), ("rl", "reinforce")),
        "not yet": (of[0], ("rl", "absent")),
    }
    across = contrasts.differences(pairs, 3.0, range(3))
    assert list(across) == ["there"] and across_seeds(across["there"]).n == 2
    assert [across["there"].by_seed[seed].mean for seed in (0, 1)] == pytest.approx(
        [1.0 * 2, 1.2 * 1.5], abs=1e-5
    )
    file = folder / "rl" / "warp-0.json"
    file.write_text(file.read_text().replace("kept", "another"))
    outcome.cache_clear()
    assert contrasts.difference_of_gains(of, than, high=3.0).by_seed.keys() == {1}


def test_end_rows_show_the_point_of_largest_kl(folder):
    keep(folder, "e", "warp", 0, [(0, 0), (9, 9), (4, 4)], test=[(0, 0), (3, 1), (5, 2)])
    table = pd.read_csv(folder / "e" / "warp-0.csv").assign(
        judge=0.7, judge_tfidf=0.8, entropy=1.9, distinct2=0.5, perplexity=7
    )
    errors = {
        f"{name}_se": 0.1
        for name in ("kl", "reward", "judge", "judge_tfidf", "entropy", "distinct2", "perplexity")
    }
    table.assign(**errors).to_csv(folder / "e" / "warp-0.csv", index=False)
    (row,) = outcomes.end_rows("e", ["warp"], [0])
    assert (
        row["KL, nats"] == "5.00 ± 0.20"
        and row["r̃"] == "2.00 ± 0.20"
        and row["judge"] == "0.70 ± 0.20"
    )


def test_units_side_by_side_go_on_past_one_that_fails(monkeypatch, capsys):
    """Guards: one failure that ends all, or is not told; more threads than processors."""

    def job(unit):
        words = (
            "raise ValueError('it is broken')"
            if unit.settings.seed == 1
            else "print('Left out: by', os.environ['OMP_NUM_THREADS'])"
        )
        return Job(unit.title, [sys.executable, "-c", f"import os; {words}"])

    monkeypatch.setattr(run, "_job", job)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    four = [
        units.Training("e", "warp", Settings.profile("smoke", seed=seed), arms.by_warp)
        for seed in range(4)
    ]
    with pytest.raises(
        RuntimeError, match="^1 failed: e: warp, seed 1 .ValueError: it is broken.$"
    ):
        run._run_side_by_side(four, 2, run_here)
    said = capsys.readouterr().out.splitlines()
    assert (
        sum(line.endswith(": Left out: by 8") for line in said) == 3
        and sum("ended" in line for line in said) == 3
        and sum("FAILED" in line for line in said) == 1
    )


def test_a_unit_that_fails_is_no_refused_command(folder, monkeypatch, capsys):
    """Guards: exit code 2, as of a misspelt command, for what broke while it ran."""

    def broken(unit, progress):
        raise Explained("it is broken.")

    monkeypatch.setattr(units, "run_unit", broken)
    unit = plan.tuning()[0].file.stem
    assert main(["study", "tuning", "--unit", unit]) == 1
    assert capsys.readouterr().err == "it is broken.\n"
    assert main(["study", "nothing"]) == 2 and "no experiment" in capsys.readouterr().err


def test_another_process_finds_a_unit_by_its_name(folder, monkeypatch, capsys):
    """Guards: two units of one name, a unit that another process takes for another, one that is
    asked for and is not there.
    """
    ran = []
    monkeypatch.setattr(units, "run_unit", lambda unit, progress: ran.append(unit.title))
    for unit in plan.tuning():
        words = run._job(unit).words
        assert (
            words[1:3] == ["-m", "warp_lib"]
            and main(words[3:]) == 0
            and ran.pop() == unit.title
            and not ran
        )
    capsys.readouterr()
    assert main(["study", "tuning", "--unit", "wrap-a-0"]) == 2
    assert capsys.readouterr().err.startswith("tuning has no unit 'wrap-a-0'; it has warp-a-")


@pytest.mark.parametrize(
    "mean, of_seeds, of_prompts, seeds, words",
    [
        (0.1, 0.05, 0.1, 8, "Yes."),
        (0.1, 0.05, 0.6, 8, "Not detectably."),
        (0.1, 0.15, 0.1, 8, "Not detectably."),
        # each by itself would exclude 0: ± 0.084 over seeds, ± 0.079 over prompts
        (0.1, 0.1, 0.4, 8, "Not detectably."),
        (-0.1, 0.05, 0.1, 8, "No: it earns less."),
        (0.1, 0.001, 0.01, 2, "Not detectably."),
        (0.1, 0.0, 0.01, 1, "Not detectably."),
    ],
)
def test_a_verdict_is_over_seeds_and_prompts(mean, of_seeds, of_prompts, seeds, words):
    """Seeds and prompts as far apart as these standard deviations say."""
    by_seed, by_prompt = (
        (x - x.mean()) / (x.std(ddof=1) if len(x) > 1 else 1)
        for x in map(np.arange, (float(seeds), 100.0))
    )
    table = mean + of_seeds * by_seed[:, None] + of_prompts * by_prompt
    found = Contrast(dict(enumerate(table)), arm="warp", rival="rival", high=3.0, ends={})
    ends = dict.fromkeys(range(seeds), 2.86)
    best = Contrast(dict(enumerate(table - 2)), arm="warp", rival="best-of-n", high=3.0, ends=ends)
    said = answers.primary(found, best)
    assert said.startswith(words)
    planned = {
        8: "over eight seeds.",
        2: "over two of eight planned",
        1: "over one of eight planned",
    }
    assert planned[seeds] in said and (best.side == 0 or "more than WARP (up to 2.9 nats)." in said)
    if of_prompts == 0.4:
        assert across_seeds(found).side == across_prompts(found).side == 1


def test_figures_show_what_is_compared(folder):
    """Guards: a zigzag where test prompts order the points otherwise, a judge's column taken for
    another.
    """
    keep(folder, "e", "warp", 0, [(0, 0), (2, 1), (2.1, 1.5)], test=[(0, 0), (3, 1), (2, 1.5)])
    rows = pd.read_csv(folder / "e" / "warp-0.csv").assign(seed=0)
    rows.to_csv(folder / "e" / "warp-0.csv", index=False)
    scores = load_file(folder / "e" / "warp-0.safetensors")
    save_file(
        scores | {"test.judge": scores["test.reward"] * 2}, folder / "e" / "warp-0.safetensors"
    )
    one, band = outcome("e", "warp", 0), {"mean": 0.3, "p99": 1.4}
    names = [f"{arm}: trial {k}" for arm in ("warp", "reinforce") for k in range(4)]
    looks = {
        (trace.line.color, trace.line.dash)
        for trace in study_plots.fronts(dict.fromkeys(names, [one]), 2.5, band, "x").data
    }
    assert len(looks) == len(names)
    line = study_plots.fronts({"warp": [one]}, 2.5, band, "x").data[0]
    assert list(line.x) == [0, 2, 3] and list(line.y) == pytest.approx([0, 1.5, 1])
    by_kl = {kl: Effect({k: np.full(4, kl / 10 + k / 100) for k in range(3)}) for kl in (1.0, 2.0)}
    figure = study_plots.fronts({"warp": [one]}, 2.5, band, "x", apart=("a − b", by_kl))
    (below,) = (trace for trace in figure.data if trace.name == "a − b")
    assert below.yaxis == "y2" and list(below.x) == [1, 2]
    caption = figure.layout.meta["caption"]
    assert caption.endswith("which lies above 0 at 2 of them, below at none.")
    assert list(below.y) == pytest.approx([0.11, 0.21])
    edges = [trace for trace in figure.data if trace.yaxis == "y2" and trace is not below]
    assert [list(edge.y) for edge in edges] == [
        pytest.approx([getattr(effect.both, side) for effect in by_kl.values()])
        for side in ("low", "high")
    ]
    points, alike = study_plots.judged({"warp": [one]}, "judge", band, "x").data
    assert list(points.y) == pytest.approx([2 * x for x in points.x]) and list(alike.x) == list(
        alike.y
    )
    nothing = study_plots.intervals({"a": {}}, "x", "y", "z")
    assert nothing.layout.annotations[0].text == "nothing to compare yet"
    rows = {"seed 0": Interval(0.2, 0.1, 0.3, 100), "both": Interval(0.2, math.nan, math.nan, 1)}
    forest = study_plots.intervals({"a panel": rows}, "x", "finding", "caption")
    assert [(*row.x, *row.error_x.array) for row in forest.data] == [
        (0.2, pytest.approx(0.1)),
        (0.2, 0),
    ]
    texts = [note.text for note in forest.layout.annotations]
    assert texts[:2] == ["<b>a panel</b>", "seed 0: +0.200 (95% CI +0.100 to +0.300)"]
    assert forest.layout.meta == {"finding": "finding", "caption": "caption"}


def test_rows_and_tables_speak_in_words():
    """Guards: an arm's own name in a table, a row that does not say where it ends."""
    table = tables.Table([{"method": "reinforce-2b"}, {"method": "another"}])
    assert [row["method"] for row in table.rows] == ["REINFORCE, batch 128", "another"]
    pair = {seed: np.array([0.1, 0.3]) for seed in range(3)}
    early = Contrast(pair, "warp", "x", 4.5, ends={0: 3.86, 1: 4.5, 2: 4.5})
    late = Contrast(pair, "warp", "x", 4.5, ends={0: 4.48, 1: 4.5, 2: 4.5})
    assert list(answers.rows({"a": early, "b": late})) == ["a (up to 3.9 nats)", "b"]
    assert answers.cut(early, "where a curve ends there").startswith(" (up to 3.9 where")


def test_angles_are_the_models(folder):
    keep(folder, "e", "warp", 0, [(0, 0), (2, 1)])
    row = {"iteration": 1, "a": 1, "b": 2, "degrees": 80.0, "norm_a": 1.0, "norm_b": 2.0}
    record = {"geometry": [row | {"layer": "h.0", "degrees": 10.0}, row | {"layer": "model"}]}
    (folder / "e" / "warp-0.json").write_text(json.dumps(record))
    assert angle_rows(outcomes.finished("e", "warp", [0])) == [
        {"seed": 0, "iteration": 1, "runs": "1 and 2", "Ω, degrees": 80.0, "‖δ‖": 1.0, "‖δ′‖": 2.0}
    ]


def test_layers_are_averaged_over_seeds(folder):
    """Guards: iterations or layers mixed, the norm of one run only, degrees taken for radians."""
    for seed, degrees in ((0, 60.0), (1, 120.0)):
        keep(folder, "e", "warp", seed, [(0, 0), (2, 1)])
        row = {
            "a": 1,
            "b": 2,
            "norm_a": 1.0,
            "norm_b": 3.0,
            "layer": "transformer.h.0",
            "iteration": 1,
        }
        third = row | {"b": 3, "degrees": degrees + 4}  # a pair more of the same seed
        other = row | {"layer": "model", "degrees": 10.0}
        record = {
            "geometry": [
                row | {"degrees": degrees - 4},
                other,
                third,
                row | {"iteration": 2, "degrees": 90.0, "norm_b": 1.0},
            ]
        }
        (folder / "e" / f"warp-{seed}.json").write_text(json.dumps(record))
    first, whole, second = outcomes.by_layer(outcomes.finished("e", "warp")).to_dict("records")
    assert (whole["layer"], whole["degrees"], whole["degrees_half"]) == ("model", 10.0, 0.0)
    assert (first["layer"], first["degrees"], first["norm"]) == ("h.0", 90.0, 2.0)
    longer = [1 / math.cos(math.radians(degrees) / 2) for degrees in (56, 64, 116, 124)]
    assert first["longer"] == pytest.approx(sum(longer) / 4)
    assert (
        first["degrees_half"] == pytest.approx(Interval.of([60.0, 120.0]).high - 90)
        and second["degrees_half"] == 0
    )
    assert (second["iteration"], second["norm"]) == (2, 1.0) and second["longer"] == pytest.approx(
        2**0.5
    )
    assert (
        len(study_plots.by_layer(outcomes.by_layer(outcomes.finished("e", "warp")), "x").data) == 6
    )


def test_an_arm_is_not_taken_for_another_whose_name_begins_alike(folder):
    keep(folder, "e", "reinforce-2b", 0, [(0, 0), (2, 1)])
    keep(folder, "e", "reinforce", 1, [(0, 0), (2, 1)])
    assert finished_seeds("e", ["reinforce"]) == [1] and finished_seeds("e", ["reinforce-2b"]) == [
        0
    ]


def test_single_runs_are_not_on_the_front(folder):
    keep(folder, "e", "a", 0, [(0, 0), (3, 2)], method="run")
    assert len(outcome("e", "a", 0).kl("test")) == 0


def test_gaps_are_to_the_rivals_front_at_the_same_kl(folder):
    """Guards: the gap to a point instead of the line, runs counted one by one, iterations
    mixed, test and validation mixed.
    """
    for seed, up in ((0, 0.0), (1, 0.2)):
        keep(folder, "x", "rival", seed, [(0, 0), (4, 2)])  # a straight line, r̃ = KL / 2
        keep(
            folder,
            "x",
            "warp",
            seed,
            [(0, 0), (1, 0.5), (3, 1.5), (2, 1.0 + up), (1, 0.7), (4, 2.3)],
        )
        file = folder / "x" / f"warp-{seed}.csv"
        places = [("sft", None), ("run", 1), ("run", 1), ("slerp", 1), ("liti", 1), ("slerp", 2)]
        rows = pd.read_csv(file).assign(
            **dict(zip(("method", "iteration"), zip(*places * 2, strict=True), strict=True))
        )
        # chooses fronts, and counts nowhere else
        rows.loc[rows["split"] == "validation", "reward"] += 5
        rows.to_csv(file, index=False)
    found = contrasts.averages(
        outcomes.finished("x", "warp"), {"rival": outcomes.finished("x", "rival")}
    )
    assert list(found) == [(1, "run"), (1, "slerp"), (1, "liti"), (2, "slerp")]
    gaps = [effect["rival"].both.mean for effect in found.values()]
    assert gaps == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=1e-6)
    merged = found[1, "slerp"]
    assert merged["r̃"].both.mean == pytest.approx(1.1) and merged["KL, nats"].both.mean == 2
    for seed in (0, 1):
        keep(folder, "x", "near", seed, [(0, 0), (2.5, 2)])
    # one of them is at 3 nats
    assert (
        "near"
        not in contrasts.averages(
            outcomes.finished("x", "warp"), {"near": outcomes.finished("x", "near")}
        )[1, "run"]
    )
    gap = merged["rival"]
    assert across_seeds(gap).high == pytest.approx(Interval.of([0.0, 0.2]).high)
    # The rival's prompts lie 0.1 above and below as WARP's do, so prompt by prompt nothing is left
    # of that.
    assert across_prompts(gap).high == pytest.approx(0.1, abs=1e-6)


def test_a_gap_counts_that_kl_is_a_mean_over_the_same_prompts():
    """Against a bootstrap over prompts. Guards: the front's KL or the policy's taken as known."""
    rng = np.random.default_rng(0)
    # prompts on which KL is larger earn more, on every policy
    prompt = rng.normal(size=(1, 400))
    kl = np.array([[0.0], [1.0], [3.0]]) * (1 + 0.3 * prompt + 0.1 * rng.normal(size=(3, 400)))
    reward = np.array([[0.0], [0.8], [1.2]]) + 0.2 * prompt + 0.1 * rng.normal(size=(3, 400))
    rows = pd.DataFrame({"split": "test", "method": "warp", "kl": kl.mean(1)})
    rows = pd.concat([rows, rows.assign(split="validation")])
    scores = {"test.reward": reward, "test.kl": kl, "validation.reward": reward}
    own_kl, own = 2.0 * (1 + 0.6 * prompt[0]), 0.9 + 0.2 * rng.normal(size=400)
    gap = outcomes.Outcome(rows, scores, {}).gap(own, own_kl)
    assert gap is not None

    def number(share: np.ndarray) -> float:
        front = float(np.interp(own_kl @ share, kl @ share, reward @ share))
        return float(own @ share) - front

    drawn, found = bootstrap(number, 400), Interval.of(gap)
    assert found.mean == pytest.approx(drawn.mean)
    assert found.high - found.low == pytest.approx(drawn.high - drawn.low, rel=0.05)
    known = Interval.of(own - np.array([0, 0.5, 0.5]) @ reward)
    assert abs((known.high - known.low) / (drawn.high - drawn.low) - 1) > 0.1
    assert outcomes.Outcome(rows, scores, {}).gap(own, own_kl + 2) is None


def test_early_checkpoints_lie_below_a_front_and_below_reinforces_own_line(folder):
    """Guards: the sign, the last checkpoint among the early ones, checkpoints in the own line's
    front, one beyond the front's end.
    """
    points = [(0, 0), (1, 0.4), (2, 0.9), (4, 2.0), (0, 0), (2, 1.0), (4, 2.0)]
    methods = ["sft", *["reinforce"] * 3, *["reinforce-liti"] * 3]
    steps = [0, 100, 200, 300, 300, 300, 300]
    for seed in (0, 1, 2):
        keep(folder, "x", "reinforce", seed, points)
        file = folder / "x" / f"reinforce-{seed}.csv"
        rows = pd.read_csv(file).assign(method=methods * 2, steps=steps * 2)
        rows.to_csv(file, index=False)
        keep(folder, "x", "warp", seed, [(0, 0), (1.5, 1.5)])
    stopped = outcomes.finished("x", "reinforce")
    line = contrasts.over_checkpoints(stopped, stopped, contrasts.LITI_LINE)
    assert {steps: one.both.mean for steps, one in line.items()} == pytest.approx(
        {100: 0.1, 200: 0.1}, abs=1e-6
    )
    above = contrasts.over_checkpoints(outcomes.finished("x", "warp"), stopped)
    assert {steps: one.both.mean for steps, one in above.items()} == pytest.approx(
        {100: 0.6}, abs=1e-6
    )


def test_r_is_ahead_of_a_judge_by_what_the_judge_does_not_see(folder):
    """Guards: the judge's own front instead of the reward's, where SFT lies already, beyond a
    seed's end, the sign, another KL's gap.
    """
    for seed, end in ((0, 4.0), (1, 3.0)):
        keep(folder, "x", "warp", seed, [(0, 0), (1, 1), (end, 2)])
        scores = load_file(folder / "x" / f"warp-{seed}.safetensors")
        # from 1 nat on the judge stays behind; it began behind
        gap = np.array([[0.5], [0.5], [0.5 + end / 10]], dtype=np.float32)
        save_file(
            scores | {"test.judge": scores["test.reward"] - gap},
            folder / "x" / f"warp-{seed}.safetensors",
        )
    found = contrasts.ahead_of_judge(outcomes.finished("x", "warp"), "judge")
    assert list(found) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert [effect.both.mean for effect in found.values()][:2] == pytest.approx([0, 0], abs=1e-6)
    assert found[2.0].by_seed[0].mean == pytest.approx(0.4 / 3, abs=1e-6) and found[2.0].by_seed[
        1
    ].mean == pytest.approx(0.15, abs=1e-6)
    line = study_plots.ahead_of_judges({"judge": {"warp": found}}, "x").data[0]
    assert list(line.x) == list(found) and line.y[3] == pytest.approx(found[2.0].both.mean)


def test_slerp_is_compared_with_a_longer_step_of_lerp(folder):
    """Guards: compared at equal η instead of equal KL, other numbers of runs on the line, the sign,
    a line that ends before K*.
    """
    places = [("sft", None, None)] + [
        (m, runs, eta) for runs in (2, 3) for m in ("lerp", *outcomes.MERGES) for eta in (0.5, 1.0)
    ]
    up = {"lerp": 0.0, "slerp-layer": 0.1, "slerp-tensor": -0.1, "slerp-model": 0.0}
    for seed in (4, 5):
        points = [(0, 0)]
        for method, runs, eta in places[1:]:
            # SLERP's step is the longer one
            kl = eta * (6 if method != "lerp" else 4 if runs == 2 else 2.5)
            points.append((kl, kl / 2 + up[method] * (runs - 1) * kl))
        keep(folder, "merges", "warp-m3", seed, points)
        file = folder / "merges" / f"warp-m3-{seed}.csv"
        columns = dict(zip(("method", "runs", "eta"), zip(*places * 2, strict=True), strict=True))
        pd.read_csv(file).assign(**columns, seed=seed).to_csv(file, index=False)
    found = contrasts.slerp_over_lerp(outcomes.finished("merges", "warp-m3"), 3.0)
    assert list(found) == [
        f"M = {runs}, {words}" for runs in (2, 3) for words in outcomes.MERGES.values()
    ]
    # 0.1 of slope, at 2 nats
    assert found["M = 2, an angle a layer"].both.mean == pytest.approx(0.2, abs=1e-6)
    assert found["M = 2, an angle a tensor"].both.mean == pytest.approx(-0.2, abs=1e-6)
    assert found["M = 2, one angle"].both.mean == pytest.approx(0, abs=1e-6) and not short(
        found["M = 2, one angle"]
    )
    # 0.2 of slope, at 1.75 nats
    assert found["M = 3, an angle a layer"].both.mean == pytest.approx(0.35, abs=1e-6)
    assert short(found["M = 3, an angle a layer"]) == {4: 2.5, 5: 2.5}
    figure = study_plots.through_merges(outcome("merges", "warp-m3", 4), [2, 3], "x")
    assert [list(trace.x) for trace in figure.data if trace.marker.symbol == "star"][:2] == [
        [4],
        [6],
    ] and len(figure.data) == 16


def test_lines_over_eta_and_their_bend(folder):
    """Guards: validation prompts on the line, another arm's method, the sign of the bend."""
    etas = [0.0, 0.5, 1.0]
    for seed, order in ((0, [2, 0, 1]), (1, [1, 2, 0]), (2, [0, 1, 2])):
        test = [(0, 0), (1 + seed, 1.0), (4, 1.0)]
        keep(folder, "x", "warp", seed, [(0, 9), (1, 9), (4, 9)], test=[test[k] for k in order])
        file = folder / "x" / f"warp-{seed}.csv"
        pd.read_csv(file).assign(eta=[etas[k] for k in order] * 2).to_csv(file, index=False)
    of_warp = outcomes.finished("x", "warp")
    table = contrasts.along_eta(of_warp, "warp")
    assert (
        table["eta"].tolist() == etas
        and table["reward"].tolist() == [0, 1, 1]
        and table["kl"].tolist() == [0, 2, 4]
    )
    assert table["kl_half"].tolist() == pytest.approx([0, Interval.of([1, 2, 3]).high - 2, 0])
    bends = {column: contrasts.bend(of_warp, "warp", column) for column in ("reward", "kl")}
    assert bends["reward"].both.mean == pytest.approx(0.5) and bends["reward"].side == 1  # concave
    assert bends["kl"].both.mean == 0 and bends["kl"].side == 0  # −1, 0 and 1
    of_two = contrasts.bend(outcomes.finished("x", "warp", [0, 1]), "warp", "kl")
    assert of_two.both.mean == -0.5 and of_two.side == 0


@pytest.mark.parametrize(
    "differences, side", [([1.0, 1.1], 1), ([-1.0, -1.1], -1), ([-1.0, 1.1], 0), ([1.0], 0)]
)
def test_an_interval_takes_a_side_only_off_zero(differences, side):
    assert Interval.of(differences).side == side
