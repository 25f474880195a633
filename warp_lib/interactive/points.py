"""Every evaluated point of the study and of one's own runs: named, chosen, read. No torch."""

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..prompts import prompts
from ..report.answers import pm
from ..report.look import ARMS
from ..report.tables import settings_of
from ..runs import paths
from ..runs.errors import Explained, say_once
from ..runs.results import readable, real_positive
from ..study import outcomes

OWN = "your run "  # how the source of an own run's points begins
KINDS = {
    "run": "single runs",
    "slerp": "SLERP of the runs",
    "lerp": "LERP of the runs",
    "liti": "start of the next iteration",
    "warp": "front over η",
    "reinforce": "along training",
    "reinforce-liti": "LITI line",
    "dpo": "along training",
    "dpo-liti": "LITI line",
    "best-of-n": "best of n",
    "slerp-without-order": "line through SLERP without order",
    "checkpoints": "LITI line of the mean of checkpoints",
    "from-sft": "from SFT through the last merge",
    "from-init": "from the last start through its merge",
} | {method: f"line through SLERP, {words}" for method, words in outcomes.MERGES.items()}


def all_points() -> pd.DataFrame:
    """Every evaluated point of the study on test prompts and of the runs under runs/, a row each.

    Beside the columns of `results.COLUMNS`: file, the table it stands in; point, its place there;
    name, what it is one of many of, in plain words; address, by which a link finds it again.
    """
    tables = []
    for file, rows, _ in readable(unit.with_suffix(".csv") for unit in _units()):
        rows = rows.query("split == 'test'").reset_index(drop=True)
        if len(rows):  # some units measure weights only
            tables.append(_placed(rows, file, file.parent.name))
    for file, rows, _ in readable(sorted(paths.RUNS.glob("*/results/*.csv"))):
        rows["arm"] = np.where(rows["method"].str.startswith("reinforce"), "reinforce", "warp")
        tables.append(_placed(rows, file, OWN + file.parent.parent.name))
    if not tables:
        raise Explained(
            "there is nothing to explore: data/study is empty, and no run has results under runs/"
            " yet."
        )
    points = pd.concat(tables, ignore_index=True)
    of = zip(points["source"], points["arm"], points["method"], strict=True)
    return points.assign(name=[f"{_name(*who)} · {KINDS.get(what, what)}" for *who, what in of])


def _units() -> list[Path]:
    """The records of the study's units."""
    # a unit's record is named ARM-SEED, other than what tuning decided
    return sorted(outcomes.FOLDER.glob("*/*-[0-9]*.json"))


def _placed(rows: pd.DataFrame, file: Path, source: str) -> pd.DataFrame:
    """Rows with where they stand."""
    places = [f"{source}/{file.stem}/{point}" for point in range(len(rows))]
    return rows.assign(source=source, file=str(file), point=range(len(rows)), address=places)


@cache
def _name(source: str, arm: str) -> str:
    """An arm in plain words, with its experiment or run where it is not one of the main ones."""
    if source == "best-of-n":
        return "Best-of-n from SFT"
    words = ARMS.get(arm) or re.sub(r"-m(\d+)$", r", M = \1", arm)
    for short in ("warp", "reinforce", "dpo"):
        words = words.replace(short, short.upper())
    if source.startswith(OWN):  # whose batch is its own
        return f"{words.split(',')[0]} ({source})"
    if source in ("primary", "dpo"):
        return words
    asked = outcomes.ASKED.get(source, (source, 0))[0]
    return f"{words} ({asked})"


def choose(
    points: pd.DataFrame, names: Iterable[str], eta: tuple[float, float], **numbers: int | str
) -> pd.DataFrame:
    """The points of these names, in their order and with their index.

    numbers: column → its number, or "" for all. A point that has no such number, or no η, is in
    whatever is chosen.
    """
    taken = points["name"].isin(list(names))
    for column, number in numbers.items():
        if number != "":
            taken &= (points[column] == number) | points[column].isna()
    return points[
        taken & (points["eta"].between(eta[0] - 1e-9, eta[1] + 1e-9) | points["eta"].isna())
    ]


def completions(points: pd.DataFrame, index: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What SFT and a point write on the prompts whose completions were kept: of each, prompt,
    completion and the prompt's mean r̃ (reward). Empty where no completions were kept.
    """
    point = points.loc[index]
    file = Path(point["file"])
    if not file.with_suffix(".json").exists():
        return []
    shown: dict[int, list[dict]] = {}
    for row in json.loads(file.with_suffix(".json").read_text())["completions"]:
        shown.setdefault(row["point"], []).append(row)
    if not shown:  # some units keep none
        return []
    if file.is_relative_to(outcomes.FOLDER):
        unit = outcomes.outcome(file.parent.name, point["arm"], int(point["seed"]))
        for number, rows in shown.items():
            # in the order of the prompts
            for row, reward in zip(rows, unit.scores["test.reward"][number].tolist(), strict=False):
                row |= {"reward": reward, "prompt": study_prompts()[row["review"]]}
    # only SFT's own KL is exactly 0
    sft = points.loc[(points["file"] == point["file"]) & (points["kl"] == 0), "point"].iloc[0]
    return list(zip(shown[sft], shown[point["point"]], strict=True))


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
        "n": "n = {:.0f}",
        "iteration": "I = {:.0f}",
        "runs": "M = {:.0f}",
        "run": "run {:.0f}",
        "eta": "η = {:.2f}",
        "steps": "{:,.0f} steps",
    }
    return (
        f"{point['name']}, seed {point['seed']}, {settings_of(point, words)}:"
        f" KL {point['kl']:.2f} nats, r̃ {pm(point, 'reward')}"
    )


def positive_band(point: pd.Series) -> dict[str, float] | None:
    """Where real positive reviews lie on a point's reward axis: mean and p99, in r̃.

    None for a run that never looked.
    """
    file = Path(point["file"])
    if file.is_relative_to(outcomes.FOLDER):
        return json.loads(file.with_suffix(".json").read_text())["real_positive"]
    run = file.parent.parent
    try:
        return real_positive(run) if (run / "real_positive.json").exists() else None
    except Explained as error:
        say_once(f"{error} It is passed over.")
        return None
