"""The whole report, from the command line, on real reviews and the bundled policy, with the smoke
profile.
"""

import os
import shlex
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from conftest import faults, serving
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM

from warp_lib.__main__ import main
from warp_lib.experiment import Experiment
from warp_lib.interactive import playground
from warp_lib.reviews import load_reviews
from warp_lib.runs import paths
from warp_lib.runs.paths import ROOT
from warp_lib.study import kept_reward
from warp_lib.tools import task_vectors


def run(command: list[str], runs) -> str:
    around = {name: value for name, value in os.environ.items() if name != "JUPYTER_PATH"} | {
        "WARP_RUNS": str(runs),
        "OMP_NUM_THREADS": "2",  # two notebooks side by side, as on most machines
        # the processors are other tests', too: threads that wait must not keep them busy
        "OMP_WAIT_POLICY": "passive",
        # no still images, most of notebook 6's time: tests/test_report.py has them drawn
        "BROWSER_PATH": str(runs / "no-browser"),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def keep_a_slider(runs) -> None:
    """Store an empty result for the page's slider, whose 252 completions are a good part of the
    report's work; tests/test_playground.py has them written.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", runs)
        patch.setattr(playground, "_written", lambda *_: {"written": {}})
        experiment = Experiment(task_vectors.settings())
        reward = kept_reward.read(experiment.settings)
        policies = task_vectors.committed(experiment.theta_sft)
        play = playground.Playground(experiment, policies, reward)
        playground.slider(play, ("WARP", "REINFORCE"))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A folder for 700 of the real reviews: reading all of them is a good part of the report's
    work.
    """
    return tmp_path_factory.mktemp("reviews")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, reviews):
    folder = tmp_path_factory.mktemp("runs")
    keep_a_slider(folder)  # which reads all reviews, into this folder
    load_reviews().train.select(range(700)).to_csv(reviews / "reviews.csv", index=False)
    words = ["report", "--profile", "smoke", "--pair_prompts", "16", "--reviews", str(reviews)]
    return folder, run([sys.executable, "-m", "warp_lib", *words], folder)


def test_report(runs):
    """One page with every notebook and figure; the table holds a row for every checkpoint the
    settings imply.
    """
    folder, said = runs
    assert str(folder / "smoke" / "report.html") in said
    page = (folder / "smoke" / "report.html").read_text()
    for notebook in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        assert f'id="{notebook.stem}"' in page
    assert len([*folder.glob("store/slider-*/")]) == 1  # the one that was put there
    assert page.count('<div class="slide">') == 1
    assert page.count('<figure id="figure-') >= 30 and 'src="http' not in page
    assert page.count("<strong>Answer") == 9  # once each, below its question
    assert (
        page.count("run <code>smoke</code>") == 5 and page.count("last cell, from the study") == 3
    )
    assert page.count("last cell, from the runs kept in <code>data/scale</code>") == 1
    assert said.count("No Chromium or Chrome draws images here") == 10  # once a notebook
    results = pd.read_csv(folder / "smoke" / "results.csv")
    assert results["method"].value_counts().to_dict() == {
        "sft": 1,
        "run": 4,
        "slerp": 2,
        "liti": 2,
        "warp": 3,
        "reinforce": 4,
        "reinforce-liti": 3,
    }
    assert results.query("method == 'sft'")["kl"].item() == 0
    assert (
        results.query("method == 'warp'")["steps"].unique()
        == results.query("method == 'reinforce'")["steps"].max()
        == 16
    )
    assert (results["completions"] == results["steps"] * 8).all()
    kl = results.set_index("method")["kl"]
    assert (kl.drop("sft")[results["eta"].fillna(1).to_numpy()[1:] > 0] > 0).all()
    assert (
        AutoModelForCausalLM.from_pretrained(folder / "smoke" / "models" / "warp").config.vocab_size
        == 8192
    )


def test_saved_policies_are_the_measured_ones(runs, monkeypatch, capsys):
    """By transformers alone, whatever this machine is fast in."""
    monkeypatch.setattr(paths, "RUNS", runs[0])
    assert main(["verify", "smoke"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("warp", "warp-liti", "reinforce"))


def test_the_app_turns_the_knobs_after_the_report(runs, reviews, chromium, tmp_path):
    """The lab as `make app` serves it beside the explorer. Everything is stored, by kernels of one
    thread; this one has two: its knobs say what a run costs, and its table has the report's.
    """
    notebook = nbformat.read(ROOT / "notebooks" / "lab.ipynb", 4)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    parameters.source = f"profile, reviews, pair_prompts = 'smoke', {str(reviews)!r}, 16"
    nbformat.write(notebook, tmp_path / "lab.ipynb")
    asked = ["make", "--no-print-directory", "-n", "app", "ARGS=--no-browser --port={port}"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    path, _, *words = shlex.split(said[said.index("JUPYTER_PATH") :].replace("\\\n", ""))
    words[words.index("notebooks")] = str(tmp_path)
    around = dict([path.split("=")], WARP_RUNS=str(runs[0]), OMP_NUM_THREADS="2")
    around["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "voila", *words]
    with serving(*command, log=tmp_path / "log", env=around) as address:
        page = chromium.new_page(viewport={"width": 420, "height": 900})
        page.goto(f"{address}voila/render/lab.ipynb", timeout=120_000)
        expect(page.get_by_text("nothing to train")).to_be_visible(timeout=120_000)
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
        expect(page.get_by_text("M: independent runs merged in each iteration")).to_be_visible()
        page.get_by_label("smoke", exact=True).check()
        fronts = page.locator(".js-plotly-plot").last.locator(".scatterlayer .trace")
        expect(fronts).to_have_count(3)  # the study's two and this one
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        assert page.get_by_text("Traceback").count() == 0
        assert page.get_by_role("slider", name="β beta").get_attribute("aria-valuenow") == "0.3"
        assert faults(page) == []
        page.close()
