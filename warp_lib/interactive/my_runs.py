"""One's own runs under runs/: a table to sort and filter, compared with each other and with the
study, renamed and deleted.
"""

import html
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from filelock import FileLock, Timeout

from ..report import answers, plots
from ..runs import paths
from ..runs.errors import Explained
from ..runs.results import read_scores, readable
from ..settings import Settings
from ..study import outcomes
from ..study.fronts import matched, straight
from .live_figure import LiveFigure

# what the table says of a run beside its end's r̃ and KL: the settings' names, as people write them
SAID = {"iterations": "I", "runs": "M", "steps": "T", "beta": "β", "eta": "η", "mu": "μ"}
SAID |= {"learning_rate": "lr", "seed": "seed"}
# what is sorted by, and whether the largest comes first
ORDERS = {"newest first": ("when", True), "name": ("name", False)}
ORDERS |= {"most r̃": ("r̃", True), "least KL": ("KL", False)}
# what r̃ and KL are measured on: runs that differ in it cannot be compared
MEASURED = ("policy", "reviews", "held_out", "max_new_tokens", "temperature")
NAME = "14em"  # width of the names
ROW = "display:grid;grid-template-columns:repeat(10,4em) 8em;white-space:nowrap"


def own_runs() -> dict[str, pd.DataFrame]:
    """Name → the rows of its tables, of every run under runs/ that has results of WARP."""
    tables: dict[str, list[pd.DataFrame]] = {}
    for file, rows, _ in readable(sorted(paths.RUNS.glob("*/results/*.csv"))):
        tables.setdefault(file.parent.parent.name, []).append(rows)
    runs = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return {name: rows for name, rows in runs.items() if rows["method"].eq("warp").any()}


def remove(name: str) -> None:
    """Delete a run's folder: its pages, tables and models. What was trained stays in the store.

    Raises Explained for a name that is none of `own_runs`, and for a run that is in use.
    """
    with _unused(name) as folder:
        shutil.rmtree(folder)


def rename(name: str, new: str) -> None:
    """Give a run another name. Raises Explained as `remove` does, and for a name that is taken."""
    Settings(name=new)  # refuses what is no name of a run
    with _unused(name) as folder:
        if (target := paths.RUNS / new).exists():
            raise Explained(f"there is a run or folder called {new!r} already.")
        folder.rename(target)


@contextmanager
def _unused(name: str) -> Iterator[Path]:
    """The folder of one's run `name`, and inside nobody else's lock in it can be taken."""
    if name not in own_runs() or (folder := paths.RUNS / name).is_symlink():
        raise Explained(f"there is no run {name!r} of yours under runs/.")
    Settings(name=name)  # the store, say, is no run whatever lies in it
    with ExitStack() as held:
        for lock in folder.rglob("*.lock"):
            try:
                held.enter_context(FileLock(lock, blocking=False))
            except Timeout:
                raise Explained(f"{name!r} is in use: {lock.stem} is running.") from None
        yield folder


def compared(first: str, second: str) -> str:
    """The first run less the second at the largest KL that both fronts reach, in a sentence."""
    one, other = map(_settings, (first, second))
    if apart := [name for name in MEASURED if one and other and one.get(name) != other.get(name)]:
        return f"They differ in {' and '.join(apart)}, so their numbers cannot be compared."
    lines, by = [], []
    for name in (first, second):
        files = list(readable(sorted((paths.RUNS / name / "results").glob("*.csv"))))
        by.append({record.get("scorers", {}).get("reward") for *_, record in files})
        rows = pd.concat([rows for _, rows, _ in files], ignore_index=True)
        lines.append(straight(rows, read_scores(paths.RUNS / name), "warp"))
    if by[0] != by[1] or len({reward.shape[1] for _, reward in lines}) > 1:
        return "Their reward models or test prompts differ, so their numbers cannot be compared."
    equal = matched(*lines)
    return (
        f"At {equal.kl:.2f} nats {first} − {second} is {equal.difference} r̃ over prompts:"
        f" {answers.verdict(equal.difference)}."
    )


class MyRuns:
    """The table: a tick chooses a run, whose front is drawn over the study's."""

    def __init__(self, study: dict[str, list[outcomes.Outcome]]) -> None:
        self.study = study
        self.pattern = widgets.Text(description="filter", placeholder="part of a name")
        self.order = widgets.Dropdown(options=list(ORDERS), description="sort")
        self.rows, self.said = widgets.VBox(), widgets.HTML()
        self.rows.layout.overflow_x = "auto"
        self.figure = LiveFigure(plots.own_fronts(study, {}))
        self.name = widgets.Text(description="new name")
        self.rename = widgets.Button(description="Rename")
        self.delete = widgets.Button(description="Delete …")
        self.sure = widgets.Button(description="Delete for good", button_style="danger")
        self.keep = widgets.Button(description="Keep")
        self.ticks: dict[str, widgets.Checkbox] = {}
        for control in (self.pattern, self.order):
            control.observe(lambda _: self.show(), "value")
        self.rename.on_click(lambda _: self.change(rename, self.name.value.strip()))
        self.delete.on_click(lambda _: self.ask(True))
        self.sure.on_click(lambda _: self.change(remove))
        self.keep.on_click(lambda _: self.ask(False))
        wrap = widgets.Layout(flex_flow="row wrap")
        head = widgets.HTML("<h2>Your runs</h2>Tick runs to draw them; two are compared.")
        find = widgets.HBox([self.pattern, self.order], layout=wrap)
        buttons = [self.rename, self.delete, self.sure, self.keep]
        alter = widgets.HBox([self.name, *buttons], layout=wrap)
        self.box = widgets.VBox([head, find, self.rows, alter, self.said, self.figure])
        self.read()

    @property
    def chosen(self) -> list[str]:
        """The runs that are ticked, also those that the filter hides."""
        return [name for name, tick in self.ticks.items() if tick.value]

    def read(self, *chosen: str) -> None:
        """Look what is under runs/, and have these runs ticked beside those that are."""
        self.runs = own_runs()
        self.lines = [_line(name, rows) for name, rows in self.runs.items()]
        ticked = {*self.chosen, *chosen}
        self.ticks = {}
        for name in self.runs:
            tick = widgets.Checkbox(name in ticked, description=name, indent=False)
            tick.layout = widgets.Layout(width=NAME, flex="0 0 auto", margin="0")
            tick.observe(lambda _: self.draw(), "value")
            self.ticks[name] = tick
        self.show()
        self.draw()

    def show(self) -> None:
        """The rows whose name has what is filtered for, in the order that is asked for."""
        column, down = ORDERS[str(self.order.value)]
        rows = [
            widgets.HBox([self.ticks[line["name"]], widgets.HTML(_cells(line))])
            for line in sorted(self.lines, key=lambda line: line[column], reverse=down)
            if self.pattern.value.lower() in line["name"].lower()
        ]
        titles = "".join(f"<b>{column}</b>" for column in ("r̃", "KL", *SAID.values(), "measured"))
        head = widgets.HTML(f"<div style='{ROW}'>{titles}</div>")
        head.layout.margin = f"0 0 0 {NAME}"
        none = widgets.HTML("There are none yet: Start makes the first.")
        self.rows.children = [head, *rows] if self.lines else [none]

    def draw(self) -> None:
        """Bring what depends on the ticks up to date."""
        chosen = self.chosen
        self.figure.draw(plots.own_fronts(self.study, {name: self.runs[name] for name in chosen}))
        self.rename.disabled = self.name.disabled = len(chosen) != 1
        self.delete.disabled = not chosen
        self.ask(False)
        try:
            self.said.value = html.escape(compared(*chosen)) if len(chosen) == 2 else ""
        except Explained as error:
            self.said.value = html.escape(str(error))

    def ask(self, sure: bool) -> None:
        """Ask before anything is deleted, or ask no more."""
        for button in (self.sure, self.keep):
            button.layout.display = "" if sure else "none"
        if sure:
            self.said.value = (
                f"<b>Delete {html.escape(', '.join(self.chosen))}?</b> The pages, tables and models"
                " go; what was trained stays in the store."
            )

    def change(self, how: Callable[..., None], *words: str) -> None:
        """Rename or delete what is ticked, or say why not."""
        try:
            for name in self.chosen:
                how(name, *words)
        except (Explained, OSError) as error:
            self.read()
            self.said.value = f"<b>{html.escape(str(error))}</b>"
        else:
            self.read(*words)


def _settings(name: str) -> dict[str, Any]:
    """A run's settings; nothing of one before they were kept."""
    try:
        return json.loads((paths.RUNS / name / "settings.json").read_text())
    except (OSError, ValueError):
        return {}


def _line(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """A run in the table: where its front ends, its settings, when it was last measured."""
    end = rows[rows["method"] == "warp"].sort_values("eta").iloc[-1]
    by_row = {"iterations": end["iteration"], "runs": end["runs"], "seed": end["seed"]}
    settings = _settings(name) or by_row
    when = max(file.stat().st_mtime for file in (paths.RUNS / name / "results").iterdir())
    known = {short: settings.get(setting, "–") for setting, short in SAID.items()}
    return {"name": name, "r̃": end["reward"], "KL": end["kl"], **known, "when": when}


def _cells(line: dict[str, Any]) -> str:
    """A line of the table after its name."""
    forms = {"r̃": "{:.2f}", "KL": "{:.2f}"}
    cells = line | {"when": time.strftime("%d %b %H:%M", time.localtime(line["when"]))}
    texts = (
        forms.get(column, "{:g}" if isinstance(value, float) else "{}").format(value)
        for column, value in cells.items()
        if column != "name"
    )
    return f"<div style='{ROW}'>{''.join(f'<span>{html.escape(t)}</span>' for t in texts)}</div>"
