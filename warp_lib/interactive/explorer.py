"""The Pareto explorer: points of the study and of one's own runs, chosen, compared and opened.

It only reads tables, so it opens at once: no torch here, and no training.
"""

import base64
import dataclasses
import html
import mimetypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from ..report import plots
from ..report.rendering import export_figure
from ..runs import paths
from ..study.fronts import Interval, pareto
from .live import front_end
from .live_figure import LiveFigure
from .points import (
    CORNER,
    Selection,
    all_points,
    by_pipeline,
    comparison,
    completions,
    describe,
    positive_band,
)

VIEWS = {
    "reward against KL": ("kl", "reward"),
    "judge against KL": ("kl", "judge"),
    "reward against judge": ("judge", "reward"),
    "TF-IDF judge against KL": ("kl", "judge_tfidf"),
}
SYMBOLS = "circle diamond square triangle-up cross x star pentagon hexagram triangle-down".split()
NONE = -1  # no point is open


def traces(
    selections: dict[str, pd.DataFrame], view: tuple[str, str], intervals: bool
) -> list[go.Scatter]:
    """The points of each selection, a trace a series, and against KL its fronts.

    A selection has one colour. See `by_pipeline`.
    """
    (x, y), made = view, []
    for (name, rows), colour in zip(selections.items(), (plots.BLUE, plots.ORANGE), strict=False):
        rows = rows.dropna(subset=[x, y])
        if x == "kl":
            made.append(_fronts(rows, y, f"{name}: fronts, one a seed", colour))
        series = rows.groupby("series", sort=False)
        for (title, own), symbol in zip(series, SYMBOLS * 3, strict=False):
            edge = dict(color="white", width=0.5)
            made.append(
                go.Scatter(
                    x=own[x],
                    y=own[y],
                    name=f"{name}: {html.escape(title)}",
                    mode="markers",
                    customdata=own.index.to_list(),
                    marker=dict(color=colour, symbol=symbol, size=8, line=edge),
                    error_x=plots.whiskers(own, x, colour, intervals),
                    error_y=plots.whiskers(own, y, colour, intervals),
                    text=[html.escape(describe(row)) for _, row in own.iterrows()],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    return made


def _fronts(rows: pd.DataFrame, score: str, name: str, colour: str) -> go.Scatter:
    """The front of each pipeline as a staircase: the best score at no more than each KL."""
    x, y = [], []
    for own in by_pipeline(rows, score).values():
        front = own.iloc[pareto(own["kl"].to_list(), own[score].to_list())]
        x += [*front["kl"], None]
        y += [*front[score], None]
    look = dict(mode="lines", opacity=0.6, line=dict(color=colour, width=1.5, shape="hv"))
    return go.Scatter(x=x, y=y, name=name, hoverinfo="skip", **look)


def layout(view: tuple[str, str], rows: pd.DataFrame) -> dict[str, Any]:
    """Axes with their units and, on the reward's, where real positive reviews lie for the first of
    the points.
    """
    figure = go.Figure(layout=dict(template="warp", margin=dict(t=20), height=520))
    for axis, column in zip("xy", view, strict=True):
        figure.update_layout({f"{axis}axis_title": plots.AXES[column]})
        if column == "reward" and len(rows) and (band := positive_band(rows.iloc[0])):
            plots.mark_real_positive(figure, axis, band)
    return figure.layout.to_plotly_json()


# -------------------------------------------------------------------------------------- the widgets


def explore() -> widgets.Widget | go.Figure:
    """The explorer where someone can turn widgets; elsewhere the figure that it opens with."""
    points = all_points()
    if front_end():
        return Explorer(points).box
    view = VIEWS["reward against KL"]
    chosen = {name: selection.of(points) for name, selection in opening(points).items()}
    return go.Figure(traces(chosen, view, intervals=True), layout(view, pd.concat(chosen.values())))


def opening(points: pd.DataFrame) -> dict[str, Selection]:
    """What is compared at first: the study's WARP, A, with its REINFORCE, B.

    Without a study, what the first run has.
    """
    first = points["source"].iloc[0]
    source = "primary" if points["source"].eq("primary").any() else first
    series = points.loc[(points["source"] == source) & (points["method"] != "sft"), "series"]
    ends = {
        "A": ("warp · final front over η",),
        "B": ("reinforce · along its way", "reinforce · line to SFT"),
    }
    return {
        name: Selection(tuple(title for title in series.unique() if title.endswith(end)))
        for name, end in ends.items()
    }


class Chooser:
    """The controls of one selection.

    Every list also takes the keyboard: arrows, and Ctrl or Shift for several.
    """

    def __init__(
        self, name: str, colour: str, points: pd.DataFrame, first: Selection, changed: Callable
    ) -> None:
        points = points[points["method"] != "sft"]
        titles = list(points["series"].unique())
        self.series = _list("series", titles, first.series, rows=12, width="100%")
        self.numbers = {
            "iterations": _list("I", _whole(points["iteration"])),
            "runs": _list("M", _whole(points["runs"])),
            "seeds": _list("seed", _whole(points["seed"])),
        }
        self.eta = widgets.FloatRangeSlider(
            value=(0, 1),
            min=0,
            max=max(1.0, points["eta"].max()),
            step=0.05,
            description="η",
            readout_format=".2f",
            tooltip="points of a line over η outside of this range are left out",
            layout=widgets.Layout(width="100%"),
        )
        for control in (self.series, *self.numbers.values(), self.eta):
            control.observe(lambda _: changed(), "value")
        title = widgets.HTML(
            f"<b style='border-left:.8em solid {colour};padding-left:.4em'>Selection {name}</b>"
        )
        children = [title, self.series, widgets.HBox(list(self.numbers.values())), self.eta]
        self.box = widgets.VBox(
            children, layout=widgets.Layout(width="49%", min_width="20em", padding="0 1em 0 0")
        )

    @property
    def selection(self) -> Selection:
        numbers = {name: control.value for name, control in self.numbers.items()}
        return Selection(self.series.value, eta=self.eta.value, **numbers)


def _list(
    name: str, options: list, chosen: Sequence = (), rows: int = 4, width: str = "33%"
) -> widgets.SelectMultiple:
    return widgets.SelectMultiple(
        options=options,
        value=tuple(chosen),
        rows=rows,
        description=name,
        tooltip=f"{name}: none chosen means all",
        layout=widgets.Layout(width=width),
        style={"description_width": "3em"},
    )


def _whole(column: pd.Series) -> list[int]:
    return sorted(column.dropna().astype(int).unique().tolist())


class Explorer:
    """The figure, two choosers, the numbers they give, and the completions of the open point."""

    def __init__(self, points: pd.DataFrame) -> None:
        self.points, first = points, opening(points)
        self.choosers = {
            name: Chooser(name, colour, points, first[name], self.draw)
            for name, colour in zip(first, (plots.BLUE, plots.ORANGE), strict=True)
        }
        self.view = widgets.Dropdown(
            options=list(VIEWS), description="show", tooltip="what is drawn against what"
        )
        self.intervals = widgets.Checkbox(
            value=True,
            description="intervals (± 2 standard errors over prompts)",
            indent=False,
            layout=widgets.Layout(width="auto"),
        )
        chosen = self.chosen()
        self.figure = LiveFigure(go.Figure(*self.parts(chosen)), self.click)
        self.volumes = widgets.HTML()
        self.point = widgets.Dropdown(
            description="point",
            tooltip="or click a point in the figure",
            layout=widgets.Layout(width="100%"),
            style={"description_width": "3em"},
        )
        self.texts = widgets.HTML()
        self.export = widgets.Button(
            description="Export", tooltip="the figure as HTML, SVG and PNG, and its points as CSV"
        )
        self.exported = widgets.HTML()
        self.view.observe(lambda _: self.draw(), "value")
        self.intervals.observe(lambda _: self.draw(), "value")
        self.point.observe(lambda change: self.open(change["new"]), "value")
        self.export.on_click(lambda _: self.write())
        self.box = widgets.VBox(
            [
                widgets.HBox([chooser.box for chooser in self.choosers.values()]),
                widgets.HBox([self.view, self.intervals]),
                self.figure,
                self.volumes,
                widgets.HBox([self.export, self.exported]),
                self.point,
                self.texts,
            ]
        )
        self.tell(chosen)

    def chosen(self) -> dict[str, pd.DataFrame]:
        return {name: chooser.selection.of(self.points) for name, chooser in self.choosers.items()}

    def parts(self, chosen: dict[str, pd.DataFrame]) -> tuple[list[go.Scatter], dict[str, Any]]:
        """Traces and layout of the figure, for the view and intervals that are set."""
        view = VIEWS[str(self.view.value)]
        return traces(chosen, view, self.intervals.value), layout(view, pd.concat(chosen.values()))

    def draw(self) -> None:
        """Bring everything up to date with the controls; an open point that is there stays open."""
        chosen = self.chosen()
        self.figure.draw(go.Figure(*self.parts(chosen)))
        self.tell(chosen)

    def tell(self, chosen: dict[str, pd.DataFrame]) -> None:
        """What the choice comes to beside the figure, and the points of it that can be opened."""
        self.volumes.value = _volumes(chosen, VIEWS[str(self.view.value)])
        labels = {
            int(k): f"{name} · {describe(row)}"
            for name, rows in chosen.items()
            for k, row in rows.iterrows()
        }
        before = self.point.value
        none = "choose one, or click it in the figure, to read what it writes"
        self.point.options = [(none, NONE), *((text, k) for k, text in labels.items())]
        self.point.value = before if before in labels else NONE

    def click(self, point: int) -> None:
        self.point.value = int(point)

    def open(self, index: int) -> None:
        self.texts.value = "" if index == NONE else _texts(completions(self.points, index))

    def write(self) -> None:
        """The figure and its points as files under runs/explorer, and as links to download them."""
        self.export.disabled, self.exported.value = True, "exporting …"
        try:
            files = export(self.chosen(), VIEWS[str(self.view.value)], self.intervals.value)
            self.exported.value = " · ".join(map(_link, files))
        finally:
            self.export.disabled = False


def export(
    selections: dict[str, pd.DataFrame], view: tuple[str, str], intervals: bool
) -> list[Path]:
    """Write the figure as HTML, SVG and PNG, and its points as CSV, to runs/explorer.

    The HTML stands on its own and fetches nothing. Returns the files.
    """
    folder = paths.folder("explorer")
    rows = pd.concat([rows.assign(selection=name) for name, rows in selections.items()])
    figure = go.Figure(traces(selections, view, intervals), layout(view, rows))
    export_figure(figure, folder, "explorer")
    page, kinds = folder / "explorer.html", ("html", "svg", "png", "csv")
    figure.write_html(page, include_plotlyjs=True, config={"displaylogo": False})
    paths.write_whole(folder / "explorer.csv", rows.drop(columns="file").to_csv(index=False))
    return [file for kind in kinds if (file := folder / f"explorer.{kind}").exists()]


def _link(file: Path) -> str:
    """A link that carries the file, so that it works wherever the page is shown."""
    kind, data = mimetypes.guess_type(file)[0], base64.b64encode(file.read_bytes()).decode()
    return f'<a download="{file.name}" href="data:{kind};base64,{data}">{file.name}</a>'


def _volumes(selections: dict[str, pd.DataFrame], view: tuple[str, str]) -> str:
    """The hypervolumes of both selections and their difference, in words."""
    x, y = view
    if x != "kl":
        return "No front here: neither of the two scores is a price."
    first, second = selections.values()
    volumes = comparison(first, second, y).items()
    lines = [f"<b>{name}</b>: {_volume(interval)}" for name, interval in volumes]
    note = (
        f"Hypervolume: the area between a seed's front and the corner of {CORNER[0]:g} nats and a"
        f" score of {CORNER[1]:g}, in nats × SFT standard deviations; its mean over fronts, with"
        f" the 95% interval over them. It favours whoever reaches further, up to {CORNER[0]:g}"
        " nats: which front is higher at the same KL is another question. And a front is the best"
        " of its points on the prompts it is drawn for, so it flatters whoever has more points."
        " The study's own comparison, in 06_ablations, is at equal KL and chooses points on other"
        " prompts. A − B takes only fronts of one seed that one model scored, so it can differ"
        " from A less B."
    )
    return f"{' &emsp; '.join(lines) or 'No points chosen.'}<br><small>{note}</small>"


def _volume(over_fronts: Interval) -> str:
    mean, low, high, n = dataclasses.astuple(over_fronts)
    spread = f"{low:.2f} to {high:.2f}, {n} fronts" if n > 1 else "one front: no interval"
    return f"{mean:.2f} ({spread})"


def _texts(rows: list[dict[str, Any]]) -> str:
    """Completions beside SFT's as a table. They are a model's text, so every one is escaped."""
    if not rows:
        return "The completions of this point were not kept."
    titles = ("prompt", "SFT goes on", "this point goes on")
    head = "".join(f"<th style='text-align:left'>{title}</th>" for title in titles)
    body = "".join(
        f"<tr style='vertical-align:top'><td>{html.escape(row['prompt'])}</td>"
        f"{_cell(row['sft'], row['sft_reward'])}{_cell(row['completion'], row['reward'])}</tr>"
        for row in rows
    )
    note = (
        "Colour and number: mean r̃ of all completions sampled for the prompt; blue above 0, where"
        " SFT is on average, orange below."
    )
    return (
        f"<small>{note}</small><table"
        f" style='width:100%;line-height:1.4'><tr>{head}</tr>{body}</table>"
    )


def _cell(text: str, reward: float) -> str:
    """A completion on its reward's colour, half transparent: it reads on light and on dark."""
    shade = "0,114,178" if reward > 0 else "213,94,0"
    style = f"background:rgba({shade},{min(abs(reward) / 3, 0.5):.2f});padding:.4em;width:45%"
    return f"<td style='{style}'><b>{reward:+.2f}</b> {html.escape(text)}</td>"
