"""Runs of other sizes, kept in the repository: what notebooks 3 and 4 measured of each, on which
machine, and its figures.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..runs import paths
from ..runs.errors import Explained
from ..runs.results import MACHINE, read_results, read_scores, read_table, real_positive
from ..settings import Settings
from ..study.fronts import Effect, Interval, Matched, OnPrompts, matched, over_kl, straight
from ..study.outcomes import LOW

FOLDER = paths.ROOT / "data" / "scale"
ONE_RUN = ("name", "seed")  # settings that tell runs apart that are looked at together
COPIED = (".csv", ".json", ".safetensors", ".svg")
PARTS = ("*.*", "results/*.*", "figures/pareto.svg", "figures/liti.svg", "figures/judge.svg")


@dataclass(frozen=True, eq=False)
class Kept:
    """A run that is kept.

    Attributes:
        results, scores, band: see `read_results`, `read_scores` and `real_positive`.
        machine: where its report was made, and in how many seconds.
        completions: of its first test prompts, with the method, η and steps that wrote them.
    """

    results: pd.DataFrame
    scores: dict[str, np.ndarray]
    band: dict[str, float]
    settings: dict[str, Any]
    machine: dict[str, Any]
    completions: pd.DataFrame

    def line(self, method: str) -> OnPrompts:
        """A method's points, SFT the first."""
        return straight(self.results, self.scores, method)

    def over_line(self) -> tuple[np.ndarray, tuple[float, float]]:
        """WARP's LITI line less REINFORCE's: mean r̃ over KL on each test prompt, (prompts,), and
        from where to where, nats.
        """
        return over_kl(self.line("warp"), self.line("reinforce-liti"), LOW)

    def over_path(self) -> Matched:
        """WARP less REINFORCE's path through its checkpoints, at the largest KL that both reach."""
        return matched(self.line("warp"), self.line("reinforce"))

    def samples(self, prompts: int) -> list[dict[str, str | float]]:
        """For reading: what SFT and each method's last policy wrote to the first test prompts."""
        names = {"sft": "SFT", "warp": "WARP", "reinforce": "REINFORCE"}
        ends = self.completions.groupby(["prompt", "method"], sort=False).last()
        return [
            {
                "policy": name,
                "prompt": prompt,
                "completion": ends.completion[prompt, method],
                "reward r̃": float(ends.reward[prompt, method]),
            }
            for prompt in ends.xs("sft", level="method").index[:prompts]
            for method, name in names.items()
        ]

    @property
    def larger(self) -> bool:
        """Whether its policy is other than the bundled one, which is the smallest."""
        return self.settings["policy"] != Settings().policy

    @property
    def size(self) -> str:
        """Its policy, and how much it trained, in words."""
        s = self.settings
        many = f"I = {s['iterations']}, M = {s['runs']}, T = {s['steps']}"
        return f"{s['policy']} ({many}, batch {s['batch_size']})"

    @property
    def made_on(self) -> str:
        """Its machine, and how long the report took there."""
        m = self.machine
        threads = f"{m['threads']} thread{'s' * (m['threads'] > 1)}"
        where = threads if m["device"] == "cpu" else m["device"]
        return f"{where}, {m['dtype'].removeprefix('torch.')}; {m['seconds'] / 3600:.1f} h"


def keep(name: str) -> Path:
    """Copy what was measured in ``runs/<name>`` into ``data/scale/<name>``, which it replaces, and
    return that folder.

    Raises Explained, and copies nothing, where a notebook has not run or left something damaged.
    """
    run, kept = paths.RUNS / name, FOLDER / name
    _read(run)
    part = kept.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for file in (file for pattern in PARTS for file in run.glob(pattern)):
        if file.suffix in COPIED:
            copy = part / file.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    shutil.rmtree(kept, ignore_errors=True)
    part.rename(kept)
    return kept


def kept() -> list[Kept]:
    """All runs that are kept, by name. Raises Explained for one that is damaged."""
    return [_read(folder) for folder in sorted(FOLDER.glob("*/")) if folder.suffix != ".part"]


def _read(run: Path) -> Kept:
    results, scores, band = read_results(run), read_scores(run), real_positive(run)
    if len(results) != len(scores["kl"]):
        raise Explained(f"{run.name}: a table of results is damaged; run its notebook again.")
    settings, machine = _json(run / "settings.json"), _json(run / MACHINE)
    shown = []
    for table in sorted((run / "results").glob("*.csv")):
        rows, record = read_table(table)
        places = rows[["method", "eta", "steps"]].reset_index(names="point")
        if not record.get("completions"):
            raise Explained(f"{run.name}: {table.stem} left no completions; run it again.")
        shown.append(pd.DataFrame(record["completions"]).merge(places, on="point"))
    return Kept(results, scores, band, settings, machine, pd.concat(shown, ignore_index=True))


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        raise Explained(
            f"{file} is missing or damaged: run this run's report to its end first."
        ) from None


def together(runs: list[Kept]) -> dict[str, tuple[Effect, Effect]]:
    """Policy and size → WARP less REINFORCE's LITI line (`Kept.over_line`) and less its path
    (`Kept.over_path`), over the seeds of runs that differ in nothing else.

    Raises Explained where two kinds of runs would have one name.
    """
    groups: dict[str, list[Kept]] = {}
    for run in runs:
        alike = json.dumps({k: v for k, v in run.settings.items() if k not in ONE_RUN})
        groups.setdefault(alike, []).append(run)
    if len({of[0].size for of in groups.values()}) < len(groups):
        raise Explained(
            f"runs in {FOLDER} of one policy and size differ in other settings; keep one kind."
        )
    return {
        of[0].size: (
            Effect({run.settings["seed"]: run.over_line()[0] for run in of}),
            Effect({run.settings["seed"]: run.over_path().by_prompt for run in of}),
        )
        for of in groups.values()
    }


def rows(runs: list[Kept]) -> list[dict[str, str]]:
    """For reading: what was run, on what, and WARP less REINFORCE's LITI line and its path."""
    table = []
    for run in runs:
        (line, (low, high)), path = run.over_line(), run.over_path()
        table.append(
            {
                "policy": run.size,
                "seed": str(run.settings["seed"]),
                "test prompts": str(len(line)),
                "− LITI line": f"{Interval.of(line)}, {low:g} to {high:.1f} nats",
                "− path": f"{path.difference}, at {path.kl:.1f} nats",
                "made on": run.made_on,
            }
        )
    return table
