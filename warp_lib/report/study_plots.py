"""The study's figures. No torch here: what only reads tables opens at once.

Reward axes are in r̃. Points of one seed carry ±2 standard errors clustered by prompt; means over
seeds carry 95% intervals.
"""

import html
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..study import rounding
from ..study.cells import Cell
from ..study.fronts import Effect, Interval
from ..study.outcomes import LOW, MERGES, Outcome, averaged_out, mean_front
from .look import (
    ARMS,
    AXES,
    BAND,
    BLUE,
    COLOURS,
    ETA,
    GREEN,
    GREY,
    KL,
    LAYER,
    ORANGE,
    PALETTE,
    PURPLE,
    REWARD,
    SKY,
    YELLOW,
    label_ends,
    mark_real_positive,
    panel,
    series,
    titled,
)


def _two_errors(scores: np.ndarray) -> np.ndarray:
    """Two standard errors over prompts of scores (points, prompts): (points,)."""
    return 2 * scores.std(1, ddof=1) / np.sqrt(scores.shape[1])


def fronts(
    outcomes: dict[str, list[Outcome]],
    high: float,
    real_positive: dict[str, float],
    finding: str,
    split: str = "test",
    best_of_n: Outcome | None = None,
    apart: tuple[str, Mapping[float, Effect]] | None = None,
) -> go.Figure:
    """Each arm's fronts on the prompts of a split, and the range compared, from `LOW` to `high`.

    A thin line for each seed and a thick one for their mean at equal KL with its 95% interval over
    them; an arm of one seed has ± 2 standard errors over prompts instead.

    Args:
        outcomes: arm → its seeds' units.
        high: where the range compared ends, nats.
        real_positive: mean and 99th percentile of r̃ of real positive reviews.
        finding: the title.
        split: "validation" or "test".
        best_of_n: the yardstick, drawn too where there is one.
        apart: two fronts' names, and KL → how far they are apart (see `contrasts.by_kl`): a panel
            below, for curves that cover each other.
    """
    rows, heights = (2, [0.72, 0.28]) if apart else (1, [1.0])
    figure = make_subplots(rows, 1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.05)
    if best_of_n:
        kl, scores = best_of_n.kl(split), best_of_n.reward(split)
        name = "best-of-n from SFT (KL: upper bound)"
        hover = "best of %{text}<br>KL at most %{x:.2f}, r̃ %{y:.2f}"
        style = dict(marker_symbol="x", line_dash="dash", text=best_of_n.rows["n"], name=name)
        series(
            figure, kl, scores.mean(1), GREY, hover=hover, cap=0, dy=_two_errors(scores), **style
        )
    ends, seeds = [], set[int]()
    dashes = {arm: iter(("solid", "dot", "dash", "dashdot")) for arm in ARMS}
    for k, (title, units) in enumerate(reversed(outcomes.items())):  # the first on top
        arm, _, of = title.partition(": ")  # trials of one arm have its colour, and dashes
        name, alone = html.escape(f"{ARMS[arm]}{of and ': '}{of}"), len(units) == 1
        colour, dash = COLOURS[arm], next(dashes[arm])
        seeds |= {int(unit.rows["seed"].iloc[0]) for unit in units}
        numbers = "<br>KL %{x:.2f}, r̃ %{y:.2f}"
        lines = [unit.line(split) for unit in units]
        style: dict[str, Any] = dict(legendgroup=title, line_dash=dash)
        faint = dict(mode="lines", line_width=1, opacity=0.4, showlegend=False)
        shown = dict(marker_size=5, line_width=1.5, opacity=0.8)
        for unit, (kl, reward) in zip(units, lines, strict=True):
            look = shown | {"dy": _two_errors(reward)} if alone else faint
            hover = f"{name}, seed {unit.rows['seed'].iloc[0]}{numbers}"
            series(
                figure, kl, reward.mean(1), colour, hover=hover, cap=0, name=name, **style, **look
            )
        if alone:
            ends.append((lines[0][0][-1], lines[0][1][-1].mean(), name, colour))
            continue
        # read beside the KL of other arms, so that bars stay apart
        grid, means = mean_front(units, split, 0.5 + 0.04 * k)
        style |= dict(mode="lines", line_width=3, name=f"{name} (mean of {len(units)} seeds)")
        hover = f"{name}, mean of {len(units)} seeds{numbers}"
        series(figure, grid, means, colour, hover=hover, cap=3, thick=2, **style)
        ends.append((grid[-1], means[-1].mean, name, colour))
    span = f"range compared: {LOW:g} to {high:.2g} nats"
    shade: dict[str, Any] = dict(fillcolor=GREY, opacity=0.1, line_width=0)
    label: dict[str, Any] = dict(annotation_text=span, annotation_position="bottom left")
    label |= dict(row=1, col=1)
    below: dict[str, Any] = dict(row=2, col=1)
    figure.add_vrect(LOW, high, **shade | label)
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    sft = lines[0][1][0].mean()  # every front begins there
    said_of_sft = f"SFT: 0 on training prompts, {sft:z.1f} on these".replace("-", "−")
    figure.add_annotation(x=0, y=sft, text=said_of_sft, showarrow=False, xanchor="left", xshift=6)
    figure.update_layout(yaxis_title=REWARD.replace(" (", "<br>(") if apart else REWARD)
    figure.update_xaxes(title_text=KL, row=rows)
    if best_of_n:
        ends.append((best_of_n.kl(split)[-1], scores.mean(1)[-1], "best of n", GREY))
    label_ends(figure, ends)
    spread = (
        "± 2 standard errors over prompts"
        if len(seeds) == 1
        else f"{len(seeds)} seeds, faint, and their mean with its 95% interval"
    )
    of = "Each method's front: its best checkpoints, merges and interpolations towards SFT"
    caption = f"{of}, on {split} prompts; {spread}."
    if apart:
        names, effects = apart
        _band(figure, effects, names)
        figure.add_vrect(LOW, high, **shade | below)
        sides = [effect.side for effect in effects.values()]
        up, down = (sides.count(side) or "none" for side in (1, -1))
        caption += (
            f" Below: {names} at {len(sides)} KLs, each with its 95% interval, which lies above 0"
            f" at {up} of them, below at {down}."
        )
    return titled(figure, finding, caption, height=660 if apart else 560)


def _band(figure: go.Figure, effects: Mapping[float, Effect], names: str) -> None:
    """A difference at each KL with its 95% interval, in a figure's second row."""
    kl, of = list(effects), [effect.both for effect in effects.values()]
    edge: dict[str, Any] = dict(mode="lines", line_width=0, hoverinfo="skip", showlegend=False)
    figure.add_scatter(x=kl, y=[i.low for i in of], **edge, row=2, col=1)
    figure.add_scatter(
        x=kl, y=[i.high for i in of], **edge, fill="tonexty", fillcolor=BAND, row=2, col=1
    )
    style = dict(mode="lines", line_width=3, name=names, showlegend=False, row=2, col=1)
    said = list(map(str, effects.values()))
    hover = f"{html.escape(names)}<br>KL %{{x:.2f}}: %{{text}}"
    mean = [interval.mean for interval in of]
    series(figure, kl, mean, GREY, hover=hover, text=said, **style)
    one, other = (name.split(",")[0] for name in names.split(" − "))
    figure.update_yaxes(title_text=f"{one} −<br>{other} (r̃)", row=2, col=1)


def judged(
    outcomes: dict[str, list[Outcome]], judge: str, real_positive: dict[str, float], finding: str
) -> go.Figure:
    """A judge's score against the reward of each arm's test points, and where both rise alike."""
    figure = go.Figure()
    for (arm, units), other in zip(outcomes.items(), PALETTE, strict=False):
        colour = COLOURS.get(arm, other)
        x, y = (
            np.concatenate([unit.reward("test", scorer) for unit in units])
            for scorer in ("reward", judge)
        )
        half = dict(dx=_two_errors(x), dy=_two_errors(y))
        style = dict(mode="markers", opacity=0.7, name=ARMS.get(arm, arm))
        series(figure, x.mean(1), y.mean(1), colour, cap=0, **half, **style)
    ends = [min(t.x.min() for t in figure.data), max(t.x.max() for t in figure.data)]
    series(figure, ends, ends, GREY, mode="lines", line_dash="dot", name="equal scores")
    mark_real_positive(figure, "x", real_positive)
    figure.update_layout(xaxis_title=REWARD, yaxis_title=AXES[judge])
    caption = "All points of all seeds, test prompts; whiskers: ± 2 standard errors over prompts."
    return titled(figure, finding, caption)


def through_merges(unit: Outcome, runs: Sequence[int], finding: str) -> go.Figure:
    """The lines from SFT through each merge of the first M runs and beyond, on test prompts.

    With ± 2 standard errors over prompts, and a star where the merge itself lies.
    """
    titles = [f"M = {m}" for m in runs]
    figure = make_subplots(1, len(runs), shared_yaxes=True, subplot_titles=titles)
    names = {"lerp": "LERP"} | {method: f"SLERP, {words}" for method, words in MERGES.items()}
    rows = unit.of("test")
    for (col, m), ((method, name), colour) in product(
        enumerate(runs, start=1), zip(names.items(), (GREY, BLUE, GREEN, PURPLE), strict=True)
    ):
        kl, reward, _ = unit.through_merge(method, m)
        place, half = panel(col, name), _two_errors(reward)
        series(figure, kl, reward.mean(1), colour, cap=0, dy=half, marker_size=4, **place)
        merge = rows[(rows["method"] == method) & (rows["runs"] == m) & (rows["eta"] == 1)]
        star = place | dict(name=f"{name}: the merge", showlegend=False, mode="markers")
        star |= dict(marker_size=13, marker_symbol="star")
        series(figure, merge["kl"], merge["reward"], colour, **star)
    figure.update_xaxes(title=KL)
    figure.update_yaxes(title=REWARD, row=1, col=1)
    caption = (
        f"Seed {unit.rows['seed'].iloc[0]}: lines from SFT through each merge (the star) and"
        " beyond; test prompts, ± 2 standard errors over them."
    )
    return titled(figure, finding, caption, height=500)


def cells(
    warp: dict[tuple[int, int], Cell],
    reinforce: dict[int, Cell],
    seeds: Sequence[int],
    real_positive: dict[str, float],
    finding: str,
) -> go.Figure:
    """The student report's plot on some seeds: a line for each M through I of 1 to 3, and REINFORCE
    along its way (see `cells.warp_cells`).

    On test prompts, with 95% intervals over seeds and prompts, or over the prompts of a single
    seed; two seeds have none.
    """
    paths = {
        f"WARP, M = {m}": {f"I = {i}": cell for (i, n), cell in warp.items() if n == m}
        for m in sorted({m for _, m in warp})
    }
    paths["REINFORCE (steps)"] = {str(t): cell for t, cell in reinforce.items()}
    figure = go.Figure()
    looks = zip((SKY, BLUE, GREEN), ("top left", "top left", "bottom right"), strict=True)
    shades = [*list(looks)[: len(paths) - 1], (ORANGE, "bottom right")]
    for (name, path), (colour, beside) in zip(paths.items(), shades, strict=True):
        effects = [cell.over(seeds) for cell in path.values()]
        reward, kl = ([effect[n].widest for effect in effects] for n in ("r̃", "KL, nats"))
        costs = [
            f"{cell.steps} steps, {cell.depth} deep, {cell.completions:,} completions"
            for cell in path.values()
        ]
        hover = f"{name}, %{{text}}: %{{customdata}}<br>KL %{{x:.2f}}, r̃ %{{y:.2f}}"
        style = dict(customdata=costs, marker_size=9, name=name)
        style |= dict(mode="lines+markers+text", text=list(path), textposition=beside)
        series(figure, kl, reward, colour, hover=hover, **style)
    mark_real_positive(figure, "y", real_positive)
    figure.update_layout(xaxis_title=KL, yaxis_title=REWARD)
    # room for the first point's label, also on a phone
    figure.update_xaxes(autorangeoptions_include=-0.6)
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"means of seeds {', '.join(map(str, seeds))}"
    return titled(figure, finding, f"Test prompts, {of}, with 95% intervals.", height=560)


def between_seeds(angles: pd.DataFrame, finding: str) -> go.Figure:
    """Ω between REINFORCE's runs of different seeds by the completions that they have seen (see
    `outcomes.between_seeds`).

    A point for each pair, a line through the means of each arm, and what `outcomes.averaged_out`
    predicts.
    """
    figure = go.Figure()
    for arm, rows in angles.groupby("arm"):
        colour = COLOURS[arm]
        mean = rows.groupby("completions")["degrees"].mean()
        pairs = zip(rows["a"], rows["b"], rows["steps"], strict=True)
        said = [f"seeds {a} and {b}, {t} steps" for a, b, t in pairs]
        style = dict(mode="markers", opacity=0.5, showlegend=False, text=said)
        x, y = rows["completions"], rows["degrees"]
        series(figure, x, y, colour, hover="%{text}<br>Ω %{y:.1f}°", **style)
        style = dict(mode="lines", hoverinfo="skip", name=f"{ARMS[arm]} (mean of pairs)")
        series(figure, mean.index, mean, colour, **style)
    expected = averaged_out(angles)
    name = "if noise averaged out and all completions counted alike"
    series(figure, expected.index, expected, GREY, name=name, mode="lines", line_dash="dash")
    figure.update_layout(xaxis_title="completions of a run", yaxis_title="angle Ω (degrees)")
    caption = (
        "Angles between the task vectors of two seeds' REINFORCE runs, a point a pair; lines go"
        " through their means."
    )
    return titled(figure, finding, caption, height=440)


def ahead_of_judges(rises: dict[str, dict[str, dict[float, Effect]]], finding: str) -> go.Figure:
    """How much more r̃ has risen since SFT than each judge's score, as KL grows.

    With 95% intervals over seeds and prompts, or over the prompts of a single seed; two seeds have
    none. rises: judge → arm → what `contrasts.ahead_of_judge` gave.
    """
    titles = [AXES[judge].split(" (")[0] for judge in rises]
    figure = make_subplots(1, len(rises), shared_yaxes=True, subplot_titles=titles)
    for col, arms in enumerate(rises.values(), start=1):
        for k, ((arm, effects), other) in enumerate(zip(arms.items(), PALETTE, strict=False)):
            colour = COLOURS.get(arm, other)
            x = [kl + 0.05 * k for kl in effects]  # bars stay apart
            y = [effect.widest for effect in effects.values()]
            said = list(map(str, effects.values()))
            place = panel(col, ARMS.get(arm, arm))
            series(figure, x, y, colour, hover="%{text}", text=said, **place)
    figure.add_hline(0, line=dict(color=GREY, dash="dash"))
    figure.update_xaxes(title=KL)
    figure.update_yaxes(title="rise of r̃ minus the judge's (SFT s.d.)", row=1, col=1)
    caption = "Along each arm's front on test prompts; 95% intervals over seeds and prompts."
    return titled(figure, finding, caption, height=440)


def intervals(
    panels: dict[str, dict[str, Interval]], title: str, finding: str, caption: str
) -> go.Figure:
    """Differences and their 95% intervals, a panel for each group of related ones, a line at 0.

    Each stands under its name and numbers; coloured where its interval leaves out 0. Some may have
    no interval; where there are no rows the figure says so.

    panels: heading → name → interval; panels without rows are left out. title: of the axis.
    """
    figure, rows, named = go.Figure(), 0, {k: v for k, v in panels.items() if v}
    for heading, group in named.items():
        if heading:
            _beside(figure, f"<b>{heading}</b>", rows, size=14)
            rows += 1
        for name, row in group.items():
            _beside(figure, f"{name}: {row}", rows)
            colour = BLUE if row.side else GREY
            style = dict(mode="markers", marker_size=9, text=[str(row)])
            series(
                figure,
                [row],
                [rows + 0.55],
                colour,
                hover=f"{name}: %{{text}}",
                cap=4,
                thick=2,
                **style,
            )
            rows += 1.2
    if not named:
        _beside(figure, "nothing to compare yet", 0)
    figure.add_vline(0, line=dict(color=GREY, dash="dash"))
    figure.update_yaxes(range=[rows + 0.1, -0.4], showticklabels=False, showgrid=False)
    figure.update_yaxes(zeroline=False)
    figure.update_layout(xaxis_title=title, showlegend=False)
    return titled(figure, finding, caption, height=190 + round(34 * rows))


def _beside(figure: go.Figure, text: str, row: float, size: int = 12) -> None:
    where: dict[str, Any] = dict(x=0, xref="paper", xanchor="left", y=row, yanchor="middle")
    figure.add_annotation(**where, name="row", text=text, showarrow=False, font_size=size)


def by_end(curves: dict[str, dict[float, Effect]], high: float, finding: str) -> go.Figure:
    """Differences in mean r̃ as functions of the KL to which the mean goes, with 95% intervals.

    curves: what is compared → upper end, nats → the difference (see `contrasts.by_end`). high: K*,
    marked.
    """
    figure = go.Figure()
    looks = zip(curves.items(), (ORANGE, YELLOW, SKY, BLUE), strict=False)
    for k, ((name, effects), colour) in enumerate(looks):
        hover = f"{name}, to %{{x:.1f}} nats: %{{text}}"
        x = [end + 0.04 * k for end in effects]  # bars stay apart
        y = [effect.widest for effect in effects.values()]
        said = list(map(str, effects.values()))
        series(figure, x, y, colour, hover=hover, name=name, text=said)
    figure.add_hline(0, line=dict(color=GREY, dash="dash"))
    figure.add_vline(high, line=dict(color=GREY, dash="dot"), annotation_text="K*")
    x = f"mean from {LOW:g} nat up to here (nats per completion)"
    figure.update_layout(xaxis_title=x, yaxis_title="difference in mean r̃")
    caption = "Test prompts, points of fronts chosen on validation prompts; 95% intervals."
    return titled(figure, finding, caption, height=440)


def by_pass(measured: pd.DataFrame, finding: str) -> go.Figure:
    """KL along η, and r̃ against KL, as each pass measures the same weights: a column for each line
    (see `rounding.by_pass`).
    """
    columns = list(rounding.LINES.items())
    titles = [f"{n}: {what}" for what in ("KL along η", "reward against KL") for _, n in columns]
    figure = make_subplots(
        2, 2, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.16
    )
    looks = ((BLUE, "solid"), (GREEN, "dot"), (ORANGE, "solid"))
    for (passed, name), (colour, dash) in zip(rounding.PASSES.items(), looks, strict=True):
        for col, (method, _) in enumerate(columns, start=1):
            rows = measured[(measured["method"] == method) & (measured["passed"] == passed)]
            for row, (x, y) in enumerate((("eta", "kl"), ("kl", "reward")), start=1):
                hover = f"{name}, η = %{{customdata:.2f}}<br>%{{x:.2f}}, %{{y:.2f}}"
                style = dict(dy=rows[f"{y}_half"], customdata=rows["eta"], line_dash=dash)
                place = panel(col, f"weights: {name}") | dict(row=row, showlegend=row == col == 1)
                series(figure, rows[x], rows[y], colour, hover=hover, **style, **place)
    figure.update_xaxes(title=ETA, row=1)
    figure.update_yaxes(title="KL to SFT (nats per completion)", row=1)
    figure.update_xaxes(title=KL, row=2)
    figure.update_yaxes(title=REWARD, row=2)
    figure.update_layout(legend_y=-0.1)
    caption = "Means over seeds on test prompts; 95% intervals over seeds and prompts."
    return titled(figure, finding, caption, height=860)


def variety(outcomes: dict[str, list[Outcome]], finding: str) -> go.Figure:
    """What else moves with KL, on test prompts: entropy and distinct pairs of tokens, every point
    of each arm.
    """
    panels = {
        "entropy": "entropy (nats per token)",
        "distinct2": "distinct pairs of tokens (share)",
    }
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for (arm, units), other in zip(outcomes.items(), PALETTE, strict=False):
        colour = COLOURS.get(arm, other)
        rows = pd.concat([unit.points("test") for unit in units])
        for col, (column, title) in enumerate(panels.items(), start=1):
            style = panel(col, ARMS.get(arm, arm)) | dict(
                mode="markers", marker_size=5, opacity=0.6
            )
            half = 2 * rows[f"{column}_se"]
            series(figure, rows["kl"], rows[column], colour, dy=half, **style)
            figure.update_yaxes(title=title, row=1, col=col)
    figure.update_xaxes(title=KL)
    caption = "All points of all seeds, test prompts; whiskers: ± 2 standard errors over prompts."
    return titled(figure, finding, caption, height=440)


def by_layer(table: pd.DataFrame, finding: str) -> go.Figure:
    """Angles between WARP's runs, norms of their task vectors, and SLERP's step over LERP's, layer
    by layer, with 95% intervals over seeds (see `outcomes.by_layer`).
    """
    panels = {
        "degrees": "Ω (degrees)",
        "norm": "‖δ‖ of a run",
        "longer": "SLERP's step / LERP's, 1/cos(Ω/2)",
    }
    figure = make_subplots(1, 3, horizontal_spacing=0.09)
    for (iteration, rows), colour in zip(table.groupby("iteration"), (BLUE, SKY), strict=False):
        for col, (column, title) in enumerate(panels.items(), start=1):
            style = panel(col, f"iteration {iteration}") | dict(mode="markers", marker_size=8)
            half = rows[f"{column}_half"]
            series(figure, rows["layer"], rows[column], colour, cap=3, dy=half, **style)
            figure.update_yaxes(title=title, row=1, col=col)
    figure.update_xaxes(type="category", tickangle=45)
    figure.update_xaxes(title=LAYER, row=1, col=2)
    figure.update_layout(legend_y=-0.35)
    caption = "WARP's runs; means over seeds with 95% intervals."
    return titled(figure, finding, caption, height=480)
