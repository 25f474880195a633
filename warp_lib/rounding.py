"""What rounding weights to bfloat16 does, from the study's experiment `precision`: to what a pass measures, and to training.

Needs no torch.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from .fronts import Effect, shares
from .outcomes import Outcome, finished_seeds, outcome

LINES = {"warp": "WARP", "reinforce-liti": "REINFORCE of T steps"}  # method: whose line from SFT it is
PASSES = {"float32": "float32", "split": "two bfloat16 parts", "bfloat16": "rounded to bfloat16"}
LOW = 0.5  # nats from which fronts are compared
STAGES = {  # of WARP, in words → its points: method and iteration
    "a run of iteration 1 (REINFORCE of T steps)": ("run", 1),
    "the SLERP of iteration 1": ("slerp", 1),
    "LITI, where iteration 2 begins": ("liti", 1),
    "a run of iteration 2": ("run", 2),
    "the SLERP of iteration 2": ("slerp", 2),
}


def seeds() -> list[int]:
    """Those trained both ways."""
    return finished_seeds("precision", ["warp-split", "warp-bfloat16"])


def trained(how: str, seed: int) -> Outcome:
    """WARP trained with weights in two parts ("split") or rounded ("bfloat16")."""
    return outcome("precision", f"warp-{how}", seed)


def by_pass(among: Iterable[int]) -> pd.DataFrame:
    """What each pass measures of the same weights: a row for each line, η and pass.

    Columns: method, eta, passed; kl and reward over seeds and prompts, with their 95% intervals' half widths (`…_half`); stays, the share
    of weights that round to SFT's own; pass_kl, KL of the float32 policy to the pass (both means over seeds).
    """
    units, rows = {seed: trained("split", seed) for seed in among}, []
    for method, passed in product(LINES, PASSES):
        split = "test" if passed == "float32" else f"test in {passed}"
        points = {seed: _along(one.of(split), method) for seed, one in units.items()}
        for k, eta in enumerate(next(iter(points.values()))["eta"]):
            row: dict[str, Any] = {"method": method, "eta": eta, "passed": passed}
            for column in ("kl", "reward"):
                values = {seed: units[seed].scores[f"{split}.{column}"][some.index[k]] for seed, some in points.items()}
                whole = Effect(values).widest
                row |= {column: whole.mean, f"{column}_half": whole.high - whole.mean}
            means = pd.DataFrame([some.iloc[k] for some in points.values()])[["stays", "pass_kl"]].astype(float).mean()
            rows.append(row | means.to_dict())
    return pd.DataFrame(rows)


def by_training(among: Iterable[int]) -> dict[str, tuple[Effect, Effect]]:
    """Stage of WARP → what training with rounded weights has more than with two parts, in r̃ and in KL, both measured in float32."""
    found = {}
    for words, (method, iteration) in STAGES.items():
        both: tuple[dict[int, np.ndarray], ...] = ({}, {})
        for seed in among:
            rounded, split = (trained(how, seed) for how in ("bfloat16", "split"))
            for column, differences in zip(("reward", "kl"), both, strict=True):
                differences[seed] = _mean(rounded, method, iteration, column) - _mean(split, method, iteration, column)
        found[words] = (Effect(both[0]), Effect(both[1]))
    return found


def at_equal_kl(among: Iterable[int]) -> tuple[Effect, float]:
    """Mean r̃ along WARP's final line from `LOW` nats as far as all reach: trained with rounded weights less with two parts; and how far."""
    lines = {(how, seed): _line(trained(how, seed)) for how in ("bfloat16", "split") for seed in among}
    high = min(kl.max() for kl, _ in lines.values())
    means = {key: shares(kl, LOW, high) @ reward for key, (kl, reward) in lines.items()}
    return Effect({seed: means["bfloat16", seed] - means["split", seed] for seed in among}), high


def angles(among: Iterable[int]) -> list[dict[str, Any]]:
    """Angle between the runs of each iteration and the norm of their task vectors over the whole model, trained both ways."""
    rows = []
    for how in ("split", "bfloat16"):
        found = pd.DataFrame([row for seed in among for row in trained(how, seed).record["geometry"] if row["layer"] == "model"])
        for iteration, some in found.groupby("iteration"):
            norm = (some["norm_a"] + some["norm_b"]) / 2
            place = {"trained with weights": PASSES[how], "iteration": iteration}
            rows.append(place | {"Ω, degrees": some["degrees"].mean(), "norm of a task vector": norm.mean()})
    return rows


def table(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """`by_pass` for reading: a row for each policy."""
    rows = []
    for (method, eta), some in measured.groupby(["method", "eta"], sort=False):
        if not eta:
            continue
        by = {row["passed"]: row for row in some.to_dict("records")}
        row = {"policy": f"{LINES[method]}, η = {eta:g}", "weights that round to SFT's": f"{by['float32']['stays']:.0%}"}
        for column, name in (("kl", "KL, nats"), ("reward", "r̃")):
            row |= {f"{name}: {PASSES[p]}": f"{r[column]:.2f} ± {r[f'{column}_half']:.2f}" for p, r in by.items()}
        rows.append(row | {f"KL to the pass: {PASSES[p]}": f"{by[p]['pass_kl']:.3f}" for p in ("split", "bfloat16")})
    return rows


def _along(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    return rows[rows["method"] == method].sort_values("eta")


def _mean(one: Outcome, method: str, iteration: int, column: str) -> np.ndarray:
    """Of each prompt, (prompts,): over the points of a method in an iteration."""
    rows = one.of("test")
    return one.scores[f"test.{column}"][rows.index[(rows["method"] == method) & (rows["iteration"] == iteration)]].mean(0)


def _line(one: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """WARP's final line over η in float32: KL (points,) and r̃ of each prompt, (points, prompts)."""
    rows = one.along_eta("warp")
    return rows["kl"].to_numpy(), one.scores["test.reward"][rows.index]


def answer(measured: pd.DataFrame, effects: dict[str, tuple[Effect, Effect]], level: Effect, high: float) -> str:
    """The notebook's answer, from `by_pass`, `by_training` and `at_equal_kl`."""

    def read(method: str, eta: float, passed: str) -> float:
        near = measured[(measured["method"] == method) & (measured["passed"] == passed) & (abs(measured["eta"] - eta) < 1e-9)]
        return float(near["kl"].iloc[0])

    def hidden(method: str, eta: float) -> float:
        return 1 - read(method, eta, "bfloat16") / read(method, eta, "float32")

    some = 0.4  # of the points on the line, one far from its end
    (run, of_run), *_, (merge, of_merge) = effects.items()
    return (
        f"**Answer.** Rounding weights to bfloat16 in every pass hides KL, and more of it the more weights are averaged: "
        f"{hidden('reinforce-liti', 1.0):.0%} for REINFORCE, {hidden('warp', 1.0):.0%} for WARP's last merge and "
        f"{hidden('warp', some):.0%} for that merge at η = {some:g}, where {read('warp', some, 'float32'):.2f} nats read as "
        f"{read('warp', some, 'bfloat16'):.2f}. Two bfloat16 parts read {read('warp', some, 'split'):.2f}. Training with rounded weights "
        f"changes {run} by {of_run[0]} r̃ and {of_run[1]} nats, {merge} by {of_merge[0]} and {of_merge[1]}; at equal KL, from "
        f"{LOW:g} to {high:.1f} nats, by {level} r̃ (95% intervals)."
    )
