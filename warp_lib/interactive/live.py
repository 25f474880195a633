"""The notebooks' one pattern for long cells: ``result = await live(work, title="…")``.

The work runs in a thread and only writes down where it is; the awaiting cell looks several times a
second and draws. So the kernel stays free for the Stop button and for Interrupt, and no widget is
ever touched by two threads.
"""

import asyncio
import contextvars
import html
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from ..runs.progress import Progress, Stopped, duration, label

T = TypeVar("T")

SHOWN = 3  # completions of the latest step
COLUMNS = 2  # panels beside each other
FEW = 30  # steps of which each has a marker, so that the first is seen before there is a line
# Series that share a panel, and the panel's name; any other number gets a panel of its own.
PANELS = {
    "reward": "reward r̃ by step",
    "kl_anchor": "KL by step, nats: — anchor, ⋯ SFT",
    "kl_sft": "KL by step, nats: — anchor, ⋯ SFT",
    "checkpoint_reward": "r̃ by checkpoint",
    "checkpoint_kl": "KL to SFT by checkpoint, nats",
}


class StoppedByHand(Stopped):
    """Ends a cell, and with it "run all", in one quiet line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


async def live(work: Callable[[Progress], T], title: str) -> T:
    """Run ``work(progress)`` in a thread, show how far it is, and return its result.

    In JupyterLab and Voilà: a bar, a Stop button, a figure that grows and completions of the latest
    step. Elsewhere (papermill, a script): a few lines of text. Stop, and the kernel's Interrupt,
    give up the unfinished step and keep all before it (see `Progress.check`); then StoppedByHand is
    raised, so that the cells below do not go on without a result.

    Autocast, no_grad and other thread-local modes of torch do not carry into the thread: `work`
    must set them itself.
    """
    progress, began = Watched(), time.monotonic()
    if front_end():
        from IPython.display import display

        view = WidgetView(progress)
        display(view.box)
    else:
        view = TextView(progress)
    result = await follow(work, progress, view, title)
    print(f"{title}: done in {duration(time.monotonic() - began)}.", flush=True)
    return result


async def follow(
    work: Callable[[Progress], T], progress: "Watched", view: "TextView | WidgetView", title: str
) -> T:
    """`live` with a progress and a view that are there already, shown in a place of their own."""
    from ..fast import machine  # only now: the explorer takes `front_end` without torch

    outcome: Future[T] = Future()
    loop, finished = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            outcome.set_result(work(progress))
        except BaseException as error:  # whatever it is, it belongs to the cell that awaits
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the loop has gone, and with it whoever waited
            loop.call_soon_threadsafe(finished.set)

    machine.release_threads()
    # the context carries the cell that prints; a daemon holds up no kernel that is told to end
    begin = partial(contextvars.copy_context().run, run)
    threading.Thread(target=begin, name=title, daemon=True).start()
    shown = True
    while not outcome.done():
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), 0.25)
            shown = shown and _drawn(view.draw)
        # Interrupt; the thread must end before the next cell begins
        except (asyncio.CancelledError, KeyboardInterrupt):
            progress.stop.set()
        except BaseException:  # the kernel is going
            progress.stop.set()
            raise
    if shown:
        _drawn(view.close)

    error = outcome.exception()
    if isinstance(error, Stopped) or (progress.stop.is_set() and error is None):
        raise StoppedByHand("Stopped. What is finished is kept; run the cell again to go on.")
    return outcome.result()


def _drawn(draw: Callable[[], None]) -> bool:
    """Draw; whether that worked.

    Where it did not, the work goes on unseen: it must neither be lost nor left alone with its lock.
    """
    try:
        draw()
    except Exception as error:
        print(
            f"The progress cannot be drawn ({type(error).__name__}: {error}); the work goes on"
            " without it.",
            flush=True,
        )
        return False
    return True


def front_end() -> bool:
    """Whether someone can see widgets: yes in Lab and Voilà, no in scripts and under papermill,
    where a figure widget would add 5 MB.

    Lab and Voilà say so in the environment of the kernels they start. A papermill that was begun in
    one of these inherits it, and hands it on to its own kernel.
    """
    lab, voila = "JPY_SESSION_NAME" in os.environ, any(n.startswith("VOILA_") for n in os.environ)
    return (lab or voila) and not _begun_by_papermill()


@cache
def _begun_by_papermill() -> bool:
    """Whether papermill, or what else runs notebooks from the command line, started this kernel;
    False where that cannot be asked.
    """
    import psutil  # ipykernel brings it

    try:
        words = [Path(word).name for word in psutil.Process(os.getppid()).cmdline()]
    except (psutil.Error, OSError):
        return False
    commands = ("papermill", "warp_lib.report.executing", "jupyter-nbconvert", "jupyter-execute")
    return any(name in words for name in commands)


@dataclass
class Loop:
    """One loop of the work: how far it is, and the numbers it logged as (step, numbers)."""

    title: str
    before: int  # steps that an earlier session finished
    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # when this session's first step ended, and its latest
    latest: float | None = None
    ended: float | None = None
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def to_go(self) -> float | None:
        """Seconds to go at the pace after the first step, which warms up; None until the second."""
        if self.first is None or self.latest is None or self.latest == self.first:
            return None
        pace = (self.latest - self.first) / (self.done - self.before - 1)
        left = pace * (self.total - self.done) - (time.monotonic() - self.latest)
        return max(left, 0.0)

    def line(self) -> str:
        """Where the loop is, in one line of text."""
        if self.before == self.total:
            return f"{self.title}: {self.total}/{self.total}, from an earlier run"
        took = (self.ended or time.monotonic()) - self.began
        text = f"{self.title}: {self.done}/{self.total} in {duration(took)}"
        if self.ended is None and (to_go := self.to_go()) is not None:
            text += f", about {duration(to_go)} to go"
        latest = self.points[-1][1] if self.points else {}
        return " · ".join([text, *(f"{label(n)} {value:.3g}" for n, value in latest.items())])


class Watched(Progress):
    """Remembers what the work says, for a view in another thread. Loops may follow or nest, or run
    beside each other (see `beside`): then this one has the loops of all, each its own open ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.began = time.monotonic()
        self.all: list[Watched] = [self]
        self.loops: list[Loop] = []  # in the order in which they began
        self.open: list[Loop] = []  # the running ones, innermost last
        self.finished: list[Loop] = []
        self.shown: list[tuple[str, float]] = []  # completions of the latest step and their r̃

    def beside(self) -> "Watched":
        other = Watched()
        other.stop, other.all = self.stop, self.all
        other.loops, other.finished = self.loops, self.finished
        self.all.append(other)
        return other

    def running(self) -> list[list[Loop]]:
        """The open loops of each that has any, innermost last."""
        return [loops for one in list(self.all) if (loops := list(one.open))]

    def begin(self, title: str, done: int, total: int) -> None:
        self.loops.append(Loop(title, done, total, done))
        self.open.append(self.loops[-1])

    def advance(self) -> None:
        loop = self.open[-1]
        loop.done += 1
        loop.latest = time.monotonic()
        loop.first = loop.first or loop.latest

    def end(self) -> None:
        loop = self.open.pop()
        loop.ended = time.monotonic()
        self.finished.append(loop)

    def log(self, **numbers: float) -> None:
        if self.open:  # numbers outside any loop have no place on an axis
            loop = self.open[-1]
            loop.points.append((loop.done + 1, {n: float(value) for n, value in numbers.items()}))

    def show(self, texts: Sequence[str], rewards: Sequence[float]) -> None:
        self.all[0].shown = list(zip(texts[:SHOWN], rewards[:SHOWN], strict=True))


class TextView:
    """A line when a loop ends, and one every 20 seconds while it runs.

    They are few because notebooks are committed with their outputs.
    """

    every = 20.0

    def __init__(self, progress: Watched) -> None:
        self.progress, self.printed, self.last = progress, 0, time.monotonic()

    def draw(self) -> None:
        lines = [loop.line() for loop in self.progress.finished[self.printed :]]
        self.printed += len(lines)
        if not lines and time.monotonic() - self.last >= self.every:
            lines = [loops[-1].line() for loops in self.progress.running()]
        if lines:
            print("\n".join(lines), flush=True)
            self.last = time.monotonic()

    def close(self) -> None:
        self.draw()
        for loops in self.progress.running():  # where they stopped or failed
            print("\n".join(loop.line() for loop in loops), flush=True)


class WidgetView:
    """A bar with the time to go, a Stop button, curves and completions, all in its `box`."""

    def __init__(self, progress: Watched) -> None:
        import ipywidgets

        from .live_figure import LiveFigure

        self.progress = progress
        # From the start, before there is anything to draw: the page loads plotly while the work has
        # not begun to keep the cores busy.
        self.figure = LiveFigure(curves([]))
        self.drawn = 0  # points that the figure has
        self.button = ipywidgets.Button(
            description="Stop", tooltip="Give up the current step; what is finished is kept"
        )
        self.button.on_click(self.stop)
        self.texts, self.written = ipywidgets.HTML(), self.progress.shown
        self.rows = ipywidgets.VBox([self.row(self.button)])
        self.box = ipywidgets.VBox([self.rows, self.figure, self.texts])

    def row(self, *more: Any) -> Any:
        """A bar and its text, for what runs by itself."""
        import ipywidgets

        bar = ipywidgets.IntProgress(layout=ipywidgets.Layout(width="30%"))
        # a label shows text, never HTML
        label = ipywidgets.Label(layout=ipywidgets.Layout(width="auto"))
        return ipywidgets.HBox([bar, label, *more], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def stop(self, _: Any = None) -> None:
        self.progress.stop.set()
        self.button.description, self.button.disabled = "Stopping…", True

    def draw(self) -> None:
        if not self.progress.loops:
            waited = duration(time.monotonic() - self.progress.began)
            self.rows.children[0].children[1].value = f"starting · {waited}"
            return
        running = self.progress.running() or [self.progress.loops[-1:]]
        if len(running) != len(self.rows.children):
            first = self.rows.children[0]  # it has the button
            self.rows.children = (first, *(self.row() for _ in running[1:]))
        for row, loops in zip(self.rows.children, running, strict=True):
            self.draw_row(row.children[0], row.children[1], loops)
        # making the figure takes a moment, and Stop answers first
        if not self.progress.stop.is_set():
            self.draw_results()

    def draw_row(self, bar: Any, text: Any, running: list[Loop]) -> None:
        """Bring a bar and its text up to date, the innermost loop last."""
        loop = running[-1]
        bar.max, bar.value = max(loop.total, 1), loop.done if loop.total else 1
        to_go = loop.to_go() if loop.ended is None and not self.progress.stop.is_set() else None
        parts = [" › ".join(each.title for each in running), f"{loop.done}/{loop.total}"]
        parts += [f"about {duration(to_go)} to go"] if to_go else []
        parts += [f"{duration(time.monotonic() - self.progress.began)} in all"]
        text.value = " · ".join(parts)

    def draw_results(self) -> None:
        """Bring the figure and the completions up to date."""
        loops = list(self.progress.loops)
        if (points := sum(len(loop.points) for loop in loops)) > self.drawn:
            self.drawn = points
            self.figure.draw(curves(loops))
        if self.progress.shown is not self.written:
            self.written = self.progress.shown
            self.texts.value = completions(self.written)

    def close(self) -> None:
        self.button.disabled = True
        if self.progress.stop.is_set():
            self.button.description = "Stopped"
        self.draw()
        self.draw_results()


def curves(loops: Sequence[Loop]) -> dict[str, Any]:
    """A figure of what loops logged, as JSON: a panel for each kind of number (see `PANELS`), a
    colour and a legend entry for each loop.

    It is made anew several times a second, and checking that would cost a training its time.
    """
    from ..report.look import PALETTE

    series = []  # of each: its loop's number and title, its name, steps and values
    for number, loop in enumerate(loops):
        rows = loop.points[:]  # a copy: the work goes on
        for name in dict.fromkeys(name for _, numbers in rows for name in numbers):
            points = [(step, numbers[name]) for step, numbers in rows if name in numbers]
            series.append((number, loop.title, name, *zip(*points, strict=True)))
    panels = {name: PANELS.get(name, f"{label(name)} by step") for _, _, name, *_ in series}
    titles = tuple(dict.fromkeys(panels.values()))
    traces = []
    for k, (number, title, name, steps, values) in enumerate(series):
        panel = titles.index(panels[name])
        axis = str(panel + 1) if panel else ""
        first = number not in [n for n, *_ in series[:k]]
        dash = "dot" if name == "kl_sft" else "solid"
        line = {"color": PALETTE[number % len(PALETTE)], "dash": dash}
        drawn = {"x": steps, "y": values, "mode": _mode(name, len(steps)), "line": line}
        place = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "legendgroup": str(number)}
        traces.append(drawn | place | {"name": html.escape(title), "showlegend": first})
    return {"data": traces, "layout": _panels(titles)}


def _mode(name: str, points: int) -> str:
    """How a series is drawn: checkpoints are no sequence, and stay apart."""
    if name.startswith("checkpoint_"):
        return "markers"
    return "lines+markers" if points <= FEW else "lines"


@cache
def _panels(titles: tuple[str, ...]) -> dict[str, Any]:
    """The layout of panels in rows, each with its title above it and the legend below all."""
    from plotly.subplots import make_subplots

    columns = min(max(len(titles), 1), COLUMNS)
    rows = -(-len(titles) // columns) or 1
    above = [html.escape(title) for title in titles]
    gap = 90 / (230 * rows)  # of the height, where a title stands
    places: list[list[dict | None]] = [[{} for _ in range(columns)] for _ in range(rows)]
    for empty in range(max(len(titles), 1), rows * columns):
        places[-1][empty % columns] = None
    around: dict[str, Any] = {"subplot_titles": above, "vertical_spacing": gap}
    figure = make_subplots(rows, columns, specs=places, **around)
    figure.update_annotations(font_size=13)
    margin = {"l": 10, "r": 10, "t": 40, "b": 20}
    legend = {"y": -30 / (230 * rows), "yanchor": "top"}
    figure.update_layout(height=90 + 230 * rows, margin=margin, legend=legend, template="warp")
    if not titles:  # nothing to measure yet
        figure.update_xaxes(visible=False).update_yaxes(visible=False)
    return figure.layout.to_plotly_json()


def completions(rows: Sequence[tuple[str, float]]) -> str:
    """Completions and their r̃ as HTML. They are a model's text, so every one is escaped."""
    cells = [f"<td><b>{reward:+.2f}</b></td><td>{html.escape(text)}</td>" for text, reward in rows]
    body = "".join(f"<tr style='vertical-align:top'>{row}</tr>" for row in cells)
    return (
        "<small>From the latest step, with their r̃:</small><table"
        f" style='line-height:1.4'>{body}</table>"
    )
