"""The explorer: which points there are, what is compared and said, and the app as a person uses
it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import faults, keep, serving
from playwright.sync_api import Page, expect

from warp_lib.interactive import comparisons
from warp_lib.interactive.comparisons import PRESETS, attempt, own
from warp_lib.interactive.explorer import FREE, MINE, VIEWS, Explorer, draw, explore, export
from warp_lib.interactive.points import all_points, choose, completions
from warp_lib.policy import Policy
from warp_lib.report import look
from warp_lib.runs import paths, results
from warp_lib.runs.paths import ROOT
from warp_lib.study import contrasts, outcomes
from warp_lib.study.fronts import Interval, along

EVIL = "<script>alert(1)</script>"
REWARD = VIEWS["reward against KL"]
FAINT = (Path(__file__).parent / "faint.js").read_text()


def write_run(name: str, kls: dict[str, list[float]], gains: dict[str, float]) -> None:
    """A run of one's own, seed 7, 30 prompts: each method's KLs, and r̃ at 1 nat."""
    draws = np.random.default_rng(0)
    parts = {"warp": "03_warp", "reinforce": "04_reinforce_baseline", "reinforce-liti": "04_line"}
    for method, of_method in kls.items():
        rows, scores = [], {"reward": [], "kl": []}
        for k, kl in enumerate(of_method):
            own_kl = draws.normal(kl, kl / 5, 30)
            reward = draws.normal(gains[method] * kl, 0.3, 30)
            scores["kl"].append(own_kl)
            scores["reward"].append(reward)
            row = {"method": method if kl else "sft", "seed": 7, "steps": k, "reward_se": 0.1}
            rows.append(row | {"reward": reward.mean(), "kl": own_kl.mean(), "kl_se": 0.1})
        shown = [
            {"point": k, "prompt": f"{EVIL} p", "completion": f"{EVIL} {k}", "reward": k - 0.5}
            for k in range(len(rows))
        ]
        kept = {score: np.array(values) for score, values in scores.items()}
        results.write_results(name, parts[method], rows, kept, shown, {})


@pytest.fixture(scope="module")
def own_runs(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A folder with runs of one's own; all points, theirs and the study's."""
    store = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", store)
        both = {"warp": [0.0, 1.0, 2.0, 3.0], "reinforce": [0.5, 1.5, 2.5]}
        both["reinforce-liti"] = [0.5, 1.5, 2.5]
        write_run(f"mine{EVIL[:1]}", both, {"warp": 0.9, "reinforce": 0.1, "reinforce-liti": 0.5})
        write_run("alone", {"warp": [0.0, 0.4]}, {"warp": 0.9})
        write_run("silent", {"warp": [0.0, 0.4]}, {"warp": 0.9})
        (store / "silent" / "results" / "03_warp.json").unlink()
        (store / f"mine{EVIL[:1]}" / "real_positive.json").write_text(
            json.dumps({"mean": 0.3, "p99": 1.4})
        )
        return store, all_points()


@pytest.fixture
def mine(own_runs, monkeypatch) -> pd.DataFrame:
    """All points, with runs of one's own beside the study."""
    monkeypatch.setattr(paths, "RUNS", own_runs[0])
    return own_runs[1].copy()


# ------------------------------------------------------------------------------------------- points


def test_opens_without_torch_and_without_training(store):
    """Guards: an import that costs seconds, in the app and in the notebook without a kernel."""
    code = (
        "import sys, warp_lib.interactive.explorer as e; opened = e.Explorer(e.all_points());"
        " print(len(opened.figure.figure.data), sorted({'torch', 'transformers', 'datasets'} &"
        " set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"WARP_RUNS": str(store)},
    )
    traces, heavy = said.stdout.strip().split(" ", 1)
    assert int(traces) >= 4 and heavy == "[]"


def test_every_test_row_of_the_study_is_a_point(store):
    found = all_points()
    folders = [
        outcomes.FOLDER / name
        for name in ("primary", "best-of-n", "precision", "grid", "merges", "averages", "dpo")
    ]
    files = [file for folder in folders for file in folder.glob("*.csv")]
    assert len(found) == sum((pd.read_csv(file)["split"] == "test").sum() for file in files)
    # chose settings, and is reported nowhere else
    assert not (found["seed"] == outcomes.TUNING_SEED).any()
    assert found["address"].is_unique


def test_what_tuning_decided_is_no_unit(folder, store, capsys):
    """Guards: a file that is named like an experiment read as a point's record."""
    keep(folder, "primary", "warp", 20, [(0, 0), (1, 1)])
    for file in (folder / "tuning.json", folder / "primary" / "tuning.json"):
        file.write_text("{}")
    assert set(all_points()["source"]) == {"primary"}
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_a_point_without_kept_completions_has_none(mine):
    """Guards: a KeyError where a unit kept none, as those of `precision`."""
    one = mine.query("source == 'precision'").index[0]
    assert completions(mine, one) == []


def test_names_are_plain_and_tell_series_apart(mine):
    """Guards: the names of arms, folders and columns shown to people; two series under one name."""
    series = mine[["source", "arm", "method", "name"]].drop_duplicates()
    shared = series.groupby("name")["method"].nunique()
    assert (shared == 1).all() and (series.groupby("name")["source"].nunique() == 1).all()
    names = set(series["name"])
    assert {"WARP · front over η", "WARP-DPO · front over η"} <= names
    assert "WARP (your run alone) · front over η" in names
    assert not [name for name in names if re.search(r"primary|\b(warp|reinforce|liti)\b", name)]


def test_choice_keeps_points_without_the_number_asked_for(mine):
    """Guards: REINFORCE's path lost when an I, M or η is chosen, another series slipped in, seeds
    ignored.
    """
    names = ("WARP · front over η", "REINFORCE, batch 64 · along training")
    seed = int(mine.loc[mine["name"] == names[0], "seed"].iloc[0])
    taken = choose(mine, names, (0.5, 0.8), iteration=2, runs=2, seed=seed)
    warp, path = (taken[taken["method"] == method] for method in ("warp", "reinforce"))
    assert warp["eta"].round(3).tolist() == [0.5, 0.6, 0.7, 0.8] and len(path) == 4
    assert len(taken) == 8 and set(taken["seed"]) == {seed}
    others = choose(mine, names, (0, 1), iteration=1, runs="", seed="")
    assert others["method"].unique().tolist() == ["reinforce"]


def test_completions_stand_beside_sft_on_the_same_prompts(mine):
    """Guards: another point's texts, SFT's of other prompts, scores in another order, prompts that
    are not the study's.
    """
    seed = outcomes.finished_seeds("primary", ["warp"])[0]
    one = mine.query(
        "source == 'primary' and arm == 'warp' and seed == @seed and method == 'slerp'"
    ).index[0]
    unit = outcomes.outcome("primary", "warp", seed)
    sft, rows = zip(*completions(mine, one), strict=True)
    point = mine.loc[one, "point"]
    kept = [c for c in unit.record["completions"] if c["point"] == point]
    of_sft = [c for c in unit.record["completions"] if c["point"] == 0]
    assert [row["completion"] for row in rows] == [c["completion"] for c in kept] != []
    assert [row["completion"] for row in sft] == [c["completion"] for c in of_sft]
    scores = unit.scores["test.reward"][point]
    assert [row["reward"] for row in rows] == pytest.approx(scores[: len(rows)].tolist())
    assert scores.mean() == pytest.approx(mine.loc[one, "reward"], abs=1e-5)
    from warp_lib.reviews import load_reviews

    policy, test = Policy.from_name("reviews-gpt2"), load_reviews().test
    begun = {
        test["review"][place]: ids for place, ids in policy.prompts(test["text"][:], "test").items()
    }
    assert [row["prompt"] for row in rows] == [
        policy.tokenizer.decode(begun[c["review"]]) for c in kept
    ]


def test_nothing_to_explore_is_said(store, monkeypatch):
    monkeypatch.setattr(outcomes, "FOLDER", store / "none")
    with pytest.raises(ValueError, match="nothing to explore"):
        explore()


# -------------------------------------------------------------------------------------- comparisons


def test_opens_on_the_studys_own_comparison(mine):
    """Guards: another rule than the study's, over seeds that it keeps apart; a verdict that the
    interval does not allow.
    """
    high = outcomes.settled("tuning")["high"]
    arms = [a for a in look.ARMS if outcomes.finished_seeds("primary", [a])]
    by_kind = [[a for a in arms if a.startswith(kind)] for kind in ("warp", "reinforce")]
    expected = contrasts.contrast("primary", *by_kind, high)
    opened = Explorer(mine)
    said = opened.verdict.value
    assert str(expected) in said and f"from 1 to {high:g} nats" in said
    words = {0: "cannot be told apart", 1: "earns more than", -1: "earns less than"}
    assert words[expected.side] in said and "hypervolume" not in said.lower()
    # each line that is read is the study's
    side = opened.comparison.sides[0]
    for (kl, score), seed in zip(side.lines, expected.by_prompt, strict=True):
        unit = outcomes.outcome("primary", expected.arm, seed)
        assert kl.tolist() == unit.line("test")[0].tolist()
        assert score.tolist() == unit.line("test")[1].mean(1).tolist()
    # what is drawn can be opened, and single runs are no points of a front
    assert set(side.points["seed"]) == set(expected.by_prompt)
    assert "run" not in set(side.points["method"])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_a_verdict_and_ends_where_it_is_told(mine, name):
    found = attempt(partial(PRESETS[name], mine, "reward", None))
    assert re.search(r"\(95% CI |two seeds|one seed", found.evidence)
    arm, rival = found.sides[0], found.sides[1]
    assert len(arm.points) and len(rival.points) and arm.lines and rival.lines
    assert found.finding.count(arm.name.split(",")[0]) == 1
    sooner = attempt(partial(PRESETS[name], mine, "reward", 2))
    assert sooner.span == (1, 2) and "from 1 to 2 nats" in sooner.evidence
    assert sooner.evidence != found.evidence


def test_a_judge_is_asked_where_a_judge_is_shown(mine):
    """Guards: the reward's verdict over a figure of the judge's scores."""
    opened = Explorer(mine)
    opened.controls["show"].value = "judge against KL"
    opened.controls["to"].value = high = 4
    c = opened.comparison
    assert "judge's score" in c.evidence
    arms = [a for a in look.ARMS if outcomes.finished_seeds("primary", [a])]
    by_kind = [[a for a in arms if a.startswith(kind)] for kind in ("warp", "reinforce")]
    assert str(contrasts.contrast("primary", *by_kind, high, "judge")) in c.evidence
    assert opened.figure.figure.layout.yaxis.title.text == look.AXES["judge"]


def test_what_is_not_there_yet_is_said(mine, monkeypatch):
    """Guards: a traceback where the study has no such units, or a run has half of its notebooks."""
    alone = own(mine, "reward", None, "alone")
    assert "no results of 04_reinforce_baseline" in alone.evidence and len(alone.sides[0].points)
    opened = Explorer(mine)
    opened.controls["compare"].value = MINE
    monkeypatch.setattr(outcomes, "FOLDER", ROOT / "none")
    opened = Explorer(all_points())
    assert "nothing to compare here yet" in opened.verdict.value
    opened.controls["compare"].value = MINE
    assert len(opened.comparison.sides[0].points)


def test_own_run_is_compared_over_its_prompts(mine):
    """Guards: a test over seeds that are not there, points matched at unequal KL, more KL than one
    of the two reaches.
    """
    found = own(mine, "reward", None, "mine<")
    scores, table = (
        results.read_scores(paths.RUNS / "mine<"),
        results.read_results(paths.RUNS / "mine<"),
    )
    lines = []
    for method in ("warp", "reinforce-liti"):
        rows = table["method"].isin(["sft", method]).to_numpy()
        kl = scores["kl"][rows].mean(1)
        lines.append((kl, scores["reward"][rows], scores["kl"][rows]))
    high = min(kl.max() for kl, *_ in lines)
    a, b = (along(kl, reward, 1, high, own_kl) for kl, reward, own_kl in lines)
    assert str(Interval.of(a - b)) in found.evidence and found.span == (1, pytest.approx(high))
    assert found.finding == "WARP earns more than REINFORCE at equal KL on this seed"
    none = Explorer(mine[~mine["source"].str.startswith("your run")])
    none.controls["compare"].value = MINE
    assert "You have no run yet" in none.verdict.value and none.export.disabled
    none.controls["compare"].value = "WARP vs REINFORCE"
    assert not none.export.disabled


def test_own_run_that_no_judge_read_is_drawn_without_lines(mine):
    """Guards: an error, and the figure of the view before below another verdict."""
    judged = mine.assign(judge=mine["judge"].where(~mine["source"].str.startswith("your run")))
    opened = Explorer(judged)
    opened.controls["compare"].value = MINE
    opened.controls["show"].value = "judge against KL"
    assert "compared by the reward only" in opened.verdict.value
    assert opened.figure.figure.layout.yaxis.title.text == look.AXES["judge"]
    assert all(not side.lines for side in opened.comparison.sides)


# -------------------------------------------------------------------------------------- the drawing


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_draws_what_is_compared(mine, name):
    """Guards: axes swapped, a point's index lost on its way to the click, the open point unmarked,
    fronts drawn where neither axis is a price.
    """
    view = VIEWS[name]
    compared = attempt(partial(comparisons.dpo, mine, view[1], None))
    one = int(compared.sides[0].points.index[3])
    figure = draw(compared, view, one)
    dots = [trace for trace in figure.data if trace.customdata is not None]
    for trace, side in zip(dots, compared.sides, strict=True):
        assert list(trace.customdata) == side.points.index.tolist()
        assert list(trace.x) == side.points[view[0]].tolist()
        assert list(trace.y) == side.points[view[1]].tolist()
    star = next(trace for trace in figure.data if trace.marker.symbol == "star")
    assert [star.x[0], star.y[0]] == mine.loc[one, list(view)].tolist()
    lines = [trace for trace in figure.data if trace.mode == "lines" and not trace.fill]
    assert bool(lines) == (view[0] == "kl")
    assert figure.layout.xaxis.title.text == look.AXES[view[0]]
    assert ("99th percentile" in figure.to_json()) == ("reward" in view)


def test_the_mean_is_at_equal_kl_and_no_further_than_every_seed(mine):
    compared = attempt(partial(comparisons.dpo, mine, "reward", None))
    side, figure = compared.sides[0], draw(compared, REWARD)
    mean = next(t for t in figure.data if t.mode == "lines" and t.line.width == 3)
    reach = min(kl[-1] for kl, _ in side.lines)
    assert max(mean.x) == pytest.approx(reach)
    at = [np.interp(mean.x[20], kl, score) for kl, score in side.lines]
    assert mean.y[20] == pytest.approx(np.mean(at))


def test_texts_are_escaped(mine):
    """Guards: a model's text, or a run's name, as HTML; a run that kept no completions refused."""
    opened = Explorer(mine)
    opened.restore("compare=My+runs&run=mine%3C&point=your+run+mine%3C/03_warp/1")
    assert "<script" not in opened.texts.value and "&lt;script&gt;" in opened.texts.value
    assert "+0.50" in opened.texts.value and "star" in opened.figure.figure.to_json()
    free = {"A": ["WARP (your run mine<) · front over η"]}
    opened.controls["compare"].value = FREE
    opened.controls["A"].value = free["A"]
    assert all("<" not in (trace.name or "") for trace in opened.figure.figure.data)
    opened.restore("compare=My+runs&run=silent&point=your+run+silent/03_warp/1")
    assert "not kept" in opened.texts.value


def test_the_figure_without_a_kernel_stands_alone(mine):
    """Guards: a figure without a title or caption in the static page of notebook 5."""
    figure = explore()
    verdict = Explorer(mine).comparison
    assert figure.layout.meta["finding"] == verdict.finding == figure.layout.title.text
    assert verdict.evidence in figure.layout.meta["caption"]


def test_export_writes_the_figure_and_its_points(mine, monkeypatch):
    monkeypatch.setattr(
        "warp_lib.report.rendering.can_draw", lambda: False
    )  # the app's test draws it
    compared = attempt(partial(comparisons.dpo, mine, "reward", None))
    files = {file.suffix: file for file in export(compared, REWARD)}
    assert {".html", ".csv"} <= files.keys()
    rows = pd.read_csv(files[".csv"])
    counts = {side.name: len(side.points) for side in compared.sides}
    assert rows["side"].value_counts().to_dict() == counts
    assert not rows.isna().all().any()  # no empty columns
    # where the tables lie is nobody's business
    assert str(paths.ROOT) not in files[".csv"].read_text()
    assert not re.search(r"<script[^>]+src=|<link", files[".html"].read_text())


def test_an_address_restores_the_view_and_bad_values_are_passed_over(mine):
    opened = Explorer(mine)
    assert opened.address.query == ""
    opened.controls["compare"].value = FREE
    opened.controls["A"].value = ["WARP · front over η"]
    opened.controls["eta"].value = (0.2, 0.8)
    opened.controls["show"].value = "judge against KL"
    opened.click(int(opened.comparison.sides[0].points.index[2]))
    again = Explorer(mine)
    again.restore(opened.address.query)
    assert again.address.query == opened.address.query
    assert again.texts.value == opened.texts.value and "completions" in again.texts.value
    bad = "compare=x&show=&to=-1&run=%00&A=nothing&eta=nan&eta=1&seed=x&point=../../etc&more=1"
    again = Explorer(mine)
    again.restore(bad)
    assert again.address.query == "" and again.comparison.span


# ------------------------------------------------------------------------------ as a person uses it


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the app is served, with a run of one's own."""
    folder = tmp_path_factory.mktemp("app")
    command = ("make", "app", "ARGS=--no-browser --port={port}")
    with serving(*command, log=folder / "log", env={"WARP_RUNS": str(folder)}) as at:
        yield at


def opened(chromium, address: str, query: str = "", **how) -> Page:
    browser = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}} | how)
    # another tab: with its last one, this browser ends before it has sent anything
    browser.new_page()
    page = browser.new_page()
    page.outside, page.errors = [], []
    inside = (address, "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(inside) or page.outside.append(r.url))
    page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
    page.goto(address + query, timeout=120_000)
    page.locator(".scatterlayer .point").first.wait_for(timeout=120_000)
    return page


# whether the figure's words are light, as they are on a dark page
LIGHT_INK = """(expected) => {
    const ink = getComputedStyle(document.querySelector(".js-plotly-plot .xtitle")).fill;
    return (Number(ink.match(/\\d+/)[0]) > 128) === expected;
}"""


def kernel_of(page: Page) -> psutil.Process:
    """The process behind a page."""
    script = "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"
    kernel_id = page.evaluate(script)
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if kernel_id in " ".join(process.info["cmdline"] or [])
    )
    return found


def gone(kernel: psutil.Process) -> bool:
    with suppress(psutil.TimeoutExpired):
        kernel.wait(20)
    return not kernel.is_running()


@pytest.fixture(scope="module")
def app(chromium, address) -> Page:
    page = opened(chromium, address)
    yield page
    page.context.close()


def query_of(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def fresh(app: Page) -> None:
    """As it opens."""
    app.get_by_label("WARP vs REINFORCE", exact=True).check()
    app.get_by_label("point", exact=True).select_option("none")


def test_app_opens_on_a_verdict_and_asks_nobody(app):
    heading = app.get_by_role("heading", level=2)
    expect(heading).to_contain_text("WARP")
    assert "/voila/render/explorer.ipynb" in app.url
    assert app.get_by_role("link", name="Lab").get_attribute("href") == "lab.ipynb"
    assert heading.bounding_box()["y"] < 300
    expect(app.get_by_text("95% CI").first).to_be_visible()
    assert app.outside == [] and app.errors == []
    assert app.evaluate(FAINT) == [] and faults(app) == []
    assert app.locator(".js-plotly-plot .legend").count() == 0  # names stand beside the lines
    assert not app.locator("[data-title*='hare']").count()  # "Share chart to cloud"
    label = app.get_by_role("figure").first.get_attribute("aria-label")
    assert label


def test_app_shows_the_completions_beside_the_figure_and_marks_the_point(app):
    fresh(app)
    plot = app.locator(".js-plotly-plot").first
    box = app.locator(".scatterlayer .trace .point").nth(9).bounding_box()
    app.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(app.locator(".hoverlayer .hovertext").first).to_contain_text("KL")
    app.mouse.down()
    app.mouse.up()
    texts = app.get_by_role("region", name="completions")
    expect(texts).to_be_visible()
    beside, figure = texts.bounding_box(), plot.bounding_box()
    assert beside["x"] >= figure["x"] + figure["width"] - 5
    points, (address_of,) = all_points(), parse_qs(urlsplit(app.url).query)["point"]
    kept = completions(points, points.index[points["address"] == address_of][0])
    assert beside["y"] < 450 and texts.locator("article").count() == len(kept) >= 4
    stars = "gd => gd.data.filter(trace => trace.marker?.symbol === 'star').length === 1"
    assert plot.evaluate(stars)
    if shots := os.environ.get("WARP_SCREENSHOTS"):  # for the README: a folder
        app.screenshot(path=Path(shots) / "explorer.png")


def test_app_is_turned_by_keyboard(app):
    """Guards: presets, points and texts that only the mouse reaches; no visible focus."""
    fresh(app)
    heading = app.get_by_role("heading", level=2)
    before = heading.inner_text()
    app.get_by_label("WARP vs REINFORCE", exact=True).focus()
    app.keyboard.press("ArrowRight")
    expect(heading).not_to_have_text(before)
    expect(heading).to_contain_text("best-of-n")
    tab = app.locator("label:has(:focus-visible)").first
    assert tab.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    points = app.get_by_label("point", exact=True)
    points.focus()
    app.keyboard.press("ArrowDown")
    texts = app.get_by_role("region", name="completions")
    expect(texts).to_be_visible()
    app.keyboard.press("Tab")
    expect(texts).to_be_focused()


def test_app_finds_a_series_by_typing(app):
    """Guards: sixty raw names in a list that needs Ctrl."""
    fresh(app)
    assert app.locator("select[multiple]").count() == 0
    app.get_by_label("Choose freely", exact=True).check()
    search = app.get_by_placeholder("A: type")
    search.fill("WARP · front over η")
    search.press("Enter")
    expect(app.locator(".scatterlayer .point").first).to_be_visible()
    app.wait_for_function("location.search.includes('A=WARP')")
    assert query_of(app)["A"] == ["WARP · front over η"]


def test_app_keeps_the_view_in_its_address(app, address):
    """Guards: a view that is lost on reload, a link that breaks the page; a process of 240 MB for
    each reload.
    """
    fresh(app)
    app.get_by_label("WARP-DPO vs DPO", exact=True).check()
    app.wait_for_function("location.search.includes('DPO')")
    app.get_by_label("point", exact=True).select_option(index=5)
    texts = app.get_by_role("region", name="completions")
    expect(texts).to_be_visible()
    app.wait_for_function("location.search.includes('point=')")
    kept, said, left = app.url, texts.inner_text(), kernel_of(app)
    app.reload()
    expect(texts).to_be_visible()
    assert gone(left)
    assert app.url == kept and texts.inner_text() == said
    expect(app.get_by_label("WARP-DPO vs DPO", exact=True)).to_be_checked()
    app.goto(f"{address}?compare=nonsense&to=1e99&point=%3Cscript%3E", wait_until="commit")
    app.errors.clear()  # those of the page that was left
    app.locator(".scatterlayer .point").first.wait_for(timeout=120_000)
    expect(app.get_by_label("WARP vs REINFORCE", exact=True)).to_be_checked()
    assert app.errors == []


def test_app_fits_its_width_and_reads_in_both_themes(chromium, address):
    """Guards: a page that scrolls sideways, a figure wider than it, text too faint to read; a
    process of 240 MB for each page that is closed.
    """
    points = all_points().query("arm == 'warp-dpo' and method == 'warp'")
    address_of = points["address"].iloc[0]
    point = f"?compare=WARP-DPO+vs+DPO&point={address_of.replace('/', '%2F')}"
    phone = {"viewport": {"width": 420, "height": 900}, "color_scheme": "dark"}
    page = opened(chromium, address, point, **phone)
    region = page.get_by_role("region", name="completions")
    expect(region).to_be_visible()
    legend = page.locator(".js-plotly-plot .legend")
    # first as it opened, then after each change
    for width, scheme in product((420, 1400), ("dark", "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        # names stand beside the lines where there is room
        expect(legend).to_have_count(int(width == 420))
        page.wait_for_function("document.querySelector('.js-plotly-plot .annotation-text')")
        page.wait_for_timeout(1000)  # drawn anew in the other theme
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        figure = page.locator(".js-plotly-plot .main-svg").first.bounding_box()
        texts = region.bounding_box()
        assert 350 < figure["width"] <= width
        assert (texts["x"] > figure["x"] + 300) == (width == 1400)
        assert page.evaluate(FAINT) == []
        assert faults(page) == []
    left = kernel_of(page)
    page.close(run_before_unload=True)
    assert gone(left)
    page.context.close()


def test_app_of_a_checkout_whose_path_has_a_space():
    """Guards: a path that the shell takes for two words."""
    done = subprocess.run(
        ["make", "-n", "app", "CURDIR=/a b/checkout"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "JUPYTER_PATH=/a b/checkout/notebooks" in shlex.split(done.stdout)


def test_app_hands_out_its_points(app):
    fresh(app)
    app.get_by_role("button", name="Export").click()
    app.locator("a[download='explorer.svg']").wait_for(timeout=60_000)
    link = app.locator("a[download='explorer.csv']")
    link.wait_for(timeout=60_000)
    with app.expect_download() as given:
        link.click()
    assert "WARP" in set(pd.read_csv(given.value.path())["side"])
    app.get_by_label("SLERP vs LERP", exact=True).check()  # a download does not leave the page
    expect(app.get_by_role("heading", level=2)).to_contain_text("LERP")


def test_app_opens_at_once_and_says_that_its_kernel_has_ended(chromium, address):
    """From a kernel that waits, in six times what importing the explorer takes here and now: five
    seconds on a laptop. Guards: a first figure that waits for a kernel; a page that goes on taking
    input.
    """
    tries = []
    while True:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import warp_lib.interactive.explorer"], check=True)
        asked, imported = time.time(), time.monotonic() - began
        page = opened(chromium, address)
        took, kernel = time.time() - asked, kernel_of(page)
        waited = kernel.create_time() < asked - 1  # whole seconds, as the system counts them
        tries.append((waited, took, imported))
        if waited and took < 6 * imported:
            break
        page.context.close()
        assert len(tries) < 3, tries
        time.sleep(8)  # the next kernel is made, on busy cores
    kernel.kill()
    expect(page.get_by_role("alert")).to_contain_text("Reload the page")
    assert page.evaluate(
        "[...document.body.children].every(part => part.inert || part.id === 'kernel-ended')"
    )
    page.context.close()
