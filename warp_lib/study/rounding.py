"""What rounding weights to bfloat16 does to what a pass measures, and to training.

From the study's experiment `precision`. Needs no torch.
"""

from collections.abc import Collection
from dataclasses import astuple
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from .fronts import Effect, shares, weights
from .outcomes import Outcome, by_layer, finished, finished_seeds, outcome

# method: whose line from SFT it is
LINES = {"warp": "WARP", "reinforce-liti": "REINFORCE of T steps"}
PASSES = {"float32": "float32", "split": "two bfloat16 parts", "bfloat16": "rounded to bfloat16"}
LOW = 0.5  # nats from which fronts are compared
STAGES = {  # of WARP, in words → its points
    "a run of iteration 1 (REINFORCE of T steps)": "method == 'run' and iteration == 1",
    "the SLERP of iteration 1": "method == 'slerp' and iteration == 1",
    "LITI, where iteration 2 begins": "method == 'liti' and iteration == 1",
    "a run of iteration 2": "method == 'run' and iteration == 2",
    "the SLERP of iteration 2": "method == 'slerp' and iteration == 2",
}


def seeds() -> list[int]:
    """Those trained both ways."""
    return finished_seeds("precision", ["warp-split", "warp-bfloat16"])


def trained(how: str, seed: int) -> Outcome:
    """WARP trained with weights in two parts ("split") or rounded ("bfloat16")."""
    return outcome("precision", f"warp-{how}", seed)


def by_pass(among: Collection[int]) -> pd.DataFrame:
    """What each pass measures of the same weights: a row for each line, η and pass.

    Columns: method, eta, passed; kl and reward over seeds and prompts, with their 95% intervals'
    half widths (`…_half`); stays, the share of weights that round to SFT's own; pass_kl, KL of the
    float32 policy to the pass (both means over seeds).
    """
    units, rows = {seed: trained("split", seed) for seed in among}, []
    for method, passed in product(LINES, PASSES):
        split = "test" if passed == "float32" else f"test in {passed}"
        lines = {seed: unit.along_eta(method, split) for seed, unit in units.items()}
        for k, eta in enumerate(next(iter(lines.values()))["eta"]):
            points = {seed: line.iloc[k] for seed, line in lines.items()}
            row: dict[str, Any] = {"method": method, "eta": eta, "passed": passed}
            for score in ("kl", "reward"):
                values = {s: units[s].scores[f"{split}.{score}"][p.name] for s, p in points.items()}
                interval = Effect(values).widest
                row |= {score: interval.mean, f"{score}_half": interval.high - interval.mean}
            shares_and_kl = pd.DataFrame(points.values())[["stays", "pass_kl"]].astype(float)
            rows.append(row | shares_and_kl.mean().to_dict())
    return pd.DataFrame(rows)


def by_training(among: Collection[int]) -> dict[str, tuple[Effect, Effect]]:
    """Stage of WARP → what training with rounded weights has more than with two parts, in r̃ and KL.

    Both are measured in float32.
    """

    def effect(where: str, score: str) -> Effect:
        rounded, split = (
            Effect({s: trained(how, s).only(where).reward("test", score).mean(0) for s in among})
            for how in ("bfloat16", "split")
        )
        return rounded - split

    return {words: (effect(at, "reward"), effect(at, "kl")) for words, at in STAGES.items()}


def at_equal_kl(among: Collection[int]) -> tuple[Effect, float]:
    """Mean r̃ along WARP's final line, trained with rounded weights less with two parts.

    From `LOW` nats as far as all reach, which it returns too.
    """
    lines = [
        {seed: trained(how, seed).only("method == 'warp'") for seed in among}
        for how in ("bfloat16", "split")
    ]
    high = min(line.reach("test") for by_seed in lines for line in by_seed.values())
    rounded, split = (
        Effect({s: shares(x.kl("test"), LOW, high) @ x.reward("test") for s, x in by_seed.items()})
        for by_seed in lines
    )
    return rounded - split, high


def hidden(among: Collection[int]) -> dict[float, dict[str, Effect]]:
    """KL in float32, nats → method → the share of it that rounding hides on its line from SFT.

    At the largest KL that all lines reach, and at a third of it.
    """
    kls = {
        (method, seed, split): trained("split", seed)
        .only(f"method == '{method}'")
        .reward(split, "kl")
        for method, seed, split in product(LINES, among, ("test", "test in bfloat16"))
    }
    reach = min(float(kl.mean(1).max()) for (_, _, split), kl in kls.items() if split == "test")

    def share(method: str, seed: int, at: float) -> np.ndarray:
        exact, rounded = kls[method, seed, "test"], kls[method, seed, "test in bfloat16"]
        return weights(exact.mean(1), [at])[:, 0] @ (exact - rounded) / at

    return {
        at: {method: Effect({seed: share(method, seed, at) for seed in among}) for method in LINES}
        for at in (reach, reach / 3)
    }


def angles(among: Collection[int]) -> list[dict[str, Any]]:
    """Angles between each iteration's runs and norms of their task vectors, trained both ways."""
    return [
        {
            "trained with weights": PASSES[how],
            "iteration": row.iteration,
            "Ω, degrees": row.degrees,
            "norm of a task vector": row.norm,
        }
        for how in ("split", "bfloat16")
        for row in by_layer(finished("precision", f"warp-{how}", among)).itertuples()
        if row.layer == "model"
    ]


def table(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """`by_pass` for reading: a row for each policy."""
    rows = []
    for (method, eta), group in measured.query("eta != 0").groupby(["method", "eta"], sort=False):
        by = {row["passed"]: row for row in group.to_dict("records")}
        row = {
            "policy": f"{LINES[method]}, η = {eta:g}",
            "weights that round to SFT's": f"{by['float32']['stays']:.0%}",
        }
        for score, name in (("kl", "KL, nats"), ("reward", "r̃")):
            for passed, r in by.items():
                text = f"{r[score]:.2f} ± {r[f'{score}_half']:.2f}"
                row[f"{name}: {PASSES[passed]}"] = text
        for passed in ("split", "bfloat16"):
            row[f"KL to the pass: {PASSES[passed]}"] = f"{by[passed]['pass_kl']:.3f}"
        rows.append(row)
    return rows


def _span(effect: Effect) -> str:
    mean, low, high, _ = astuple(effect.widest)
    return f"{mean:.0%} (95% CI {low:.0%} to {high:.0%})".replace("-", "−")


def hidden_title(shares: dict[float, dict[str, Effect]]) -> str:
    """How much rounding hides of WARP's KL, from `hidden`."""
    at = max(shares)
    return (
        f"At {at:.1f} nats rounding hides {shares[at]['warp'].widest.mean:.0%} of WARP's KL and"
        f" {shares[at]['reinforce-liti'].widest.mean:.0%} of REINFORCE's"
    )


def training_title(effects: dict[str, tuple[Effect, Effect]], level: Effect) -> str:
    """Whether what rounding does to training shows, from `by_training` and `at_equal_kl`."""
    shown = [stage for stage, both in effects.items() if any(e.side for e in both)]
    shown += ["WARP's front"] if level.side else []
    if not shown:
        return "Training with rounded weights makes no detectable difference"
    return f"Training with rounded weights changes {'; '.join(shown)}"


def answer(
    measured: pd.DataFrame,
    shares: dict[float, dict[str, Effect]],
    effects: dict[str, tuple[Effect, Effect]],
    level: Effect,
) -> str:
    """The notebook's answer, from `by_pass`, `hidden`, `by_training` and `at_equal_kl`."""
    kl, low = shares
    lines = measured.query("method == 'warp'").sort_values("eta").set_index("passed")["kl"]
    split = float(np.interp(kl, lines["float32"], lines["split"]))
    return (
        f"Rounding hides KL: at a true {kl:.1f} nats, passes with rounded weights show"
        f" {_span(shares[kl]['reinforce-liti'])} less for REINFORCE and"
        f" {_span(shares[kl]['warp'])} less for WARP; at {low:.1f} nats"
        f" {_span(shares[low]['reinforce-liti'])} and {_span(shares[low]['warp'])}."
        f" Two bfloat16 parts show {kl:.1f} nats as {split:.1f}. {training_title(effects, level)}"
        f" ({len(level.by_prompt)} seeds)."
    )
