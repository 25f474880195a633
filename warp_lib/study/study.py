"""The study: experiments as a list, run unit by unit. A unit that ended is kept in data/study/ and
never run again.

An experiment compares arms, each a way to train with its settings; a unit is one seed of one arm.
Every arm's checkpoints are evaluated on validation prompts, which choose (trials, points of a
front), and on test prompts, which count.
"""

import json
import math
import platform
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..dpo import MakePairs, Pairs, for_all_runs
from ..evaluate import kl_of_pass
from ..experiment import Experiment, Point, reinforce_points, warp_points
from ..fast import machine
from ..merging import Weights, geometry, interpolate, lerp, slerp, slerp_without_order
from ..reward import Reward
from ..runs.jobs import Jobs, together
from ..runs.paths import ROOT, write_whole
from ..runs.progress import Progress
from ..runs.results import COLUMNS
from ..runs.seeds import torch_stream
from ..runs.store import digest, save_tensors, write_json
from ..settings import Settings
from ..warp import Aligner, Iteration, Run, RunId
from . import kept_reward
from .best_of_n import best_of, kl_of_best
from .outcomes import EARLIER, FOLDER, SEEDS, TUNING_SEED, settle, settled

# prompts whose completions are kept, and of the first seed that a reward model had
SHOWN, SHOWN_OF_FIRST = 4, 20
LEFT_OUT = "Left out: "
BEST_OF, SAMPLED_AT_ONCE = 128, 8  # completions of a prompt that best-of-n chooses from, at most

ETAS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)  # of the lines through merges

# All arms: the student report's T, a second judge, a front in steps of 0.1.
COMMON = {"steps": 100, "judge_steps": 240, "front_points": 11}


def _commit() -> str:
    """The repository's commit, with a + where files were changed since; "unknown" outside a
    repository.
    """
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


COMMIT = _commit()  # of the code that is loaded; the files may change while it runs

Trained = tuple[Iterator[Point], dict[str, Any]]
Train = Callable[[Experiment, Reward, Progress], Trained]
"""Trains an arm: its checkpoints to evaluate, and what else goes into its record."""


def by_warp(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP as in the paper, on REINFORCE."""
    return _warp_of(experiment, experiment.aligner(reward, progress))


def by_warp_beside_one_run(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP, and the line from SFT through its very first run: that is REINFORCE of T steps."""
    iterations = experiment.warp(experiment.aligner(reward, progress))
    s, sft, run = experiment.settings, experiment.theta_sft, iterations[0].runs[0]

    def points() -> Iterator[Point]:
        yield from warp_points(sft, iterations, s)
        for eta in np.linspace(0, 1, s.front_points):
            yield Point(
                "reinforce-liti", interpolate(sft, run.weights, eta), s.steps, run.seconds, eta=eta
            )

    return points(), _angles(iterations)


def _warp_of(experiment: Experiment, align: Aligner) -> Trained:
    """WARP on an aligner, with the angles between each iteration's runs."""
    s = experiment.settings
    iterations = experiment.warp(align)
    return warp_points(experiment.theta_sft, iterations, s), _angles(iterations)


def _angles(iterations: list[Iteration]) -> dict[str, Any]:
    """The angles between each iteration's runs, for the record."""
    return {
        "geometry": [
            {"iteration": i.number} | row
            for i in iterations
            for row in geometry(i.init, [run.weights for run in i.runs])
        ]
    }


def by_reinforce(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """REINFORCE with as many completions as all of WARP's runs sample, whatever its batch."""
    return _long_run_of(experiment, experiment.aligner(reward, progress), "reinforce")


def _long_run_of(experiment: Experiment, align: Aligner, method: str) -> Trained:
    """An aligner on as many completions as all of WARP's runs see, kept as often as one of them
    ends.
    """
    run = experiment.long_run(align, method, _of_one_run(experiment.settings))
    return reinforce_points(experiment.theta_sft, run, experiment.settings, method), {}


def _of_one_run(s: Settings) -> int:
    """Steps of as many completions as one of WARP's runs sees, whatever the batch."""
    return max(1, s.steps * Settings.profile(**COMMON).batch_size // s.batch_size)


def by_warp_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP on DPO, with pairs made anew before each iteration."""
    remade, record = _noted(experiment, for_all_runs(experiment.pairs(reward, progress)))
    points, found = _warp_of(experiment, experiment.dpo_aligner(remade, progress))
    return points, found | record


def by_warp_dpo_once(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP on DPO, with the pairs of all iterations made from SFT at the start."""
    once, record = _noted(experiment, _made_once(experiment, reward, progress))
    points, found = _warp_of(experiment, experiment.dpo_aligner(once, progress))
    return points, found | record


def by_warp_dpo_own(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP on DPO where each run makes pairs of its own before each iteration, of prompts that it
    draws itself, 1/M as many as the others use: runs differ in their data."""
    s = experiment.settings
    own, record = _noted(
        experiment, experiment.pairs(reward, progress, prompts=s.pair_prompts // s.runs)
    )
    points, found = _warp_of(experiment, experiment.dpo_aligner(own, progress))
    return points, found | record


def by_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """DPO by itself, on those same pairs, with as many optimiser steps as all of WARP's runs."""
    once, record = _noted(experiment, _made_once(experiment, reward, progress))
    points, found = _long_run_of(experiment, experiment.dpo_aligner(once, progress), "dpo")
    return points, found | record


def by_iterated_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """DPO on pairs made anew as often as WARP-DPO's, and nothing averaged: M = 1 and η = 1, looked
    at as often as DPO by itself.
    """
    s = experiment.settings
    remade, record = _noted(experiment, for_all_runs(experiment.pairs(reward, progress)))
    every = Settings.profile(**COMMON).steps
    iterations = experiment.warp(
        partial(experiment.dpo_aligner(remade, progress), keep_every=every)
    )
    runs = [run for i in iterations for run in i.runs]
    along = {
        k * s.steps + t: theta for k, run in enumerate(runs) for t, theta in run.checkpoints.items()
    }
    whole = Run(
        runs[-1].weights,
        along,
        [row for run in runs for row in run.history],
        sum(run.seconds for run in runs),
    )
    return reinforce_points(experiment.theta_sft, whole, s, "dpo"), record


def _noted(experiment: Experiment, make: MakePairs) -> tuple[MakePairs, dict[str, Any]]:
    """`make`, and what it fills in for the record: from how many completions all pairs are made,
    and which ones each run got.
    """
    s = experiment.settings
    record: dict[str, Any] = {
        "pairs_from": s.iterations * s.pair_prompts * s.pair_completions,
        "pairs": [],
    }

    def noting(theta: Weights, run_id: RunId) -> Pairs:
        pairs = make(theta, run_id)
        record["pairs"].append(
            {
                "run": list(run_id.role),
                "identity": pairs.identity,
                "count": len(pairs),
                "margin": pairs.margin.mean().item(),
            }
        )
        return pairs

    return noting, record


def _made_once(experiment: Experiment, reward: Reward, progress: Progress) -> MakePairs:
    """Pairs from SFT, of as many completions as the iterations would sample."""
    s = experiment.settings
    make = experiment.pairs(reward, progress, prompts=s.iterations * s.pair_prompts)
    pairs = make(experiment.theta_sft, RunId(s.seed, "once"))
    return lambda theta, run_id: pairs


def by_merging(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """M runs from SFT, merged in every way for each M: the line from SFT through the merge and
    beyond.

    Beyond, because SLERP of two runs is LERP made longer: along LERP's line η = 1/cos(Ω/2) is SLERP
    with one angle.
    """
    s, sft, align = experiment.settings, experiment.theta_sft, experiment.aligner(reward, progress)
    runs = [align(sft, RunId(s.seed, "warp", 1, m)) for m in range(1, s.runs + 1)]
    merges = {"lerp": lerp} | {
        f"slerp-{per}": partial(slerp, per=per) for per in ("layer", "tensor", "model")
    }

    def points() -> Iterator[Point]:
        yield Point("sft", sft, 0, 0.0)
        for m in range(2, s.runs + 1):
            place = {
                "steps": m * s.steps,
                "seconds": sum(run.seconds for run in runs[:m]),
                "iteration": 1,
                "runs": m,
            }
            for name, merge in merges.items():
                yield from _line(name, sft, merge(sft, [run.weights for run in runs[:m]]), **place)

    return points(), {
        "geometry": [{"iteration": 1} | row for row in geometry(sft, [run.weights for run in runs])]
    }


def by_merging_without_order(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """The same runs, all of them merged by the paper's SLERP, one after another, and by one in
    which none comes first: lines from SFT.
    """
    s, sft, align = experiment.settings, experiment.theta_sft, experiment.aligner(reward, progress)
    runs = [align(sft, RunId(s.seed, "warp", 1, m)) for m in range(1, s.runs + 1)]
    place = {
        "steps": s.runs * s.steps,
        "seconds": sum(run.seconds for run in runs),
        "iteration": 1,
        "runs": s.runs,
    }

    def points() -> Iterator[Point]:
        yield Point("sft", sft, 0, 0.0)
        for name, merge in (("slerp-layer", slerp), ("slerp-without-order", slerp_without_order)):
            yield from _line(name, sft, merge(sft, [run.weights for run in runs]), **place)

    return points(), {}


def by_averaging_checkpoints(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """REINFORCE's one long run: lines from SFT through its end, and through the mean of its last
    two and of all checkpoints (paper, figure 13). In the table `runs` says how many are
    averaged."""
    s, sft = experiment.settings, experiment.theta_sft
    run = experiment.long_run(experiment.aligner(reward, progress), "reinforce", _of_one_run(s))
    kept = list(run.checkpoints.values())

    def points() -> Iterator[Point]:
        yield Point("sft", sft, 0, 0.0)
        for last in (1, 2, len(kept)):
            yield from _line(
                "checkpoints",
                sft,
                lerp(sft, kept[-last:]),
                steps=len(run.history),
                seconds=run.seconds,
                runs=last,
            )

    return points(), {}


def by_stepping_back(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP's last merge: the line to it from SFT, and the line to it from where its iteration began
    (paper, figure 17).
    """
    s, sft = experiment.settings, experiment.theta_sft
    iterations = experiment.warp(experiment.aligner(reward, progress))
    last = iterations[-1]
    place = {
        "steps": s.iterations * s.runs * s.steps,
        "seconds": sum(i.seconds for i in iterations),
    }
    place |= {"iteration": s.iterations, "runs": s.runs}

    def points() -> Iterator[Point]:
        for name, start in (("from-sft", sft), ("from-init", last.init)):
            yield Point(name, start, eta=0.0, **place)
            yield from _line(name, start, last.merged, **place)

    return points(), {}


def _line(method: str, start: Weights, end: Weights, **place: Any) -> Iterator[Point]:
    """The line from `start` through `end` and beyond."""
    for eta in ETAS:
        yield Point(method, interpolate(start, end, eta), eta=eta, **place)


@dataclass(frozen=True)
class Arm:
    """A way to train and the settings that it changes."""

    train: Train
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit(ABC):
    """One seed of one arm of one experiment: what is run, kept and committed as a whole."""

    experiment: str
    arm: str
    settings: Settings

    @property
    def file(self) -> Path:
        """Its record, written last; its rows (.csv) and its scores for each prompt (.safetensors)
        lie beside it.
        """
        return FOLDER / self.experiment / f"{self.arm}-{self.settings.seed}.json"

    @property
    def finished(self) -> bool:
        """Whether it has ended. Raises ValueError when what it left was made with other
        settings.
        """
        if not self.file.exists():
            return False
        recorded, now = json.loads(self.file.read_text())["settings"], self.settings.asdict()
        if odd := [name for name, value in recorded.items() if name in now and now[name] != value]:
            raise ValueError(
                f"{self.title} was run with {odd[0]}={recorded[odd[0]]}, and is now listed with"
                f" {now[odd[0]]}."
            )
        return True

    @property
    def title(self) -> str:
        return f"{self.experiment}: {self.arm}, seed {self.settings.seed}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds whose other units it is compared with."""
        return (self.settings.seed,)

    @abstractmethod
    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> "Found":
        """What the unit is run for."""


@dataclass(frozen=True)
class Found:
    """What a unit measured: rows of its table; score → for each row of a split the value of each
    prompt; completions; its record.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, list[Tensor]]
    shown: list[dict[str, Any]]
    record: dict[str, Any]


@dataclass(frozen=True)
class Training(Unit):
    """An arm trained on one seed."""

    train: Train

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Found:
        """Train, and evaluate the checkpoints on validation prompts and, but for trials, on test
        prompts.
        """
        s = self.settings
        points, record = self.train(experiment, rewards["reward"], progress)
        splits = ("validation",) if s.held_out == "validation" else ("validation", "test")
        # it counts nowhere there, and costs an encoder
        choosing = {name: reward for name, reward in rewards.items() if name != "judge"}
        rows, scores, shown = [], {}, []
        for point in progress.track(list(points), "evaluation"):
            place = {k: v for k, v in vars(point).items() if k != "theta"} | {"seed": s.seed}
            if "pairs_from" not in record:  # DPO samples before it trains
                place["completions"] = point.steps * s.batch_size
            for split in splits:
                asked = rewards if split == "test" else choosing
                seen = experiment.evaluate(point.theta, asked, split, progress=progress)
                rows.append({"arm": self.arm, "split": split} | place | seen.summary)
                for score, values in seen.scores.items():
                    scores.setdefault(f"{split}.{score}", []).append(values.mean(1))
            texts = experiment.policy.tokenizer.batch_decode(seen.rollouts.completions)
            reviews = experiment.held_out_prompts(splits[-1])
            for k, review in list(enumerate(reviews))[
                : SHOWN_OF_FIRST if s.seed in (EARLIER[0], SEEDS[0]) else SHOWN
            ]:
                one = k * s.test_samples
                shown.append(
                    {
                        "point": len(rows) // len(splits) - 1,
                        "split": split,
                        "review": review,
                        "completion": texts[one],
                    }
                )
        return Found(rows, scores, shown, record)


@dataclass(frozen=True)
class Passes(Unit):
    """An arm trained in one precision, and what its policies are in others: on test prompts, all
    points in float32, and those of its line over η in `others` too. Their `split` is "test", or
    names the pass."""

    train: Train
    others: tuple[str, ...] = ()

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Found:
        s, rows, scores = self.settings, [], {}
        points, record = self.train(experiment, rewards["reward"], progress)
        for point in progress.track(list(points), "evaluation"):
            place = {k: v for k, v in vars(point).items() if k != "theta"} | {
                "seed": s.seed,
                "completions": point.steps * s.batch_size,
            }
            place["stays"] = rounds_to(experiment.theta_sft, point.theta)
            exact = experiment.evaluate(point.theta, rewards, progress=progress)
            seen = {"test": exact}
            if point.method in ("warp", "reinforce-liti"):
                seen |= {
                    f"test in {p}": experiment.evaluate(
                        point.theta, rewards, precision=p, progress=progress
                    )
                    for p in self.others
                }
            for split, one in seen.items():
                row = {"arm": self.arm, "split": split} | place | one.summary
                if split != "test":
                    written = exact.rollouts.rows(
                        torch.arange(0, len(exact.rollouts.tokens), s.test_samples)
                    )
                    apart = kl_of_pass(
                        experiment.policy.load(point.theta),
                        written,
                        s.temperature,
                        split.removeprefix("test in "),
                    )
                    row |= {
                        "pass_kl": apart.mean().item(),
                        "pass_kl_se": apart.std().item() / math.sqrt(len(apart)),
                    }
                rows.append(row)
                for score, values in one.scores.items():
                    scores.setdefault(f"{split}.{score}", []).append(values.mean(1))
        return Found(rows, scores, [], record)


def rounds_to(base: Weights, theta: Weights) -> float:
    """The share of weights that round to the base's own in bfloat16."""
    same = sum((theta[n].bfloat16() == base[n].bfloat16()).sum().item() for n in base)
    return same / sum(t.numel() for t in base.values())


class BestOfN(Unit):
    """No training at all: of n completions of SFT the best, for n of 1, 2, 4 … up to all that are
    sampled, on test prompts.

    Its seed's other units are not paired with it: it is the yardstick of all that have its reward
    model.
    """

    @property
    def seeds(self) -> tuple[int, ...]:
        return ()

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Found:
        prompts, s = experiment.held_out_prompts("test"), self.settings
        sampled = []
        for part in progress.track(range(BEST_OF // SAMPLED_AT_ONCE), "samples"):
            # The evaluation's stream is one and the same for everything it evaluates; here every
            # part needs its own.
            y = experiment.policy.load(experiment.theta_sft).sample(
                [x for x in prompts.values() for _ in range(SAMPLED_AT_ONCE)],
                s.max_new_tokens,
                s.temperature,
                torch_stream("best of n", s.seed, part, device=machine.device()),
                progress,
            )
            texts = experiment.policy.texts(y)
            scores = {
                name: reward(texts).view(len(prompts), -1) for name, reward in rewards.items()
            }
            sampled.append((scores, experiment.policy.tokenizer.batch_decode(y.completions)))
        scores = {name: torch.cat([part[name] for part, _ in sampled], 1) for name in rewards}
        rows, kept, shown, n = [], {}, [], 1
        while n <= BEST_OF:
            row = {
                "arm": self.arm,
                "split": "test",
                "method": "best-of-n",
                "seed": s.seed,
                "n": n,
                "kl": kl_of_best(n),
                "kl_se": 0.0,
            }
            for name, values in scores.items():
                by_prompt = best_of(scores["reward"], values, n)
                row |= {
                    name: by_prompt.mean().item(),
                    f"{name}_se": by_prompt.std().item() / math.sqrt(len(by_prompt)),
                }
                kept.setdefault(f"test.{name}", []).append(by_prompt)
            kept.setdefault("test.kl", []).append(torch.full((len(prompts),), kl_of_best(n)))
            for k, review in list(enumerate(prompts))[:SHOWN_OF_FIRST]:
                best = int(scores["reward"][k, :n].argmax())
                text = sampled[best // SAMPLED_AT_ONCE][1][
                    k * SAMPLED_AT_ONCE + best % SAMPLED_AT_ONCE
                ]
                shown.append(
                    {"point": len(rows), "split": "test", "review": review, "completion": text}
                )
            rows.append(row | {"completions": n * len(prompts)})
            n *= 2
        return Found(rows, kept, shown, {})


class Angles(Unit):
    """Between the task vectors of different seeds' runs of REINFORCE from SFT, as they grow, at
    both batches: does Ω follow the gradient's signal to noise? Weights only; runs that the store
    has not are trained."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return ONE_MACHINE

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Found:
        rows, given = [], {}
        for name in ("reinforce", "reinforce-2b"):
            units = [_tuned("primary", name, PRIMARY[name], name, seed) for seed in self.seeds]
            runs = []
            for one in (experiment.under(unit.settings) for unit in units):
                runs.append(
                    one.long_run(
                        one.aligner(rewards["reward"], progress),
                        "reinforce",
                        _of_one_run(one.settings),
                    )
                )
            given[name] = units[0].settings.asdict()
            for steps in runs[0].checkpoints:
                place = {
                    "arm": name,
                    "steps": steps,
                    "completions": steps * units[0].settings.batch_size,
                }
                whole = [
                    row
                    for row in geometry(
                        experiment.theta_sft, [run.checkpoints[steps] for run in runs]
                    )
                    if row["layer"] == "model"
                ]
                rows += [
                    place | row | {"a": self.seeds[row["a"] - 1], "b": self.seeds[row["b"] - 1]}
                    for row in whole
                ]
        return Found(rows, {}, [], {"runs": given})


# ---------------------------------------------------------------------------------- the experiments

# The three that the primary contrast compares, of equal compute: 400 steps of batch 64.
PRIMARY = {
    "warp": Arm(by_warp),
    "reinforce": Arm(by_reinforce),
    "reinforce-2b": Arm(by_reinforce, {"batch_size": 128}),
}
# The same trials for each of them.
TRIALS = {"a": {"learning_rate": 1e-5, "beta": 0.3}, "b": {"learning_rate": 3e-5, "beta": 1.0}}


def tuning() -> list[Unit]:
    """Learning rate and β: the same trials for each arm of the primary contrast, on one seed,
    judged on validation prompts.
    """
    return [
        _unit(
            "tuning",
            f"{name}-{trial}",
            arm,
            TUNING_SEED,
            TRIALS[trial] | {"held_out": "validation"},
        )
        for trial in TRIALS
        for name, arm in PRIMARY.items()
    ]


def primary() -> list[Unit]:
    """WARP against the better of two rivals of equal compute."""
    return [
        _tuned("primary", name, arm, name, seed)
        for seed in EARLIER + SEEDS
        for name, arm in PRIMARY.items()
    ]


def grid() -> list[Unit]:
    """The student report's plot: I and M of 1 to 3, and REINFORCE to the largest I·M·T. An arm
    passes through its smaller I.

    The outer cells, which cost most, on two seeds: 5 and 6, so that machines of one kind can make
    them all.
    """
    inner = {f"warp-m{m}": Arm(by_warp, {"iterations": 3, "runs": m}) for m in (1, 2)}
    outer = {
        "warp-m3": Arm(by_warp, {"iterations": 3, "runs": 3}),
        "reinforce-900": Arm(by_reinforce, {"iterations": 3, "runs": 3}),
    }
    arms = [
        (name, arm, seed)
        for many, seeds in ((inner, SEEDS), (outer, SEEDS[1:3]))
        for seed in seeds
        for name, arm in many.items()
    ]
    return [_tuned("grid", name, arm, name.split("-")[0], seed) for name, arm, seed in arms]


def merges() -> list[Unit]:
    """SLERP against LERP, and against LERP made longer: M of 2 and 3, from the first runs of the
    grid.
    """
    return [
        _tuned("merges", "warp-m3", Arm(by_merging, {"runs": 3}), "warp", seed) for seed in SEEDS
    ]


# Seeds whose runs one machine made, on one thread: what only merges and measures finds them stored
# there.
ONE_MACHINE = SEEDS[2:]


def averages() -> list[Unit]:
    """What else can be averaged of the primary contrast's runs and of `merges`': nothing is trained
    where these are stored.
    """
    arms = {
        "checkpoints": (Arm(by_averaging_checkpoints), "reinforce"),
        "step-back": (Arm(by_stepping_back), "warp"),
        "without-order": (Arm(by_merging_without_order, {"runs": 3}), "warp"),
    }
    return [
        _tuned("averages", name, arm, like, seed)
        for seed in ONE_MACHINE
        for name, (arm, like) in arms.items()
    ]


def angles() -> list[Unit]:
    """Ω between REINFORCE's runs of different seeds, along their way and by their batch."""
    return [
        Angles("angles", "seeds", Settings.profile(**COMMON, name="study", seed=ONE_MACHINE[0]))
    ]


def anchors() -> list[Unit]:
    """REINFORCE with SFT as its fixed anchor (μ = 0) at β, β/3 and 0, and with an anchor ten times
    as quick.
    """
    beta = _decided("tuning", "reinforce")["beta"]
    changes = {
        "fixed": {"mu": 0.0},
        "fixed-third": {"mu": 0.0, "beta": beta / 3},
        "fixed-free": {"mu": 0.0, "beta": 0.0},
        "quick": {"mu": 0.1},
    }
    return [
        _tuned("anchors", name, Arm(by_reinforce, c), "reinforce", seed)
        for seed in SEEDS[:3]
        for name, c in changes.items()
    ]


def duration() -> list[Unit]:
    """Runs half and twice as long, for both methods."""
    arms = {
        f"{name}-t{t}": Arm(PRIMARY[name].train, {"steps": t})
        for t in (50, 200)
        for name in ("warp", "reinforce")
    }
    return [
        _tuned("duration", name, arm, name.split("-")[0], seed)
        for seed in SEEDS[:3]
        for name, arm in arms.items()
    ]


def more_runs() -> list[Unit]:
    """SLERP against LERP with up to five runs."""
    return [_tuned("more-runs", "warp-m5", Arm(by_merging, {"runs": 5}), "warp", SEEDS[0])]


def restarts() -> list[Unit]:
    """Other η between iterations; and M = 1, η = 1: four runs one after another, nothing averaged,
    anchor and optimiser restarted.
    """
    changes = {
        "eta-0.3": {"eta": 0.3},
        "eta-0.8": {"eta": 0.8},
        "restarts": {"iterations": 4, "runs": 1, "eta": 1.0},
    }
    return [
        _tuned("restarts", name, Arm(by_warp, c), "warp", SEEDS[0]) for name, c in changes.items()
    ]


# All of them spend 400 steps on pairs of the completions of 2 · 800 prompts.
DPO = {
    "warp-dpo": Arm(by_warp_dpo),
    "dpo": Arm(by_dpo),
    "warp-dpo-own": Arm(by_warp_dpo_own),
    "warp-dpo-once": Arm(by_warp_dpo_once),
    "dpo-iterated": Arm(by_iterated_dpo, {"runs": 1, "eta": 1.0, "steps": 2 * COMMON["steps"]}),
}
PAIRS = {"pair_prompts": 800, "mu": 0.0}


def dpo_tuning() -> list[Unit]:
    """Learning rate and β of WARP-DPO and of DPO, by the trials that the primary contrast had; no
    judge takes part in choosing.
    """
    arms = [
        (f"{name}-{trial}", DPO[name], TRIALS[trial])
        for trial in TRIALS
        for name in TUNED["dpo-tuning"]
    ]
    common = PAIRS | {"held_out": "validation", "judge_steps": 0}
    return [
        _unit("dpo-tuning", name, arm, TUNING_SEED, given | common) for name, arm, given in arms
    ]


def dpo() -> list[Unit]:
    """WARP on DPO with pairs made anew, and what tells its causes apart. Each at the settings of
    the tuned one that is trained alike.

    On all seeds the two that the hypothesis compares come first.
    """
    alike = {name: "warp-dpo" if name.startswith("warp") else "dpo" for name in DPO}
    given = {name: _decided("dpo-tuning", tuned) | PAIRS for name, tuned in alike.items()}
    asked = TUNED["dpo-tuning"]
    ordered = [
        (name, seed)
        for names in (asked, [n for n in DPO if n not in asked])
        for seed in SEEDS
        for name in names
    ]
    return [_unit("dpo", name, DPO[name], seed, given[name]) for name, seed in ordered]


def reference() -> list[Unit]:
    """WARP-DPO and DPO with the EMA anchor as the loss's reference, and not where the run began."""
    given = {
        name: _decided("dpo-tuning", name) | PAIRS | {"mu": 0.01} for name in TUNED["dpo-tuning"]
    }
    return [
        _unit("reference", name, DPO[name], seed, given[name]) for seed in SEEDS for name in given
    ]


def best_of_n() -> list[Unit]:
    """Best-of-n from SFT, by each of the rewards that train the others."""
    return [
        BestOfN("best-of-n", "sft", Settings.profile(**COMMON, name="study", seed=seeds[0]))
        for seeds in (EARLIER, SEEDS)
    ]


# The report's learning rate and β: that of which 400 steps of REINFORCE end at no more than about
# 10 nats and below the 99th percentile of real positives; of several the one with the most reward.
FOUR = {"a": (1e-5, 0.3), "b": (3e-5, 0.3), "c": (1e-5, 1.0), "d": (3e-5, 1.0)}


def defaults() -> list[Unit]:
    """What the report's learning rate and β are chosen by, on validation prompts."""
    common = {"held_out": "validation", "judge_steps": 0}
    given = {
        name: {"learning_rate": rate, "beta": beta} | common for name, (rate, beta) in FOUR.items()
    }
    return [
        _unit("defaults", f"reinforce-{name}", PRIMARY["reinforce"], TUNING_SEED, some)
        for name, some in given.items()
    ]


ROUNDED = (10, 11, 12)  # seeds


def precision() -> list[Unit]:
    """What rounding weights to bfloat16 in a pass does to what is measured, and to training:
    trained both ways, measured in float32.
    """
    common, units = {"learning_rate": 1e-5, "beta": 0.3, "judge_steps": 0, "front_points": 6}, []
    for seed in ROUNDED:
        for trained, others in (("split", ("split", "bfloat16")), ("bfloat16", ())):
            settings = Settings.profile(
                **COMMON | common, precision=trained, seed=seed, name="study"
            )
            units.append(
                Passes("precision", f"warp-{trained}", settings, by_warp_beside_one_run, others)
            )
    return units


NOW: dict[str, Callable[[], list[Unit]]] = {
    "tuning": tuning,
    "primary": primary,
    "best-of-n": best_of_n,
    "grid": grid,
    "merges": merges,
    "averages": averages,
    "angles": angles,
}
LATER: dict[str, Callable[[], list[Unit]]] = {
    "anchors": anchors,
    "duration": duration,
    "more-runs": more_runs,
    "restarts": restarts,
}
LATER |= {
    "defaults": defaults,
    "precision": precision,
    "dpo-tuning": dpo_tuning,
    "dpo": dpo,
    "reference": reference,
}
# the arms whose settings an experiment decides when it ends
TUNED = {"tuning": tuple(PRIMARY), "dpo-tuning": ("warp-dpo", "dpo")}
EXPERIMENTS = NOW | LATER


def _unit(experiment: str, name: str, arm: Arm, seed: int, given: dict[str, Any]) -> Unit:
    return Training(
        experiment,
        name,
        Settings.profile(**COMMON | given | arm.changes, seed=seed, name="study"),
        arm.train,
    )


def _tuned(experiment: str, name: str, arm: Arm, like: str, seed: int) -> Unit:
    """A unit at the learning rate and β that tuning chose for the arm `like` of the primary
    contrast.
    """
    return _unit(experiment, name, arm, seed, _decided("tuning", like))


def _decided(experiment: str, arm: str) -> dict[str, Any]:
    """The learning rate and β that an experiment's trials decided for an arm."""
    return {
        knob: value for knob, value in settled(experiment)["chosen"][arm].items() if knob != "trial"
    }


# ------------------------------------------------------------------------------------- running them


def run(names: list[str], progress: Progress, jobs: int = 1, only: str | None = None) -> None:
    """Run the units of the experiments `names` (none: those of `NOW`) that have not ended yet,
    `jobs` of them at a time; or of them the one whose record is called `only`. A unit whose seed
    was begun on another kind of machine is left out.

    Raises ValueError for an unknown experiment, and RuntimeError, when all others have ended, for
    units that failed beside others.
    """
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(
            f"there is no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}."
        )
    for name in names or NOW:
        units = EXPERIMENTS[name]()
        if only and only not in (known := [unit.file.stem for unit in units]):
            raise ValueError(f"{name} has no unit {only!r}; it has {', '.join(known)}.")
        waiting = [unit for unit in units if not unit.finished and only in (None, unit.file.stem)]
        if (at_once := min(jobs, len(waiting))) > 1:
            _run_side_by_side(waiting, at_once)
        else:
            for unit in waiting:
                print(f"[{units.index(unit) + 1}/{len(units)}] {unit.title}", flush=True)
                try:
                    run_unit(unit, progress)
                # another kind of machine must run it: the next seeds need not wait for it
                except Unlike as error:
                    print(f"{LEFT_OUT}{error}", flush=True)
        if (
            name in TUNED
            and all(unit.finished for unit in units)
            and not (FOLDER / f"{name}.json").exists()
        ):
            write_json(FOLDER / f"{name}.json", settle(name, TUNED[name]))


def _run_side_by_side(units: list[Unit], jobs: int) -> None:
    """Run units in processes of their own, which share the processors out.

    One small policy leaves an accelerator idle most of the time; cores too, which wait for each
    other in its many small operations (see `side_by_side` in benchmarks/run.py).
    """
    failed, ended, threads = (
        [],
        [],
        {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))},
    )

    def tell(title: str, error: BaseException | None) -> None:
        ended.append(title)
        failed.extend([f"{title} ({error})"] if error else [])
        print(f"[{len(ended)}/{len(units)}] {title}: {'FAILED' if error else 'ended'}", flush=True)

    with together() as running:
        running.run(
            {unit.title: partial(_run_alone, unit, threads, running) for unit in units}, jobs, tell
        )
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {'; '.join(failed)}")


def _run_alone(unit: Unit, threads: dict[str, str], running: Jobs) -> None:
    """Run a unit in a process of its own. Raises RuntimeError with the last line that it said if it
    fails.
    """
    code, said = running.command(_command(unit), threads)
    lines = said.strip().splitlines() or [f"exit code {code}"]
    if code:
        raise RuntimeError(lines[-1])
    for line in lines:
        if line.startswith(LEFT_OUT):
            print(line, flush=True)


def _command(unit: Unit) -> list[str]:
    """The command that runs one unit."""
    return [sys.executable, "-m", "warp_lib", "study", unit.experiment, "--unit", unit.file.stem]


def run_unit(unit: Unit, progress: Progress) -> None:
    """Measure, and keep what came out whole. Weights that it trains stay in the store of runs.

    Raises Unlike for a unit that could not be compared here with others of its seed.
    """
    began, s = time.perf_counter(), unit.settings
    experiment = Experiment(s)
    reward = kept_reward.read(s) or experiment.reward(progress)
    made_with = {"reward_model": reward.identity, "sft": digest(experiment.theta_sft)}
    made_with |= {"dtype": str(machine.fast_dtype()), "measured_in": "float32"}
    _refuse_others(unit, made_with)
    kept_reward.write(reward, s)
    judges = experiment.judges(progress)
    rewards = {"reward": reward} | judges
    found = unit.measure(experiment, rewards, progress)
    columns = list(
        dict.fromkeys(["arm", "split", *COLUMNS, *(name for row in found.rows for name in row)])
    )
    unit.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(
        unit.file.with_suffix(".csv"),
        pd.DataFrame(found.rows).reindex(columns=columns).to_csv(index=False),
    )
    save_tensors(
        unit.file.with_suffix(".safetensors"),
        {name: torch.stack(values).float() for name, values in found.scores.items()},
    )
    record = found.record | {
        "settings": s.asdict(),
        **made_with,
        "judges": {name: judge.identity for name, judge in judges.items()},
        "real_positive": experiment.real_positive(rewards["reward"]),
        "completions": found.shown,
        "seconds": time.perf_counter() - began,
        "date": date.today().isoformat(),
        "commit": COMMIT,
        "machine": _machine(),
        "command": shlex.join(["python", "-m", "warp_lib", *sys.argv[1:]]),
    }
    write_json(unit.file, record)


class Unlike(ValueError):
    """A unit that could not be compared with others of its seed, if it were run here."""


def _refuse_others(unit: Unit, made_with: dict[str, str]) -> None:
    """Raises Unlike when a unit that this one is to be compared with has another reward model, SFT
    or number format.
    """
    for name, others in _compared_with(unit).items():
        if odd := [part for part, value in made_with.items() if others[part] != value]:
            raise Unlike(
                f"{unit.title} would be made with another {odd[0]} than {name}, with which it is to"
                " be compared."
            )


def _compared_with(unit: Unit) -> dict[str, dict[str, str | None]]:
    """Trained units of the same seeds that ended, in whatever experiment, and what each was made
    with: arms are compared seed by seed, across experiments too. Trials are compared within their
    experiment only. Of records from before digests were kept these are None."""
    found = {}
    for seed in unit.seeds:
        experiments = unit.experiment if seed == TUNING_SEED else "*"
        for file in sorted(FOLDER.glob(f"{experiments}/*-{seed}.json")):
            if file.parent.name not in ("best-of-n", "angles"):  # no arm is compared with these
                record = json.loads(file.read_text())
                made_with = {
                    part: record.get(part) for part in ("reward_model", "sft", "measured_in")
                }
                made_with["dtype"] = record["machine"]["dtype"]
                found[f"{file.parent.name}/{file.stem}"] = made_with
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "device": machine.device_name(),
        "dtype": str(machine.fast_dtype()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
