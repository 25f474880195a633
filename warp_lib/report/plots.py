"""The figures of a run. No torch here: what only reads tables opens at once.

Reward axes are in r̃. Points carry ±2 standard errors clustered by prompt.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..study.outcomes import Outcome, mean_front
from .look import (
    ARMS,
    AXES,
    BLUE,
    COLOURS,
    ETA,
    GREEN,
    GREY,
    KL,
    LAYER,
    LOOKS,
    ORANGE,
    PALETTE,
    PURPLE,
    REWARD,
    SKY,
    YELLOW,
    mark_real_positive,
    panel,
    series,
    titled,
)
from .tables import settings_in_words

ONE_SEED = "Test prompts, one seed; whiskers are ± 2 standard errors over prompts."
OWN = (GREEN, PURPLE, SKY, YELLOW)  # of one's own runs, beside the study's methods


def pareto(
    results: pd.DataFrame,
    real_positive: dict[str, float],
    methods: Sequence[str] | None = None,
    x: str = "kl",
    y: str = "reward",
    finding: str = "Reward and KL of every checkpoint",
) -> go.Figure:
    """Reward against KL (or any two of `AXES`), a trace a method, ± 2 standard errors both ways."""
    figure = go.Figure()
    shown = [m for m in LOOKS if m in set(results["method"]) and (methods is None or m in methods)]
    for method in shown:
        name, colour, symbol, dash = LOOKS[method]
        order = "steps" if method == "reinforce" else "eta"
        rows = results[results["method"] == method].sort_values(order, kind="stable")
        mode = "lines+markers" if dash else "markers"
        style = dict(mode=mode, marker_symbol=symbol, marker_size=9, line_dash=dash)
        _checkpoints(figure, rows, x, y, name, colour, **style)
    for axis, score in (("y", y), ("x", x)):
        if score == "reward":
            mark_real_positive(figure, axis, real_positive)
    figure.update_layout(xaxis_title=AXES[x], yaxis_title=AXES[y])
    return titled(figure, finding, ONE_SEED, height=540)


def training_curves(
    histories: dict[str, list[dict[str, float]]], real_positive: dict[str, float], finding: str
) -> go.Figure:
    """Reward and KL over each run's steps: batch means and a smoothed line; dots for KL to SFT."""
    titles = ("reward", "KL: — to the anchor, ● to SFT")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for k, (name, history) in enumerate(histories.items()):
        table, colour = pd.DataFrame(history), PALETTE[k % len(PALETTE)]
        steps = np.arange(1, len(table) + 1)
        faint = dict(mode="lines", line_width=1, opacity=0.25, showlegend=False, hoverinfo="skip")
        series(figure, steps, table["reward"], colour, **faint, row=1, col=1)
        for col, column in enumerate(("reward", "kl_anchor"), start=1):
            smooth = table[column].ewm(span=10).mean()
            series(figure, steps, smooth, colour, mode="lines", **panel(col, name))
        dots = dict(mode="markers", marker_size=5)
        series(figure, steps, table["kl_sft"], colour, **dots, **panel(2, name))
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    figure.update_xaxes(title="optimiser step")
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_yaxes(title="nats per completion", row=1, col=2)
    caption = "Training batches: each step's mean, faint, and its moving average (10 steps)."
    return titled(figure, finding, caption)


def liti(results: pd.DataFrame, real_positive: dict[str, float], finding: str) -> go.Figure:
    """`along_eta` of one run, for WARP and the baseline, ± 2 standard errors over prompts."""
    lines = {}
    for method in ("warp", "reinforce-liti"):
        rows = results[results["method"] == method].sort_values("eta")
        halves = {f"{score}_half": 2 * rows[f"{score}_se"] for score in ("reward", "kl")}
        lines[LOOKS[method][0]] = rows.assign(**halves)
    return along_eta(lines, real_positive, finding, ONE_SEED)


def along_eta(
    tables: dict[str, pd.DataFrame], real_positive: dict[str, float], finding: str, caption: str
) -> go.Figure:
    """r̃ and KL along η for each method, and their chords.

    tables: eta, reward and kl with the half widths of their intervals (`…_half`), as
    `contrasts.along_eta` gives them.
    """
    titles = ("reward along η", "KL along η")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for (name, table), other in zip(tables.items(), (BLUE, ORANGE, *PALETTE[2:]), strict=False):
        colour = COLOURS.get(name, other)
        for col, column in enumerate(("reward", "kl"), start=1):
            place = panel(col, ARMS.get(name, name))
            half = table[f"{column}_half"]
            series(figure, table["eta"], table[column], colour, dy=half, **place)
            chord = table.iloc[[0, -1]]
            dotted = dict(mode="lines", line_dash="dot", line_width=1, hoverinfo="skip")
            dotted |= place | dict(name=None, showlegend=False)
            series(figure, chord["eta"], chord[column], colour, **dotted)
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    figure.update_xaxes(title=ETA)
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_yaxes(title=KL, row=1, col=2)
    return titled(figure, finding, f"{caption} Dotted: straight lines between the ends.")


def layers(geometry: list[dict[str, Any]], names: Sequence[str], finding: str) -> go.Figure:
    """Angles between task vectors, and their norms, in each layer and over the whole model.

    Two heat maps over one axis of layers.

    Args:
        geometry: rows as `merging.geometry` gives them.
        names: what its vectors 1, 2, … are called.
    """
    degrees: dict[str, dict[str, float]] = {}
    norms: dict[str, dict[str, float]] = {}
    for row in geometry:
        layer = row["layer"].removeprefix("transformer.")
        degrees.setdefault(f"{row['a']} ∠ {row['b']}", {})[layer] = row["degrees"]
        for side in "ab":
            name = f"{row[side]}: {html.escape(str(names[row[side] - 1]))}"
            norms.setdefault(name, {})[layer] = row[f"norm_{side}"]
    titles = ("angles, degrees", "norms")
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=titles)
    for row, (grid, form, most) in enumerate(((degrees, ".0f", 90), (norms, ".2f", None)), start=1):
        table = pd.DataFrame.from_dict(grid, orient="index")
        cells = dict(x=list(table.columns), y=list(table.index), z=table.to_numpy(), zmin=0)
        said = dict(
            texttemplate=f"%{{z:{form}}}",
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:{form}}}<extra></extra>",
        )
        look = dict(zmax=most, colorscale="Cividis", showscale=False)
        figure.add_heatmap(**cells, **said, **look, row=row, col=1)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=LAYER, row=2, col=1)
    caption = "Top: the angle of each pair, by layer and over the whole model. Bottom: lengths."
    return titled(figure, finding, caption)


def lines(
    table: pd.DataFrame,
    x: str,
    columns: dict[str, str],
    titles: tuple[str, str],
    finding: str,
    caption: str,
) -> go.Figure:
    """Columns of a table over column `x`, with whiskers where there is ``<column>_se``.

    columns: each column's name; titles: of the two axes.
    """
    figure = go.Figure()
    for (column, name), colour in zip(columns.items(), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        rows = table.dropna(subset=[column])
        half = 2 * rows[f"{column}_se"] if f"{column}_se" in table else None
        mode = "lines+markers" if len(rows) < 60 else "lines"
        series(figure, rows[x], rows[column], colour, dy=half, name=name, mode=mode)
    figure.update_layout(xaxis_title=titles[0], yaxis_title=titles[1])
    return titled(figure, finding, caption, height=420)


def densities(
    scores: dict[str, Sequence[float]], title: str, finding: str, caption: str
) -> go.Figure:
    """Histograms of several samples on one axis, as shares of the texts of each."""
    figure = go.Figure()
    for (name, values), colour in zip(scores.items(), (GREY, GREEN, PURPLE, SKY), strict=False):
        look = dict(opacity=0.6, marker_color=colour, nbinsx=60)
        figure.add_histogram(x=list(values), name=name, histnorm="probability", **look)
    figure.update_layout(xaxis_title=title, yaxis_title="share of texts", barmode="overlay")
    return titled(figure, finding, caption, height=420)


def trail(visits: Sequence[dict[str, Any]] = ()) -> go.Figure:
    """The plane of reward against KL for a playground: where it has been, and where it is.

    visits: text, and kl and reward, each with twice its standard error (`…_half`), in their order.
    """
    rows = pd.DataFrame(visits, columns=["text", "kl", "reward", "kl_half", "reward_half"])
    figure = go.Figure()
    name = "visited (± 2 standard errors over completions)"
    more = dict(dx=rows["kl_half"], dy=rows["reward_half"], text=rows["text"], name=name)
    hover = "%{text}<br>KL %{x:.2f}, r̃ %{y:.2f}"
    series(
        figure, rows["kl"], rows["reward"], SKY, hover=hover, **more, line_width=1, marker_size=7
    )
    star = dict(mode="markers", marker_symbol="star", marker_size=14, hoverinfo="skip")
    series(figure, rows["kl"][-1:], rows["reward"][-1:], ORANGE, name="here", **star)
    figure.update_layout(xaxis_title=KL, yaxis_title="reward r̃")
    caption = "Means of the completions above; whiskers are ± 2 standard errors over them."
    return titled(figure, "Where the sliders have been", caption, height=360)


def over_study(study: dict[str, list[Outcome]]) -> go.Figure:
    """The study's mean fronts, faint, to draw one's own points over. study: arm → its units."""
    figure = go.Figure()
    for arm, units in study.items():
        kl, means = mean_front(units, first=0.0)
        name = f"{ARMS[arm]} in the study ({len(units)} seeds)"
        hover, wide = f"{name}<br>KL %{{x:.2f}}, r̃ %{{y:.2f}}", dict(line_width=6, opacity=0.3)
        y = [interval.mean for interval in means]
        series(figure, kl, y, COLOURS[arm], hover=hover, name=name, mode="lines", **wide)
    figure.update_layout(template="warp", height=440, margin=dict(t=10, l=10, r=10))
    return figure.update_layout(xaxis_title=KL, yaxis_title="reward r̃")


def own_fronts(study: dict[str, list[Outcome]], runs: dict[str, pd.DataFrame]) -> go.Figure:
    """The fronts of one's own runs, ± 2 standard errors over prompts, over the study's."""
    figure = over_study(study)
    for (name, rows), colour in zip(runs.items(), OWN * len(runs), strict=False):
        front = rows[rows["method"].isin(["sft", "warp"])].sort_values("kl")
        shown = html.escape(name)
        _checkpoints(figure, front, "kl", "reward", shown, colour, marker_size=8)
    return figure


def _checkpoints(
    figure: go.Figure, rows: pd.DataFrame, x: str, y: str, name: str, colour: str, **style: Any
) -> None:
    """Evaluated points of a run with ± 2 standard errors; each says which it is."""
    half = dict(dx=2 * rows[f"{x}_se"], dy=2 * rows[f"{y}_se"])
    said = [settings_in_words(row) for row in rows.to_dict("records")]
    across, up = ({"kl": "KL", "reward": "r̃"}.get(score, score) for score in (x, y))
    hover = f"{name}<br>%{{customdata}}<br>{across} %{{x:.2f}}, {up} %{{y:.2f}}"
    series(
        figure, rows[x], rows[y], colour, hover=hover, **half, name=name, customdata=said, **style
    )
