"""Runs of other sizes, kept in the repository: what notebooks 3 and 4 measured of each, on which
machine, and its figures.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..runs import paths
from ..runs.errors import Explained
from ..runs.results import read_results, read_scores, read_table, real_positive
from ..study.fronts import Interval, over_kl
from ..study.outcomes import LOW
from .run import MACHINE

FOLDER = paths.ROOT / "data" / "scale"
FIGURES = ("pareto.svg", "liti.svg", "judge.svg")
SETTINGS, BAND = "settings.json", "real_positive.json"


def keep(name: str) -> Path:
    """Copy what was measured in ``runs/<name>`` into ``data/scale/<name>``, which it replaces, and
    return that folder.

    Raises Explained, and copies nothing, where a notebook has not run or left something damaged.
    """
    run, kept = paths.RUNS / name, FOLDER / name
    for read in (read_results, read_scores, real_positive):  # whole, or refused
        read(run)
    files = [run / file for file in ("results.csv", SETTINGS, BAND, MACHINE)]
    files += [run / "figures" / figure for figure in FIGURES]
    if missing := [file.name for file in files if not file.exists()]:
        raise Explained(
            f"runs/{name} has no {missing[0]}: run `python -m warp_lib report --name {name}` to its"
            " end first."
        )
    files += [file for file in (run / "results").iterdir() if file.suffix != ".lock"]
    part = kept.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for file in files:
        copy = part / file.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    shutil.rmtree(kept, ignore_errors=True)
    part.rename(kept)
    return kept


@dataclass(frozen=True, eq=False)
class Kept:
    """A run that is kept: its table; score → each row's on each test prompt, (rows, prompts); where
    real positive openings lie; its settings; the machine and the seconds that its report took.
    """

    results: pd.DataFrame
    scores: dict[str, np.ndarray]
    band: dict[str, float]
    settings: dict[str, Any]
    machine: dict[str, Any]
    completions: pd.DataFrame

    def over(self, rival: str) -> tuple[Interval, tuple[float, float]]:
        """WARP less a rival, mean r̃ over KL (see `fronts.over_kl`)."""
        return over_kl(self.results, self.scores, "warp", rival, LOW)

    def samples(self, prompts: int) -> list[dict[str, str | float]]:
        """For reading: what SFT and each method's last policy wrote to the first test prompts."""
        last = {"sft": "SFT", "warp": "WARP", "reinforce": "REINFORCE"}
        ends = [
            self.completions.query("method == @method").groupby("prompt", sort=False).last()
            for method in last
        ]
        return [
            {
                "policy": f"{self.title}: {name}",
                "prompt": prompt,
                "completion": of.completion[prompt],
                "reward r̃": float(of.reward[prompt]),
            }
            for prompt in ends[0].index[:prompts]
            for name, of in zip(last.values(), ends, strict=True)
        ]

    @property
    def title(self) -> str:
        """Its policy and seed."""
        return f"{self.settings['policy']}, seed {self.settings['seed']}"

    @property
    def made_on(self) -> str:
        """Its machine, and how long the report took there."""
        m = self.machine
        where = f"{m['threads']} threads" if m["device"] == "cpu" else m["device"]
        return f"{where}, {m['dtype'].removeprefix('torch.')}; {m['seconds'] / 3600:.1f} h"


def kept() -> list[Kept]:
    """All runs that are kept, by name. Raises Explained for one that is damaged."""
    return [_read(folder) for folder in sorted(FOLDER.glob("*/")) if folder.suffix != ".part"]


def _read(run: Path) -> Kept:
    settings, machine = (json.loads((run / file).read_text()) for file in (SETTINGS, MACHINE))
    shown = []
    for table in sorted((run / "results").glob("*.csv")):
        rows, record = read_table(table)
        places = rows[["method", "eta", "steps"]].reset_index(names="point")
        shown.append(pd.DataFrame(record["completions"]).merge(places, on="point"))
    return Kept(
        read_results(run),
        read_scores(run),
        real_positive(run),
        settings,
        machine,
        pd.concat(shown, ignore_index=True),
    )


def rows(runs: list[Kept]) -> list[dict[str, str]]:
    """For reading: what was run, and WARP less REINFORCE over its test prompts."""
    table = []
    for run in runs:
        prompts = str(run.scores["kl"].shape[1])
        row = {"policy": run.title, "size": size(run.settings), "test prompts": prompts}
        for rival, words in (("reinforce", "REINFORCE"), ("reinforce-liti", "its LITI line")):
            difference, (low, high) = run.over(rival)
            row[f"WARP − {words}"] = f"{difference}, {low:g} to {high:.1f} nats"
        table.append(row | {"made on": run.made_on})
    return table


def size(s: Mapping[str, Any]) -> str:
    """How much settings train, in words."""
    return f"I = {s['iterations']}, M = {s['runs']}, T = {s['steps']}, batch {s['batch_size']}"
