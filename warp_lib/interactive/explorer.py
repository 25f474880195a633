"""The explorer, `make app`: what the study compares, drawn and said; and what each point writes.

It only reads tables, so it opens at once: no torch here, and no training.
"""

import base64
import html
import mimetypes
from collections.abc import Callable
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

from ..report import look, plots
from ..report.rendering import export_figure
from ..runs import paths
from ..study.fronts import FEWEST, Interval, signed
from .comparisons import PRESETS, Comparison, Side, attempt, chosen, own
from .live import front_end
from .live_figure import LiveFigure
from .points import OWN, Selection, all_points, completions, describe, positive_band

VIEWS = {
    "reward against KL": ("kl", "reward"),
    "judge against KL": ("kl", "judge"),
    "TF-IDF judge against KL": ("kl", "judge_tfidf"),
    "reward against judge": ("judge", "reward"),
}
MINE, FREE = "My runs", "Choose freely"
ENDS = (2, 3, 4, 5, 6, 8, 10, 12, 14)  # nats, as far as which scores can be averaged
CAPTION = (
    "Test prompts. Thin lines: seeds; thick: their mean at equal KL, with its 95% interval over"
    " seeds. Dots: every policy."
)
HINT = "<p>Click a point, or choose one above, to read what that policy writes.</p>"


# ------------------------------------------------------------------------------------- the drawing


def draw(comparison: Comparison, view: tuple[str, str], opened: int | None = None) -> go.Figure:
    """Points and, against KL, lines of what is compared; the opened point has a ring."""
    (x, y), ends, figure = view, [], go.Figure()
    for side in comparison.sides:
        if x == "kl" and side.lines:
            ends.append(_lines(figure, side))
        rows = side.points.dropna(subset=[x, y])
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            name=html.escape(side.name),
            mode="markers",
            showlegend=x != "kl" or not side.lines,
            customdata=rows.index.to_list(),
            marker=dict(color=side.colour, size=7, opacity=0.55),
            text=[html.escape(describe(row)) for _, row in rows.iterrows()],
            hovertemplate="%{text}<extra></extra>",
        )
        if opened in rows.index:
            ring = dict(color=look.PURPLE, size=18, symbol="circle-open", line_width=4)
            here = dict(x=rows.loc[[opened], x], y=rows.loc[[opened], y])
            figure.add_scatter(
                **here, mode="markers", name="open", marker=ring, hoverinfo="skip", showlegend=False
            )
    if x == "kl" and comparison.span:
        figure.add_vrect(
            *comparison.span,
            fillcolor=look.GREY,
            opacity=0.12,
            line_width=0,
            annotation_text="averaged",
            annotation_position="bottom left",
        )
    shown = [side.points.iloc[0] for side in comparison.sides if len(side.points)]
    if "reward" in view and shown and (band := positive_band(shown[0])):
        plots.mark_real_positive(figure, "xy"[view.index("reward")], band)
    figure.update_layout(
        xaxis_title=plots.AXES[x], yaxis_title=plots.AXES[y], showlegend=True, uirevision=str(view)
    )
    if ends:
        look.label_ends(figure, ends)
    return figure


def _lines(figure: go.Figure, side: Side) -> tuple[float, float, str, str]:
    """Draw a side's seeds and, of several, their mean and its interval: where that ends, for a
    label.
    """
    several, name = len(side.lines) > 1, html.escape(side.name)
    for kl, score in side.lines:
        figure.add_scatter(
            x=kl,
            y=score,
            name=name,
            mode="lines",
            hoverinfo="skip",
            showlegend=not several,
            opacity=0.35 if several else 1,
            line=dict(color=side.colour, width=1 if several else 3),
        )
    if not several:
        kl, score = side.lines[0]
        return float(kl[-1]), float(score[-1]), name, side.colour
    reach = min(kl[-1] for kl, _ in side.lines)
    grid = np.linspace(max(kl[0] for kl, _ in side.lines), reach, 40)
    by_seed = np.array([np.interp(grid, *line) for line in side.lines])
    means = [Interval.of(scores) for scores in by_seed.T]
    look_of = dict(x=grid, mode="lines", hoverinfo="skip", legendgroup=name)
    if len(side.lines) >= FEWEST:
        edges = (("low", None), ("high", "tonexty"))
        for edge, fill in edges:
            figure.add_scatter(
                **look_of,
                y=[getattr(interval, edge) for interval in means],
                line_width=0,
                fill=fill,
                fillcolor=f"rgba{(*_rgb(side.colour), 0.2)}",
                showlegend=False,
            )
    figure.add_scatter(
        **look_of, y=by_seed.mean(0), name=name, line=dict(color=side.colour, width=3)
    )
    return float(reach), means[-1].mean, name, side.colour


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def titled(comparison: Comparison, view: tuple[str, str]) -> go.Figure:
    """The figure as it stands outside of the app."""
    caption = f"{comparison.evidence} {CAPTION}"
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


class Chooser:
    """The controls of one of two free selections. Series are searched by typing."""

    def __init__(self, side: str, points: pd.DataFrame) -> None:
        points = points[points["method"] != "sft"]
        names = points["name"].unique().tolist()
        layout = widgets.Layout(width="auto")
        self.controls: dict[str, Any] = {
            "series": widgets.TagsInput(
                allowed_tags=names,
                placeholder="type to search for a series",
                allow_duplicates=False,
            )
        }
        for column, name in (("iteration", "I"), ("runs", "M"), ("seed", "seed")):
            numbers = sorted(points[column].dropna().astype(int).unique().tolist())
            options = [("all", None), *((str(number), number) for number in numbers)]
            self.controls[column] = _dropdown(f"{side}: {name}", options)
        self.controls["eta"] = widgets.FloatRangeSlider(
            value=(0, 1), min=0, max=max(1.0, points["eta"].max()), step=0.05, layout=layout
        )
        self.controls["eta"].description = f"{side}: η"
        rest = widgets.HBox(list(self.controls.values())[1:]).add_class("warp-controls")
        title = widgets.HTML(f"<b>{side}</b>: series (Enter adds, Backspace removes)")
        self.box = widgets.VBox([title, self.controls["series"], rest])

    @property
    def selection(self) -> Selection:
        names, *numbers = (control.value for control in self.controls.values())
        return Selection(tuple(names), *numbers)


def _dropdown(name: str, options: Any) -> widgets.Dropdown:
    return widgets.Dropdown(
        options=options, description=name, style={"description_width": "initial"}
    )


class Explorer:
    """Presets, the verdict, the figure, and beside it the completions of the open point."""

    def __init__(self, points: pd.DataFrame) -> None:
        self.points = points
        mine = [s.removeprefix(OWN) for s in points["source"].unique() if s.startswith(OWN)]
        presets = [*PRESETS, *([MINE] if mine else []), FREE]
        ends = [("as planned", None), *((f"{end} nats", float(end)) for end in ENDS)]
        self.choosers = {side: Chooser(side, points) for side in "AB"}
        self.controls: dict[str, Any] = {
            "compare": widgets.RadioButtons(options=presets, orientation="horizontal"),
            "show": _dropdown("show", list(VIEWS)),
            "to": _dropdown("average up to", ends),
            "run": _dropdown("run", mine or [""]),
        }
        for side, chooser in self.choosers.items():
            self.controls |= {f"{side}-{name}": c for name, c in chooser.controls.items()}
        self.point = _dropdown("point", [("none", None)])
        self.controls["point"] = self.point
        self.defaults = {name: control.value for name, control in self.controls.items()}
        self.verdict = widgets.HTML().add_class("warp-verdict")
        self.texts = widgets.HTML(HINT).add_class("warp-texts")
        self.exported = widgets.HTML()
        self.export = widgets.Button(description="Export", layout=widgets.Layout(width="auto"))
        self.address = Address(self.restore)
        self.restoring = False
        self.figure = LiveFigure(go.Figure(), self.click)
        self.free = widgets.VBox([chooser.box for chooser in self.choosers.values()])
        for control in self.controls.values():
            control.observe(self.changed, "value")
        self.export.on_click(lambda _: self.write())
        row = [self.controls[name] for name in ("show", "to", "run")]
        row = widgets.HBox([*row, self.export, self.exported]).add_class("warp-controls")
        beside = widgets.VBox([self.point, self.texts])
        left = widgets.VBox([self.figure, row])
        sides = widgets.HBox([left, beside]).add_class("warp-sides")
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
        preset, _, end, run = (
            self.controls[name].value for name in ("compare", "show", "to", "run")
        )
        free = [chooser.selection for chooser in self.choosers.values()]
        others = {MINE: partial(own, name=run), FREE: partial(chosen, selections=free)}
        make = (PRESETS | others)[preset]
        self.comparison = attempt(partial(make, self.points, score=self.view[1], end=end))
        self.controls["run"].layout.display = None if preset == MINE else "none"
        self.free.layout.display = None if preset == FREE else "none"
        self.verdict.value = _verdict(self.comparison)
        rows = pd.concat([self.points[:0], *(side.points for side in self.comparison.sides)])
        before, self.restoring = self.point.value, True
        labels = [(describe(row), row["address"]) for _, row in rows.iterrows()]
        self.point.options = [("none", None), *labels]
        self.point.value = before if before in set(rows["address"]) else None
        self.restoring = False

    @property
    def view(self) -> tuple[str, str]:
        return VIEWS[self.controls["show"].value]

    def show(self) -> None:
        """Draw; the open point's completions; and all choices in the address."""
        at = self.points.index[self.points["address"] == self.point.value]
        opened = int(at[0]) if len(at) else None
        self.figure.draw(draw(self.comparison, self.view, opened))
        self.texts.value = HINT if opened is None else _texts(completions(self.points, opened))
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
            self.export.disabled = False


def _turn(control: Any, texts: list[str]) -> None:
    with suppress(traitlets.TraitError, ValueError, KeyError, IndexError):
        if isinstance(control, widgets.TagsInput):
            control.value = [text for text in texts if text in control.allowed_tags]
        elif isinstance(control, widgets.FloatRangeSlider):
            low, high = map(float, texts)
            if 0 <= low <= high:
                control.value = (low, high)
        else:
            values = (o if isinstance(o, str) else o[1] for o in control.options)
            control.value = {str(value): value for value in values}[texts[0]]


def export(comparison: Comparison, view: tuple[str, str]) -> list[Path]:
    """Write the figure as HTML, SVG and PNG, and its points as CSV, to runs/explorer.

    The HTML stands on its own and fetches nothing. Returns the files.
    """
    folder = paths.folder("explorer")
    figure = titled(comparison, view)
    export_figure(figure, folder, "explorer")
    page, kinds = folder / "explorer.html", ("html", "svg", "png", "csv")
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
    """The verdict as HTML; differences beside the main one fold away."""
    finding, evidence = html.escape(comparison.finding), html.escape(comparison.evidence)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in comparison.others.items()
    )
    more = (
        rows and f"<details><summary>Related differences</summary><table>{rows}</table></details>"
    )
    return f"<div role='status'><h2>{finding}</h2><p>{evidence}</p></div>{more}"


def _texts(rows: list[dict[str, Any]]) -> str:
    """Completions below SFT's as HTML. They are a model's text, so every one is escaped."""
    if not rows:
        return "<p>The completions of this point were not kept.</p>"
    cards = "".join(
        f"<article><p><i>{html.escape(row['prompt'])} …</i></p>"
        f"{_said('SFT', row['sft'], row['sft_reward'])}"
        f"{_said('this policy', row['completion'], row['reward'])}</article>"
        for row in rows
    )
    note = (
        "The number: mean r̃ of all completions of the prompt. Blue is above 0, SFT's average;"
        " orange below."
    )
    about = "tabindex='0' role='region' aria-label='completions'"
    return f"<div class='warp-scroll' {about}><p><small>{note}</small></p>{cards}</div>"


def _said(who: str, text: str, reward: float) -> str:
    """A completion on its reward's colour, half transparent: it reads on light and on dark."""
    shade = f"rgba{(*_rgb(look.BLUE if reward > 0 else look.ORANGE), min(abs(reward) / 3, 0.5))}"
    return f"<p style='background:{shade}'><b>{who} {signed(reward, 2)}</b> {html.escape(text)}</p>"
