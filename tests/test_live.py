"""Long cells: the result comes back, Stop and Interrupt stop, errors are seen, and the text stays
short.
"""

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

from warp_lib.interactive import live as live_module
from warp_lib.interactive.live import StoppedByHand, TextView, Watched, WidgetView, live
from warp_lib.report.run import notebook_job
from warp_lib.runs.jobs import MEMORY
from warp_lib.runs.paths import ROOT
from warp_lib.runs.progress import NOTED, Progress, Stopped, TerminalProgress, duration


@pytest.fixture(autouse=True)
def no_front_end(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)


def slow(progress: Progress, steps: int = 1000) -> int:
    for step in progress.track(range(steps), "run 1"):
        progress.log(reward=step)
        time.sleep(0.005)
    return steps


def test_result_and_a_few_lines(capsys):
    assert asyncio.run(live(lambda progress: slow(progress, 100), title="WARP")) == 100
    out = capsys.readouterr().out
    assert "run 1: 100/100 in " in out and "r̃ 99" in out and "WARP: done in " in out
    assert len(out.splitlines()) == 2 and "\r" not in out


def test_the_loop_stays_free():
    """A cell that awaits lets other coroutines run: without it no button would answer."""

    async def cell() -> int:
        ticks = 0
        task = asyncio.ensure_future(live(lambda progress: slow(progress, 60), title="WARP"))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        return ticks

    assert asyncio.run(cell()) > 5


def test_error_of_the_work_reaches_the_cell(capsys):
    def fails(progress: Progress) -> None:
        for step in progress.track(range(10), "run 1"):
            if step == 3:
                raise KeyError("no such review")

    with pytest.raises(KeyError, match="no such review"):
        asyncio.run(live(fails, title="WARP"))
    out = capsys.readouterr().out
    assert "run 1: 3/10" in out and "done" not in out


def test_error_while_stopping_is_not_hidden():
    def fails(progress: Progress) -> None:
        progress.stop.set()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(live(fails, title="WARP"))


def test_stop_iteration_does_not_hang():
    # a coroutine turns the first into the second
    with pytest.raises((StopIteration, RuntimeError)):
        asyncio.run(live(lambda progress: next(iter([])), title="WARP"))


def test_interrupt_stops_and_joins_the_thread():
    """The kernel's Interrupt cancels the cell; the thread has ended when the cell has, and the
    error is one line.
    """
    ended = threading.Event()

    def work(progress: Progress) -> None:
        try:
            slow(progress)
        finally:
            time.sleep(0.3)  # writes a checkpoint, say
            ended.set()

    async def cell() -> None:
        task = asyncio.ensure_future(live(work, title="WARP"))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()  # an impatient second one
        try:
            await task
        finally:
            assert ended.is_set()

    with pytest.raises(StoppedByHand, match="run the cell again to go on") as stopped:
        asyncio.run(cell())
    assert len(stopped.value._render_traceback_()) == 1


def test_a_progress_that_cannot_be_drawn_costs_nothing(monkeypatch, capsys):
    """Guards: a cell that ends with an error while its thread goes on, holding the store's lock
    against the next cell.
    """
    monkeypatch.setattr(TextView, "draw", lambda self: 1 / 0)
    assert asyncio.run(live(lambda progress: slow(progress, 100), title="WARP")) == 100
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0]
        == "The progress cannot be drawn (ZeroDivisionError: division by zero); the work goes on"
        " without it."
        and len(said) == 2
    )


def test_a_kernel_that_goes_takes_its_thread_along(monkeypatch):
    ended = threading.Event()

    def work(progress: Progress) -> None:
        try:
            slow(progress)
        finally:
            ended.set()

    def gone(self) -> None:
        raise SystemExit

    monkeypatch.setattr(TextView, "draw", gone)
    with pytest.raises(SystemExit):
        asyncio.run(live(work, title="WARP"))
    assert ended.wait(5)


def test_widgets_are_for_whom_the_front_end_started(monkeypatch):
    """Guards: papermill under Lab's environment, whose kernel draws 5 MB of widgets that nobody
    sees.
    """
    inner = "from warp_lib.interactive.live import front_end; print(front_end())"
    outer = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {inner!r}]))"
    ours = (notebook_job("any", Path(), Path(), {}).words[2], "False")  # the module it runs
    for name, sees in (("wrapper", "True"), ("/usr/bin/papermill", "False"), ours):
        command = [sys.executable, "-c", outer, name]
        around = {**os.environ, "JPY_SESSION_NAME": "a.ipynb"}
        assert (
            subprocess.run(
                command, env=around, cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            == sees
        )


def test_stop_button_and_figure(monkeypatch):
    views = []

    class Seen(WidgetView):
        def __init__(self, progress: Watched) -> None:
            super().__init__(progress)
            views.append(self)

        def draw_results(self) -> None:
            drawn.append((self.progress.stop.is_set(), self.button.description))
            super().draw_results()

    steps, drawn = [], []

    def work(progress: Progress) -> None:
        for _ in progress.track(range(5), "reward model"):
            progress.log(loss=0.5)
        for step in progress.track(range(1000), "run <b>2"):
            progress.show([f"<script>{step}</script>"] * 9, [0.5] * 9)
            progress.log(reward=step, kl_anchor=0.1, kl_sft=0.2)
            steps.append(step)
            until = time.monotonic() + 10
            # so that this loop is drawn twice: it must grow
            while step == 5 and views[0].drawn <= 5 and time.monotonic() < until:
                time.sleep(0.01)
            if step == 20:
                views[0].button.click()

    monkeypatch.setenv("JPY_SESSION_NAME", "notebook")
    monkeypatch.setattr(live_module, "WidgetView", Seen)
    with pytest.raises(StoppedByHand):
        asyncio.run(live(work, title="WARP"))
    view = views[0]
    assert steps[-1] == 20 and view.button.disabled
    figure = go.Figure(view.figure.figure)
    loss, reward, anchor, sft = figure.data
    assert (len(loss.x), len(reward.x), list(reward.y[:3])) == (5, 21, [0, 1, 2])
    _, text, _ = view.rows.children[0].children
    assert reward.name == "run &lt;b&gt;2" and "run <b>2 · 21/1000" in text.value
    assert (
        "&lt;script&gt;20&lt;/script&gt;" in view.texts.value and "<script" not in view.texts.value
    )
    assert view.texts.value.count("+0.50") == live_module.SHOWN
    # drawing takes a moment: Stop answers first
    assert {said for stopping, said in drawn if stopping} == {"Stopped"}
    titles = [note.text for note in figure.layout.annotations]
    assert anchor.yaxis == sft.yaxis != reward.yaxis != loss.yaxis
    assert titles[:2] == ["loss by step", "reward r̃ by step"] and len(titles) == 3
    assert {trace.mode for trace in figure.data} == {"lines+markers"}  # the first step is seen


def test_no_widgets_without_a_front_end(monkeypatch):
    monkeypatch.setattr(live_module, "WidgetView", None)
    assert asyncio.run(live(lambda progress: slow(progress, 3), title="WARP")) == 3


def test_text_is_rare_and_tells_the_time_to_go(capsys):
    progress = Watched()
    view, view.every = TextView(progress), 0.1
    for _ in progress.track(range(100), "run 1", done=100, total=200):
        time.sleep(0.004)
        view.draw()
    for _ in progress.track([], "run 2", done=7):
        pass
    view.close()
    lines = capsys.readouterr().out.splitlines()
    assert (
        3 <= len(lines) <= 7
        and "to go" in lines[0]
        and "200/200" in lines[-2]
        and "to go" not in lines[-2]
    )
    assert lines[-1] == "run 2: 7/7, from an earlier run"


def test_checkpoints_are_not_joined_and_titles_keep_apart():
    progress = Watched()
    for _ in progress.track(range(3), "evaluation"):
        progress.log(checkpoint_reward=1.0, checkpoint_kl=2.0)
    for _ in progress.track(range(3), "run 1"):
        progress.log(reward=1.0, kl_sft=0.2)
    figure = go.Figure(live_module.curves(progress.loops))
    assert [trace.mode for trace in figure.data] == 2 * ["markers"] + 2 * ["lines+markers"]
    tops = {axis.anchor: axis.domain[1] for axis in figure.select_yaxes()}
    places = {(round(note.x, 2), note.y) for note in figure.layout.annotations}
    assert len({x for x, _ in places}) == 2  # four beside each other have no room
    assert len(places) == 4 and {y for _, y in places} == set(tops.values())


def test_time_to_go_leaves_the_first_step_out(monkeypatch):
    """Guards: a first step of minutes, which compiles and fills caches, taken for the pace."""
    now = [0.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    progress, told = Watched(), []
    steps = progress.track(range(5), "run 1", done=2, total=7)
    for _ in steps:
        told.append(progress.open[-1].to_go())
        now[0] += 2.0 if progress.open[-1].done > 2 else 100.0
    assert told == [None, None, 6.0, 4.0, 2.0]


def test_loops_nest():
    progress = Watched()
    for _ in progress.track(range(2), "iterations"):
        for _ in progress.track(range(3), "runs"):
            progress.log(reward=1.0)
    assert [(loop.title, loop.done) for loop in progress.finished] == [
        ("runs", 3),
        ("runs", 3),
        ("iterations", 2),
    ]
    assert [len(loop.points) for loop in progress.loops] == [0, 3, 3]


def test_bars_on_the_terminal(capsys):
    assert slow(TerminalProgress(), 30) == 30
    err = capsys.readouterr().err
    assert "run 1" in err and "30/30" in err and "r̃=29" in err


def test_durations():
    assert [duration(s) for s in (0.4, 59, 200, 3725)] == [
        "0 s",
        "59 s",
        "3 min 20 s",
        "1 h 02 min",
    ]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("target", ["lab", "app"])
def test_the_kernels_of_lab_and_voila_have_one_arena_and_huge_pages(tmp_path, target, monkeypatch):
    """Guards: the work in a thread whose arena hands every large tensor back."""
    for name in ("jupyter", "voila"):
        (tmp_path / name).write_text("#!/bin/sh\necho memory: $GLIBC_TUNABLES\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "stamp").touch()  # nothing to set up
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)  # `make test` has it
    words = [
        "make",
        "-o",
        f"{tmp_path}/stamp",
        f"STAMP={tmp_path}/stamp",
        f"BIN={tmp_path}",
        target,
    ]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"memory: {MEMORY['GLIBC_TUNABLES']}" in said.splitlines()


@pytest.mark.skipif(
    not Path("/proc/self/task").exists() or torch.get_num_threads() < 2,
    reason="threads are counted on Linux",
)
def test_the_work_does_not_share_the_processors_with_idle_threads():
    """Guards: the main thread's OpenMP helpers left in place, which makes a training in the work's
    thread half again as slow.
    """

    def compute(_: Progress | None) -> int:
        """How many threads there are, once those that were only passing have gone."""
        torch.ones(10**7).add_(1)
        counts = []
        for _ in range(20):
            counts.append(len(list(Path("/proc/self/task").iterdir())))
            time.sleep(0.05)
        return min(counts)

    torch.ones(10**7).add_(1)
    before = compute(None)
    # the work's own thread, but not its helpers on top of ours
    assert asyncio.run(live(compute, title="sum")) <= before + 1


def test_what_runs_side_by_side_has_a_bar_each_and_one_stop(capsys):
    """As WARP's runs on a cluster. Guards: bars over each other, a Stop that reaches one alone."""
    progress = Watched()
    view, text, runs = (
        WidgetView(progress),
        TextView(progress),
        [progress.beside(), progress.beside()],
    )
    view.draw()  # nothing has begun, as while a cluster makes room
    assert view.rows.children[0].children[1].value == "starting · 0 s"
    assert not view.figure.figure["layout"]["xaxis"]["visible"]
    for run, title, done in zip(runs, ("m = 1", "m = 2"), (0, 2), strict=True):
        run.begin(title, done, 4)
        run.advance()
        run.log(reward=done)
    view.draw()
    bars = [(row.children[0].value, row.children[1].value[:11]) for row in view.rows.children]
    assert bars == [(1, "m = 1 · 1/4"), (3, "m = 2 · 3/4")]
    assert [trace["name"] for trace in view.figure.figure["data"]] == ["m = 1", "m = 2"]
    assert view.figure.figure["layout"]["xaxis"].get("visible", True)
    text.every = 0.0
    text.draw()
    said = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in said] == ["m = 1: 1/4", "m = 2: 3/4"]
    runs[0].end()
    view.draw()
    assert [row.children[1].value[:5] for row in view.rows.children] == ["m = 2"]
    view.stop()
    for run in runs:
        with pytest.raises(Stopped):
            run.check()


def test_a_progress_that_is_sent_elsewhere_notes_what_is_said():
    """Guards: work on a cluster that cannot be sent, for its progress has threads and bars."""
    there = pickle.loads(pickle.dumps([TerminalProgress(), Watched()]))
    assert there == [NOTED, NOTED]
    for step in there[0].track(range(2), "run 1", 1, 3):
        there[0].log(reward=step)
    print("said", file=NOTED)
    said = NOTED.take()
    names = [name for name, _, _ in said]
    assert names == ["begin", "log", "advance", "log", "advance", "end", "write", "write"]
    assert said[0] == ("begin", ("run 1", 1, 3), {}) and not NOTED.take()
