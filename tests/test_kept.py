"""Runs of other sizes, kept in data/scale/: copied whole or not at all, and read back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from warp_lib.__main__ import main
from warp_lib.report import answers, kept
from warp_lib.runs import paths
from warp_lib.runs.results import write_results
from warp_lib.settings import Settings

# method → KL, r̃ of its points. WARP's LITI line lies 0.1 above REINFORCE's at 2 nats, 0.05 at 1.
WARP = {"sft": [(0.0, 0.0)], "warp": [(0.0, 0.0), (2.0, 1.2)]}
REINFORCE = {"reinforce": [(2.0, 1.0)], "reinforce-liti": [(0.0, 0.0), (2.0, 1.1)]}
MACHINE = {"device": "cpu", "threads": 2, "dtype": "torch.bfloat16", "seconds": 5400.0}


@pytest.fixture
def run(store, monkeypatch, tmp_path):
    """A finished run called mine, and an empty data/scale: the run's folder."""
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "kept")
    for part, points in (("03_warp", WARP), ("04_reinforce_baseline", REINFORCE)):
        rows = [
            {"method": method, "reward": reward, "kl": kl, "eta": 1.0, "steps": 4}
            for method, ends in points.items()
            for kl, reward in ends
        ]
        kl, reward = (np.array([[row[name]] * 3 for row in rows]) for name in ("kl", "reward"))
        reward[:, 1] += 0.3  # a prompt on which all earn more
        shown = [
            {
                "point": k,
                "prompt": "a",
                "completion": f"{row['method']} at {row['kl']}",
                "reward": 0,
            }
            for k, row in enumerate(rows)
        ]
        write_results("mine", part, rows, {"kl": kl, "reward": reward}, shown, {})
    folder = store / "mine"
    shape = {"policy": "tiny", "seed": 3, "iterations": 2, "runs": 2, "steps": 1, "batch_size": 8}
    for file, content in (
        ("settings.json", shape),
        ("real_positive.json", {"mean": 0.3, "p99": 1.4}),
        ("machine.json", MACHINE),
    ):
        (folder / file).write_text(json.dumps(content))
    (folder / "figures").mkdir()
    (folder / "figures" / "pareto.svg").write_text("<svg/>")
    (folder / "results" / "03_warp.csv.tmp").write_text("half")
    return folder


def test_a_kept_run_reads_as_it_was(run, capsys):
    """Guards: a sign turned round, a checkpoint in place of the LITI line, completions of another
    point, hours for seconds, a second copy that mixes with the first.
    """
    assert main(["keep", "mine"]) == 0
    (kept.FOLDER / "mine" / "left.csv").write_text("of an earlier copy")
    assert main(["keep", "mine"]) == 0
    assert "kept/mine" in capsys.readouterr().out
    copied = {file.name for file in (kept.FOLDER / "mine").rglob("*.*")}
    assert {"pareto.svg", "results.csv", "03_warp.safetensors", "machine.json"} <= copied
    assert not {"left.csv", "03_warp.csv.tmp"} & copied
    (one,) = kept.kept()
    assert one.larger and not replace(one, settings={"policy": Settings().policy}).larger
    assert one.size == "tiny (I = 2, M = 2, T = 1, batch 8)"
    assert one.made_on == "2 threads, bfloat16; 1.5 h"
    written = one.samples(prompts=3)
    assert [row["completion"] for row in written] == [
        "sft at 0.0",
        "warp at 2.0",
        "reinforce at 2.0",
    ]
    assert [row["policy"] for row in written] == ["SFT", "WARP", "REINFORCE"]
    assert written[1]["prompt"] == "a"
    (row,) = kept.rows([one])
    assert row["− LITI line"].startswith("+0.075") and row["− LITI line"].endswith("1 to 2.0 nats")
    assert row["− path"].startswith("+0.200") and row["− path"].endswith("at 2.0 nats")
    assert row["test prompts"] == "3"
    assert answers.scale_title(one) == (
        "tiny, seed 3: WARP is above REINFORCE's LITI line and its path"
    )


def test_seeds_of_one_size_are_taken_together(run):
    """Guards: runs that differ in more than their seed pooled, the last of them alone counted."""
    for name, changes in (("b", {"seed": 4}), ("c", {"seed": 5, "batch_size": 16})):
        shutil.copytree(run, run.with_name(name))
        settings = json.loads((run / "settings.json").read_text()) | {"name": name} | changes
        (run.with_name(name) / "settings.json").write_text(json.dumps(settings))
    for name in ("mine", "b", "c"):
        kept.keep(name)
    pooled = kept.together(kept.kept())
    assert {name: sorted(line.by_prompt) for name, (line, _) in pooled.items()} == {
        "tiny (I = 2, M = 2, T = 1, batch 8)": [3, 4],
        "tiny (I = 2, M = 2, T = 1, batch 16)": [5],
    }
    settings |= {"batch_size": 8, "beta": 9.0}  # of one size, and not alike
    (kept.FOLDER / "c" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="of one policy and size differ in other settings"):
        kept.together(kept.kept())


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("results/04_reinforce_baseline.csv", "has no results of 04_reinforce_baseline yet"),
        ("results/03_warp.safetensors", "was made before rewards were kept prompt by prompt"),
        ("results/03_warp.json", "mine: 03_warp left no completions; run it again."),
        ("machine.json", "machine.json is missing or damaged: run this run's report"),
        ("settings.json", "settings.json is missing or damaged"),
    ],
)
def test_half_a_run_is_not_kept(run, capsys, lost, sentence):
    """What was kept before stays."""
    assert main(["keep", "mine"]) == 0
    before = sorted((kept.FOLDER / "mine").rglob("*"))
    (run / lost).unlink()
    assert main(["keep", "mine"]) == 1 and sentence in capsys.readouterr().err
    assert sorted(kept.FOLDER.rglob("*")) == [kept.FOLDER / "mine", *before]


def test_a_damaged_part_is_not_kept(run, capsys):
    """Guards: scores of fewer rows than the table has."""
    part = run / "results" / "03_warp.csv"
    part.write_text(part.read_text()[:-9])
    assert main(["keep", "mine"]) == 1 and "mine: a table of results is damaged" in (
        capsys.readouterr().err
    )


def test_a_name_is_a_name(run, capsys):
    shutil.copytree(run, paths.RUNS.parent / "elsewhere")
    assert main(["keep", "../elsewhere"]) == 2 and "name" in capsys.readouterr().err
    assert not kept.FOLDER.exists()


def test_a_path_is_read_where_the_first_of_both_ends(run):
    """Guards: a KL that one of them does not reach, the sign where REINFORCE ends first."""
    (one,) = [kept._read(run)]
    kl, reward = one.scores["kl"].copy(), one.scores["reward"].copy()
    path = one.results["method"].to_numpy() == "reinforce"
    for end, difference in ((1.0, 0.5 * 1.2 - 1.0), (4.0, 1.2 - 0.5 * 1.0)):
        kl[path] = end
        moved = replace(one, scores={"kl": kl, "reward": reward})
        path_end = moved.over_path()
        assert path_end.difference.mean == pytest.approx(difference)
        assert path_end.kl == min(end, 2.0)
