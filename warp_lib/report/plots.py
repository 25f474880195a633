"""The report's figures, from its tables. No torch here: what only reads tables opens at once.

Reward axes are in r̃. Points of one seed carry ±2 standard errors clustered by prompt; means over
seeds carry 95% intervals.
"""

import html
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..study import rounding
from ..study.cells import Cell
from ..study.fronts import Effect, Interval
from ..study.outcomes import LOW, MERGES, Outcome, averaged_out

# Okabe and Ito's colours, told apart by colour-blind readers, on light and on dark.
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#888888",
)
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#E69F00")
REWARD = "reward r̃ (SFT standard deviations)"
KL = "KL(π‖π_sft) (nats per completion)"
JUDGE = "judge (SFT standard deviations)"
AXES = {"kl": KL, "reward": REWARD, "judge": JUDGE, "judge_tfidf": f"TF-IDF {JUDGE}"}
LAYER = "layer (wte, wpe: words, positions; h.k: block k; ln_f: last norm)"
ARMS = {  # of the study
    "warp": "WARP",
    "reinforce": "REINFORCE, batch 64",
    "reinforce-2b": "REINFORCE, batch 128",
    "warp-dpo": "WARP-DPO",
    "dpo": "DPO",
    "warp-dpo-own": "WARP-DPO, pairs of each run's own",
    "warp-dpo-once": "WARP-DPO, pairs made once",
    "dpo-iterated": "DPO, pairs made anew",
}
LOOKS = {  # method: name in the legend, colour, symbol, how points are joined
    "sft": ("SFT", GREY, "star", None),
    "run": ("WARP: single runs", SKY, "circle-open", None),
    "slerp": ("WARP: SLERP of an iteration", BLUE, "diamond", None),
    "lerp": ("WARP: LERP of an iteration", BLUE, "diamond", None),
    "liti": ("WARP: LITI, where the next begins", GREEN, "triangle-up", None),
    "warp": ("WARP: final front over η", BLUE, "circle", "solid"),
    "reinforce": ("REINFORCE along its way", ORANGE, "square", "solid"),
    "reinforce-liti": ("REINFORCE: its LITI line", ORANGE, "square-open", "dot"),
}
LAYOUT = dict(
    template="plotly_white",
    height=520,
    width=900,
    legend=dict(orientation="h", y=-0.2),
    margin=dict(t=60),
)


def pareto(
    results: pd.DataFrame,
    real_positive: dict[str, float],
    methods: Sequence[str] | None = None,
    x: str = "kl",
    y: str = "reward",
):
    """Reward against KL (or any two of `AXES`), a trace for each method, with ±2 standard errors
    both ways.
    """
    figure = go.Figure()
    shown = [m for m in LOOKS if m in set(results["method"]) and (methods is None or m in methods)]
    for method in shown:
        name, colour, symbol, dash = LOOKS[method]
        rows = results[results["method"] == method].sort_values(
            "steps" if method == "reinforce" else "eta", kind="stable"
        )
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            name=name,
            mode="lines+markers" if dash else "markers",
            marker=dict(color=colour, symbol=symbol, size=9),
            line=dict(color=colour, dash=dash),
            error_x=whiskers(rows, x, colour),
            error_y=whiskers(rows, y, colour),
            customdata=[_settings(row) for row in rows.to_dict("records")],
            hovertemplate=(
                f"{name}<br>%{{customdata}}<br>{x} %{{x:.2f}}, {y} %{{y:.2f}}<extra></extra>"
            ),
        )
    if y == "reward":
        mark_real_positive(figure, "y", real_positive)
    if x == "reward":
        mark_real_positive(figure, "x", real_positive)
    figure.update_layout(**LAYOUT, xaxis_title=AXES[x], yaxis_title=AXES[y])
    return figure


def mark_real_positive(
    figure: go.Figure, axis: str, real_positive: dict[str, float], **place
) -> None:
    """Lines at the mean and 99th percentile of real positive reviews, on the axis, x or y, that
    shows the reward: above them the policy exploits the reward model."""
    for name, text, beside_curves in (
        ("mean", "mean", "bottom right"),
        ("p99", "99th percentile", "top left"),
    ):
        add_line, position = (
            (figure.add_vline, "bottom left") if axis == "x" else (figure.add_hline, beside_curves)
        )
        line = dict(color=PURPLE, dash="dash", width=1)
        text = f"real positive reviews: {text}"
        add_line(
            real_positive[name],
            line=line,
            annotation_text=text,
            annotation_position=position,
            annotation_font_color=PURPLE,
            **place,
        )


def training_curves(
    histories: dict[str, list[dict[str, float]]], real_positive: dict[str, float]
) -> go.Figure:
    """Reward and KL over the steps of each run: a smoothed line over the batch means, dots where
    the KL to SFT was looked at.
    """
    figure = make_subplots(
        1, 2, subplot_titles=("reward", "KL (— to the anchor, ● to SFT)"), horizontal_spacing=0.1
    )
    for k, (name, history) in enumerate(histories.items()):
        table, colour = pd.DataFrame(history), PALETTE[k % len(PALETTE)]
        steps = np.arange(1, len(table) + 1)
        figure.add_scatter(
            x=steps,
            y=table["reward"],
            mode="lines",
            line=dict(color=colour, width=1),
            opacity=0.25,
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=1,
        )
        for column, col in (("reward", 1), ("kl_anchor", 2)):
            smooth = table[column].ewm(span=10).mean()
            figure.add_scatter(
                x=steps,
                y=smooth,
                mode="lines",
                line=dict(color=colour),
                name=name,
                legendgroup=name,
                showlegend=col == 1,
                row=1,
                col=col,
            )
        figure.add_scatter(
            x=steps,
            y=table["kl_sft"],
            mode="markers",
            marker=dict(color=colour, size=5),
            name=name,
            legendgroup=name,
            showlegend=False,
            row=1,
            col=2,
        )
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    figure.update_xaxes(title="optimiser step")
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_yaxes(title="nats per completion", row=1, col=2)
    figure.update_layout(**LAYOUT)
    return figure


def liti(results: pd.DataFrame, real_positive: dict[str, float]) -> go.Figure:
    """Reward and KL along η, from SFT (0) to the trained policy (1), for WARP and the baseline."""
    figure = make_subplots(
        1, 2, subplot_titles=("reward along LITI", "KL along LITI"), horizontal_spacing=0.1
    )
    for method in ("warp", "reinforce-liti"):
        name, colour, symbol, dash = LOOKS[method]
        rows = results[results["method"] == method].sort_values("eta")
        for col, column in enumerate(("reward", "kl"), start=1):
            figure.add_scatter(
                x=rows["eta"],
                y=rows[column],
                error_y=whiskers(rows, column, colour),
                mode="lines+markers",
                name=name,
                legendgroup=method,
                showlegend=col == 1,
                line=dict(color=colour, dash=dash),
                marker=dict(symbol=symbol),
                row=1,
                col=col,
            )
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    figure.update_xaxes(title="η (0: SFT, 1: the trained policy)")
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_yaxes(title=KL, row=1, col=2)
    figure.update_layout(**LAYOUT)
    return figure


def fronts(
    outcomes: dict[str, list[Outcome]],
    high: float,
    real_positive: dict[str, float],
    split: str = "test",
    best_of_n: Outcome | None = None,
) -> go.Figure:
    """Each arm's fronts on the prompts of a split, and the range of KL that is compared, from `LOW`
    to `high`.

    A thin line for each seed and a thick one for their mean at equal KL with its 95% interval over
    them; an arm of one seed has ± 2 standard errors over prompts instead. best_of_n: the yardstick,
    drawn too where it is given.
    """
    figure = go.Figure()
    if best_of_n:
        scores = best_of_n.reward(split)
        figure.add_scatter(
            x=best_of_n.kl(split),
            y=scores.mean(1),
            error_y=_two_errors(scores, GREY),
            name="best of n from SFT, once (KL: its bound)",
            mode="lines+markers",
            marker=dict(size=6, symbol="x"),
            line=dict(color=GREY, dash="dash"),
            text=best_of_n.rows["n"],
            hovertemplate="best of %{text}<br>KL at most %{x:.2f}, r̃ %{y:.2f}<extra></extra>",
        )
    looks = list(product(("solid", "dot"), PALETTE))  # more arms than colours come dotted
    for place, ((arm, seeds), (dash, colour)) in enumerate(
        zip(outcomes.items(), looks, strict=False)
    ):
        name, alone = html.escape(ARMS.get(arm, arm)), len(seeds) == 1
        for one in seeds:
            kl, reward = one.line(split)
            figure.add_scatter(
                x=kl,
                y=reward.mean(1),
                error_y=_two_errors(reward, colour) if alone else None,
                name=name,
                legendgroup=arm,
                showlegend=alone,
                mode="lines+markers" if alone else "lines",
                marker=dict(size=5),
                line=dict(color=colour, width=1.5 if alone else 1, dash=dash),
                opacity=0.8 if alone else 0.4,
                hovertemplate=(
                    f"{name}, seed {one.rows['seed'].iloc[0]}<br>KL %{{x:.2f}}, r̃"
                    " %{y:.2f}<extra></extra>"
                ),
            )
        if not alone:
            lines = [one.line(split) for one in seeds]
            # read beside other arms' places: bars stay apart
            grid = np.arange(0.5 + 0.04 * place, min(kl[-1] for kl, _ in lines), 0.5)
            means = [
                Interval.of(at)
                for at in zip(
                    *(np.interp(grid, kl, reward.mean(1)) for kl, reward in lines), strict=True
                )
            ]
            half = [i.high - i.mean for i in means]
            figure.add_scatter(
                x=grid,
                y=[i.mean for i in means],
                error_y=dict(array=half, color=colour, width=3),
                mode="lines",
                name=f"{name} (mean of {len(seeds)} seeds)",
                legendgroup=arm,
                line=dict(color=colour, width=3, dash=dash),
                hovertemplate=(
                    f"{name}, mean of {len(seeds)} seeds<br>KL %{{x:.2f}}, r̃"
                    " %{y:.2f}<extra></extra>"
                ),
            )
    figure.add_vrect(
        LOW,
        high,
        fillcolor=GREY,
        opacity=0.1,
        line_width=0,
        annotation_text="compared",
        annotation_position="bottom left",
    )
    mark_real_positive(figure, "y", real_positive)
    figure.update_layout(**LAYOUT, xaxis_title=KL, yaxis_title=REWARD)
    return figure


def judged(
    outcomes: dict[str, list[Outcome]], judge: str, real_positive: dict[str, float]
) -> go.Figure:
    """A judge's score against the reward of each arm's points, on test prompts, and the line on
    which both rise alike.
    """
    figure = go.Figure()
    for (arm, seeds), colour in zip(outcomes.items(), PALETTE, strict=False):
        x, y = (
            np.concatenate([one.reward("test", scorer) for one in seeds])
            for scorer in ("reward", judge)
        )
        figure.add_scatter(
            x=x.mean(1),
            y=y.mean(1),
            error_x=_two_errors(x, colour),
            error_y=_two_errors(y, colour),
            name=ARMS.get(arm, arm),
            mode="markers",
            marker=dict(color=colour, size=6),
            opacity=0.7,
        )
    ends = [min(t.x.min() for t in figure.data), max(t.x.max() for t in figure.data)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line=dict(color=GREY, dash="dot"), name="both alike"
    )
    mark_real_positive(figure, "x", real_positive)
    figure.update_layout(**LAYOUT | dict(height=420), xaxis_title=REWARD, yaxis_title=AXES[judge])
    return figure


def through_merges(one: Outcome, runs: Sequence[int]) -> go.Figure:
    """The lines from SFT through each merge of the first M runs and beyond, on test prompts, ± 2
    standard errors over prompts; a star where the merge itself lies."""
    figure = make_subplots(
        1, len(runs), shared_yaxes=True, subplot_titles=[f"M = {m}" for m in runs]
    )
    names = {"lerp": "LERP"} | {method: f"SLERP, {words}" for method, words in MERGES.items()}
    rows = one.of("test")
    for (col, m), ((method, name), colour) in product(
        enumerate(runs, start=1), zip(names.items(), PALETTE, strict=False)
    ):
        kl, reward = one.through_merge(method, m)
        figure.add_scatter(
            x=kl,
            y=reward.mean(1),
            error_y=_two_errors(reward, colour),
            mode="lines+markers",
            marker=dict(size=4),
            line_color=colour,
            name=name,
            legendgroup=method,
            showlegend=col == 1,
            row=1,
            col=col,
        )
        itself = rows[(rows["method"] == method) & (rows["runs"] == m) & (rows["eta"] == 1)]
        figure.add_scatter(
            x=itself["kl"],
            y=itself["reward"],
            mode="markers",
            marker=dict(color=colour, size=13, symbol="star"),
            name=f"{name}: the merge",
            legendgroup=method,
            showlegend=False,
            row=1,
            col=col,
        )
    figure.update_xaxes(title=KL)
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_layout(**LAYOUT | dict(height=440))
    return figure


def cells(
    warp: dict[tuple[int, int], Cell],
    reinforce: dict[int, Cell],
    seeds: Sequence[int],
    real_positive: dict[str, float],
) -> go.Figure:
    """The student report's plot on some seeds: a line for each M through I of 1 to 3 (see
    `cells.warp_cells`), and REINFORCE along its way.

    On test prompts, with 95% intervals over seeds and prompts, or over the prompts of a single
    seed; two seeds have none.
    """
    paths = {
        f"WARP, M = {m}": {f"I = {i}": cell for (i, n), cell in warp.items() if n == m}
        for m in sorted({m for _, m in warp})
    }
    paths["REINFORCE (steps)"] = {str(t): cell for t, cell in reinforce.items()}
    figure = go.Figure()
    for (name, path), colour in zip(paths.items(), (*PALETTE[: len(paths) - 1], GREY), strict=True):
        found = [
            {n: effect.widest for n, effect in cell.over(seeds).items()} for cell in path.values()
        ]
        (reward, up), (kl, across) = (
            (
                [f[n].mean for f in found],
                dict(array=_halves([f[n] for f in found]), color=colour, thickness=1, width=2),
            )
            for n in ("r̃", "KL, nats")
        )
        figure.add_scatter(
            x=kl,
            y=reward,
            error_x=across,
            error_y=up,
            mode="lines+markers+text",
            text=list(path),
            textposition="bottom right",
            textfont=dict(color=colour),
            marker=dict(size=9),
            line_color=colour,
            name=name,
            customdata=[
                f"{cell.steps} steps, {cell.depth} deep, {cell.completions:,} completions"
                for cell in path.values()
            ],
            hovertemplate=(
                f"{name}, %{{text}}: %{{customdata}}<br>KL %{{x:.2f}}, r̃ %{{y:.2f}}<extra></extra>"
            ),
        )
    mark_real_positive(figure, "y", real_positive)
    figure.update_layout(**LAYOUT, xaxis_title=KL, yaxis_title=REWARD)
    return figure


def between_seeds(angles: pd.DataFrame) -> go.Figure:
    """Ω between REINFORCE's runs of different seeds by the completions that they have seen (see
    `outcomes.between_seeds`): a point for each pair, a line through the means of each arm; and what
    `outcomes.averaged_out` says of them."""
    figure = go.Figure()
    for (arm, rows), colour in zip(angles.groupby("arm"), PALETTE[1:], strict=False):
        mean = rows.groupby("completions")["degrees"].mean()
        hover = [
            f"seeds {a} and {b}, {t} steps"
            for a, b, t in zip(rows["a"], rows["b"], rows["steps"], strict=True)
        ]
        figure.add_scatter(
            x=rows["completions"],
            y=rows["degrees"],
            text=hover,
            mode="markers",
            marker_color=colour,
            opacity=0.5,
            showlegend=False,
            hovertemplate="%{text}<br>Ω %{y:.1f}°<extra></extra>",
        )
        figure.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines",
            line_color=colour,
            name=f"{ARMS[arm]} (mean of pairs)",
            hoverinfo="skip",
        )
    expected = averaged_out(angles)
    look = dict(mode="lines", line=dict(color=GREY, dash="dash"))
    figure.add_scatter(
        x=expected.index,
        y=expected,
        name="if noise averaged out and all completions counted alike",
        **look,
    )
    figure.update_layout(
        **LAYOUT | dict(height=380),
        xaxis_title="completions of a run",
        yaxis_title="Ω between task vectors, degrees",
    )
    return figure


def ahead_of_judges(found: dict[str, dict[str, dict[float, Effect]]]) -> go.Figure:
    """Judge → arm → what `outcomes.ahead_of_judge` gave: how much more r̃ has risen since SFT than
    each judge's score, as KL grows, with 95% intervals over seeds and prompts, or over the prompts
    of a single seed; two seeds have none."""
    figure = make_subplots(
        1,
        len(found),
        shared_yaxes=True,
        subplot_titles=[AXES[judge].split(" (")[0] for judge in found],
    )
    for col, arms in enumerate(found.values(), start=1):
        for place, ((arm, effects), colour) in enumerate(zip(arms.items(), PALETTE, strict=False)):
            intervals = [effect.widest for effect in effects.values()]
            figure.add_scatter(
                x=[kl + 0.05 * place for kl in effects],  # bars stay apart
                y=[i.mean for i in intervals],
                error_y=dict(array=_halves(intervals), color=colour, thickness=1, width=2),
                mode="lines+markers",
                line_color=colour,
                name=ARMS.get(arm, arm),
                legendgroup=arm,
                showlegend=col == 1,
                row=1,
                col=col,
                text=list(map(str, effects.values())),
                hovertemplate="%{text}<extra></extra>",
            )
    figure.add_hline(0, line=dict(color=GREY, dash="dash"))
    figure.update_xaxes(title=KL)
    figure.update_yaxes(title="rise of r̃ less the judge's (SFT's s.d.)", row=1, col=1)
    figure.update_layout(**LAYOUT | dict(height=400))
    return figure


def _two_errors(scores: np.ndarray, colour: str) -> dict:
    """Whiskers of ±2 standard errors over prompts, from scores (points, prompts)."""
    return dict(
        array=2 * scores.std(1, ddof=1) / np.sqrt(scores.shape[1]),
        color=colour,
        thickness=1,
        width=0,
    )


def _halves(intervals: Iterable[Interval]) -> np.ndarray:
    """The intervals' half widths; 0, no whisker, where there is no interval."""
    return np.nan_to_num([interval.high - interval.mean for interval in intervals])


def intervals(rows: dict[str, Interval], title: str) -> go.Figure:
    """Differences with their 95% intervals, one below the other, and a line at 0. Some may have
    none; no rows are said to be.
    """
    figure = go.Figure()
    if not rows:
        figure.add_annotation(
            text="nothing to compare yet", x=0, y=0, showarrow=False, bgcolor="white"
        )
        figure.update_yaxes(showticklabels=False)
    means = np.array([row.mean for row in rows.values()])
    figure.add_scatter(
        x=means,
        y=list(rows),
        error_x=dict(array=_halves(rows.values()), color=BLUE),
        mode="markers",
        marker=dict(color=BLUE, size=9),
        text=[str(row) for row in rows.values()],
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    figure.add_vline(0, line=dict(color=GREY, dash="dash"))
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        **LAYOUT | dict(height=180 + 32 * len(rows)), xaxis_title=title, showlegend=False
    )
    return figure


def along_eta(tables: dict[str, pd.DataFrame], real_positive: dict[str, float]) -> go.Figure:
    """r̃ and KL along η for each method, means over seeds with their 95% intervals (see
    `outcomes.along_eta`), and their chords.
    """
    figure = make_subplots(
        1, 2, subplot_titles=("reward along η", "KL along η"), horizontal_spacing=0.1
    )
    for (name, table), colour in zip(tables.items(), PALETTE, strict=False):
        for col, column in enumerate(("reward", "kl"), start=1):
            figure.add_scatter(
                x=table["eta"],
                y=table[column],
                error_y=dict(array=table[f"{column}_half"], color=colour, thickness=1, width=2),
                mode="lines+markers",
                name=ARMS.get(name, name),
                legendgroup=name,
                showlegend=col == 1,
                line_color=colour,
                row=1,
                col=col,
            )
            ends = table.iloc[[0, -1]]
            figure.add_scatter(
                x=ends["eta"],
                y=ends[column],
                mode="lines",
                line=dict(color=colour, dash="dot", width=1),
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
                row=1,
                col=col,
            )
    mark_real_positive(figure, "y", real_positive, row=1, col=1)
    figure.update_xaxes(title="η (0: SFT, 1: the trained policy)")
    figure.update_yaxes(title=REWARD, row=1, col=1)
    figure.update_yaxes(title=KL, row=1, col=2)
    figure.update_layout(**LAYOUT | dict(height=440))
    return figure


def by_pass(measured: pd.DataFrame) -> go.Figure:
    """r̃ against KL along η as each pass measures the same weights (see `rounding.by_pass`), a
    panel for each line; and KL against η.
    """
    lines = list(rounding.LINES.items())
    titles = [
        f"{name}: {what}" for what in ("KL along η", "reward against KL") for _, name in lines
    ]
    figure = make_subplots(
        2, 2, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.16
    )
    for (passed, name), colour, dash in zip(
        rounding.PASSES.items(), (BLUE, GREEN, ORANGE), ("solid", "dot", "solid"), strict=True
    ):
        for col, (method, _) in enumerate(lines, start=1):
            rows = measured[(measured["method"] == method) & (measured["passed"] == passed)]
            for row, (x, y) in enumerate((("eta", "kl"), ("kl", "reward")), start=1):
                figure.add_scatter(
                    x=rows[x],
                    y=rows[y],
                    error_y=dict(
                        array=rows[f"{y}_half"].fillna(0), color=colour, thickness=1, width=2
                    ),
                    mode="lines+markers",
                    line=dict(color=colour, dash=dash),
                    name=f"weights: {name}",
                    legendgroup=passed,
                    showlegend=row == col == 1,
                    customdata=rows["eta"],
                    hovertemplate=(
                        f"{name}, η = %{{customdata:.2f}}<br>%{{x:.2f}}, %{{y:.2f}}<extra></extra>"
                    ),
                    row=row,
                    col=col,
                )
    figure.update_xaxes(title="η (0: SFT, 1: the trained policy)", row=1)
    figure.update_yaxes(title="KL to SFT (nats per completion)", row=1)
    figure.update_xaxes(title=KL, row=2)
    figure.update_yaxes(title=REWARD, row=2)
    title = "Rounding weights to bfloat16 hides KL; two bfloat16 parts do not"
    figure.update_layout(
        **LAYOUT | dict(height=820, margin=dict(t=100), legend=dict(orientation="h", y=-0.1)),
        title=title,
    )
    return figure


def variety(outcomes: dict[str, list[Outcome]]) -> go.Figure:
    """What else moves with KL, on test prompts: the policy's entropy and the distinct pairs of
    tokens, every point of each arm.
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    titles = {
        "entropy": "entropy (nats per token)",
        "distinct2": "distinct pairs of tokens (share)",
    }
    for (arm, seeds), colour in zip(outcomes.items(), PALETTE, strict=False):
        rows = pd.concat([one.points("test") for one in seeds])
        for col, (column, title) in enumerate(titles.items(), start=1):
            figure.add_scatter(
                x=rows["kl"],
                y=rows[column],
                error_y=whiskers(rows, column, colour),
                mode="markers",
                marker=dict(color=colour, size=5),
                opacity=0.6,
                name=ARMS.get(arm, arm),
                legendgroup=arm,
                showlegend=col == 1,
                row=1,
                col=col,
            )
            figure.update_yaxes(title=title, row=1, col=col)
    figure.update_xaxes(title=KL)
    figure.update_layout(**LAYOUT | dict(height=400))
    return figure


def angles(geometry: list[dict]) -> go.Figure:
    """The angle between two runs' task vectors in each layer (columns as `merging.geometry` gives
    them).
    """
    table = pd.DataFrame(geometry)
    layers = list(dict.fromkeys(table["layer"]))
    pairs = table.assign(
        pair=[f"runs {a} and {b}" for a, b in zip(table["a"], table["b"], strict=True)]
    )
    grid = pairs.pivot(index="pair", columns="layer", values="degrees")[layers]
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=layers,
            y=list(grid.index),
            zmin=0,
            zmax=90,
            colorscale="Cividis",
            texttemplate="%{z:.0f}°",
            colorbar_title="degrees",
        )
    )
    figure.update_layout(
        **LAYOUT | dict(height=220 + 60 * len(grid)), xaxis_title=LAYER, yaxis_title=""
    )
    return figure


def by_layer(table: pd.DataFrame) -> go.Figure:
    """Angles between WARP's runs, norms of their task vectors, and what SLERP makes of LERP, layer
    by layer (see `outcomes.by_layer`).

    Means over seeds with their 95% intervals.
    """
    panels = {
        "degrees": "Ω (degrees)",
        "norm": "‖δ‖ of a run",
        "longer": "SLERP's step / LERP's, 1/cos(Ω/2)",
    }
    figure = make_subplots(1, 3, horizontal_spacing=0.09)
    for (iteration, rows), colour in zip(table.groupby("iteration"), PALETTE, strict=False):
        for col, (column, title) in enumerate(panels.items(), start=1):
            figure.add_scatter(
                x=rows["layer"],
                y=rows[column],
                error_y=dict(array=rows[f"{column}_half"], color=colour, thickness=1, width=3),
                mode="markers",
                marker=dict(color=colour, size=8),
                name=f"iteration {iteration}",
                legendgroup=str(iteration),
                showlegend=col == 1,
                row=1,
                col=col,
            )
            figure.update_yaxes(title=title, row=1, col=col)
    figure.update_xaxes(type="category", tickangle=45)
    figure.update_xaxes(title=LAYER, row=1, col=2)
    figure.update_layout(**LAYOUT | dict(height=400, legend=dict(orientation="h", y=1.15)))
    return figure


def lines(
    table: pd.DataFrame, x: str, columns: dict[str, str], titles: tuple[str, str]
) -> go.Figure:
    """Columns of a table over column `x`; `columns` maps a column to its name in the legend.
    Whiskers where there is ``<column>_se``.
    """
    figure = go.Figure()
    for (column, name), colour in zip(columns.items(), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        rows = table.dropna(subset=[column])
        errors = whiskers(rows, column, colour) if f"{column}_se" in table else None
        figure.add_scatter(
            x=rows[x],
            y=rows[column],
            name=name,
            error_y=errors,
            mode="lines+markers" if len(rows) < 60 else "lines",
            line_color=colour,
        )
    figure.update_layout(**LAYOUT | dict(height=400), xaxis_title=titles[0], yaxis_title=titles[1])
    return figure


def densities(scores: dict[str, Sequence[float]], title: str, of: str = "texts") -> go.Figure:
    """Histograms of several samples on one axis, as shares `of` what they are."""
    figure = go.Figure()
    for (name, values), colour in zip(scores.items(), (GREY, GREEN, ORANGE, BLUE), strict=False):
        figure.add_histogram(
            x=list(values),
            name=name,
            histnorm="probability",
            opacity=0.6,
            marker_color=colour,
            nbinsx=60,
        )
    figure.update_layout(
        **LAYOUT | dict(height=400),
        barmode="overlay",
        xaxis_title=title,
        yaxis_title=f"share of {of}",
    )
    return figure


class Table:
    """A table that notebooks show; every cell is escaped, for a model's text is nobody's HTML."""

    def __init__(self, rows: Sequence[dict]):
        self.rows = list(rows)

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{html.escape(str(name))}</th>" for name in self.rows[0]
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left'>{_cell(v)}</td>" for v in row.values())
            + "</tr>"
            for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"

    def __repr__(self) -> str:
        return "\n".join(
            "  ".join(
                f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}"
                for name, value in row.items()
            )
            for row in self.rows
        )


def summary_table(results: pd.DataFrame) -> Table:
    """The results ± 2 standard errors, a row a checkpoint, for reading."""

    def pair(row: dict, column: str) -> str:
        return "" if pd.isna(row[column]) else f"{row[column]:.2f} ± {2 * row[f'{column}_se']:.2f}"

    return Table(
        [
            {
                "checkpoint": LOOKS[row["method"]][0],
                "": _settings(row),
                "reward r̃ ± 2 s.e.": pair(row, "reward"),
                "KL, nats": pair(row, "kl"),
                "judge": pair(row, "judge"),
                "TF-IDF judge": pair(row, "judge_tfidf"),
                "entropy, nats a token": pair(row, "entropy"),
                "distinct-2": pair(row, "distinct2"),
                "SFT's perplexity": pair(row, "perplexity"),
                "completions": f"{row['completions']:,.0f}",
            }
            for row in results.to_dict("records")
        ]
    )


def _cell(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))


def whiskers(rows: pd.DataFrame, column: str, colour: str, visible: bool = True) -> dict:
    """Error bars of ±2 standard errors of a column."""
    return dict(
        visible=visible,
        type="data",
        array=2 * rows[f"{column}_se"],
        color=colour,
        thickness=1,
        width=2,
    )


def _settings(row: dict) -> str:
    """What a point's settings were, in a few words."""
    words = {
        "iteration": "iteration {:.0f}",
        "run": "run {:.0f}",
        "eta": "η = {:.2f}",
        "steps": "{:.0f} steps",
    }
    return ", ".join(
        form.format(row[name]) for name, form in words.items() if not pd.isna(row[name])
    )


def layers(geometry: list[dict], names: Sequence[str]) -> go.Figure:
    """Angles between task vectors, and their norms, in each layer and over the whole model: two
    heat maps over one axis of layers.

    Args:
        geometry: rows as `merging.geometry` gives them.
        names: what its vectors 1, 2, … are called.
    """
    degrees, norms = {}, {}
    for row in geometry:
        layer = row["layer"].removeprefix("transformer.")
        degrees.setdefault(f"{row['a']} ∠ {row['b']}", {})[layer] = row["degrees"]
        for side in "ab":
            norms.setdefault(f"{row[side]}: {html.escape(names[row[side] - 1])}", {})[layer] = row[
                f"norm_{side}"
            ]
    figure = make_subplots(
        2, 1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=("angles, degrees", "norms")
    )
    for row, (grid, form, most) in enumerate(((degrees, ".0f", 90), (norms, ".2f", None)), start=1):
        table = pd.DataFrame.from_dict(grid, orient="index")
        figure.add_heatmap(
            x=list(table.columns),
            y=list(table.index),
            z=table.to_numpy(),
            zmin=0,
            zmax=most,
            colorscale="Cividis",
            showscale=False,
            texttemplate=f"%{{z:{form}}}",
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:{form}}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title=LAYER, row=2, col=1)
    figure.update_layout(**LAYOUT | dict(height=440))
    return figure


def trail() -> go.Figure:
    """An empty plane of reward against KL for a playground: where one has been, and where one
    is.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[],
        y=[],
        text=[],
        name="visited (± 2 standard errors over completions)",
        mode="lines+markers",
        line=dict(color=SKY, width=1),
        marker=dict(color=SKY, size=7),
        error_x=dict(array=[], color=SKY, thickness=1),
        error_y=dict(array=[], color=SKY, thickness=1),
        hovertemplate="%{text}<br>KL %{x:.2f}, r̃ %{y:.2f}<extra></extra>",
    )
    figure.add_scatter(
        x=[],
        y=[],
        name="here",
        mode="markers",
        marker=dict(color=ORANGE, symbol="star", size=14),
        hoverinfo="skip",
    )
    figure.update_layout(**LAYOUT | dict(height=320), xaxis_title=KL, yaxis_title=REWARD)
    return figure
