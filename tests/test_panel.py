"""The knobs: what a run costs before it begins, the command that does the same, refusals in words;
and as a person uses them in Lab.
"""

import asyncio
import dataclasses
import html
import re
import shlex
import shutil
import time

import ipywidgets as widgets
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import menu, running_in_lab
from filelock import FileLock
from papermill.cli import papermill as papermill_command
from playwright.sync_api import Page, expect

from warp_lib.experiment import Experiment
from warp_lib.interactive import cost as cost_module
from warp_lib.interactive import panel as panel_module
from warp_lib.interactive.cost import Cost, cost
from warp_lib.interactive.live import Watched
from warp_lib.interactive.my_runs import MyRuns, compared, remove, rename
from warp_lib.interactive.panel import Panel, command, knobs, run
from warp_lib.runs import paths
from warp_lib.runs.paths import ROOT, locked
from warp_lib.runs.progress import Progress, Stopped
from warp_lib.runs.results import write_results
from warp_lib.runs.store import write_json
from warp_lib.settings import PROFILES, Settings

TOY = {"iterations": 2, "runs": 2, "steps": 5, "name": "toy"}


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """A store that has an experiment's rewards; the experiment, on tiny models; the rewards."""
    store = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", store)
        experiment = Experiment(Settings.profile("smoke", **folders | TOY))
        return store, experiment, experiment.rewards(Progress())


@pytest.fixture
def toy(made, store):
    """The experiment, with a policy and a store of its own, and its rewards."""
    before, experiment, rewards = made
    shutil.copytree(before, store, dirs_exist_ok=True)
    return experiment.under(experiment.settings), rewards


class StopAfter(Progress):
    """Asks to stop after so many steps of training."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def log(self, **numbers: float) -> None:
        self.left -= 1
        if not self.left:
            self.stop.set()


def train(experiment: Experiment, rewards: dict, progress: Progress) -> None:
    experiment.warp(experiment.aligner(rewards["reward"], progress))


def test_cost_counts_what_is_stored(toy):
    """Guards: finished runs, or the steps of an unfinished one, counted as to do; runs of other
    settings counted as stored.
    """
    experiment, rewards = toy
    with pytest.raises(Stopped):
        train(experiment, rewards, StopAfter(8))
    found = cost(experiment, rewards)
    assert (found.steps, found.stored, found.runs, found.source) == (
        20,
        8,
        4,
        "as an earlier run took",
    )
    longer = experiment.under(dataclasses.replace(experiment.settings, runs=3, iterations=1))
    assert (cost(longer, rewards).steps, cost(longer, rewards).stored) == (15, 8)
    for knob, value in {
        "beta": 0.7,
        "seed": 5,
        "temperature": 0.9,
        "mu": 0.5,
        "learning_rate": 1e-3,
        "steps": 6,
    }.items():
        other = experiment.under(dataclasses.replace(experiment.settings, **{knob: value}))
        assert cost(other, rewards).stored == 0, knob
    train(experiment, rewards, Progress())
    assert cost(experiment, rewards).stored == 20 and "nothing to train" in str(
        cost(experiment, rewards)
    )
    merged_otherwise = experiment.under(dataclasses.replace(experiment.settings, merge="lerp"))
    assert cost(merged_otherwise, rewards).stored == 10  # the first iteration's runs are the same


def test_more_runs_reuse_what_is_stored(toy, store):
    """A third run is asked for, and a baseline as long as three, as notebooks 3 and 4 would.
    Guards: anything stored that is computed again.
    """
    experiment, rewards = toy
    align = experiment.aligner(rewards["reward"], Progress())
    experiment.warp(align)
    experiment.long_run(align, "reinforce", experiment.settings.steps)
    before = {record.parent for record in (store / "store").glob("*/record.json")}
    more = experiment.under(dataclasses.replace(experiment.settings, runs=3))
    align = more.aligner(more.rewards(Progress())["reward"], Progress())
    more.warp(align)
    more.long_run(align, "reinforce", more.settings.steps)
    after = {record.parent for record in (store / "store").glob("*/record.json")}
    # Iteration 1 adds its third run; iteration 2 begins elsewhere, so all three of its runs are
    # new; and the baseline is longer.
    assert [folder.name.split("-")[0] for folder in after - before] == ["run"] * 5


def test_cost_trains_nothing_when_a_pace_is_on_record(toy, monkeypatch):
    """Guards: a question that trains; the pace of another batch, or a constant."""
    experiment, rewards = toy
    train(experiment, rewards, Progress())
    record, *_ = cost_module.records("run")
    pace = pd.Series([row["seconds"] for row in record["result"]["history"]]).median()
    monkeypatch.setattr(cost_module, "_timed_pace", None)
    other = experiment.under(dataclasses.replace(experiment.settings, seed=3))
    found = cost(other, rewards)
    assert (
        found.pace == pytest.approx(pace)
        and found.seconds == pytest.approx(20 * pace)
        and found.stored == 0
    )
    assert (
        cost_module.recorded_pace(
            experiment.under(dataclasses.replace(experiment.settings, batch_size=4))
        )
        is None
    )


def test_cost_times_the_first_steps_and_keeps_them(toy):
    experiment, rewards = toy
    began = time.perf_counter()
    found = cost(experiment, rewards)
    assert found.stored == cost_module.TIMED < 5
    assert 0 < found.pace < time.perf_counter() - began and "measured" in str(found)
    assert cost(experiment, rewards) == found  # asked again, as after Stop, it trains no more
    short = experiment.under(
        dataclasses.replace(experiment.settings, steps=1, runs=1, iterations=1)
    )
    assert cost(short, rewards) == dataclasses.replace(found, steps=1, stored=0, runs=1)


def test_after_a_report_everything_is_stored_and_nothing_is_timed(toy, monkeypatch):
    """As notebook 03 is opened after `make report`, whose runs another number of threads made.
    Guards: a pace that is needed for nothing, a timing that finds no step to time."""
    experiment, rewards = toy
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    train(experiment, rewards, Progress())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    assert (
        cost(experiment, rewards).stored == 20
        and "all of them stored" in knobs(experiment, lambda _: rewards).data
    )
    opened = Panel(experiment, rewards)
    assert "nothing to train" in opened.cost.value and not opened.start.disabled
    monkeypatch.setattr(cost_module, "_timed_pace", None)
    opened.controls["seed"].value = "3"
    assert (
        "20 steps in 4 runs: about" in opened.cost.value
        and "as an earlier run took with OMP_NUM_THREADS=" in opened.cost.value
    )


def test_two_clicks_on_start_begin_one_run(toy, monkeypatch):
    """Guards: a second run that takes the place of the first one's Stop button."""
    begun = []

    def slow(*_: object) -> None:
        begun.append(1)
        time.sleep(0.3)

    monkeypatch.setattr(panel_module, "run", slow)
    opened = Panel(*toy)

    async def click() -> None:
        opened.start.click()
        opened.start.click()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.05)

    asyncio.run(click())
    assert begun == [1] and not opened.start.disabled


def test_other_settings_have_their_own_test_prompts(toy):
    """Guards: an evaluation on the prompts of the settings before; models of other names that are
    silently the old ones.
    """
    experiment, _ = toy
    before = experiment.test_prompts
    fewer = experiment.under(dataclasses.replace(experiment.settings, test_prompts=5))
    elsewhere = experiment.under(dataclasses.replace(experiment.settings, held_out="validation"))
    assert (
        fewer.test_prompts == before[:5]
        and elsewhere.test_prompts != before
        and experiment.test_prompts == before
    )
    with pytest.raises(ValueError, match="^test_prompts must be at most"):
        experiment.under(dataclasses.replace(experiment.settings, test_prompts=10_000))
    with pytest.raises(ValueError, match="^max_new_tokens must be at most"):
        experiment.under(dataclasses.replace(experiment.settings, max_new_tokens=10_000))
    with pytest.raises(ValueError, match="^policy='other' needs an experiment of its own"):
        experiment.under(dataclasses.replace(experiment.settings, policy="other"))


def test_a_timing_that_finds_everything_trained(toy, monkeypatch):
    """As when another process trained the steps between the question and the timing."""
    experiment, rewards = toy
    train(experiment, rewards, Progress())
    assert cost_module._timed_pace(experiment, rewards["reward"]) > 0


def test_the_cost_is_asked_of_the_store_alone(toy, store, monkeypatch):
    """Guards: a question that waits for the process that trains the run, writes into the store, or
    believes a damaged checkpoint.
    """
    experiment, rewards = toy
    with pytest.raises(Stopped):
        train(experiment, rewards, StopAfter(3))
    (folder,) = (store / "store").glob("run-*.part")
    before = sorted(store.rglob("*"))
    with FileLock(folder.with_suffix(".lock")):
        assert cost_module._stored(experiment, rewards) == 3
    assert sorted(store.rglob("*")) == before
    file = folder / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert cost_module._stored(experiment, rewards) == 0


def test_a_panel_times_on_a_policy_of_its_own(toy, monkeypatch):
    """Guards: two threads that train one policy, the panel's and that of the cell after it."""
    experiment, rewards = toy
    asked: list[Experiment] = []

    def spy(of: Experiment, given: dict) -> Cost:
        asked.append(of)
        return cost(of, given)

    monkeypatch.setattr(panel_module, "cost", spy)
    asyncio.run(Panel(experiment, {}).open(lambda progress: rewards))
    assert asked and all(one.policy.model is not experiment.policy.model for one in asked)


def test_a_panels_run_is_the_notebooks(toy, store):
    """Guards: rewards standardised at another temperature, a policy shared with the notebook, a
    table of another name.
    """
    experiment, rewards = toy
    before = {name: w.clone() for name, w in experiment.policy.weights().items()}
    settings = dataclasses.replace(experiment.settings, temperature=1.5, name="warm", iterations=1)
    run(experiment.under(settings), rewards, watched := Watched())
    assert all((w == before[name]).all() for name, w in experiment.policy.weights().items())
    whole = Experiment(settings)
    train(whole, whole.rewards(Progress()), Unwilling())  # whose settings are the notebook's
    assert [loop.title for loop in watched.loops][:2] == [
        "warp, i = 1, m = 1",
        "warp, i = 1, m = 2",
    ]
    assert (pd.read_csv(store / "warm" / "results.csv")["method"] == "run").sum() == 2


class Unwilling(Progress):
    """Fails when anything is trained."""

    def begin(self, title: str, done: int, total: int) -> None:
        pytest.fail(f"{title} was not in the store")


CHANGES = [
    {"iterations": 3, "learning_rate": 3e-5, "merge": "lerp"},
    {"name": "007", "beta": 0.0},
    {"name": "a.b-c", "eta": 0.123456789},
]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("changes", CHANGES)
def test_command_gives_the_same_settings(profile, changes, monkeypatch):
    """Guards: a setting left out, a name that papermill reads as a number, digits lost, words that
    the shell splits.
    """
    given = []
    monkeypatch.setattr("papermill.cli.execute_notebook", lambda **options: given.append(options))
    settings = Settings.profile(profile, **changes, policy="a folder/it's")
    program, *words = shlex.split(command(settings))
    papermill_command.main(words, standalone_mode=False)
    assert (
        program == "papermill"
        and (ROOT / given[0]["input_path"]).exists()
        and given[0]["kernel_name"] == "python3"
    )
    assert Settings.profile(**given[0]["parameters"]) == settings


def test_without_a_front_end_there_is_text(toy, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(panel_module, "Panel", None)
    experiment, rewards = toy
    train(experiment, rewards, Progress())
    text = knobs(experiment, lambda _: rewards).data
    assert "20 steps in 4 runs, all of them stored" in text and command(experiment.settings) in text


@pytest.mark.parametrize(
    ("knob", "value"),
    [("mu", "1.5"), ("steps", "many"), ("learning_rate", ""), ("name", "<b>../x")],
)
def test_bad_values_are_refused_in_the_settings_words(toy, knob, value):
    """Guards: a run that begins with another value than it shows; words of the panel's own; a
    person's text as HTML.
    """
    opened = Panel(*toy)
    assert not opened.start.disabled and "papermill" in opened.command.value
    good = opened.controls[knob].value
    opened.controls[knob].value = value
    with pytest.raises(ValueError, match=f"^{knob} must be") as refusal:
        opened.settings()
    assert f">{html.escape(str(refusal.value))}</b>" in opened.helps[knob].value
    red = {name for name, c in opened.controls.items() if panel_module.BAD in c._dom_classes}
    assert red == {knob} and opened.start.disabled
    assert opened.command.value == opened.cost.value == ""
    opened.controls[knob].value = good
    assert not opened.start.disabled and "steps in" in opened.cost.value
    assert panel_module.BAD not in opened.controls[knob]._dom_classes


def test_every_knob_has_its_settings_words(toy):
    """Visible ones: ipywidgets shows no tooltips."""
    opened, docs = Panel(*toy), {f.name: f.metadata["doc"] for f in dataclasses.fields(Settings)}
    for name in opened.controls:
        assert html.escape(docs[name]) in opened.helps[name].value
    assert isinstance(opened.controls["eta"], widgets.FloatSlider)
    wanted = {
        "iterations",
        "runs",
        "steps",
        "mu",
        "beta",
        "eta",
        "temperature",
        "learning_rate",
        "seed",
        "merge",
    }
    assert wanted <= opened.controls.keys()
    assert opened.settings() == dataclasses.replace(toy[0].settings, name="toy-mine")


# ----------------------------------------------------------------------------------- one's own runs


def keep_run(name: str, reward: float, scorer: str = "r", **overrides) -> None:
    """A run under runs/: SFT, and a front that rises to `reward` at 4 nats."""
    paths_of = {"method": ["sft", "warp", "warp"], "eta": [None, 0.5, 1], "iteration": 2, "runs": 2}
    rows = pd.DataFrame(paths_of | {"seed": 0, "kl": [0, 2, 4], "reward": [0, reward / 2, reward]})
    scores = {s: rows[s].to_numpy()[:, None] + np.array([-0.1, 0.0, 0.1]) for s in ("kl", "reward")}
    rows["kl_se"] = rows["reward_se"] = 0.1
    write_results(name, "03_warp", rows.to_dict("records"), scores, [], {"reward": scorer})
    settings = Settings.profile("laptop", name=name, **overrides).asdict()
    write_json(paths.RUNS / name / "settings.json", settings)


def test_own_runs_are_compared_renamed_and_deleted(store):
    keep_run("low", 1.0)
    keep_run("high", 2.0)
    keep_run("other", 3.0, scorer="s")
    table = MyRuns({})
    assert not table.chosen and table.delete.disabled and table.rename.disabled

    def shown() -> list[str]:
        return [row.children[0].description for row in table.rows.children[1:]]

    table.order.value = "most r̃"
    assert shown() == ["other", "high", "low"]
    table.pattern.value = "H"  # whatever the letters' size
    assert shown() == ["other", "high"]
    table.ticks["high"].value = table.ticks["low"].value = True
    assert "At 4.00 nats high − low is +1.000" in table.said.value and "higher" in table.said.value
    assert len(table.figure.figure.data) == 2 and table.rename.disabled
    keep_run("sft", 1.0)  # a name that is a method's, too
    assert compared("high", "sft") == compared("high", "low").replace("low", "sft")
    remove("sft")
    keep_run("chosen", 1.0, held_out="validation")  # as many prompts, but others
    assert compared("high", "chosen").startswith("They differ in held_out")
    remove("chosen")
    table.ticks["low"].value, table.ticks["other"].value = False, True
    assert "cannot be compared" in table.said.value
    table.ticks["other"].value = False
    table.name.value = "low"  # taken
    table.rename.click()
    assert "already" in table.said.value and (store / "high").exists()
    table.name.value = "../away"
    table.rename.click()
    assert "plain folder name" in table.said.value and (store / "high").exists()
    table.name.value = "highest"
    table.rename.click()
    assert table.chosen == ["highest"] and not (store / "high").exists()
    table.delete.click()
    assert (store / "highest").exists() and "Delete highest?" in table.said.value
    table.keep.click()
    assert table.sure.layout.display == "none"
    table.delete.click()
    table.sure.click()
    assert not (store / "highest").exists() and (store / "low").exists()


def test_what_is_in_use_or_no_run_is_never_deleted(store):
    """Guards: the store, a folder of something else, a link out of runs/, a run that goes on."""
    keep_run("mine", 1.0)
    shutil.copytree(store / "mine", store / "store")
    (store / "reviews").mkdir()
    outside = store.parent / f"{store.name}-outside"
    shutil.copytree(store / "mine", outside)
    (store / "link").symlink_to(outside)
    for name in ("store", "reviews", "link", "..", ".", "", "mine/results", str(outside)):
        with pytest.raises(ValueError):
            remove(name)
        with pytest.raises(ValueError):
            rename(name, "x")
    with locked("mine", "report"):
        for act in (lambda: remove("mine"), lambda: rename("mine", "x")):
            with pytest.raises(ValueError, match="'mine' is in use: report is running"):
                act()
    assert {f.name for f in store.iterdir()} == {"mine", "store", "reviews", "link"}
    assert (outside / "results").exists()
    remove("mine")
    assert not (store / "mine").exists()


# ------------------------------------------------------------------------------ as a person uses it

SETUP = """
from warp_lib.experiment import Experiment
from warp_lib.interactive.live import live
from warp_lib.interactive.panel import knobs
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.warp import RunId

experiment = Experiment(Settings.profile("smoke", iterations=1, runs=1, name="lab", **{folders}))
rewards = experiment.rewards(Progress())
"""
LIVE = """
def train(progress):
    align = experiment.aligner(rewards["reward"], progress)
    return align(experiment.theta_sft, RunId(0, "cell", 1, 2), steps=9000)


run = await live(train, title="WARP")
"""


@pytest.fixture(scope="module")
def lab(chromium, folders, tmp_path_factory) -> Page:
    """JupyterLab with a notebook of a panel and a long cell, both cells begun."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in (
            SETUP.replace("{folders}", repr(folders)),
            "knobs(experiment, lambda progress: rewards)",
            LIVE,
        )
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), folder / "panel.ipynb"
    )
    with running_in_lab(
        chromium,
        folder / "panel.ipynb",
        2200,
        WARP_RUNS=folder / "runs",
        HF_DATASETS_CACHE=folder / "cache",
    ) as page:
        page.runs = folder / "runs"
        page.get_by_role("button", name="Start", exact=True).wait_for(timeout=120_000)
        yield page


def press(place, name: str) -> None:
    """A click while something trains.

    It does not wait for the page to go elsewhere, as no button here makes it do, and as it once
    did for half a minute on busy cores.
    """
    place.get_by_role("button", name=name, exact=True).click(no_wait_after=True)


def steps_done(label) -> int:
    """Where a run's bar stands."""
    expect(label).to_have_text(re.compile(r", i = 1, m = \d . [1-9]\d*/"))
    return int(re.search(r"(\d+)/", label.inner_text())[1])


def test_lab_interrupt_keeps_what_is_finished(lab):
    """A long cell shows its curves and completions; the kernel's Interrupt ends it in a line; run
    again, it goes on.
    """
    cell = lab.locator(".jp-Notebook .jp-Cell").nth(2)
    label = cell.locator(".widget-label").filter(has_text="cell, i = 1, m = 2")
    before = steps_done(label)
    expect(cell.locator(".js-plotly-plot .scatterlayer .js-line").first).to_be_visible()
    expect(cell.locator("table")).to_be_visible()
    menu(lab, "Kernel", "Interrupt Kernel")
    expect(cell.get_by_text("What is finished is kept")).to_be_visible()
    stopped = steps_done(label)
    assert stopped >= before and "Traceback" not in cell.inner_text()
    cell.locator(".cm-content").click()
    lab.keyboard.press("Control+Enter")
    expect(cell.get_by_text("What is finished is kept")).to_have_count(0)
    assert steps_done(label) >= stopped
    expect(cell.locator(".js-plotly-plot .scatterlayer .js-line").first).to_be_visible()
    press(cell, "Stop")
    # under a second on an idle machine
    expect(cell.get_by_role("button", name="Stopped")).to_be_visible()


def test_lab_starts_stops_and_goes_on(lab):
    """The panel says what a run costs, trains it, stops, keeps what was done, and ends with its
    front and table.
    """
    panel = lab.locator(".jp-Notebook .jp-Cell").nth(1)
    steps, total = panel.get_by_label("T steps"), 300
    steps.fill(str(total))
    steps.press("Enter")
    said = panel.locator(".widget-html").filter(has_text="steps in 1 run")
    expect(said).to_contain_text(f"{total} steps in 1 run: about")
    expect(panel.get_by_label("in a terminal")).to_have_value(re.compile(f"-p steps {total}"))
    press(panel, "Start")
    label = panel.locator(".widget-label").filter(has_text="warp, i = 1, m = 1")
    steps_done(label)
    expect(steps).to_be_disabled()
    press(panel, "Stop")
    # under a second on an idle machine
    expect(panel.get_by_text("press Start to go on")).to_be_visible()
    expect(said).to_contain_text(re.compile(r"[1-9]\d* steps? stored"))
    stored = int(re.search(r"(\d+) steps? stored", said.inner_text())[1])
    assert stored < total
    expect(label).to_contain_text(f"{stored}/{total}")
    press(panel, "Start")
    # from here on the label is the new run's
    expect(panel.get_by_role("button", name="Stopped")).to_have_count(0)
    assert steps_done(label) >= stored
    expect(panel.get_by_text("Done: its points are in")).to_be_visible(timeout=180_000)
    expect(said).to_contain_text("nothing to train")
    # over the study's two fronts: what was trained, then what was measured, which no line joins
    traces = panel.locator(".js-plotly-plot").first.locator(".scatterlayer .trace")
    expect(traces).to_have_count(4)
    expect(traces.locator(".js-line")).to_have_count(2)
    assert (pd.read_csv(lab.runs / "lab-mine" / "results.csv")["steps"] == total).any()


def test_lab_table_of_runs(lab):
    """The run that has just ended is ticked; it is renamed, and deleted once that is confirmed."""
    panel = lab.locator(".jp-Notebook .jp-Cell").nth(1)
    expect(panel.get_by_label("lab-mine")).to_be_checked()
    fronts = panel.locator(".js-plotly-plot").last.locator(".scatterlayer .trace")
    expect(fronts).to_have_count(3)
    new = panel.get_by_label("new name")
    new.fill("better")
    new.press("Tab")
    panel.get_by_role("button", name="Rename").click()
    expect(panel.get_by_label("better")).to_be_checked()
    assert (lab.runs / "better").exists() and not (lab.runs / "lab-mine").exists()
    panel.get_by_role("button", name="Delete …").click()
    expect(panel.get_by_text("what was trained stays in the store")).to_be_visible()
    assert (lab.runs / "better").exists()
    panel.get_by_role("button", name="Delete for good").click()
    expect(panel.get_by_label("better")).to_have_count(0)
    assert not (lab.runs / "better").exists() and any((lab.runs / "store").glob("run-*"))
    expect(fronts).to_have_count(2)


def test_lab_refuses_a_bad_value_in_words(lab):
    panel = lab.locator(".jp-Notebook .jp-Cell").nth(1)
    mu, start = panel.get_by_label("μ mu"), panel.get_by_role("button", name="Start", exact=True)
    mu.fill("1.5")
    mu.press("Tab")
    said = panel.get_by_text("mu must be a number from 0 to 1, not 1.5.")
    expect(said).to_be_visible()
    red, green, _ = map(
        int, re.findall(r"\d+", said.evaluate("e => getComputedStyle(e).color"))[:3]
    )
    assert red > 2 * green
    expect(mu).to_have_css("border-top-width", "2px")
    expect(start).to_be_disabled()
    mu.fill("0.05")
    mu.press("Tab")
    expect(start).to_be_enabled()
