"""What the study's units left: their tables read, their trials judged, their task vectors' angles.

Comparing one arm with another is in `contrasts`. Needs no torch.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from ..runs.errors import Explained
from ..runs.paths import ROOT
from . import fronts
from .fronts import Interval, along, pareto

# elsewhere for a unit that runs on another machine: see `run._job`
FOLDER = Path(os.environ.get("WARP_STUDY") or ROOT / "data" / "study")
TUNING_SEED = 999  # chooses settings, and is reported nowhere else
SEEDS = tuple(range(20, 28))
LOW = 1.0  # nats of KL where the mean of a front begins
# nats that a trial must reach to be chosen; nats that chosen ones reach beyond where fronts are
# compared
LEAST, MARGIN = 3.0, 0.5
# experiment → its question in words, and how many units it has
ASKED = {
    "primary": ("WARP against REINFORCE", 32),
    "best-of-n": ("best-of-n", 1),
    "grid": ("the student report's grid", 12),
    "merges": ("SLERP against LERP", 3),
    "averages": ("other averages", 9),
    "angles": ("angles between seeds", 1),
    "dpo-tuning": ("DPO's tuning", 8),
    "dpo": ("WARP on DPO", 14),
    "anchors": ("fixed anchors", 9),
    "long-run": ("the long run", 6),
    "turnover": ("an anchor that turns over five times", 4),
}
MEASURES = {  # of a checkpoint beside r̃ and KL, in words
    "judge": "judge",
    "TF-IDF judge": "judge_tfidf",
    "entropy, nats a token": "entropy",
    "distinct-2": "distinct2",
    "SFT's perplexity": "perplexity",
}
# the paper's first
MERGES = {
    "slerp-layer": "an angle a layer",
    "slerp-tensor": "an angle a tensor",
    "slerp-model": "one angle",
}

ArmId = tuple[str, str]
"""Where an arm stands in the study: its experiment and its name."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a unit of the study left: its rows, the scores of each point and prompt, its record.

    There is one object for each unit. where: a condition on its rows, for the points that its front
    may have: all but WARP's single runs, where no other is given.
    """

    rows: pd.DataFrame
    scores: dict[str, np.ndarray]
    record: dict[str, Any]
    where: str = "method != 'run'"

    @property
    def label(self) -> str:
        """What trials differ in: learning rate and β."""
        settings = self.record["settings"]
        return f"lr {settings['learning_rate']:g}, β {settings['beta']:g}"

    def of(self, split: str) -> pd.DataFrame:
        """The rows of a split. Their index is their place in the split's `scores`."""
        return self.rows[self.rows["split"] == split].reset_index(drop=True)

    @cache  # noqa: B019 - a unit is kept for good, see `outcome`
    def points(self, split: str) -> pd.DataFrame:
        """The rows that a front may have. 14 different points for each arm of the primary
        contrast.
        """
        return self.of(split).query(self.where)

    @cache  # noqa: B019
    def only(self, where: str) -> "Outcome":
        """The same unit, its front of fewer points."""
        return replace(self, where=where)

    def along_eta(self, method: str, split: str = "test") -> pd.DataFrame:
        """The rows of a line over η on the prompts of a split, by increasing η."""
        rows = self.of(split)
        return rows[rows["method"] == method].sort_values("eta")

    def kl(self, split: str) -> np.ndarray:
        """Mean KL to SFT of each of its points, (points,), nats."""
        return self.points(split)["kl"].to_numpy()

    def reward(self, split: str, scorer: str = "reward") -> np.ndarray:
        """r̃, or the score of a judge, of each of its points and each prompt, (points, prompts)."""
        return self.scores[f"{split}.{scorer}"][self.points(split).index]

    def through_merge(self, method: str, runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The line from SFT, where the unit has it, through a merge of `runs` runs and beyond.

        On test prompts: KL in increasing order, (points,); r̃ and KL of each prompt, both (points,
        prompts).
        """
        rows = self.of("test")
        on_line = (rows["method"] == method) & (rows["runs"] == runs)
        line = rows[(rows["method"] == "sft") | on_line].sort_values("kl")
        reward, own_kl = (self.scores[f"test.{score}"][line.index] for score in ("reward", "kl"))
        return line["kl"].to_numpy(), reward, own_kl

    @cache  # noqa: B019
    def front(self) -> list[int]:
        """The points that make the front, chosen on validation prompts."""
        return pareto(self.kl("validation"), self.reward("validation").mean(1))

    def reach(self, split: str) -> float:
        """The largest KL of its points, nats."""
        return self.kl(split).max()

    def line(self, split: str, scorer: str = "reward") -> tuple[np.ndarray, np.ndarray]:
        """The front as KL, (points,), in increasing order, and r̃ of each prompt, (points, prompts).

        Or a judge's score of the same points. Up to the largest KL of any point it keeps its last
        reward: who may spend more can still take the policy that spends less.
        """
        by_kl, by_reward = self._of_line(split)
        return self.kl(split)[by_kl], self.reward(split, scorer)[by_reward]

    def _of_line(self, split: str) -> tuple[list[int], list[int]]:
        """The points of `line`: whose KL and whose reward each of its own has."""
        kl, front = self.kl(split), self.front()
        front = [front[k] for k in np.argsort(kl[front], kind="stable")]
        if self.reach(split) > kl[front[-1]]:
            return [*front, int(kl.argmax())], [*front, front[-1]]
        return front, front

    def at(self, kl: float, scorer: str = "reward") -> np.ndarray:
        """r̃, or a judge's score, of the front read at one KL on each test prompt, (prompts,): see
        `fronts.at`.
        """
        return fronts.at(kl, self._line_kl("test"), self.line("test", scorer)[1])

    def gap(self, reward: np.ndarray, own_kl: np.ndarray) -> np.ndarray | None:
        """How much more a policy earns than this front at the same KL: see `fronts.gap`."""
        return fronts.gap(reward, own_kl, self._line_kl("test"), self.line("test")[1])

    def _line_kl(self, split: str) -> np.ndarray:
        """KL of each point of `line` on each prompt, (points, prompts)."""
        return self.reward(split, "kl")[self._of_line(split)[0]]

    @cache  # noqa: B019
    def along_front(self, split: str, high: float, scorer: str = "reward") -> np.ndarray:
        """Each prompt's mean r̃ (or judge's score) along the front, from `LOW` to `high` nats,
        (prompts,). Its variance over prompts is the front's, points' KL included (see
        `fronts.along`).
        """
        kl, reward = self.line(split, scorer)
        return along(kl, reward, LOW, high, self._line_kl(split))


def read_record(file: Path) -> dict[str, Any]:
    """A unit's record. Raises Explained, naming it, for one that is damaged."""
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise Explained(
            f"{file} is damaged: restore it, or remove it to have it run again."
        ) from None


@cache
def outcome(experiment: str, arm: str, seed: int) -> Outcome:
    """A finished unit. Raises FileNotFoundError for another."""
    file = FOLDER / experiment / f"{arm}-{seed}.json"
    record = read_record(file)
    rows, scores = pd.read_csv(file.with_suffix(".csv")), file.with_suffix(".safetensors")
    return Outcome(rows, load_file(scores), record)


def waiting() -> list[dict[str, str | int]]:
    """What the study asks and has not finished, for reading: a row for each question, with the
    command that runs what is left of it.
    """
    rows = []
    for name, (words, count) in ASKED.items():
        if left := count - len(list((FOLDER / name).glob("*.json"))):
            command = f"python -m warp_lib study {name}"
            rows.append({"question": words, "units left": left, "of": count, "command": command})
    return rows


def finished_seeds(experiment: str, arms: Iterable[str]) -> list[int]:
    """The seeds on which all of the arms have ended."""
    files = {file.stem for file in (FOLDER / experiment).glob("*.json")}
    ended = [
        {int(seed) for file in files if (seed := file.removeprefix(f"{arm}-")).isdigit()}
        for arm in arms
    ]
    return sorted(set.intersection(*ended))


def finished(experiment: str, arm: str, among: Collection[int] | None = None) -> dict[int, Outcome]:
    """Seed → an arm's finished unit, on all seeds or those `among` these."""
    seeds = finished_seeds(experiment, [arm])
    return {s: outcome(experiment, arm, s) for s in seeds if among is None or s in among}


def tested(arms: dict[str, str], among: Collection[int]) -> dict[str, list[Outcome]]:
    """Arm → its finished units on seeds `among` these, in their order; arms without any left out.

    arms: each arm's experiment.
    """
    found = {arm: [*finished(experiment, arm, among).values()] for arm, experiment in arms.items()}
    return {arm: of_arm for arm, of_arm in found.items() if of_arm}


def mean_front(
    units: Iterable[Outcome], split: str = "test", first: float = 0.5
) -> tuple[np.ndarray, list[Interval]]:
    """The mean of units' fronts at equal KL: every half nat from `first` as far as all reach, and
    there the mean r̃ with its interval over the units.
    """
    lines = [unit.line(split) for unit in units]
    grid = np.arange(first, min(kl[-1] for kl, _ in lines), 0.5)
    each = [np.interp(grid, kl, reward.mean(1)) for kl, reward in lines]
    return grid, [Interval.of(rewards) for rewards in zip(*each, strict=True)]


# --------------------------------------------------------------------------------------- the trials


def trials(experiment: str, arm: str) -> dict[str, Outcome]:
    """The finished trials of an arm, by name."""
    files = sorted((FOLDER / experiment).glob(f"{arm}-?-{TUNING_SEED}.json"))
    names = [file.stem.removesuffix(f"-{TUNING_SEED}") for file in files]
    return {name[-1]: outcome(experiment, name, TUNING_SEED) for name in names}


def settle(experiment: str, arms: Iterable[str]) -> dict[str, Any]:
    """What an experiment's finished trials decide: each arm's trial, and K*, where comparisons end.

    An arm's trial is the one with the highest mean r̃ along its front on validation prompts, from
    `LOW` as far as all trials of all arms reach; those that reach less than `LEAST` nats are left
    out. K* is `MARGIN` below the KL that every chosen trial reaches, in halves: other seeds will
    reach less. The chosen learning rates and β are kept with the trials' names.

    Raises ValueError when an arm has no trial left.
    """
    able = {
        arm: {n: t for n, t in trials(experiment, arm).items() if t.reach("validation") >= LEAST}
        for arm in arms
    }
    if lost := [arm for arm, left in able.items() if not left]:
        raise Explained(
            f"no trial of {lost[0]} in {experiment} reaches {LEAST:g} nats: there is nothing to"
            " compare."
        )
    window = min(trial.reach("validation") for left in able.values() for trial in left.values())
    best = {
        arm: max(left.items(), key=lambda item: item[1].along_front("validation", window).mean())
        for arm, left in able.items()
    }
    reached = min(trial.reach("validation") for _, trial in best.values())
    chosen = {
        arm: {"trial": name}
        | {knob: trial.record["settings"][knob] for knob in ("learning_rate", "beta")}
        for arm, (name, trial) in best.items()
    }
    return {"high": math.floor(2 * reached) / 2 - MARGIN, "judged_to": window, "chosen": chosen}


def settled(experiment: str) -> dict[str, Any]:
    """What `settle` decided when the experiment's trials ended.

    It was kept then, so that nothing later can move it. Raises ValueError before that.
    """
    try:
        return json.loads((FOLDER / f"{experiment}.json").read_text())
    except FileNotFoundError:
        raise Explained(
            "settings are chosen when all trials have ended: run `python -m warp_lib study"
            f" {experiment}` first."
        ) from None


def trial_rows(experiment: str, arms: Iterable[str]) -> list[dict[str, Any]]:
    """What the trials of each arm came to on validation prompts, a row each, the chosen marked."""
    rows, decided = [], settled(experiment)
    window = decided["judged_to"]
    for arm, name, trial in ((a, n, t) for a in arms for n, t in trials(experiment, a).items()):
        settings, kl = trial.record["settings"], trial.kl("validation")
        mean, error = "reaches too little", ""
        if kl.max() >= LEAST:
            values = trial.along_front("validation", window)
            mean = float(values.mean())
            error = float(2 * values.std(ddof=1) / math.sqrt(len(values)))
        rows.append(
            {
                "method": arm,
                "learning rate": f"{settings['learning_rate']:g}",
                "β": f"{settings['beta']:g}",
                "largest KL, nats": float(kl.max()),
                "r̃ there": float(trial.reward("validation")[kl.argmax()].mean()),
                f"mean r̃ from {LOW:g} to {window:.2f} nats": mean,
                "± 2 s.e. over prompts": error,
                "chosen": "yes" if name == decided["chosen"][arm]["trial"] else "",
            }
        )
    return rows


# ---------------------------------------------------------------------------- what units look like


def over_seeds(rows: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """A row for each group of the rows `by` columns, in their order: means over its rows, a seed
    each, and the half widths of their 95% intervals (`…_half`).
    """
    table = []
    for _, group in rows.groupby(by, sort=False):
        intervals = {name: Interval.of(group[name]) for name in columns}
        means = {name: interval.mean for name, interval in intervals.items()}
        halves = {f"{name}_half": i.high - i.mean for name, i in intervals.items()}
        table.append(group.iloc[0][by].to_dict() | means | halves)
    return pd.DataFrame(table)


def end_rows(experiment: str, arms: Iterable[str], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Each unit's point of largest KL on test prompts: reward, judges and the texts' variety, ± 2
    standard errors.
    """
    columns = {"KL, nats": "kl", "r̃": "reward"} | MEASURES
    rows = []
    for seed, arm in product(seeds, arms):
        points = outcome(experiment, arm, seed).points("test")
        end = points.loc[points["kl"].idxmax()]
        rows.append(
            {"method": arm, "seed": seed}
            | {c: f"{end[name]:.2f} ± {2 * end[f'{name}_se']:.2f}" for c, name in columns.items()}
        )
    return rows


def angle_rows(units: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    """Angles and norms of the runs' task vectors over the whole model: a row for each seed,
    iteration and pair of runs.
    """
    return [
        {
            "seed": seed,
            "iteration": pair["iteration"],
            "runs": f"{pair['a']} and {pair['b']}",
            "Ω, degrees": pair["degrees"],
            "‖δ‖": pair["norm_a"],
            "‖δ′‖": pair["norm_b"],
        }
        for seed, unit in units.items()
        for pair in unit.record["geometry"]
        if pair["layer"] == "model"
    ]


def by_layer(units: Mapping[int, Outcome]) -> pd.DataFrame:
    """Angles between runs' task vectors and their norms, layer by layer and over the whole model.

    A row for each iteration and layer, means over seeds with the half widths of their 95% intervals
    (`…_half`). Columns: iteration, layer, degrees, norm, longer.

    norm: the mean of the two. longer: 1/cos(Ω/2), how many times as long SLERP's step at λ = ½ is
    as LERP's (exactly, whatever the norms).
    """
    columns, tables = ["degrees", "norm", "longer"], []
    for unit in units.values():
        rows = pd.DataFrame(unit.record["geometry"])
        rows["layer"] = rows["layer"].str.removeprefix("transformer.")
        rows["norm"] = (rows["norm_a"] + rows["norm_b"]) / 2
        rows["longer"] = 1 / np.cos(np.radians(rows["degrees"]) / 2)
        # a seed counts once, whatever its M
        tables.append(rows.groupby(["iteration", "layer"], sort=False)[columns].mean())
    return over_seeds(pd.concat(tables).reset_index(), ["iteration", "layer"], columns)


def between_seeds(experiment: str) -> pd.DataFrame:
    """Ω between REINFORCE's runs of different seeds: a row for each pair, arm and number of steps.

    Columns: arm, steps, completions, a, b, degrees, norm_a, norm_b (see `units.Angles`).
    """
    return outcome(experiment, "seeds", finished_seeds(experiment, ["seeds"])[0]).rows


def averaged_out(angles: pd.DataFrame) -> pd.Series:
    """Completions of a run → the angle in degrees that `between_seeds` would be if noise averaged
    out.

    That is, if gradients were one signal and independent noise that averages out over completions,
    all of which count alike: cos Ω = n / (n + n₀), with n₀ from the pairs of fewest completions.
    """
    n = np.sort(angles["completions"].unique())
    first = np.cos(np.radians(angles.loc[angles["completions"] == n[0], "degrees"])).mean()
    return pd.Series(np.degrees(np.arccos(n / (n + n[0] * (1 / first - 1)))), index=n)


def growth_rows(angles: pd.DataFrame) -> list[dict[str, Any]]:
    """For reading: angles and norms of `between_seeds`, means over its pairs, and what they would
    be if `averaged_out` held.
    """
    rows, expected = [], averaged_out(angles)
    # With signal s and noise of variance v a completion, ‖δ‖² = n² s² + n v, and cos Ω is the first
    # part's share.
    length = (expected.index**2 / np.cos(np.radians(expected))) ** 0.5
    for arm, of_arm in angles.groupby("arm"):
        means = of_arm.groupby("completions")[["degrees", "norm_a", "norm_b"]].mean()
        norms = (means["norm_a"] + means["norm_b"]) / 2
        rows += [
            {
                "method": arm,
                "completions": f"{n:,}",
                "Ω, degrees": f"{means.loc[n, 'degrees']:.1f}",
                "if noise averaged out": f"{expected[n]:.1f}",
                "‖δ‖": f"{norm:.3f}",
                "times the first": f"{norm / norms.iloc[0]:.2f}",
                "if all counted alike": f"{length[n] / length.iloc[0]:.2f}",
            }
            for n, norm in norms.items()
        ]
    return rows
