"""The results table: a row for each evaluated checkpoint. Reading it needs no torch."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from filelock import FileLock

from .paths import folder, write_whole

# What the tables hold. method: sft; run (one of an iteration's M), slerp or lerp (their merge), liti (where the next iteration begins),
# warp (the final front: η from SFT to the last merge); reinforce (along the baseline's way), reinforce-liti (its own line to SFT).
# In the study also dpo and dpo-liti, and for lines through other merges lerp and slerp-layer, slerp-tensor, slerp-model.
COLUMNS = {
    "method": "what was evaluated",
    "seed": "seed of the whole pipeline",
    "iteration": "WARP iteration, from 1",
    "runs": "M",
    "run": "m, for a single run",
    "eta": "η of the interpolation that made it",
    "steps": "optimiser steps spent to get there",
    "reward": "mean r̃, standard deviations of SFT's reward",
    "reward_se": "its standard error, clustered by prompt",
    "kl": "KL(π‖π_sft) per completion, nats",
    "kl_se": "",
    "judge": "full-encoder judge on the other half of the labels, standardised like r̃ (empty without judge_steps)",
    "judge_se": "",
    "judge_tfidf": "TF-IDF judge, standardised like r̃",
    "judge_tfidf_se": "",
    "entropy": "of the policy, nats per token",
    "entropy_se": "",
    "distinct2": "distinct pairs of tokens within a prompt's completions",
    "distinct2_se": "",
    "perplexity": "of SFT on the completions",
    "perplexity_se": "",
    "completions": "completions sampled and scored to get there (empty for DPO, which samples before it trains)",
    "seconds": "training time to get there, runs one after the other, on its share of the machine; pauses included",
}


def write_results(name: str, part: str, rows: list[dict], completions: list[dict], scorers: dict[str, str]) -> pd.DataFrame:
    """Write one notebook's rows, and ``runs/<name>/results.csv`` anew from all parts. Returns the rows as a table.

    For the explorer: completions of some prompts, each with point (place of its row), prompt, completion, reward (the prompt's mean r̃);
    scorers: the reward's and each judge's name → its digest.
    """
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    parts = folder(name) / "results"
    parts.mkdir(exist_ok=True)
    write_whole(parts / f"{part}.json", json.dumps({"scorers": scorers, "completions": completions}))
    write_whole(parts / f"{part}.csv", table.to_csv(index=False))
    with FileLock(parts / "together.lock"):  # notebooks may be run side by side
        together = pd.concat([pd.read_csv(file) for file in sorted(parts.glob("*.csv"))])
        write_whole(folder(name) / "results.csv", together.to_csv(index=False))
    return table


def read_results(name: str) -> pd.DataFrame:
    """The table of the run called `name`. Raises ValueError when the notebooks that fill it have not run."""
    file = folder(name) / "results.csv"
    missing = [n for n in ("03_warp", "04_reinforce_baseline") if not (folder(name) / "results" / f"{n}.csv").exists()]
    if missing:
        raise ValueError(f"name={name!r} has no results of {' and '.join(missing)} yet: run these notebooks (or `make report`) first.")
    return pd.read_csv(file)


def reward_at(results: pd.DataFrame, method: str, kl: float) -> tuple[float, float]:
    """Reward of a method's points and its standard error at a given KL, linearly between the two points around it.

    SFT, at a KL of 0, is where every method begins. Raises ValueError outside the KL they span: nothing is extrapolated.
    """
    points = results[results["method"].isin(["sft", method])].sort_values("kl")
    if not points["kl"].min() <= kl <= points["kl"].max():
        raise ValueError(
            f"kl must be within the KL that {method} reaches, {points['kl'].min():.2f} to {points['kl'].max():.2f}, not {kl:.2f}."
        )
    return tuple(float(np.interp(kl, points["kl"], points[column])) for column in ("reward", "reward_se"))


@dataclass(frozen=True)
class Matched:
    """The difference of two methods' rewards at one KL, and its 95% interval (low, high)."""

    kl: float
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        """The difference in words, with what its interval allows to say."""
        verdict = "above" if self.low > 0 else "below" if self.high < 0 else "not distinguishable from"
        return f"{self.difference:+z.2f} ({self.low:+z.2f} to {self.high:+z.2f}), {verdict} it"


def matched(results: pd.DataFrame, first: str, second: str, kl: float | None = None) -> Matched:
    """The rewards of two methods at a KL, or at the largest that both reach.

    The interval is over test prompts, with the two standard errors added as if independent: wider than a paired one.
    """
    if kl is None:
        kl = min(results.loc[results["method"] == method, "kl"].max() for method in (first, second))
    (a, a_se), (b, b_se) = (reward_at(results, method, kl) for method in (first, second))
    half = 1.96 * math.hypot(a_se, b_se)
    return Matched(kl, a - b, a - b - half, a - b + half)


def real_positive(name: str) -> dict[str, float]:
    """Where real positive reviews lie on the reward axis: mean and p99, in r̃ (`Experiment.real_positive` wrote it)."""
    return json.loads((folder(name) / "real_positive.json").read_text())
