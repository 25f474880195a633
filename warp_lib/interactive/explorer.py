"""The explorer, `make app`: what the study compares, drawn and said; and what each point writes.

It only reads tables, so it opens at once: no torch here, and no training.
"""

import base64
import html
import mimetypes
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from ..report import look
from ..report.rendering import export_figure
from ..runs import paths
from ..study.fronts import FEWEST, Interval, signed
from .comparisons import PRESETS, Comparison, Side, attempt, own
from .live import front_end
from .live_figure import LiveFigure
from .points import OWN, all_points, choose, completions, describe, positive_band

VIEWS = {
    "reward against KL": ("kl", "reward"),
    "judge against KL": ("kl", "judge"),
    "TF-IDF judge against KL": ("kl", "judge_tfidf"),
    "reward against judge": ("judge", "reward"),
}
MINE, FREE = "My runs", "Choose freely"
FILTERS = {"seed": "seed", "iteration": "I", "runs": "M"}
ENDS = (2, 3, 4, 5, 6, 8, 10, 12, 14)  # nats, as far as which scores can be averaged
NUMBERS = (
    "Numbers: mean r̃ of all completions of the prompt; blue above 0, SFT's average, orange below."
)
HINT = "<p>Click a point, or choose one above, to read what that policy writes.</p>"


# ------------------------------------------------------------------------------------- the drawing


def draw(comparison: Comparison, view: tuple[str, str], opened: int | None = None) -> go.Figure:
    """Points and, against KL, lines of what is compared; a star on the opened point."""
    (x, y), ends, figure = view, [], go.Figure()
    for side in comparison.sides:
        if x == "kl" and side.lines:
            ends.append(_lines(figure, side))
        rows = side.points.dropna(subset=[x, y])
        said = [html.escape(describe(row)) for _, row in rows.iterrows()]
        style: dict[str, Any] = dict(mode="markers", marker_size=7, marker_opacity=0.55, text=said)
        style |= dict(showlegend=x != "kl" or not side.lines, name=html.escape(side.name))
        numbers = rows.index.to_list()
        look.series(
            figure, rows[x], rows[y], side.colour, hover="%{text}", customdata=numbers, **style
        )
    for side in comparison.sides:
        if opened in side.points.index:
            here, style = side.points.loc[[opened]], dict(mode="markers", name="open")
            style |= dict(hoverinfo="skip", showlegend=False)
            line = dict(color="white", width=2)
            star = dict(color=side.colour, size=20, symbol="star", line=line)
            figure.add_scatter(x=here[x], y=here[y], marker=star, **style)
    if x == "kl" and comparison.span:
        shade: dict[str, Any] = dict(annotation_text="averaged", annotation_position="bottom left")
        shade |= dict(fillcolor=look.GREY, opacity=0.12, line_width=0)
        figure.add_vrect(*comparison.span, **shade)
    shown = [side.points.iloc[0] for side in comparison.sides if len(side.points)]
    if "reward" in view and shown and (band := positive_band(shown[0])):
        look.mark_real_positive(figure, "xy"[view.index("reward")], band)
    figure.update_layout(template="warp", height=500, margin=dict(t=30, r=60), showlegend=True)
    figure.update_layout(xaxis_title=look.AXES[x], yaxis_title=look.AXES[y], uirevision=str(view))
    if ends:
        look.label_ends(figure, ends)
    return figure


def _lines(figure: go.Figure, side: Side) -> tuple[float, float, str, str]:
    """Draw a side's seeds and, of several, their mean and its interval: where that ends, for a
    label.
    """
    several, name = len(side.lines) > 1, html.escape(side.name)
    for kl, score in side.lines:
        style = dict(line_width=1, opacity=0.35) if several else dict(line_width=3)
        style |= dict(mode="lines", hoverinfo="skip", showlegend=not several, name=name)
        look.series(figure, kl, score, side.colour, **style)
    if not several:
        kl, score = side.lines[0]
        return float(kl[-1]), float(score[-1]), name, side.colour
    reach = min(kl[-1] for kl, _ in side.lines)
    grid = np.linspace(max(kl[0] for kl, _ in side.lines), reach, 40)
    by_seed = np.array([np.interp(grid, *line) for line in side.lines])
    means = [Interval.of(scores) for scores in by_seed.T]
    style = dict(mode="lines", hoverinfo="skip", legendgroup=name)
    if len(side.lines) >= FEWEST:
        shade = style | dict(line_width=0, fillcolor=f"rgba{(*_rgb(side.colour), 0.2)}")
        for edge, fill in (("low", None), ("high", "tonexty")):
            y = [getattr(interval, edge) for interval in means]
            look.series(figure, grid, y, side.colour, fill=fill, showlegend=False, **shade)
    look.series(figure, grid, by_seed.mean(0), side.colour, name=name, line_width=3, **style)
    return float(reach), means[-1].mean, name, side.colour


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _caption(comparison: Comparison) -> str:
    """What is drawn."""
    lines = max((len(side.lines) for side in comparison.sides), default=0)
    caption = "Test prompts; dots: policies."
    if lines > 1:
        caption += " Thin lines: seeds; thick: their mean at equal KL"
        caption += ", its 95% interval over seeds." if lines >= FEWEST else "."
    return caption


def titled(comparison: Comparison, view: tuple[str, str]) -> go.Figure:
    """The figure as it stands outside of the app."""
    caption = f"{comparison.evidence} {_caption(comparison)}"
    return look.titled(draw(comparison, view), comparison.finding, caption, height=560)


def explore() -> widgets.Widget | go.Figure:
    """The explorer where someone can turn widgets; elsewhere the figure that it opens with."""
    points = all_points()
    if front_end():
        return Explorer(points).box
    first = next(iter(PRESETS.values()))
    return titled(attempt(partial(first, points, "reward", None)), VIEWS["reward against KL"])


# -------------------------------------------------------------------------------------- the widgets


class Address(anywidget.AnyWidget):
    """The choices in the page's address, where the page is Voilà's."""

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    query = traitlets.Unicode().tag(sync=True)

    def __init__(self, asked: Callable[[str], None]) -> None:
        super().__init__()
        self.on_msg(lambda _, message, __: asked(str(message["asked"])))


def _dropdown(name: str, options: Iterable[Any], every: str | None = None) -> widgets.Dropdown:
    """every: what the first option is called that stands for none or all of the others, ""."""
    first = [] if every is None else [(every, "")]
    pairs = [(str(option), option) for option in options]
    style = {"description_width": "initial"}
    return widgets.Dropdown(options=[*first, *pairs], description=name, style=style)


def _search(points: pd.DataFrame, side: str) -> widgets.TagsInput:
    """Series of points, found by typing a part of their name."""
    names = points.loc[points["method"] != "sft", "name"].unique().tolist()
    hint = f"{side}: type a part of a name; Enter adds it, Backspace takes the last away"
    return widgets.TagsInput(allowed_tags=names, allow_duplicates=False, placeholder=hint)


class Explorer:
    """Presets, the verdict, the figure, and beside it the completions of the open point."""

    def __init__(self, points: pd.DataFrame) -> None:
        self.points, self.restoring = points, False
        mine = [s.removeprefix(OWN) for s in points["source"].unique() if s.startswith(OWN)]
        presets = [*PRESETS, MINE, FREE]
        filters = {}
        for column, name in FILTERS.items():
            numbers = sorted(points[column].dropna().astype(int).unique().tolist())
            filters[column] = _dropdown(name, numbers, "all")
        most = max(1.0, points["eta"].max())
        free: dict[str, Any] = {side: _search(points, side) for side in "AB"} | filters
        free["eta"] = widgets.FloatRangeSlider(
            value=(0, most), max=most, step=0.05, description="η"
        )
        self.controls: dict[str, Any] = {
            "compare": widgets.RadioButtons(options=presets, orientation="horizontal"),
            "show": _dropdown("show", VIEWS),
            "to": _dropdown("average up to (nats)", ENDS, "as planned"),
            "run": _dropdown("run", mine or [""]),
            **free,
            "point": _dropdown("point", [], "none"),
        }
        self.defaults = {name: control.value for name, control in self.controls.items()}
        self.point = self.controls["point"]
        self.verdict, self.texts, self.exported, self.caption = (widgets.HTML() for _ in range(4))
        self.export = widgets.Button(description="Export", layout=widgets.Layout(width="auto"))
        self.figure = LiveFigure(go.Figure(), self.click)
        self.address = Address(self.restore)
        for control in self.controls.values():
            control.observe(self.changed, "value")
        self.export.on_click(lambda _: self.write())
        row = [self.controls[name] for name in ("show", "to", "run")]
        row = widgets.HBox([*row, self.export, self.exported]).add_class("warp-controls")
        narrow = widgets.HBox([*filters.values(), free["eta"]]).add_class("warp-controls")
        self.free = widgets.VBox([free["A"], free["B"], narrow])
        left = widgets.VBox([self.figure, self.caption, row])
        sides = widgets.HBox([left, widgets.VBox([self.point, self.texts])]).add_class("warp-sides")
        self.box = widgets.VBox(
            [self.controls["compare"], self.free, self.verdict, sides, self.address]
        ).add_class("warp-app")
        self.compare()
        self.show()

    def changed(self, change: dict[str, Any]) -> None:
        """A control was turned, by a person."""
        if not self.restoring:
            if change["owner"] is not self.point:
                self.compare()
            self.show()

    def compare(self) -> None:
        """What is compared, the verdict, and the points that can be opened."""
        value = {name: control.value for name, control in self.controls.items()}
        preset = value["compare"]
        makers = PRESETS | {MINE: partial(own, name=value["run"]), FREE: self.freely}
        make = partial(makers[preset], self.points, score=self.view[1], end=value["to"] or None)
        self.comparison = attempt(make)
        self.controls["run"].layout.display = None if preset == MINE else "none"
        self.free.layout.display = None if preset == FREE else "none"
        self.verdict.value = _verdict(self.comparison)
        self.caption.value = f"<small>{_caption(self.comparison)}</small>"
        self.export.disabled = not self.comparison.sides
        rows = pd.concat([self.points[:0], *(side.points for side in self.comparison.sides)])
        before, self.restoring = self.point.value, True
        labels = [(describe(row), row["address"]) for _, row in rows.iterrows()]
        self.point.options = [("none", ""), *labels]
        self.point.value = before if before in set(rows["address"]) else ""
        self.restoring = False

    def freely(self, points: pd.DataFrame, score: str, end: float | None) -> Comparison:
        """Any series beside any others."""
        value = {name: self.controls[name].value for name in ("eta", *FILTERS)}
        chosen = [choose(points, self.controls[side].value, **value) for side in "AB"]
        names = (f"{side}: {', '.join(self.controls[side].value)}" for side in "AB")
        looks = zip(names, (look.BLUE, look.ORANGE), chosen, strict=True)
        sides = [Side(*of) for of in looks]
        why = (
            "No verdict: only the comparisons above are made by rules that were fixed in advance."
            " Scores that different reward models gave are not on one scale."
        )
        return Comparison(sides, "Free comparison", why)

    @property
    def view(self) -> tuple[str, str]:
        return VIEWS[self.controls["show"].value]

    def show(self) -> None:
        """Draw; the open point's completions; and all choices in the address."""
        at = self.points.index[self.points["address"] == self.point.value]
        opened = int(at[0]) if len(at) else None
        self.figure.draw(draw(self.comparison, self.view, opened))
        self.texts.value = (
            _beside(self.comparison.others)
            if opened is None
            else _texts(self.points.loc[opened], completions(self.points, opened))
        )
        turned = {n: c.value for n, c in self.controls.items() if c.value != self.defaults[n]}
        self.address.query = urlencode(turned, doseq=True)

    def click(self, point: int) -> None:
        self.point.value = self.points.loc[point, "address"]

    def restore(self, query: str) -> None:
        """Turn the controls to what an address says; what it cannot mean is passed over."""
        asked = parse_qs(query)
        self.restoring = True
        for name in asked.keys() & self.controls.keys() - {"point"}:
            _turn(self.controls[name], asked[name])
        self.compare()
        self.restoring = True
        _turn(self.point, asked.get("point", []))
        self.restoring = False
        self.show()

    def write(self) -> None:
        """The figure and its points as files under runs/explorer, and as links to download them."""
        self.export.disabled, self.exported.value = True, "exporting …"
        try:
            self.exported.value = " · ".join(map(_link, export(self.comparison, self.view)))
        finally:
            self.export.disabled = not self.comparison.sides


def _turn(control: Any, texts: list[str]) -> None:
    with suppress(traitlets.TraitError, ValueError, KeyError, IndexError):
        if isinstance(control, widgets.TagsInput):
            control.value = [text for text in texts if text in control.allowed_tags]
        elif isinstance(control, widgets.FloatRangeSlider):
            low, high = map(float, texts)
            if 0 <= low <= high:
                control.value = (low, high)
        else:
            values = (
                option[-1] if isinstance(option, tuple) else option for option in control.options
            )
            control.value = {str(value): value for value in values}[texts[0]]


def export(comparison: Comparison, view: tuple[str, str]) -> list[Path]:
    """Write the figure as HTML and SVG, and its points as CSV, to runs/explorer.

    The HTML stands on its own and fetches nothing. Returns the files.
    """
    folder = paths.folder("explorer")
    figure = titled(comparison, view)
    export_figure(figure, folder, "explorer")
    page, kinds = folder / "explorer.html", ("html", "svg", "csv")
    figure.write_html(page, include_plotlyjs=True, config={"displaylogo": False})
    rows = pd.concat([side.points.assign(side=side.name) for side in comparison.sides])
    rows = rows.drop(columns="file").dropna(axis="columns", how="all")
    paths.write_whole(folder / "explorer.csv", rows.to_csv(index=False))
    return [file for kind in kinds if (file := folder / f"explorer.{kind}").exists()]


def _link(file: Path) -> str:
    """A link that carries the file, so that it works wherever the page is shown."""
    kind, data = mimetypes.guess_type(file)[0], base64.b64encode(file.read_bytes()).decode()
    return f'<a download="{file.name}" href="data:{kind};base64,{data}">{file.name}</a>'


def _verdict(comparison: Comparison) -> str:
    finding, evidence = html.escape(comparison.finding), html.escape(comparison.evidence)
    return f"<div class='warp-verdict' role='status'><h2>{finding}</h2><p>{evidence}</p></div>"


def _beside(others: dict[str, str]) -> str:
    """What stands beside the figure while no point is open, as HTML."""
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in others.items()
    )
    return HINT + (rows and f"<table><caption>Related differences</caption>{rows}</table>")


def _texts(point: pd.Series, rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Completions below SFT's as HTML. They are a model's text, so every one is escaped."""
    cards = "".join(
        f"<article><p><i>{html.escape(sft['prompt'])} …</i></p>"
        f"{_said('SFT', sft)}{_said('this policy', own)}</article>"
        for sft, own in rows
    )
    about = "tabindex='0' role='region' aria-label='completions'"
    note = NUMBERS if rows else "The completions of this point were not kept."
    head = f"<p><small>{html.escape(describe(point))}. {note}</small></p>"
    return f"<div class='warp-scroll' {about}>{head}{cards}</div>"


def _said(who: str, row: dict[str, Any]) -> str:
    """A completion on its reward's colour, half transparent: it reads on light and on dark."""
    text, reward = html.escape(row["completion"]), row["reward"]
    shade = f"rgba{(*_rgb(look.BLUE if reward > 0 else look.ORANGE), min(abs(reward) / 3, 0.5))}"
    return f"<p style='background:{shade}'><b>{who} {signed(reward, 2)}</b> {text}</p>"
