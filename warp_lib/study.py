"""The study: experiments as a list, run unit by unit. A unit that ended is kept in data/study/ and never run again.

An experiment compares arms, each a way to train with its settings; a unit is one seed of one arm. Every arm's checkpoints are evaluated on
validation prompts, which choose (trials, points of a front), and on test prompts, which count.
"""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import machine
from .experiment import Experiment, Point, reinforce_points, warp_points
from .merging import geometry
from .outcomes import FOLDER, TUNING_SEED, chosen_trial
from .paths import ROOT, write_whole
from .progress import Progress
from .reinforce import Aligner
from .results import COLUMNS
from .settings import Settings
from .store import save_tensors, write_json
from .warp import warp

SHOWN, SHOWN_OF_FIRST = 4, 20  # prompts whose completions are kept, and of seed 0

# All arms: the student report's T, a second judge, a front in steps of 0.1.
COMMON = {"steps": 100, "judge_steps": 240, "front_points": 11}

Train = Callable[[Experiment, Aligner], tuple[Iterator[Point], dict[str, Any]]]
"""Trains an arm: its checkpoints to evaluate, and what else goes into its record."""


def by_warp(experiment: Experiment, align: Aligner) -> tuple[Iterator[Point], dict[str, Any]]:
    """WARP, with the angles between each iteration's runs."""
    s = experiment.settings
    iterations = list(
        warp(experiment.theta_sft, align, iterations=s.iterations, runs=s.runs, eta=s.eta, merge=experiment.merge, seed=s.seed)
    )
    angles = [{"iteration": i.number} | row for i in iterations for row in geometry(i.init, [run.weights for run in i.runs])]
    return warp_points(experiment.theta_sft, iterations, s), {"geometry": angles}


def by_reinforce(experiment: Experiment, align: Aligner) -> tuple[Iterator[Point], dict[str, Any]]:
    """REINFORCE with as many completions as WARP samples, whatever its batch, kept at every quarter of its way."""
    s = experiment.settings
    steps = s.iterations * s.runs * s.steps * Settings.profile(**COMMON).batch_size // s.batch_size
    run = align(experiment.theta_sft, (s.seed, "reinforce"), steps=steps, keep_every=max(1, steps // 4))
    return reinforce_points(experiment.theta_sft, run, s), {}


@dataclass(frozen=True)
class Arm:
    """A way to train and the settings that it changes."""

    train: Train
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """One seed of one arm of one experiment: what is run, kept and committed as a whole."""

    experiment: str
    arm: str
    train: Train
    settings: Settings

    @property
    def file(self) -> Path:
        """Its record, written last; its rows (.csv) and its scores for each prompt (.safetensors) lie beside it."""
        return FOLDER / self.experiment / f"{self.arm}-{self.settings.seed}.json"

    @property
    def finished(self) -> bool:
        return self.file.exists()

    @property
    def title(self) -> str:
        return f"{self.experiment}: {self.arm}, seed {self.settings.seed}"


# ------------------------------------------------------------------------------------------------------------ the experiments

# The three that the primary contrast compares, of equal compute: 400 steps of batch 64.
PRIMARY = {"warp": Arm(by_warp), "reinforce": Arm(by_reinforce), "reinforce-2b": Arm(by_reinforce, {"batch_size": 128})}
# The same trials for each of them.
TRIALS = {"a": {"learning_rate": 1e-5, "beta": 0.3}, "b": {"learning_rate": 3e-5, "beta": 1.0}}


def tuning() -> list[Unit]:
    """Learning rate and β: the same trials for each arm of the primary contrast, on one seed, judged on validation prompts."""
    return [
        _unit("tuning", f"{name}-{trial}", arm, TUNING_SEED, TRIALS[trial] | {"held_out": "validation"})
        for trial in TRIALS
        for name, arm in PRIMARY.items()
    ]


def primary() -> list[Unit]:
    """WARP against the better of two rivals of equal compute, each at the settings that tuning chose for it.

    Raises ValueError before all trials have ended.
    """
    if left := [unit.title for unit in tuning() if not unit.finished]:
        raise ValueError(f"primary has no settings before all trials have ended: run `python -m warp_lib study tuning` ({left[0]}).")
    return [_unit("primary", name, arm, seed, TRIALS[chosen_trial(name)]) for seed in range(8) for name, arm in PRIMARY.items()]


EXPERIMENTS: dict[str, Callable[[], list[Unit]]] = {"tuning": tuning, "primary": primary}


def _unit(experiment: str, name: str, arm: Arm, seed: int, given: dict[str, Any]) -> Unit:
    return Unit(experiment, name, arm.train, Settings.profile(**COMMON | arm.changes | given, seed=seed, name="study"))


# ------------------------------------------------------------------------------------------------------------ running them


def run(names: list[str], progress: Progress) -> None:
    """Run the units of the experiments `names` that have not ended yet, in order. Raises ValueError for an unknown experiment."""
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(f"there is no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}.")
    for name in names:
        units = EXPERIMENTS[name]()
        for number, unit in enumerate(units, 1):
            if not unit.finished:
                print(f"[{number}/{len(units)}] {unit.title}", flush=True)
                run_unit(unit, progress)


def run_unit(unit: Unit, progress: Progress) -> None:
    """Train an arm on one seed, evaluate its checkpoints and keep what came out. Its trained weights stay in the store of runs."""
    began, s = time.perf_counter(), unit.settings
    experiment = Experiment(s)
    rewards = experiment.rewards(progress)
    points, record = unit.train(experiment, experiment.aligner(rewards["reward"], progress))
    splits = ("validation",) if s.held_out == "validation" else ("validation", "test")
    rows, scores, shown = [], {}, []
    for point in progress.track(list(points), "evaluation"):
        place = {k: v for k, v in vars(point).items() if k != "theta"} | {"seed": s.seed, "completions": point.steps * s.batch_size}
        for split in splits:
            prompts = experiment.held_out_prompts(split)
            seen = experiment.evaluate(point.theta, rewards, list(prompts.values()))
            rows.append({"arm": unit.arm, "split": split} | place | seen.summary)
            for score, values in seen.scores.items():
                scores.setdefault(f"{split}.{score}", []).append(values.mean(1))
        texts = experiment.policy.tokenizer.batch_decode(seen.rollouts.completions)
        for k, review in list(enumerate(prompts))[: SHOWN if s.seed else SHOWN_OF_FIRST]:
            one = k * s.test_samples
            shown.append({"point": len(rows) // len(splits) - 1, "split": split, "review": review, "completion": texts[one]})
    unit.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(unit.file.with_suffix(".csv"), pd.DataFrame(rows).reindex(columns=["arm", "split", *COLUMNS]).to_csv(index=False))
    save_tensors(unit.file.with_suffix(".safetensors"), {name: torch.stack(values).float() for name, values in scores.items()})
    record |= {
        "settings": s.asdict(), "real_positive": experiment.real_positive(rewards["reward"]), "completions": shown,
        "seconds": time.perf_counter() - began, "date": date.today().isoformat(), "commit": _commit(), "machine": _machine(),
        "command": shlex.join(["python", "-m", "warp_lib", *sys.argv[1:]]),
    }  # fmt: skip
    write_json(unit.file, record)


def _commit() -> str:
    """The repository's commit, with a + where files were changed since; "unknown" outside a repository."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, cwd=ROOT, check=False)
    return said.stdout.strip() or "unknown"


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(), "processor": platform.machine(), "device": machine.device_name(), "dtype": str(machine.fast_dtype()),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
