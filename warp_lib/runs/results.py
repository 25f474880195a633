"""The results table: a row for each evaluated checkpoint. Reading it needs no torch."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .errors import Explained, Unwritable, reason, say_once
from .paths import folder, write_whole

# What the tables hold. method: sft; run (one of an iteration's M), slerp or lerp (their merge),
# liti (where the next iteration begins), warp (the final front: η from SFT to the last merge);
# reinforce (along the baseline's way), reinforce-liti (its LITI line). In the study also dpo
# and dpo-liti, and for lines through other merges lerp and slerp-layer, slerp-tensor, slerp-model.
COLUMNS = {
    "method": "what was evaluated",
    "seed": "seed of what training draws",
    "iteration": "WARP iteration, from 1",
    "runs": "M",
    "run": "m, for a single run",
    "eta": "η of the interpolation that made it",
    "steps": "optimiser steps spent to get there",
    "reward": "mean r̃, standard deviations of SFT's reward",
    "reward_se": "its standard error, clustered by prompt",
    "kl": "KL(π‖π_sft) per completion, nats",
    "kl_se": "",
    "judge": "full-encoder judge on the labels' other half, like r̃ (empty without judge_steps)",
    "judge_se": "",
    "judge_tfidf": "TF-IDF judge, standardised like r̃",
    "judge_tfidf_se": "",
    "entropy": "of the policy, nats per token",
    "entropy_se": "",
    "distinct2": "distinct pairs of tokens within a prompt's completions",
    "distinct2_se": "",
    "perplexity": "of SFT on the completions",
    "perplexity_se": "",
    "completions": "sampled and scored to get there (empty for DPO, which samples before training)",
    "seconds": "training time to get there, runs one after the other, pauses left out",
}

MACHINE = "machine.json"  # in a run's folder: where its report was made, and in how many seconds


def write_results(
    name: str,
    part: str,
    rows: list[dict],
    scores: Mapping[str, np.ndarray],
    completions: list[dict],
    scorers: dict[str, str],
) -> pd.DataFrame:
    """Write one notebook's rows, and ``runs/<name>/results.csv`` anew from all parts.

    Returns the rows as a table.

    scores: reward, kl and what else was measured → its mean over each prompt's completions, (rows,
    prompts). They are what `matched` reads.

    For the explorer: completions of some prompts, each with point (place of its row), prompt,
    completion, reward (the prompt's mean r̃); scorers: the reward's and each judge's name → its
    digest.
    """
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    parts = folder(name) / "results"
    parts.mkdir(exist_ok=True)
    text = table.to_csv(index=False)
    scored, unfinished = parts / f"{part}.safetensors", parts / f"{part}.safetensors.tmp"
    with FileLock(parts / "together.lock"):  # notebooks may be run side by side
        try:
            save_file(dict(scores), unfinished)
        except SafetensorError as error:  # how it reports a full disk
            raise Unwritable(f"{scored} cannot be written: {error}.") from error
        unfinished.replace(scored)
        record = {"scorers": scorers, "completions": completions, "table": _digest(text)}
        write_whole(parts / f"{part}.json", json.dumps(record))
        write_whole(parts / f"{part}.csv", text)
        together = pd.concat([rows for _, rows, _ in readable(sorted(parts.glob("*.csv")))])
        write_whole(folder(name) / "results.csv", together.to_csv(index=False))
    return table


def readable(tables: Iterable[Path]) -> Iterator[tuple[Path, pd.DataFrame, dict[str, Any]]]:
    """Tables of results that are whole: file, rows, and what the JSON file beside it holds.

    A damaged one is passed over and named once.
    """
    for file in tables:
        try:
            yield file, *read_table(file)
        except Explained as error:
            say_once(f"{error} It is passed over.")


def read_table(file: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table of results, and what the JSON file beside it holds ({} if there is none).

    Raises Explained if either is damaged.
    """
    try:
        text, beside = file.read_text(encoding="utf-8"), file.with_suffix(".json")
        record = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        rows = pd.read_csv(io.StringIO(text))
        same = isinstance(record, dict) and record.get("table") in (None, _digest(text))
        if (
            not same
            or not text.endswith("\n")
            or not {"method", "kl", "reward"} <= set(rows.columns)
        ):
            raise ValueError("it is not what was written")
        for column in ("kl", "reward"):
            pd.to_numeric(rows[column])
        return rows, record
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is not what was written"
        raise Explained(f"{file} cannot be read, or the JSON file beside it: {why}.") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_results(run: Path) -> pd.DataFrame:
    """The table of the run in a folder. Raises ValueError where a notebook of it has not run."""
    file, parts = run / "results.csv", ("03_warp", "04_reinforce_baseline")
    if missing := [n for n in parts if not (run / "results" / f"{n}.csv").exists()]:
        raise Explained(
            f"name={run.name!r} has no results of {' and '.join(missing)} yet: run these notebooks"
            " (or `make report`) first."
        )
    try:
        return read_table(file)[0]
    except Explained as error:
        raise Explained(
            f"{error} Run 03_warp and 04_reinforce_baseline again: what is stored is not trained"
            " again."
        ) from None


def read_scores(run: Path) -> dict[str, np.ndarray]:
    """What `fronts.matched` compares: reward and kl of each test prompt, (rows, prompts).

    The rows are those of `read_results`. Raises Explained when a notebook ran before these were
    kept beside its table, on other test prompts than the other one, or when they are damaged.
    """
    # those whose rows are in the table
    rows = {
        file: len(of_file) for file, of_file, _ in readable(sorted((run / "results").glob("*.csv")))
    }
    tables = list(rows)
    if old := [table.stem for table in tables if not table.with_suffix(".safetensors").exists()]:
        why = "was made before rewards were kept prompt by prompt, which comparing methods needs"
        raise Explained(f"name={run.name!r} {why}: run {' and '.join(old)} again.")
    parts = []
    for file in (table.with_suffix(".safetensors") for table in tables):
        try:
            parts.append(load_file(file))
        except SafetensorError as error:
            raise Explained(f"{file} is damaged: run {file.stem} again.") from error
        if len(parts[-1]["reward"]) != rows[file.with_suffix(".csv")]:  # ended in between
            raise Explained(f"{file} is not of the table beside it: run {file.stem} again.")
    if len({part["reward"].shape[1] for part in parts}) > 1:
        again = " and ".join(table.stem for table in tables)
        raise Explained(
            f"name={run.name!r} has results on different numbers of test prompts: run {again}"
            " again."
        )
    return {
        score: np.concatenate([part[score] for part in parts]).astype(float)
        for score in ("reward", "kl")
    }


def real_positive(run: Path) -> dict[str, float]:
    """Mean and p99 of real positive reviews, r̃, as `Experiment.real_positive` wrote them."""
    file = run / "real_positive.json"
    try:
        return {key: float(value) for key, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is not what was written"
        raise Explained(f"{file} cannot be read: {why}. Run 03_warp again.") from error
