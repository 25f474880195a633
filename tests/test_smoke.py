"""The whole report, from the command line, on the real reviews and the bundled policy, with the smoke profile."""

import os
import subprocess
import sys

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from warp_lib.paths import ROOT
from warp_lib.rendering import can_draw


def run(command: list[str], runs) -> str:
    around = {name: value for name, value in os.environ.items() if name != "JUPYTER_PATH"} | {"WARP_RUNS": str(runs)}
    done = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def entries(runs) -> set[str]:
    return {record.parent.name for record in (runs / "store").glob("*/record.json")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, run([sys.executable, "-m", "warp_lib", "report", "--profile", "smoke"], folder)


def test_report(runs):
    """One page with every notebook and figure; the table holds a row for every checkpoint the settings imply."""
    folder, said = runs
    assert str(folder / "smoke" / "report.html") in said
    page = (folder / "smoke" / "report.html").read_text()
    for notebook in ("01_reward_model", "02_policy", "03_warp", "04_reinforce_baseline", "05_pareto", "06_ablations", "07_dpo"):
        assert f'id="{notebook}"' in page
    assert page.count("Plotly.newPlot(") >= 10 and 'src="http' not in page
    assert page.count("<strong>Answer") == 14  # below each question, and where it is computed
    assert page.count("run <code>smoke</code>") == 5 and page.count("last cell; the study") == 2
    executed = (folder / "smoke" / "notebooks" / "05_pareto.ipynb").read_text()
    assert executed.count('"image/png"') == (5 if can_draw() else 0)  # beside each interactive figure
    results = pd.read_csv(folder / "smoke" / "results.csv")
    assert results["method"].value_counts().to_dict() == {
        "sft": 1, "run": 4, "slerp": 2, "liti": 2, "warp": 3, "reinforce": 4, "reinforce-liti": 3,
    }  # fmt: skip
    assert results.query("method == 'sft'")["kl"].item() == 0
    assert results.query("method == 'warp'")["steps"].unique() == results.query("method == 'reinforce'")["steps"].max() == 16
    assert (results["completions"] == results["steps"] * 8).all()
    kl = results.set_index("method")["kl"]
    assert (kl.drop("sft")[results["eta"].fillna(1).to_numpy()[1:] > 0] > 0).all()
    assert AutoModelForCausalLM.from_pretrained(folder / "smoke" / "models" / "warp").config.vocab_size == 8192


def test_saved_policies_are_the_measured_ones(runs):
    """By transformers alone, whatever this machine is fast in."""
    said = run([sys.executable, "-m", "warp_lib", "verify", "smoke"], runs[0])
    assert all(name in said for name in ("warp", "warp-liti", "reinforce"))


def test_more_runs_reuse_what_is_stored(runs):
    """Two notebooks through papermill, with a third run: that one of each iteration, its merges, the longer baseline."""
    folder, _ = runs
    before = entries(folder)
    for notebook in ("03_warp", "04_reinforce_baseline"):
        command = [sys.executable, "-m", "papermill", f"{ROOT}/notebooks/{notebook}.ipynb", f"{folder}/{notebook}.ipynb"]
        run([*command, "--kernel", "python3", "-p", "profile", "smoke", "-p", "runs", "3"], folder)
    new = entries(folder) - before
    # Iteration 1 adds its third run; iteration 2 begins elsewhere, so all three of its runs are new; and the baseline is longer.
    assert sum(name.startswith("run-") for name in new) == 5
    assert not any(name.startswith(("reward-", "tfidf-")) for name in new)
