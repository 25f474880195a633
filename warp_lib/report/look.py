"""How the report's figures look: one colour a method, a title that states the finding, a caption
that says what is drawn, on light and on dark.
"""

import textwrap
from collections.abc import Sequence

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's colours, told apart by colour-blind readers, on light and on dark.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#E69F00", "#808790"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)

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
    above_panels = [
        note
        for note in figure.to_dict()["layout"].get("annotations", [])
        if (note.get("yref"), note.get("y"), note.get("xanchor")) == ("paper", 1, "center")
    ]
    panels = 26 if above_panels else 0
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
        figure.add_annotation(
            name="end",
            x=x,
            y=y,
            ax=16,
            ay=last,
            ayref="y",
            text=f"<b>{text}</b>",
            xanchor="left",
            showarrow=True,
            arrowhead=0,
            arrowwidth=1.5,
            arrowcolor=colour,
            standoff=3,
        )
    right = max(x + 0.019 * len(text) * max(end[0] for end in ends) for x, _, text, _ in ends)
    figure.update_xaxes(range=[-0.04 * right, 1.04 * right])
    figure.update_layout(showlegend=False)
