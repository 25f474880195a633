"""Runs of other sizes, kept in data/scale/: copied whole or not at all, and read back."""

import json
import shutil

import numpy as np
import pytest

from warp_lib.__main__ import main
from warp_lib.report import kept
from warp_lib.runs import paths
from warp_lib.runs.results import write_results

# KL, r̃ on each of three prompts: WARP earns 0.2 more than REINFORCE at every KL, its LITI line 0.1
WARP = {"sft": (0.0, 0.0), "warp": (2.0, 1.2)}
REINFORCE = {"reinforce": (2.0, 1.0), "reinforce-liti": (2.0, 1.1)}
MACHINE = {"device": "cpu", "threads": 2, "dtype": "torch.bfloat16", "seconds": 5400.0}


@pytest.fixture
def run(store, monkeypatch, tmp_path):
    """A finished run called mine, and an empty data/scale: the run's folder."""
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "kept")
    for part, points in (("03_warp", WARP), ("04_reinforce_baseline", REINFORCE)):
        rows = [
            {"method": method, "reward": reward, "kl": kl, "eta": 1.0, "steps": 4}
            for method, (kl, reward) in points.items()
        ]
        kl, reward = (np.array([[row[name]] * 3 for row in rows]) for name in ("kl", "reward"))
        reward[:, 1] += 0.3  # a prompt on which all earn more
        shown = [
            {"point": k, "prompt": "a", "completion": f"{row['method']}'s", "reward": 0.0}
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
    for figure in kept.FIGURES:
        (folder / "figures" / figure).write_text("<svg/>")
    return folder


def test_a_kept_run_reads_as_it_was(run, capsys):
    """Guards: a sign turned round, completions of another point, hours for seconds, a second copy
    that mixes with the first.
    """
    for _ in range(2):
        assert main(["keep", "mine"]) == 0
        (kept.FOLDER / "mine" / "left.csv").write_text("of an earlier copy")
    assert main(["keep", "mine"]) == 0
    assert "kept/mine" in capsys.readouterr().out
    assert not (kept.FOLDER / "mine" / "left.csv").exists()
    (one,) = kept.kept()
    assert one.title == "tiny, seed 3" and one.made_on == "2 threads, bfloat16; 1.5 h"
    assert one.over("reinforce")[0].mean == pytest.approx(0.15)  # from 1 to 2 nats
    assert one.over("reinforce-liti")[0].mean == pytest.approx(0.075)
    assert one.completions.set_index("method")["completion"].to_dict() == {
        "sft": "sft's",
        "warp": "warp's",
        "reinforce": "reinforce's",
        "reinforce-liti": "reinforce-liti's",
    }
    written = one.samples(prompts=3)
    assert [row["completion"] for row in written] == ["sft's", "warp's", "reinforce's"]
    assert written[1]["policy"] == "tiny, seed 3: WARP" and written[1]["prompt"] == "a"
    (row,) = kept.rows([one])
    assert row["size"] == "I = 2, M = 2, T = 1, batch 8"
    assert row["WARP − REINFORCE"].startswith("+0.150") and row["test prompts"] == "3"
    assert row["WARP − REINFORCE"].endswith("1 to 2.0 nats")


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("results/04_reinforce_baseline.csv", "has no results of 04_reinforce_baseline yet"),
        ("results/03_warp.safetensors", "was made before rewards were kept prompt by prompt"),
        ("machine.json", "runs/mine has no machine.json: run `python -m warp_lib report --name"),
        ("figures/pareto.svg", "runs/mine has no pareto.svg"),
    ],
)
def test_half_a_run_is_not_kept(run, capsys, lost, sentence):
    """What was kept before stays."""
    assert main(["keep", "mine"]) == 0
    before = sorted((kept.FOLDER / "mine").rglob("*"))
    (run / lost).unlink()
    assert main(["keep", "mine"]) == 1 and sentence in capsys.readouterr().err
    assert sorted(kept.FOLDER.rglob("*")) == [kept.FOLDER / "mine", *before]


def test_a_name_is_a_name(run, capsys):
    shutil.copytree(run, paths.RUNS.parent / "elsewhere")
    assert main(["keep", "../elsewhere"]) == 2 and "name" in capsys.readouterr().err
    assert not kept.FOLDER.exists()
