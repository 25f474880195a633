"""Ways to train that the study compares: each yields the points to evaluate."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from ..dpo import MakePairs, Pairs, for_all_runs
from ..experiment import Experiment
from ..merging import Weights, geometry, interpolate, lerp, slerp, slerp_without_order
from ..points import Point, reinforce_points, warp_points
from ..reward import Reward
from ..runs.progress import Progress
from ..settings import Settings
from ..warp import Aligner, Iteration, Merge, Run, RunId

ETAS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)  # of the lines through merges

# All arms: the student report's T, a second judge, a front in steps of 0.1, 300 prompts a split.
COMMON: dict[str, Any] = {
    "steps": 100,
    "judge_steps": 240,
    "front_points": 11,
    "test_prompts": 300,
    "test_samples": 2,
}


def settings_of(seed: int, changes: dict[str, Any] | None = None) -> Settings:
    """The settings that units have in common, with changes."""
    return Settings.profile(**COMMON | (changes or {}), seed=seed, name="study")


Trained = tuple[Iterator[Point], dict[str, Any]]
Train = Callable[[Experiment, Reward, Progress], Trained]
"""Trains an arm: its points to evaluate, and what else goes into its record."""


def by_warp(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP as in the paper, on REINFORCE."""
    return _warp_of(experiment, experiment.aligner(reward, progress))


def by_warp_beside_one_run(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP, and the line from SFT through its very first run: that is REINFORCE of T steps."""
    iterations = experiment.warp(experiment.aligner(reward, progress))
    s, sft = experiment.settings, experiment.theta_sft
    line = reinforce_points(sft, iterations[0].runs[0], s)  # it kept no checkpoints
    return chain(warp_points(sft, iterations, s), line), _angles(iterations)


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
    run = experiment.long_run(align, method, steps_of_one_run(experiment.settings))
    return reinforce_points(experiment.theta_sft, run, experiment.settings, method), {}


def steps_of_one_run(s: Settings) -> int:
    """Steps of as many completions as one of WARP's runs sees, whatever the batch."""
    return max(1, s.steps * Settings.profile(**COMMON).batch_size // s.batch_size)


def by_warp_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP on DPO, with pairs made anew before each iteration."""
    remade = for_all_runs(experiment.pairs(reward, progress))
    return _on_pairs(experiment, remade, progress, _warp_of)


def by_warp_dpo_once(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """WARP on DPO, with the pairs of all iterations made from SFT at the start."""
    return _on_pairs(experiment, _made_once(experiment, reward, progress), progress, _warp_of)


def by_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """DPO by itself, on those same pairs, with as many optimiser steps as all of WARP's runs."""
    once = _made_once(experiment, reward, progress)
    return _on_pairs(experiment, once, progress, partial(_long_run_of, method="dpo"))


def by_iterated_dpo(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """DPO on pairs made anew as often as WARP-DPO's, and nothing averaged: M = 1 and η = 1, looked
    at as often as DPO by itself.
    """
    remade = for_all_runs(experiment.pairs(reward, progress))
    return _on_pairs(experiment, remade, progress, _runs_in_a_row)


def _runs_in_a_row(experiment: Experiment, align: Aligner) -> Trained:
    """The iterations of a WARP that averages nothing, as one run."""
    s = experiment.settings
    iterations = experiment.warp(partial(align, keep_every=Settings.profile(**COMMON).steps))
    runs = [run for i in iterations for run in i.runs]
    checkpoints = {
        k * s.steps + t: theta for k, run in enumerate(runs) for t, theta in run.checkpoints.items()
    }
    whole = Run(
        runs[-1].weights,
        checkpoints,
        [row for run in runs for row in run.history],
        sum(run.seconds for run in runs),
    )
    return reinforce_points(experiment.theta_sft, whole, s, "dpo"), {}


def _on_pairs(
    experiment: Experiment,
    make: MakePairs,
    progress: Progress,
    train: Callable[[Experiment, Aligner], Trained],
) -> Trained:
    """A way to train on DPO. Its record says from how many completions all pairs are made, and
    which ones each run got.
    """
    s, noted = experiment.settings, []

    def noting(theta: Weights, run_id: RunId) -> Pairs:
        pairs = make(theta, run_id)
        made = {"run": list(run_id.role), "identity": pairs.identity, "count": len(pairs)}
        noted.append(made | {"margin": pairs.margin.mean().item()})
        return pairs

    points, found = train(experiment, experiment.dpo_aligner(noting, progress))
    sampled = s.iterations * s.pair_prompts * s.pair_completions
    return points, found | {"pairs_from": sampled, "pairs": noted}


def _made_once(experiment: Experiment, reward: Reward, progress: Progress) -> MakePairs:
    """Pairs from SFT, of as many completions as the iterations would sample."""
    s = experiment.settings
    make = experiment.pairs(reward, progress, count=s.iterations * s.pair_prompts)
    pairs = make(experiment.theta_sft, RunId(s.seed, "once"))
    return lambda theta, run_id: pairs


def by_merging(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """M runs from SFT, merged in every way for each M: the line from SFT through the merge and
    beyond.

    Beyond, because SLERP of two runs is LERP made longer: along LERP's line η = 1/cos(Ω/2) is SLERP
    with one angle.
    """
    runs = _runs_from_sft(experiment, reward, progress)
    merges = {f"slerp-{per}": partial(slerp, per=per) for per in ("layer", "tensor", "model")}
    points = _merged(experiment, runs, {"lerp": lerp} | merges, range(2, len(runs) + 1))
    angles = geometry(experiment.theta_sft, [run.weights for run in runs])
    return points, {"geometry": [{"iteration": 1} | row for row in angles]}


def by_merging_without_order(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """The same runs, all of them merged by the paper's SLERP, one after another, and by one in
    which none comes first: lines from SFT.
    """
    runs = _runs_from_sft(experiment, reward, progress)
    merges = {"slerp-layer": slerp, "slerp-without-order": slerp_without_order}
    return _merged(experiment, runs, merges, [len(runs)]), {}


def _runs_from_sft(experiment: Experiment, reward: Reward, progress: Progress) -> list[Run]:
    """The runs of WARP's first iteration."""
    s, align = experiment.settings, experiment.aligner(reward, progress)
    return [align(experiment.theta_sft, RunId(s.seed, "warp", 1, m)) for m in range(1, s.runs + 1)]


def _merged(
    experiment: Experiment, runs: list[Run], merges: dict[str, Merge], counts: Iterable[int]
) -> Iterator[Point]:
    """SFT, and for each count M the lines from it through every merge of the first M runs."""
    s, sft = experiment.settings, experiment.theta_sft
    yield Point("sft", sft, 0, 0.0)
    for m in counts:
        seconds = sum(run.seconds for run in runs[:m])
        place = {"steps": m * s.steps, "seconds": seconds, "iteration": 1, "runs": m}
        for name, merge in merges.items():
            yield from _line(name, sft, merge(sft, [run.weights for run in runs[:m]]), **place)


def by_averaging_checkpoints(experiment: Experiment, reward: Reward, progress: Progress) -> Trained:
    """REINFORCE's one long run: lines from SFT through its end, and through the mean of its last
    two and of all checkpoints (paper, figure 13). In the table `runs` says how many are
    averaged."""
    s, sft = experiment.settings, experiment.theta_sft
    run = experiment.long_run(
        experiment.aligner(reward, progress), "reinforce", steps_of_one_run(s)
    )
    kept = list(run.checkpoints.values())

    def points() -> Iterator[Point]:
        yield Point("sft", sft, 0, 0.0)
        for last in (1, 2, len(kept)):
            place = {"steps": len(run.history), "seconds": run.seconds, "runs": last}
            yield from _line("checkpoints", sft, lerp(sft, kept[-last:]), **place)

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
        "iteration": s.iterations,
        "runs": s.runs,
        "seconds": sum(i.seconds for i in iterations),
    }

    def points() -> Iterator[Point]:
        for name, start in (("from-sft", sft), ("from-init", last.init)):
            yield Point(name, start, eta=0.0, **place)
            yield from _line(name, start, last.merged, **place)

    return points(), {}


def _line(method: str, start: Weights, end: Weights, **place: Any) -> Iterator[Point]:
    """The line from `start` through `end` and beyond."""
    for eta in ETAS:
        yield Point(method, partial(interpolate, start, end, eta), eta=eta, **place)


@dataclass(frozen=True)
class Arm:
    """A way to train and the settings that it changes."""

    train: Train
    changes: dict[str, Any] = field(default_factory=dict)
