"""Every evaluated point of the study and of one's own runs: chosen, compared, and what it writes.
Needs no torch.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..prompts import prompts
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
    for file, rows, said in readable(
        record.with_suffix(".csv") for record in sorted(outcomes.FOLDER.glob("*/*.json"))
    ):
        rows, record = (
            rows.query("split == 'test'").reset_index(drop=True),
            file.with_suffix(".json"),
        )
        if rows.empty:  # a unit that measures weights only
            continue
        rows["source"], rows["file"], rows["point"] = (
            record.parent.name,
            str(file),
            range(len(rows)),
        )
        # judges that are not on record are of the machine that made it
        model = said.get("reward_model", record.parent.name)
        tables.append(rows.assign(**_scored({"reward": model} | said.get("judges", {}), model)))
    for file, rows, said in readable(sorted(paths.RUNS.glob("*/results/*.csv"))):
        arms = np.where(rows["method"].str.startswith("reinforce"), "reinforce", "warp")
        source, scorers = f"your run {file.parent.parent.name}", said.get("scorers", {})
        tables.append(
            rows.assign(
                arm=arms,
                point=range(len(rows)),
                source=source,
                file=str(file),
                **_scored(scorers, source),
            )
        )
    if not tables:
        raise ValueError(
            "there is nothing to explore: data/study is empty, and no run has results under runs/"
            " yet."
        )
    points = pd.concat(tables, ignore_index=True)
    kinds = points["method"].map(lambda method: KINDS.get(method, method))
    return points.assign(series=points["source"] + " · " + points["arm"] + " · " + kinds)


def _scored(scorers: dict[str, str], otherwise: str) -> dict[str, str]:
    return {f"{score}_by": scorers.get(score, otherwise) for score in SCORES}


@dataclass(frozen=True)
class Selection:
    """Which points are shown. An empty choice of iterations, runs or seeds takes all; so does a
    point that has no such number, or no η.
    """

    series: tuple[str, ...]
    iterations: tuple[int, ...] = ()
    runs: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    eta: tuple[float, float] = (0.0, 1.0)

    def of(self, points: pd.DataFrame) -> pd.DataFrame:
        """The points chosen, in their order and with their index."""
        chosen = points["series"].isin(self.series) & (points["method"] != "sft")
        for column, allowed in (
            ("iteration", self.iterations),
            ("runs", self.runs),
            ("seed", self.seeds),
        ):
            if allowed:
                chosen &= points[column].isin(allowed) | points[column].isna()
        low, high = self.eta
        return points[
            chosen & (points["eta"].between(low - 1e-9, high + 1e-9) | points["eta"].isna())
        ]


def by_pipeline(rows: pd.DataFrame, score: str) -> dict[tuple[int, str], pd.DataFrame]:
    """Seed and what gave the score → their points that have one. A seed is a whole pipeline, so its
    points alone make a front; scores that different models gave are not on one axis."""
    return {
        (int(seed), by): own
        for (seed, by), own in rows.dropna(subset=[score]).groupby(["seed", f"{score}_by"])
    }


def hypervolumes(rows: pd.DataFrame, score: str) -> dict[tuple[int, str], float]:
    """Seed and what gave the score → the hypervolume of their points."""
    return {
        pipeline: hypervolume(own["kl"].to_list(), own[score].to_list(), CORNER)
        for pipeline, own in by_pipeline(rows, score).items()
    }


def comparison(a: pd.DataFrame, b: pd.DataFrame, score: str) -> dict[str, Interval]:
    """Hypervolume of each selection that has points, over its fronts; and of A − B, paired over the
    fronts of one seed that one model scored."""
    volumes = {"A": hypervolumes(a, score), "B": hypervolumes(b, score)}
    found = {name: Interval.of(list(fronts.values())) for name, fronts in volumes.items() if fronts}
    if both := sorted(volumes["A"].keys() & volumes["B"].keys()):
        found["A − B"] = Interval.of([volumes["A"][pair] - volumes["B"][pair] for pair in both])
    return found


def completions(points: pd.DataFrame, index: int) -> list[dict[str, Any]]:
    """What a point writes on the prompts whose completions were kept, beside SFT's completion of
    the same prompt.

    Returns a row for each: prompt, sft, completion, and the prompt's mean r̃ at SFT (sft_reward)
    and at the point (reward). Empty for a run older than the record of its completions.
    """
    point = points.loc[index]
    file = Path(point["file"])
    if not file.with_suffix(".json").exists():
        return []
    shown: dict[int, list[dict]] = {}
    for one in json.loads(file.with_suffix(".json").read_text())["completions"]:
        shown.setdefault(one["point"], []).append(one)
    if file.is_relative_to(outcomes.FOLDER):
        scores = outcomes.outcome(file.parent.name, point["arm"], int(point["seed"])).scores[
            "test.reward"
        ]
        for place, some in shown.items():
            for k, one in enumerate(some):  # in the order of the prompts
                one |= {"reward": float(scores[place, k]), "prompt": study_prompts()[one["review"]]}
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
    """A test review's row in the source → the study's prompt from it, made anew from the reviews
    that pip brought (a second or two).
    """
    from tokenizers import Tokenizer

    from ..reviews import load_reviews

    tokenizer, test = (
        Tokenizer.from_file(str(paths.ROOT / "data" / "policy" / "tokenizer.json")),
        load_reviews().test,
    )

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return {
        test["review"][place]: tokenizer.decode(ids)
        for place, ids in prompts(test["text"][:], tokenize, "test").items()
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
    parts = [
        form.format(point[name]) for name, form in words.items() if not pd.isna(point.get(name))
    ]
    place = f"{point['series']}, seed {point['seed']}, {', '.join(parts)}"
    return (
        f"{place}: KL {point['kl']:.2f} nats, r̃ {point['reward']:.2f} ±"
        f" {2 * point['reward_se']:.2f}"
    )


def positive_band(point: pd.Series) -> dict[str, float] | None:
    """Where real positive reviews lie on the reward axis of a point: mean and p99, in r̃. None for
    a run that never looked.
    """
    file = Path(point["file"])
    if file.is_relative_to(outcomes.FOLDER):
        return json.loads(file.with_suffix(".json").read_text())["real_positive"]
    name = file.parent.parent.name
    try:
        return real_positive(name) if (paths.RUNS / name / "real_positive.json").exists() else None
    except Explained as error:
        say_once(f"{error} It is passed over.")
        return None
