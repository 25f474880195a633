"""How the report's figures look: one colour a method, a title that states the finding, a caption
that says what is drawn, on light and on dark.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from ..study.fronts import Interval

# Okabe and Ito's colours, told apart by colour-blind readers, on light and on dark.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#E69F00", "#808790"
BAND = "rgba(128, 135, 144, 0.35)"  # an interval around a grey line
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

REWARD = "reward r̃ (SFT standard deviations)"
KL = "KL to SFT (nats per completion)"
JUDGE = "judge (SFT standard deviations)"
AXES = {"kl": KL, "reward": REWARD, "judge": JUDGE, "judge_tfidf": f"TF-IDF {JUDGE}"}
ETA = "η (0: SFT, 1: the trained policy)"
LAYER = "layer (wte, wpe: words, positions; h.k: block k; ln_f: last norm)"
# one colour a method, in every figure
COLOURS = {
    "warp": BLUE,
    "warp-eta-0.8": SKY,
    "reinforce": ORANGE,
    "reinforce-2b": YELLOW,
    "warp-dpo": GREEN,
    "dpo": PURPLE,
    "warp-dpo-once": "#8A7A00",
    "dpo-iterated": "#9B59B6",
}
ARMS = {  # of the study
    "warp": "WARP",
    "warp-eta-0.8": "WARP, η = 0.8",
    "reinforce": "REINFORCE, batch 64",
    "reinforce-2b": "REINFORCE, batch 128",
    "warp-dpo": "WARP-DPO",
    "dpo": "DPO",
    "warp-dpo-once": "WARP-DPO, pairs once",
    "dpo-iterated": "DPO, fresh pairs",
}
LOOKS = {  # method: name in the legend, colour, symbol, how points are joined
    "sft": ("SFT", GREY, "star", None),
    "run": ("WARP: single runs", SKY, "circle-open", None),
    "slerp": ("WARP: SLERP of an iteration", BLUE, "diamond", None),
    "lerp": ("WARP: LERP of an iteration", BLUE, "diamond", None),
    "liti": ("WARP: LITI, where the next begins", GREEN, "triangle-up", None),
    "warp": ("WARP: final front over η", BLUE, "circle", "solid"),
    "reinforce": ("REINFORCE checkpoints", ORANGE, "square", "solid"),
    "reinforce-liti": ("REINFORCE's LITI line", ORANGE, "square-open", "dot"),
}

TITLE, CAPTION = 88, 118  # characters of a line, where a figure is as wide as a still image
NARROW = 620  # pixels; below, a page shows a legend and not labels beside the lines

# of text, grid, axes; and behind text that crosses a line
_INK = {
    "light": ("#1f2328", "#e3e6ea", "#9aa2ab", "rgba(255,255,255,0.75)"),
    "dark": ("#e2e6eb", "#343b43", "#77808a", "rgba(22,25,29,0.75)"),
}


def template(theme: str) -> go.layout.Template:
    """The look of every figure: "light" or "dark"."""
    ink, grid, axis, behind = _INK[theme]
    line = dict(gridcolor=grid, zerolinecolor=axis, linecolor=axis, automargin=True)
    line |= dict(title_standoff=10, ticks="", zerolinewidth=1)
    clear = "rgba(0,0,0,0)"
    return go.layout.Template(
        layout=dict(
            colorway=PALETTE,
            font=dict(family="system-ui, sans-serif", size=13, color=ink),
            paper_bgcolor="#ffffff" if theme == "light" else clear,
            plot_bgcolor=clear,
            title=dict(x=0, xref="container", y=1, yref="container", yanchor="top"),
            title_pad=dict(t=14, l=12),
            title_font_size=17,
            title_subtitle_font=dict(size=13, color=ink),
            xaxis=line,
            yaxis=line,
            legend=dict(orientation="h", y=-0.18, yanchor="top", x=0, bgcolor=clear),
            hoverlabel_align="left",
            annotationdefaults=dict(font_color=ink, bgcolor=behind),
            colorscale=dict(sequential="Cividis"),
            autosize=True,
            height=480,
        )
    )


pio.templates["warp"] = template("light")


def titled(figure: go.Figure, finding: str, caption: str, height: int = 480) -> go.Figure:
    """The figure with its title and caption.

    Args:
        finding: what the figure shows, in one sentence without its full stop.
        caption: what is drawn: on which prompts, of how many seeds, what the intervals are over.
        height: in pixels, of which the two take their part.
    """
    title, below = (
        "<br>".join(textwrap.wrap(text, wide))
        for text, wide in ((finding, TITLE), (caption, CAPTION))
    )
    above = 30 + 23 * (title.count("<br>") + 1) + 17 * (below.count("<br>") + 1)
    notes = figure.to_dict()["layout"].get("annotations", [])
    places = [(note.get("yref"), note.get("y"), note.get("xanchor")) for note in notes]
    panels = 26 if ("paper", 1, "center") in places else 0
    return figure.update_layout(
        template="warp",
        title=dict(text=title, subtitle_text=below),
        meta=dict(finding=finding, caption=caption),
        margin=dict(t=above + panels, r=24),
        height=height,
    )


def label_ends(figure: go.Figure, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines where they end, and not in a legend.

    ends: of each line x and y of its end, its name, its colour. A name goes below its line where
    another one runs on above, and names keep apart.
    """
    tall = max(y for _, y, _, _ in ends) or 1.0
    last = float("inf")
    for x, y, text, colour in sorted(ends, key=lambda end: -end[1]):
        passed = any(other[0] > x and other[1] >= y for other in ends)
        last = min(y - 0.12 * tall * passed, last - 0.07 * tall)
        ends_at: dict[str, Any] = dict(x=x, y=y, ax=16, ay=last, ayref="y", xanchor="left")
        arrow = dict(arrowhead=0, arrowwidth=1.5, arrowcolor=colour, standoff=3)
        figure.add_annotation(name="end", text=f"<b>{text}</b>", **ends_at, **arrow)
    right = max(x + 0.019 * len(text) * max(end[0] for end in ends) for x, _, text, _ in ends)
    figure.update_xaxes(range=[-0.04 * right, 1.04 * right])
    figure.update_layout(showlegend=False)


def panel(col: int, name: str) -> dict[str, Any]:
    """Where a series stands that each panel of a row repeats: one legend entry for all of them."""
    return dict(name=name, legendgroup=name, showlegend=col == 1, row=1, col=col)


def series(figure: go.Figure, x: Any, y: Any, colour: str, **more: Any) -> None:
    """Points of one colour, joined unless `mode` says otherwise.

    Args:
        x, y: numbers; or intervals, drawn as their means with error bars.
        more: half widths of error bars as dx and dy, none where one is nan; how wide these end and
            are as cap and thick, in pixels; what is said of a point as hover; the rest as
            `go.Scatter` takes it.
    """
    bar = dict(color=colour, width=more.pop("cap", 2), thickness=more.pop("thick", 1))
    shown = {"x": x, "y": y}
    for axis, values in shown.items():
        half = more.pop(f"d{axis}", None)
        if len(values) and isinstance(next(iter(values)), Interval):
            half = [interval.high - interval.mean for interval in values]
            shown[axis] = [interval.mean for interval in values]
        if half is not None:
            more[f"error_{axis}"] = dict(array=np.nan_to_num(half)) | bar
    if hover := more.pop("hover", ""):
        more["hovertemplate"] = f"{hover}<extra></extra>"
    more = dict(mode="lines+markers", line_color=colour, marker_color=colour) | more
    figure.add_scatter(**shown, **more)


def mark_real_positive(
    figure: go.Figure, axis: str, real_positive: dict[str, float], **panel: Any
) -> None:
    """Mark the mean and 99th percentile of real positive reviews on the reward's axis, x or y.

    Above them the policy exploits the reward model. panel: row and col, in a figure of several.
    """
    # where no curves are, which rise from the left to the right
    for number, text, beside_x, beside_y in (
        ("mean", "mean", "top left", "bottom right"),
        ("p99", "99th percentile", "bottom left", "top left"),
    ):
        add_line, position = (
            (figure.add_vline, beside_x) if axis == "x" else (figure.add_hline, beside_y)
        )
        said = dict(text=f"real positive reviews: {text}", font_size=11)
        look = dict(line=dict(color=GREY, dash="dash", width=1), annotation_position=position)
        add_line(real_positive[number], annotation=said, **look, **panel)
