"""A unit of the study, one seed of one arm: what it measures, and what of it is kept in
data/study/.
"""

import math
import shlex
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..evaluate import CHUNK, Evaluation, exact_kl
from ..experiment import Experiment
from ..fast import machine
from ..merging import Weights, geometry
from ..policy import Policy, Rollouts
from ..reward import Reward
from ..runs.commit import COMMIT
from ..runs.paths import write_whole
from ..runs.progress import Progress
from ..runs.results import COLUMNS
from ..runs.seeds import torch_stream
from ..runs.store import digest, save_tensors, write_json
from ..settings import Settings
from . import kept_reward, outcomes
from .arms import Train, steps_of_one_run
from .best_of_n import best_of, kl_of_best
from .outcomes import SEEDS, TUNING_SEED

# prompts whose completions are kept, and of the first seed
SHOWN, SHOWN_OF_FIRST = 4, 20
BEST_OF, SAMPLED_AT_ONCE = 128, 8  # completions of a prompt that best-of-n chooses from, at most


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
        return outcomes.FOLDER / self.experiment / f"{self.arm}-{self.settings.seed}.json"

    @property
    def finished(self) -> bool:
        """Whether it has ended. Raises ValueError when what it left was made with other
        settings.
        """
        if not self.file.exists():
            return False
        recorded, now = outcomes.read_record(self.file)["settings"], self.settings.asdict()
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
    ) -> "Measured":
        """What the unit is run for."""


@dataclass(frozen=True)
class Measured:
    """What a unit measured: rows of its table; score → for each row of a split the value of each
    prompt; completions; its record.
    """

    record: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], seen: Evaluation) -> None:
        """A row of the table, and its scores."""
        self.rows.append(row | seen.summary)
        for score, values in seen.scores.items():
            self.scores.setdefault(f"{row['split']}.{score}", []).append(values.mean(1))


@dataclass(frozen=True)
class Training(Unit):
    """An arm trained on one seed."""

    train: Train

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Measured:
        """Train, and evaluate the checkpoints on validation prompts and, but for trials, on test
        prompts.
        """
        s = self.settings
        points, record = self.train(experiment, rewards["reward"], progress)
        splits = ("validation",) if s.held_out == "validation" else ("validation", "test")
        # it counts nowhere there, and costs an encoder
        choosing = {name: reward for name, reward in rewards.items() if name != "judge"}
        measured = Measured(record)
        for point in progress.track(list(points), "evaluation"):
            place = point.columns | {"seed": s.seed}
            if "pairs_from" not in record:  # DPO samples before it trains
                place["completions"] = point.steps * s.batch_size
            theta = point.theta
            for split in splits:
                asked = rewards if split == "test" else choosing
                seen = experiment.evaluate(theta, asked, split, progress=progress)
                measured.add({"arm": self.arm, "split": split} | place, seen)
            texts = experiment.policy.tokenizer.batch_decode(seen.rollouts.completions)
            many = SHOWN_OF_FIRST if s.seed == SEEDS[0] else SHOWN
            row = {"point": len(measured.rows) // len(splits) - 1, "split": split}
            for k, review in enumerate(islice(experiment.held_out_prompts(split), many)):
                completion = texts[k * s.test_samples]
                measured.shown.append(row | {"review": review, "completion": completion})
        return measured


@dataclass(frozen=True)
class Passes(Unit):
    """An arm trained in one precision, and what its policies are in others: on test prompts, all
    points in float32, and those of its line over η in `others` too. Their `split` is "test", or
    names the pass."""

    train: Train
    others: tuple[str, ...] = ()

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Measured:
        s = self.settings
        points, record = self.train(experiment, rewards["reward"], progress)
        measured = Measured(record)
        for point in progress.track(list(points), "evaluation"):
            place = point.columns | {"seed": s.seed, "completions": point.steps * s.batch_size}
            theta = point.theta
            place["stays"] = rounds_to(experiment.theta_sft, theta)
            exact = experiment.evaluate(theta, rewards, progress=progress)
            seen = {"test": exact}
            if point.method in ("warp", "reinforce-liti"):
                seen |= {
                    f"test in {p}": experiment.evaluate(
                        theta, rewards, precision=p, progress=progress
                    )
                    for p in self.others
                }
            for split, one in seen.items():
                row = {"arm": self.arm, "split": split} | place
                if split != "test":
                    firsts = torch.arange(0, len(exact.rollouts.tokens), s.test_samples)
                    written, narrow = exact.rollouts.rows(firsts), split.removeprefix("test in ")
                    policy = experiment.policy.load(theta)
                    apart = kl_of_pass(policy, written, s.temperature, narrow)
                    row["pass_kl"] = apart.mean().item()
                    row["pass_kl_se"] = apart.std().item() / math.sqrt(len(apart))
                measured.add(row, one)
        return measured


@torch.no_grad()
def kl_of_pass(policy: Policy, rollouts: Rollouts, temperature: float, precision: str) -> Tensor:
    """KL(π ‖ what a pass of this precision computes instead) along completions that π wrote: (n,),
    nats a completion.
    """
    parts = []
    for chunk in rollouts.split(CHUNK):
        log_p = policy.log_distribution(policy.logits(chunk), temperature)
        with machine.passes(precision):
            log_q = policy.log_distribution(policy.logits(chunk), temperature)
        parts.append(exact_kl(log_p.exp(), log_p, log_q).sum(1).cpu())
    return torch.cat(parts)


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
    ) -> Measured:
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
        like = {"arm": self.arm, "split": "test", "method": "best-of-n", "seed": s.seed}
        while n <= BEST_OF:
            row = like | {"n": n, "kl": kl_of_best(n), "kl_se": 0.0}
            for name, values in scores.items():
                by_prompt = best_of(scores["reward"], values, n)
                row[name] = by_prompt.mean().item()
                row[f"{name}_se"] = by_prompt.std().item() / math.sqrt(len(by_prompt))
                kept.setdefault(f"test.{name}", []).append(by_prompt)
            kept.setdefault("test.kl", []).append(torch.full((len(prompts),), kl_of_best(n)))
            for k, review in list(enumerate(prompts))[:SHOWN_OF_FIRST]:
                best = int(scores["reward"][k, :n].argmax())
                part, one = divmod(best, SAMPLED_AT_ONCE)
                text = sampled[part][1][k * SAMPLED_AT_ONCE + one]
                place = {"point": len(rows), "split": "test"}
                shown.append(place | {"review": review, "completion": text})
            rows.append(row | {"completions": n * len(prompts)})
            n *= 2
        return Measured({}, rows, kept, shown)


@dataclass(frozen=True)
class Angles(Unit):
    """Between the task vectors of different seeds' runs of REINFORCE from SFT, as they grow: does
    Ω follow the gradient's signal to noise? Weights only; runs that the store has not are trained.
    `between` are the units that they belong to: of each arm one on each seed."""

    between: tuple[Unit, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(unit.settings.seed for unit in self.between))

    def measure(
        self, experiment: Experiment, rewards: dict[str, Reward], progress: Progress
    ) -> Measured:
        rows, given = [], {}
        for name in dict.fromkeys(unit.arm for unit in self.between):
            units = [unit for unit in self.between if unit.arm == name]
            runs, s = [], units[0].settings
            for one in (experiment.under(unit.settings) for unit in units):
                align = one.aligner(rewards["reward"], progress)
                runs.append(one.long_run(align, "reinforce", steps_of_one_run(one.settings)))
            given[name] = s.asdict()
            for steps in runs[0].checkpoints:
                place = {"arm": name, "steps": steps, "completions": steps * s.batch_size}
                for row in geometry(experiment.theta_sft, [run.checkpoints[steps] for run in runs]):
                    if row["layer"] == "model":
                        pair = {end: self.seeds[row[end] - 1] for end in ("a", "b")}
                        rows.append(place | row | pair)
        return Measured({"runs": given}, rows)


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
    measured = unit.measure(experiment, rewards, progress)
    names = (name for row in measured.rows for name in row)
    table = pd.DataFrame(
        measured.rows, columns=[*dict.fromkeys(["arm", "split", *COLUMNS, *names])]
    )
    unit.file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(unit.file.with_suffix(".csv"), table.to_csv(index=False))
    scores = {name: torch.stack(values).float() for name, values in measured.scores.items()}
    save_tensors(unit.file.with_suffix(".safetensors"), scores)
    record = measured.record | {
        "settings": s.asdict(),
        **made_with,
        "judges": {name: judge.identity for name, judge in judges.items()},
        "real_positive": experiment.real_positive(rewards["reward"]),
        "completions": measured.shown,
        "seconds": time.perf_counter() - began,
        "date": date.today().isoformat(),
        "commit": COMMIT,
        "machine": machine.describe(),
        "command": shlex.join(["python", "-m", "warp_lib", *sys.argv[1:]]),
    }
    write_json(unit.file, record)


class Unlike(ValueError):
    """A unit that could not be compared with others of its seed, if it were run here."""


def _refuse_others(unit: Unit, made_with: dict[str, str]) -> None:
    """Raises Unlike when a unit that this one is to be compared with has another reward model, SFT
    or dtype.
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
    others = {}
    for seed in unit.seeds:
        experiments = unit.experiment if seed == TUNING_SEED else "*"
        for file in sorted(outcomes.FOLDER.glob(f"{experiments}/*-{seed}.json")):
            if file.parent.name not in ("best-of-n", "angles"):  # no arm is compared with these
                record = outcomes.read_record(file)
                parts = ("reward_model", "sft", "measured_in")
                made_with = {part: record.get(part) for part in parts}
                made_with["dtype"] = record["machine"]["dtype"]
                others[f"{file.parent.name}/{file.stem}"] = made_with
    return others
