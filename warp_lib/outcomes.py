"""What the study found: its units' tables read, fronts chosen on validation prompts and compared on test prompts. Needs no torch."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from .fronts import Interval, pareto, shares
from .paths import ROOT

FOLDER = ROOT / "data" / "study"
TUNING_SEED = 999  # chooses settings, and is reported nowhere else
LOW = 1.0  # nats of KL where the mean of a front begins


@dataclass(frozen=True)
class Outcome:
    """What a unit of the study left: its rows, the scores of each point and prompt, and its record."""

    rows: pd.DataFrame
    scores: dict[str, np.ndarray]
    record: dict[str, Any]

    def points(self, split: str) -> pd.DataFrame:
        """The rows that a front may have: the line to SFT, and the path that led to its end without WARP's single runs.

        They are 14 different points for each method.
        """
        rows = self.rows[self.rows["split"] == split].reset_index(drop=True)
        return rows[rows["method"] != "run"]

    def kl(self, split: str) -> np.ndarray:
        """Mean KL to SFT of each of these points, (points,), nats."""
        return self.points(split)["kl"].to_numpy()

    def reward(self, split: str, scorer: str = "reward") -> np.ndarray:
        """r̃ of each of these points and each prompt, (points, prompts); or the score of a judge."""
        return self.scores[f"{split}.{scorer}"][self.points(split).index]

    def front(self) -> list[int]:
        """The points that make the front, chosen on validation prompts."""
        return pareto(self.kl("validation"), self.reward("validation").mean(1))

    def reach(self, split: str) -> float:
        """The largest KL on the front, nats."""
        return self.kl(split)[self.front()].max()

    def along_front(self, split: str, high: float) -> np.ndarray:
        """Each prompt's mean r̃ over KL from `LOW` to `high` nats along the front, (prompts,)."""
        front = self.front()
        return shares(self.kl(split)[front], LOW, high) @ self.reward(split)[front]


@cache
def outcome(experiment: str, arm: str, seed: int) -> Outcome:
    """A finished unit. Raises FileNotFoundError for another."""
    file = FOLDER / experiment / f"{arm}-{seed}.json"
    record = json.loads(file.read_text())
    return Outcome(pd.read_csv(file.with_suffix(".csv")), load_file(file.with_suffix(".safetensors")), record)


def finished_seeds(experiment: str, arms: Iterable[str]) -> list[int]:
    """The seeds on which all of the arms have ended."""
    files = {file.stem for file in (FOLDER / experiment).glob("*.json")}
    ended = [{int(seed) for file in files if (seed := file.removeprefix(f"{arm}-")).isdigit()} for arm in arms]
    return sorted(set.intersection(*ended))


def trials(arm: str) -> dict[str, Outcome]:
    """The finished trials of an arm, by name."""
    files = sorted((FOLDER / "tuning").glob(f"{arm}-?-{TUNING_SEED}.json"))
    return {file.stem.split("-")[-2]: outcome("tuning", file.stem.removesuffix(f"-{TUNING_SEED}"), TUNING_SEED) for file in files}


def chosen_trial(arm: str) -> str:
    """The trial of an arm with the highest mean reward along its front, on validation prompts, as far as all its trials reach."""
    found = trials(arm)
    high = min(trial.reach("validation") for trial in found.values())
    return max(found, key=lambda name: found[name].along_front("validation", high).mean())


def highest(arms: Iterable[str]) -> float:
    """K*: the KL up to which fronts are compared, nats: as far as the chosen trial of every arm reaches, in halves."""
    return math.floor(2 * min(trials(arm)[chosen_trial(arm)].reach("validation") for arm in arms)) / 2


def trial_rows(arms: Iterable[str]) -> list[dict[str, Any]]:
    """What the trials of each arm came to on validation prompts, a row each, with a mark at the one that is chosen."""
    rows = []
    for arm in arms:
        found = trials(arm)
        high = min(trial.reach("validation") for trial in found.values())
        for name, trial in found.items():
            given, end = trial.record["settings"], trial.front()[-1]
            rows.append(
                {
                    "method": arm, "learning rate": f"{given['learning_rate']:g}", "β": f"{given['beta']:g}",
                    "r̃ at its end": trial.reward("validation")[end].mean(), "KL at its end, nats": trial.kl("validation")[end],
                    "mean r̃ along the front": trial.along_front("validation", high).mean(), "over KL, nats": f"{LOW:g} to {high:.2f}",
                    "chosen": "yes" if name == chosen_trial(arm) else "",
                }
            )  # fmt: skip
    return rows


def angle_rows(experiment: str, arm: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Angles and norms of the runs' task vectors over the whole model, a row for each seed, iteration and pair of runs."""
    rows = []
    for seed in seeds:
        for found in outcome(experiment, arm, seed).record["geometry"]:
            if found["layer"] == "model":
                place = {"seed": seed, "iteration": found["iteration"], "runs": f"{found['a']} and {found['b']}"}
                rows.append(place | {"Ω, degrees": found["degrees"], "‖δ‖": found["norm_a"], "‖δ′‖": found["norm_b"]})
    return rows


@dataclass(frozen=True)
class Contrast:
    """An arm's front against a rival's: the difference in mean r̃ over KL from `LOW` to `high` on test prompts.

    by_seed: seed → its interval over prompts; over_seeds: of the seeds' means.
    """

    arm: str
    rival: str
    high: float
    by_seed: dict[int, Interval]
    over_seeds: Interval

    @property
    def verdict(self) -> str:
        """What the interval over seeds allows to say."""
        if self.over_seeds.n == 1:
            return "and one seed cannot say whether that holds for the next"
        if self.over_seeds.low <= 0 <= self.over_seeds.high:
            return "which seeds cannot tell from none"
        return f"so {self.arm}'s front is {'above' if self.over_seeds.low > 0 else 'below'}"


def contrast(experiment: str, arm: str, rivals: list[str], high: float) -> Contrast:
    """An arm against the better of its rivals, the one whose front is higher on validation prompts, over the seeds that all have finished.

    A seed on which a front ends before `high` is compared as far as both reach. Raises ValueError when no seed is finished.
    """
    seeds = finished_seeds(experiment, [arm, *rivals])
    if not seeds:
        raise ValueError(f"no seed of {experiment} has finished all of {arm}, {', '.join(rivals)}.")

    def difference(a: str, b: str, seed: int, split: str) -> np.ndarray:
        ours, theirs = outcome(experiment, a, seed), outcome(experiment, b, seed)
        top = min(high, ours.reach(split), theirs.reach(split))
        return ours.along_front(split, top) - theirs.along_front(split, top)

    rival = min(rivals, key=lambda name: np.mean([difference(arm, name, seed, "validation").mean() for seed in seeds]))
    by_prompt = {seed: difference(arm, rival, seed, "test") for seed in seeds}
    by_seed = {seed: Interval.of(values) for seed, values in by_prompt.items()}
    return Contrast(arm, rival, high, by_seed, Interval.of([i.mean for i in by_seed.values()]))
