"""Arms of the study compared: fronts chosen on validation prompts, their difference on test prompts
by seed and prompt; and lines over η against each other.

Needs no torch.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from ..runs.errors import Explained
from .fronts import Effect, Interval, along, shares, weights
from .outcomes import (
    LOW,
    MERGES,
    ArmId,
    Outcome,
    finished,
    finished_seeds,
    outcome,
    over_seeds,
    settled,
)

STAGES = {"run": "single runs", "slerp": "their SLERP", "liti": "LITI, where the next begins"}
Seeds = Collection[int] | None
LineId = tuple[str, int]
"""Points over η of a unit: their method, and how many runs (or checkpoints) were averaged."""
Points = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A line's KL, its r̃ by prompt, its KL by prompt: see `Outcome.through_merge`."""
# conditions on REINFORCE's points: rivals of their own
LITI_LINE = "method in ('sft', 'reinforce-liti')"
FIRST_HALF = "eta == 0 or (method == 'reinforce' and steps <= 200)"
# what else is averaged: arm of `averages` → in words → the two lines of it that are compared
OTHERS: dict[str, dict[str, tuple[LineId, LineId]]] = {
    "checkpoints": {
        "mean of the last two checkpoints − the last": (("checkpoints", 2), ("checkpoints", 1)),
        "mean of all four checkpoints − the last": (("checkpoints", 4), ("checkpoints", 1)),
    },
    "step-back": {
        "back to the iteration's beginning − to SFT": (("from-init", 2), ("from-sft", 2))
    },
    "without-order": {
        "SLERP of three without order − the paper's": (
            ("slerp-without-order", 3),
            ("slerp-layer", 3),
        )
    },
}


@dataclass(frozen=True, eq=False)
class Contrast(Effect):
    """An arm's front against a rival's: the difference in mean r̃ over KL from `LOW` to `high`.

    On test prompts. ends: seed → the KL as far as which it is compared, less than `high` where one
    of the fronts ends before.
    """

    arm: str
    rival: str
    high: float
    ends: dict[int, float]


# ------------------------------------------------------------------------------------------- fronts


def contrast(
    experiment: str, arms: list[str], rivals: list[str], high: float, scorer: str = "reward"
) -> Contrast:
    """The better of some arms against the better of their rivals, over the seeds that all have
    finished.

    The better one is that whose front is higher on validation prompts, over all seeds together. The
    fronts and the choice are those of the reward; `scorer` may be a judge, which then says how far
    they really are apart.

    A seed on which one of the fronts ends before `high` is compared as far as all of them reach;
    one whose arms had different reward models, or different judges where the judge is asked, is
    left out. Raises ValueError when no seed is left.
    """
    names = [*arms, *rivals]
    shared = _together([(experiment, name) for name in names], scorer)
    ends = _ends(shared, high)
    by_name = {seed: dict(zip(names, some, strict=True)) for seed, some in shared.items()}

    def on_validation(name: str) -> float:
        fronts = (by_name[s][name].along_front("validation", end) for s, end in ends.items())
        return float(np.mean([front.mean() for front in fronts]))

    arm, rival = (max(some, key=on_validation) for some in (arms, rivals))
    gains = {s: _gain(by_name[s][arm], by_name[s][rival], end, scorer) for s, end in ends.items()}
    return Contrast(gains, arm, rival, high, ends)


def difference(
    arm: ArmId,
    rival: ArmId,
    high: float,
    scorer: str = "reward",
    among: Seeds = None,
    where: str | None = None,
) -> Contrast:
    """An arm against one rival, maybe of another experiment, over the seeds that they share.

    where: a condition on the rival's points, such as `LITI_LINE` or `FIRST_HALF`. See
    `shared_seeds` and `contrast`. Raises ValueError when there is no such seed.
    """
    pairs = _together([arm, rival], scorer, among)
    if where:
        pairs = {seed: [unit, other.only(where)] for seed, (unit, other) in pairs.items()}
    ends = _ends(pairs, high)
    gains = {seed: _gain(a, b, ends[seed], scorer) for seed, (a, b) in pairs.items()}
    return Contrast(gains, arm[1], rival[1], high, ends)


def against_each(
    arm: ArmId, rivals: Iterable[str], high: float, scorer: str = "reward", among: Seeds = None
) -> dict[tuple[str, str], Contrast]:
    """An arm against each rival's whole front, "", and against its LITI line, "LITI":
    (rival, which) → the contrast.
    """
    return {
        (rival, which): difference(arm, (arm[0], rival), high, scorer, among, where)
        for rival in rivals
        for which, where in (("", None), ("LITI", LITI_LINE))
    }


def by_end(arm: ArmId, rival: ArmId, among: Seeds = None) -> dict[float, Contrast]:
    """`difference` as a function of where it ends: every half nat from `LOW` + 1 as far as all
    seeds of both reach → the contrast up to there.
    """
    reach = min(_ends(_together([arm, rival], among=among)).values())
    ends = np.arange(LOW + 1, reach + 1e-9, 0.5).tolist()
    return {end: difference(arm, rival, end, among=among) for end in ends}


def by_kl(arm: ArmId, rival: ArmId, among: Seeds = None) -> dict[float, Effect]:
    """How much more an arm's front earns than a rival's at each KL, on test prompts: every quarter
    of a nat as far as all seeds of both reach → the difference of r̃ there.
    """
    pairs = _together([arm, rival], among=among)
    return {
        kl: Effect({seed: unit.at(kl) - other.at(kl) for seed, (unit, other) in pairs.items()})
        for kl in np.arange(0.25, min(_ends(pairs).values()), 0.25).tolist()
    }


def differences(
    pairs: dict[str, tuple[ArmId, ArmId]], high: float, among: Seeds, scorer: str = "reward"
) -> dict[str, Contrast]:
    """The `difference` of each of the pairs, by name, whose arms share a seed `among` these."""
    return {
        name: difference(*pair, high, scorer, among)
        for name, pair in pairs.items()
        if shared_seeds(pair, scorer, among)
    }


def difference_of_gains(
    of: tuple[ArmId, ArmId], than: tuple[ArmId, ArmId], high: float
) -> Contrast:
    """How much more an arm gains over its rival than another arm over its own: (A − B) − (C − D).

    Paired by seed and by prompt.

    Args:
        of, than: arm and rival.
        high: the largest KL, nats; a seed on which one of the four fronts ends before is compared
            as far as all of them reach.

    Raises ValueError when no seed has finished all four, scored by one reward model.
    """
    units = _together([*of, *than])
    ends = _ends(units, high)
    gains = {
        seed: _gain(a, b, ends[seed]) - _gain(c, d, ends[seed])
        for seed, (a, b, c, d) in units.items()
    }
    arm, rival = (f"{arm} − {rival}" for (_, arm), (_, rival) in (of, than))
    return Contrast(gains, arm, rival, high, ends)


def gain_over_dpo() -> Contrast:
    """(WARP-DPO − DPO) − (WARP − REINFORCE) as planned: as far as the smaller K* of the two tunings
    (see `difference_of_gains`).
    """
    high = min(settled(name)["high"] for name in ("tuning", "dpo-tuning"))
    of_dpo = ("dpo", "warp-dpo"), ("dpo", "dpo")
    return difference_of_gains(of_dpo, (("primary", "warp"), ("primary", "reinforce")), high)


def over_best_of_n(
    arm: ArmId, high: float, scorer: str = "reward", among: Seeds = None
) -> Contrast:
    """An arm's fronts against best-of-n from SFT, at the KL that bounds it.

    In truth it may be cheaper (see `best_of_n.kl_of_best`). Compared as far as the largest n
    reaches, on the seeds (`among` these, if any) that were scored alike, whatever their dtype.
    Raises ValueError when best-of-n has not been measured or no such seed is left.
    """
    best = finished("best-of-n", "sft").values()
    ends, by_prompt = {}, {}
    for seed, (unit,) in _together([arm], scorer, among).items():
        if yardstick := next((b for b in best if _scored_alike([b, unit], scorer)), None):
            kl, reward = yardstick.kl("test"), yardstick.reward("test", scorer)
            ends[seed] = end = min(high, kl.max(), unit.reach("validation"), unit.reach("test"))
            by_prompt[seed] = unit.along_front("test", end, scorer) - shares(kl, LOW, end) @ reward
    if not ends:
        raise Explained(
            f"best-of-n was not measured beside {arm[1]} ({arm[0]}): `python -m warp_lib study`."
        )
    return Contrast(by_prompt, arm[1], "best-of-n", high, ends)


def trial_difference(trial: Outcome, rival: Outcome, high: float) -> Interval:
    """A trial less another: mean r̃ from `LOW` to `high` nats, over the validation prompts."""
    a, b = (unit.along_front("validation", high) for unit in (trial, rival))
    return Interval.of(a - b)


def ahead_of_judge(units: Mapping[int, Outcome], judge: str) -> dict[float, Effect]:
    """How much more r̃ has risen since SFT than a judge's score, along the arm's front.

    On test prompts: KL, every half nat that all seeds reach → the rise of r̃ less that of the score,
    both in SFT's standard deviations. A policy that exploits its reward model (reward hacking) gets
    further and further ahead.
    """

    def ahead(unit: Outcome, kl: float) -> np.ndarray:
        return unit.at(kl) - unit.at(kl, judge)

    end = min(unit.line("test")[0][-1] for unit in units.values())
    return {
        kl: Effect({seed: ahead(unit, kl) - ahead(unit, 0) for seed, unit in units.items()})
        for kl in np.arange(0.5, end, 0.5).tolist()
    }


def shared_seeds(arms: Iterable[ArmId], scorer: str = "reward", among: Seeds = None) -> list[int]:
    """The seeds (`among` these, if any) on which all of the arms have ended and can be compared:
    from one SFT, in one dtype, scored alike.
    """
    ended = [set(finished_seeds(experiment, [arm])) for experiment, arm in arms]
    return [
        seed
        for seed in sorted(set.intersection(*ended))
        if (among is None or seed in among)
        and _made_alike(units := [outcome(*arm, seed) for arm in arms])
        and _scored_alike(units, scorer)
    ]


def _made_alike(units: list[Outcome]) -> bool:
    """Whether units began at the same SFT and computed in the same dtype."""
    return len({(u.record["sft"], u.record["machine"]["dtype"]) for u in units}) == 1


def _scored_alike(units: list[Outcome], scorer: str) -> bool:
    """Whether units have the same reward model and, if `scorer` is a judge, the same judge.

    Every machine trains judges for itself.
    """
    judges = {unit.record.get("judges", {}).get(scorer) for unit in units}
    return len({unit.record["reward_model"] for unit in units}) == len(judges) == 1


def _together(
    arms: list[ArmId], scorer: str = "reward", among: Seeds = None
) -> dict[int, list[Outcome]]:
    """Each seed that all arms share → their units. Raises ValueError when there is no such seed."""
    if seeds := shared_seeds(arms, scorer, among):
        return {seed: [outcome(*arm, seed) for arm in arms] for seed in seeds}
    raise Explained(
        f"no seed has finished all of {', '.join(f'{name} ({e})' for e, name in arms)}, scored"
        f" by one {scorer}."
    )


def _ends(units: dict[int, list[Outcome]], high: float = math.inf) -> dict[int, float]:
    """Seed → the KL as far as which its units can be compared: `high`, or where the first ends."""
    return {
        seed: min(high, *(one.reach(split) for one in some for split in ("validation", "test")))
        for seed, some in units.items()
    }


def _gain(unit: Outcome, rival: Outcome, end: float, scorer: str = "reward") -> np.ndarray:
    """What a unit has over its rival from `LOW` to `end` nats on each test prompt, (prompts,)."""
    return unit.along_front("test", end, scorer) - rival.along_front("test", end, scorer)


# ------------------------------------------------------------------------------------ lines over η


def line_over_line(
    units: Mapping[int, Outcome], line: LineId, other: LineId, high: float
) -> Contrast:
    """What one line over η has over another of the same units beside a longer step.

    Its mean r̃ less the other's at equal KL on test prompts, from `LOW` to `high` nats, or as much
    of that as both lines span. Both are read straight between their points, which favours the line
    with closer ones (06 says how much).
    """
    ends, by_prompt = {}, {}
    for seed, unit in units.items():
        *lines, span = _two_lines(unit, line, other, high)
        a, b = (along(kl, reward, *span, own) for kl, reward, own in lines)
        by_prompt[seed], ends[seed] = a - b, span[1]
    return Contrast(by_prompt, line[0], other[0], high, ends)


def by_reading(units: Mapping[int, Outcome], line: LineId, other: LineId, high: float) -> Interval:
    """What `line_over_line` would find if there were no difference.

    Both lines' points are laid onto one smooth curve, the monotone cubic one through the other
    line's points, and read straight between them.
    """
    # as slow to import as all else here together, and the explorer asks for none of it
    from scipy.interpolate import PchipInterpolator

    differences = []
    for unit in units.values():
        (kl, *_), (other_kl, other_reward, _), span = _two_lines(unit, line, other, high)
        curve = PchipInterpolator(other_kl, other_reward.mean(1))
        means = [shares(points, *span) @ curve(points) for points in (kl, other_kl)]
        differences.append(means[0] - means[1])
    return Interval.of(differences)


def _two_lines(
    unit: Outcome, line: LineId, other: LineId, high: float
) -> tuple[Points, Points, tuple[float, float]]:
    """Both lines (see `Outcome.through_merge`), and from and to which KL they are compared: a line
    that does not begin at SFT may begin beyond `LOW`.
    """
    first, second = unit.through_merge(*line), unit.through_merge(*other)
    begin, end = max(LOW, first[0][0], second[0][0]), min(high, first[0][-1], second[0][-1])
    return first, second, (float(begin), float(end))


def other_averages(experiment: str, high: float) -> dict[str, tuple[Contrast, Interval]]:
    """Each of `OTHERS`, on the seeds that have it: what the one line has over the other, and what
    reading alone would make (see `line_over_line`, `by_reading`).
    """
    compared = {
        name: (finished(experiment, arm), *lines, high)
        for arm, pairs in OTHERS.items()
        for name, lines in pairs.items()
    }
    return {name: (line_over_line(*args), by_reading(*args)) for name, args in compared.items()}


def slerp_over_lerp(merged: Mapping[int, Outcome], high: float) -> dict[str, Contrast]:
    """SLERP's line through the merge of the same runs over LERP's, for each number of runs and each
    way to take angles (see `line_over_line`, `merging.slerp`).

    With one angle for the model SLERP of two runs lies on LERP's own line, and what is found there
    is what the measurement itself adds.
    """
    many = {int(runs) for unit in merged.values() for runs in unit.of("test")["runs"].dropna()}
    return {
        f"M = {runs}, {words}": line_over_line(merged, (method, runs), ("lerp", runs), high)
        for runs, (method, words) in product(sorted(many), MERGES.items())
    }


def along_eta(units: Mapping[int, Outcome], method: str) -> pd.DataFrame:
    """r̃ and KL along a line over η on test prompts, a row for each η: means over seeds and the half
    widths of their 95% intervals (`…_half`).
    """
    rows = pd.concat([unit.along_eta(method) for unit in units.values()])
    rows = rows.assign(eta=rows["eta"].round(6)).sort_values("eta", kind="stable")
    return over_seeds(rows, ["eta"], ["reward", "kl"])


def bend(units: Mapping[int, Outcome], method: str, score: str) -> Effect:
    """How far a line over η lies above its chord at η = ½ on test prompts, in r̃ or KL: positive
    where it is concave, negative where it is convex.
    """
    rises = {}
    for seed, unit in units.items():
        rows = unit.along_eta(method)
        values = unit.scores[f"test.{score}"][rows.index]
        rises[seed] = weights(rows["eta"], [0.5])[:, 0] @ values - (values[0] + values[-1]) / 2
    return Effect(rises)


def averages(
    of_arm: Mapping[int, Outcome], rivals: Mapping[str, Mapping[int, Outcome]]
) -> dict[tuple[int, str], dict[str, Effect]]:
    """What WARP's averages do: (iteration, one of `STAGES`) → r̃, KL and gap to each rival.

    The gap is r̃ less the rival's front at the same KL (see `Outcome.gap`), under the rival's name.
    A step back towards SFT lowers both r̃ and KL; only the gap says whether it was worth it. It is
    left out where a seed's KL is beyond the rival's.
    """
    iterations = {int(i) for unit in of_arm.values() for i in unit.rows["iteration"].dropna()}
    effects = {}
    for iteration, method in product(sorted(iterations), STAGES):
        numbers: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        for seed, unit in of_arm.items():
            points = unit.only(f"iteration == {iteration} and method == '{method}'")
            reward, kl = (points.reward("test", score) for score in ("reward", "kl"))
            if not len(reward):
                continue
            numbers["r̃"][seed], numbers["KL, nats"][seed] = reward.mean(0), kl.mean(0)
            for rival, fronts in rivals.items():
                gaps = [fronts[seed].gap(*policy) for policy in zip(reward, kl, strict=True)]
                reached = [gap for gap in gaps if gap is not None]
                if len(reached) == len(gaps):
                    numbers[rival][seed] = np.mean(reached, axis=0)
        if numbers:
            effects[iteration, method] = {
                name: Effect(by) for name, by in numbers.items() if len(by) == len(of_arm)
            }
    return effects


def merging(
    averages: dict[tuple[int, str], dict[str, Effect]], rivals: Iterable[str]
) -> dict[tuple[int, str], Effect]:
    """What merging is worth at equal KL: (iteration, rival) → the gap of a SLERP to the rival's
    front less that of the runs that it merges, where both are within the front (see `averages`).
    """
    return {
        (iteration, rival): found[rival] - averages[iteration, "run"][rival]
        for (iteration, stage), found in averages.items()
        for rival in rivals
        if stage == "slerp" and rival in found and rival in averages[iteration, "run"]
    }


def over_checkpoints(
    of_arm: Mapping[int, Outcome], stopped: Mapping[int, Outcome], where: str | None = None
) -> dict[int, Effect]:
    """How much more an arm's front earns than REINFORCE stopped early, at the same KL: steps → r̃.

    Every checkpoint but the last, if the front reaches its KL on all seeds. where: a condition on
    the arm's points. With `LITI_LINE`, and the same units twice, it is what REINFORCE earns by
    training on and stepping back, for more compute.
    """
    above = defaultdict(dict)
    for seed, unit in of_arm.items():
        unit, other = (unit.only(where) if where else unit), stopped[seed]
        passed = other.of("test").query("method == 'reinforce'").sort_values("steps")
        for k, steps in passed["steps"].iloc[:-1].items():
            gap = unit.gap(*(other.scores[f"test.{score}"][k] for score in ("reward", "kl")))
            if gap is not None:
                above[int(steps)][seed] = -gap
    return {steps: Effect(by) for steps, by in above.items() if len(by) == len(of_arm)}
