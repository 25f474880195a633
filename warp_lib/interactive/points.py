"""Every evaluated point of the study and of one's own runs: chosen, compared, read. No torch."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..prompts import prompts
from ..report.plots import settings_of
from ..runs import paths
from ..runs.errors import Explained, say_once
from ..runs.results import readable, real_positive
from ..study import outcomes
from ..study.fronts import Interval, hypervolume

# The corner from which hypervolumes are measured, fixed before any was looked at: the KL at which
# the learning rate was chosen to end, and what SFT earns by definition.
CORNER = (10.0, 0.0)
SCORES = ("reward", "judge", "judge_tfidf")
KINDS = {
    "run": "single runs",
    "slerp": "merged",
    "lerp": "merged",
    "liti": "where the next iteration begins",
    "warp": "final front over η",
    "reinforce": "along its way",
    "reinforce-liti": "line to SFT",
    "dpo": "along its way",
    "dpo-liti": "line to SFT",
    "slerp-without-order": "through SLERP without order",
    "checkpoints": "line to SFT through the mean of checkpoints",
    "from-sft": "from SFT through the last merge",
    "from-init": "from the last init through its merge",
} | {method: f"through SLERP, {words}" for method, words in outcomes.MERGES.items()}


def all_points() -> pd.DataFrame:
    """Every evaluated point of the study on test prompts and of the runs under runs/, a row each.

    Beside the columns of `results.COLUMNS`: file, the table it stands in; point, its place there;
    series, what it is one of many of; `<score>_by`, what gave each of `SCORES`: a digest, or where
    none is on record the study's experiment or the run that it is of.
    """
    tables = []
    units = sorted(outcomes.FOLDER.glob("*/*.json"))
    for file, rows, record in readable(unit.with_suffix(".csv") for unit in units):
        rows = rows.query("split == 'test'").reset_index(drop=True)
        if rows.empty:  # a unit that measures weights only
            continue
        # judges that are not on record are of the machine that made it
        model = record.get("reward_model", file.parent.name)
        scorers = {"reward": model} | record.get("judges", {})
        tables.append(_placed(rows, file, file.parent.name, scorers, model))
    for file, rows, record in readable(sorted(paths.RUNS.glob("*/results/*.csv"))):
        source = f"your run {file.parent.parent.name}"
        rows["arm"] = np.where(rows["method"].str.startswith("reinforce"), "reinforce", "warp")
        tables.append(_placed(rows, file, source, record.get("scorers", {}), source))
    if not tables:
        raise Explained(
            "there is nothing to explore: data/study is empty, and no run has results under runs/"
            " yet."
        )
    points = pd.concat(tables, ignore_index=True)
    kinds = points["method"].map(lambda method: KINDS.get(method, method))
    return points.assign(series=points["source"] + " · " + points["arm"] + " · " + kinds)


def _placed(
    rows: pd.DataFrame, file: Path, source: str, scorers: dict[str, str], otherwise: str
) -> pd.DataFrame:
    """Rows with where they stand, and what gave each of `SCORES`, `otherwise` if unknown."""
    by = {f"{score}_by": scorers.get(score, otherwise) for score in SCORES}
    return rows.assign(source=source, file=str(file), point=range(len(rows)), **by)


@dataclass(frozen=True)
class Selection:
    """Which points are shown. An empty choice of iterations, runs or seeds takes all.

    A point that has no such number, or no η, is shown whatever is chosen.
    """

    series: tuple[str, ...]
    iterations: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    eta: tuple[float, float] = (0.0, 1.0)

    def of(self, points: pd.DataFrame) -> pd.DataFrame:
        """The points chosen, in their order and with their index."""
        chosen = points["series"].isin(self.series) & (points["method"] != "sft")
        columns = {"iteration": self.iterations, "runs": self.runs, "seed": self.seeds}
        for column, allowed in columns.items():
            if allowed:
                chosen &= points[column].isin(allowed) | points[column].isna()
        eta, (low, high) = points["eta"], self.eta
        return points[chosen & (eta.between(low - 1e-9, high + 1e-9) | eta.isna())]


def by_pipeline(rows: pd.DataFrame, score: str) -> dict[tuple[int, str], pd.DataFrame]:
    """Seed and what gave the score → their points that have one.

    A seed is a whole pipeline, so its points alone make a front; scores that different models gave
    are not on one axis.
    """
    groups = rows.dropna(subset=[score]).groupby(["seed", f"{score}_by"])
    return {(int(seed), by): own for (seed, by), own in groups}


def hypervolumes(rows: pd.DataFrame, score: str) -> dict[tuple[int, str], float]:
    """Seed and what gave the score → the hypervolume of their points."""
    return {
        pipeline: hypervolume(own["kl"].to_list(), own[score].to_list(), CORNER)
        for pipeline, own in by_pipeline(rows, score).items()
    }


def comparison(a: pd.DataFrame, b: pd.DataFrame, score: str) -> dict[str, Interval]:
    """Hypervolume of each selection that has points, over its fronts; and of A − B.

    The difference is paired over the fronts of one seed that one model scored.
    """
    of_a, of_b = hypervolumes(a, score), hypervolumes(b, score)
    both = sorted(of_a.keys() & of_b.keys())
    volumes = {
        "A": list(of_a.values()),
        "B": list(of_b.values()),
        "A − B": [of_a[pipeline] - of_b[pipeline] for pipeline in both],
    }
    return {name: Interval.of(values) for name, values in volumes.items() if values}


def completions(points: pd.DataFrame, index: int) -> list[dict[str, Any]]:
    """What a point writes on the prompts whose completions were kept, beside SFT's completions.

    Returns a row for each: prompt, sft, completion, and the prompt's mean r̃ at SFT (sft_reward)
    and at the point (reward). Empty for a run older than the record of its completions.
    """
    point = points.loc[index]
    file = Path(point["file"])
    if not file.with_suffix(".json").exists():
        return []
    shown: dict[int, list[dict]] = {}
    for row in json.loads(file.with_suffix(".json").read_text())["completions"]:
        shown.setdefault(row["point"], []).append(row)
    if file.is_relative_to(outcomes.FOLDER):
        unit = outcomes.outcome(file.parent.name, point["arm"], int(point["seed"]))
        for number, rows in shown.items():
            # in the order of the prompts
            for row, reward in zip(rows, unit.scores["test.reward"][number].tolist(), strict=False):
                row |= {"reward": reward, "prompt": study_prompts()[row["review"]]}
    # only SFT's own KL is exactly 0
    sft = points.loc[(points["file"] == point["file"]) & (points["kl"] == 0), "point"].iloc[0]
    return [
        {
            "prompt": s["prompt"],
            "sft": s["completion"],
            "sft_reward": s["reward"],
            "completion": p["completion"],
            "reward": p["reward"],
        }
        for s, p in zip(shown[sft], shown[point["point"]], strict=True)
    ]


@cache
def study_prompts() -> dict[int, str]:
    """A test review's row in the source → the study's prompt from it.

    Made anew from the reviews that pip brought, which takes a second or two.
    """
    from tokenizers import Tokenizer

    from ..reviews import load_reviews

    tokenizer = Tokenizer.from_file(str(paths.ROOT / "data" / "policy" / "tokenizer.json"))
    test = load_reviews().test

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return {
        test["review"][k]: tokenizer.decode(ids)
        for k, ids in prompts(test["text"][:], tokenize, "test").items()
    }


def describe(point: pd.Series) -> str:
    """A point's settings and numbers in one line."""
    words = {
        "n": "best of {:.0f}",
        "iteration": "I = {:.0f}",
        "runs": "M = {:.0f}",
        "run": "run {:.0f}",
        "eta": "η = {:.2f}",
        "steps": "{:,.0f} steps",
    }
    return (
        f"{point['series']}, seed {point['seed']}, {settings_of(point, words)}: KL"
        f" {point['kl']:.2f} nats, r̃ {point['reward']:.2f} ± {2 * point['reward_se']:.2f}"
    )


def positive_band(point: pd.Series) -> dict[str, float] | None:
    """Where real positive reviews lie on a point's reward axis: mean and p99, in r̃.

    None for a run that never looked.
    """
    file = Path(point["file"])
    if file.is_relative_to(outcomes.FOLDER):
        return json.loads(file.with_suffix(".json").read_text())["real_positive"]
    name = file.parent.parent.name
    try:
        looked = (paths.RUNS / name / "real_positive.json").exists()
        return real_positive(name) if looked else None
    except Explained as error:
        say_once(f"{error} It is passed over.")
        return None
