"""The explorer: which points there are, what a choice of them comes to, and the app as a person
uses it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import serving
from playwright.sync_api import Page, expect

from warp_lib.interactive import explorer
from warp_lib.interactive.explorer import VIEWS, Explorer, explore, export, layout, traces
from warp_lib.interactive.points import (
    CORNER,
    Selection,
    all_points,
    comparison,
    completions,
    hypervolumes,
)
from warp_lib.policy import Policy
from warp_lib.report import plots
from warp_lib.runs import paths, results
from warp_lib.runs.paths import ROOT
from warp_lib.study import outcomes

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def own(store, monkeypatch) -> pd.DataFrame:
    """All points, with a run of one's own beside the study."""
    rows = [
        {
            "method": "sft",
            "seed": 7,
            "reward": 0.0,
            "reward_se": 0.1,
            "kl": 0.0,
            "kl_se": 0.0,
            "steps": 0,
        },
        {
            "method": "warp",
            "seed": 7,
            "reward": 0.9,
            "reward_se": 0.1,
            "kl": 2.0,
            "kl_se": 0.1,
            "steps": 9,
            "eta": 0.7,
            "iteration": 3,
            "runs": 5,
        },
    ]
    shown = [
        {"point": k, "prompt": f"{EVIL} p", "completion": f"{EVIL} {k}", "reward": k - 0.5}
        for k in (0, 1)
    ]
    scores = {score: np.array([[row[score]] for row in rows]) for score in ("reward", "kl")}
    results.write_results(f"mine{EVIL[:1]}", "03_warp", rows, scores, shown, {"reward": "mine"})
    results.write_results("silent", "03_warp", rows, scores, [], {})
    (store / "silent" / "results" / "03_warp.json").unlink()
    (store / f"mine{EVIL[:1]}" / "real_positive.json").write_text(
        json.dumps({"mean": 0.3, "p99": 1.4})
    )
    return all_points()


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
    files = list(outcomes.FOLDER.glob("*/*.csv"))
    assert len(found) == sum((pd.read_csv(file)["split"] == "test").sum() for file in files)
    # chose settings, and is reported nowhere else
    assert not (found["seed"] == outcomes.TUNING_SEED).any()


def test_selection_keeps_points_without_the_number_asked_for(own):
    """Guards: REINFORCE's path lost when an I, M or η is chosen, SFT or another series slipped in,
    seeds ignored.
    """
    series = ("primary · warp · final front over η", "primary · reinforce · along its way")
    chosen = Selection(series, iterations=(2,), runs=(2,), seeds=(0,), eta=(0.5, 0.8)).of(own)
    warp, path = (chosen[chosen["method"] == method] for method in ("warp", "reinforce"))
    assert (
        warp["eta"].round(3).tolist() == [0.5, 0.6, 0.7, 0.8]
        and len(path) == 4
        and len(chosen) == 8
        and set(chosen["seed"]) == {0}
    )
    assert Selection(series, iterations=(1,)).of(own)["method"].unique().tolist() == ["reinforce"]
    assert len(Selection(("your run mine< · warp · final front over η",)).of(own)) == 1


def test_hypervolumes_are_paired_by_seed():
    """Guards: a difference of unpaired means, seeds pooled into one front, pairs that different
    reward models scored.
    """
    a = pd.DataFrame(
        {"seed": [1, 2, 3], "kl": [1.0, 2.0, 3.0], "reward": [1.0, 1.0, 1.0], "reward_by": "m"}
    )
    b = a[a["seed"] < 3].assign(reward=0.5)
    deep = CORNER[0]
    assert hypervolumes(a, "reward") == {(1, "m"): deep - 1, (2, "m"): deep - 2, (3, "m"): deep - 3}
    found = comparison(a, b, "reward")
    assert (
        found["A − B"].n == 2
        and found["A − B"].mean == pytest.approx(((deep - 1) + (deep - 2)) / 4)
        and found["A"].n == 3
    )
    assert comparison(a, b[:0], "reward").keys() == {"A"}
    assert "A − B" not in comparison(a, b.assign(reward_by="another"), "reward")


def test_completions_stand_beside_sft_on_the_same_prompts(own):
    """Guards: another point's texts, SFT's of other prompts, scores in another order, prompts that
    are not the study's.
    """
    one = own.query(
        "source == 'primary' and arm == 'warp' and seed == 0 and method == 'slerp'"
    ).index[0]
    record = outcomes.outcome("primary", "warp", 0).record
    rows = completions(own, one)
    kept = [c for c in record["completions"] if c["point"] == own.loc[one, "point"]]
    assert [row["completion"] for row in rows] == [c["completion"] for c in kept] and len(
        rows
    ) == 20
    assert [row["sft"] for row in rows] == [c["completion"] for c in record["completions"][:20]]
    scores = outcomes.outcome("primary", "warp", 0).scores["test.reward"]
    assert [row["reward"] for row in rows] == pytest.approx(
        scores[own.loc[one, "point"], :20].tolist()
    )
    assert scores.mean(1)[own.loc[one, "point"]] == pytest.approx(own.loc[one, "reward"], abs=1e-5)
    from warp_lib.reviews import load_reviews

    policy, test = Policy.from_name("reviews-gpt2"), load_reviews().test
    begun = {
        test["review"][place]: ids for place, ids in policy.prompts(test["text"][:], "test").items()
    }
    assert [row["prompt"] for row in rows] == [
        policy.tokenizer.decode(begun[c["review"]]) for c in kept
    ]


def test_own_runs_stand_beside_the_study(own, monkeypatch):
    """Guards: a model's text as HTML, a run that kept no completions refused."""
    mine, silent = (
        own.index[(own["source"] == f"your run {name}") & (own["method"] == "warp")][0]
        for name in ("mine<", "silent")
    )
    assert [(row["sft"], row["completion"], row["reward"]) for row in completions(own, mine)] == [
        (f"{EVIL} 0", f"{EVIL} 1", 0.5)
    ]
    assert completions(own, silent) == []
    # on record or not: paired with nothing else
    assert own.loc[[mine, silent], "reward_by"].tolist() == ["mine", "your run silent"]
    opened = Explorer(own)
    opened.choosers["A"].series.value = (own.loc[mine, "series"],)
    opened.point.value = int(mine)
    assert (
        "<script" not in opened.texts.value
        and "&lt;script&gt;" in opened.texts.value
        and "+0.50" in opened.texts.value
    )
    assert all("<" not in (trace.name or "") for trace in opened.figure.figure.data)
    opened.choosers["A"].series.value = (own.loc[silent, "series"],)
    opened.point.value = int(silent)
    assert "not kept" in opened.texts.value
    monkeypatch.setattr(outcomes, "FOLDER", ROOT / "none")
    # without a study: the first run
    assert set(Explorer(all_points()).choosers["A"].series.value) == {own.loc[mine, "series"]}


def test_nothing_to_explore_is_said(store, monkeypatch):
    monkeypatch.setattr(outcomes, "FOLDER", store / "none")
    with pytest.raises(ValueError, match="nothing to explore"):
        explore()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_draws_what_is_chosen(own, name):
    """Guards: axes swapped, whiskers that stay, a front that falls, a point's index lost on its way
    to the click.
    """
    view = VIEWS[name]
    chosen = {
        "A": Selection(("primary · warp · final front over η",)).of(own),
        "B": Selection(("primary · reinforce · line to SFT",)).of(own),
    }
    drawn = traces(chosen, view, intervals=False)
    dots = [trace for trace in drawn if trace.mode == "markers"]
    for trace, rows in zip(dots, chosen.values(), strict=True):
        assert list(trace.customdata) == rows.index.tolist() and (
            trace.error_x.visible,
            trace.error_y.visible,
        ) == (False, False)
        assert list(trace.x) == rows[view[0]].tolist() and list(trace.y) == rows[view[1]].tolist()
    assert traces(chosen, view, intervals=True)[-1].error_y.visible
    assert len(drawn) - len(dots) == (2 if view[0] == "kl" else 0)
    if view[0] == "kl":
        ends = [k for k, kl in enumerate(drawn[0].x) if kl is None]
        assert len(ends) == chosen["A"]["seed"].nunique()
        stairs = list(zip(drawn[0].x[: ends[0]], drawn[0].y[: ends[0]], strict=True))
        assert stairs == sorted(stairs) and drawn[0].line.shape == "hv"
    titles = layout(view, chosen["A"])
    assert (
        titles["xaxis"]["title"]["text"] == plots.AXES[view[0]]
        and titles["yaxis"]["title"]["text"] == plots.AXES[view[1]]
    )
    assert ("99th percentile" in json.dumps(titles)) == ("reward" in view)


def test_export_writes_the_figure_and_its_points(own):
    chosen = {name: selection.of(own) for name, selection in explorer.opening(own).items()}
    files = {
        file.suffix: file for file in export(chosen, VIEWS["reward against KL"], intervals=True)
    }
    assert {".html", ".csv"} <= files.keys()
    rows = pd.read_csv(files[".csv"])
    assert rows["selection"].value_counts().to_dict() == {
        name: len(some) for name, some in chosen.items()
    }
    # where the tables lie is nobody's business
    assert str(paths.ROOT) not in files[".csv"].read_text()
    assert not re.search(r"<script[^>]+src=|<link", files[".html"].read_text())


# ------------------------------------------------------------------------------ as a person uses it


@pytest.fixture(scope="module")
def app(chromium, tmp_path_factory) -> Page:
    """The page of `make app`, opened."""
    folder = tmp_path_factory.mktemp("app")
    with serving(
        "make",
        "app",
        "ARGS=--no-browser --port={port}",
        log=folder / "log",
        env={"WARP_RUNS": str(folder)},
    ) as address:
        page = chromium.new_page(viewport={"width": 1300, "height": 1600})
        page.outside, page.errors = [], []
        page.on(
            "request",
            lambda r: (
                page.outside.append(r.url)
                if not r.url.startswith((address, "data:", "blob:"))
                else None
            ),
        )
        page.on(
            "console",
            lambda message: page.errors.append(message.text) if message.type == "error" else None,
        )
        page.goto(address)
        page.locator(".scatterlayer .point").first.wait_for(timeout=60_000)
        yield page
        page.close()


def test_app_shows_the_study_and_asks_nobody(app):
    expect(app.get_by_text("A − B", exact=False).first).to_be_visible()
    rows = all_points().query("series == 'primary · warp · final front over η'")
    assert app.locator(".scatterlayer .trace").nth(1).locator(".point").count() == len(rows)
    assert app.outside == [] and app.errors == []


def test_app_opens_the_point_that_is_clicked(app):
    """The list below the figure says the point, and its completions stand there; SFT's beside
    them.
    """
    point = app.locator(".scatterlayer .trace").nth(1).locator(".point").nth(9)
    box = point.bounding_box()
    app.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(app.locator(".hoverlayer .hovertext").first).to_contain_text("η =")
    app.mouse.down()
    app.mouse.up()
    table = app.locator("table").filter(has_text="SFT goes on")
    expect(table).to_be_visible(timeout=20_000)
    if shots := os.environ.get("WARP_SCREENSHOTS"):  # for the README: a folder
        app.screenshot(path=Path(shots) / "explorer.png")
    assert table.locator("tr").count() == 21
    chosen = (
        app.get_by_label("point", exact=True)
        .locator("option:checked")
        .inner_text()
        .replace("\xa0", " ")
    )
    assert re.search(r"A · primary · warp · final front over η, seed 0, .*KL [\d.]+ nats", chosen)


def test_app_keyboard_reaches_the_points(app):
    """Guards: a list that only the mouse opens."""
    points_list = app.get_by_label("point", exact=True)
    points_list.focus()
    before = points_list.input_value()
    app.keyboard.press("ArrowDown")
    expect(points_list).not_to_have_value(before)


def test_app_ends_the_kernel_of_a_page_that_is_left(chromium, tmp_path):
    """Guards: a process of 240 MB for each visit and reload; and a page that goes on taking input
    when its kernel has ended.
    """
    with serving(
        "make",
        "app",
        "ARGS=--no-browser --port={port}",
        log=tmp_path / "log",
        env={"WARP_RUNS": str(tmp_path)},
    ) as address:
        browser = chromium.new_context()
        # another tab: with its last one, this browser ends before it has sent anything
        browser.new_page()
        page = browser.new_page()
        page.goto(address, timeout=120_000)
        point = page.locator(".scatterlayer .point").first
        point.wait_for(timeout=120_000)
        first = _kernels_of(tmp_path)
        page.reload()
        point.wait_for(timeout=60_000)
        assert _gone(min(first, key=lambda kernel: kernel.create_time()))
        second = min(_kernels_of(tmp_path), key=lambda kernel: kernel.create_time())
        page.close(run_before_unload=True)
        assert _gone(second)
        page = browser.new_page()
        page.goto(address, timeout=120_000)
        page.locator(".scatterlayer .point").first.wait_for(timeout=120_000)
        for kernel in _kernels_of(tmp_path):
            with suppress(psutil.NoSuchProcess):
                kernel.kill()
        expect(page.get_by_role("alert")).to_contain_text("Reload the page", timeout=20_000)
        assert page.evaluate(
            "[...document.body.children].every(part => part.inert || part.id === 'kernel-ended')"
        )
        browser.close()


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


def _kernels_of(runs: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        kernel = "ipykernel_launcher" in " ".join(process.info["cmdline"] or [])
        if kernel and (process.info["environ"] or {}).get("WARP_RUNS") == str(runs):
            found.append(process)
    return found


def _gone(kernel: psutil.Process) -> bool:
    with suppress(psutil.TimeoutExpired):
        kernel.wait(20)
    return not kernel.is_running()


def test_app_recomputes_the_selection(app):
    """Another series, another figure and hypervolume; intervals off; and the chosen files to
    download.
    """
    volumes = app.locator(".widget-html").filter(has_text="Hypervolume:")
    before = volumes.inner_text()
    app.get_by_label("series", exact=True).nth(1).select_option(
        ["primary · warp · final front over η"]
    )
    expect(volumes).to_contain_text("A − B: 0.00 (0.00 to 0.00")  # the same points on both sides
    assert before != volumes.inner_text()
    whiskers = app.locator(".scatterlayer .yerror")
    assert whiskers.count() > 0
    app.get_by_label("intervals").uncheck()
    expect(whiskers).to_have_count(0)
    app.get_by_role("button", name="Export").click()
    link = app.locator("a[download='explorer.csv']")
    link.wait_for(timeout=60_000)
    with app.expect_download() as given:
        link.click()
    rows = pd.read_csv(given.value.path())
    assert (
        set(rows["selection"]) == {"A", "B"}
        and (rows["series"] == "primary · warp · final front over η").all()
    )
    app.get_by_label("intervals").check()  # a download is not taken for leaving the page
    expect(whiskers).not_to_have_count(0)
