"""What the explorer compares: two methods (or more), read at equal KL, and a verdict in words.

The study's comparisons are its own (`contrasts`): within a seed and its reward model, fronts chosen
on validation prompts and read on test prompts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..report.answers import cut, who_is_ahead
from ..report.answers import seeds as of_seeds
from ..report.look import ARMS, BLUE, COLOURS, GREY, ORANGE
from ..runs import paths
from ..runs.errors import Explained
from ..runs.results import read_results, read_scores
from ..study import contrasts, outcomes
from ..study.contrasts import Contrast
from ..study.fronts import Effect, Interval, over_kl, straight
from ..study.outcomes import LOW, ArmId, outcome
from .points import OWN

Line = tuple[np.ndarray, np.ndarray]
"""KL of its points, (points,), by increasing KL, and their mean score, (points,)."""
SCORES = {"reward": "r̃", "judge": "judge's score", "judge_tfidf": "TF-IDF judge's score"}


@dataclass(frozen=True)
class Side:
    """One of the methods compared: its points, and the line of each seed that is read at equal
    KL.
    """

    name: str
    colour: str
    points: pd.DataFrame
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """What is drawn and said. span: from and to which KL scores are averaged, nats.

    others: related differences, name → value, for a table.
    """

    sides: list[Side]
    finding: str
    evidence: str = ""
    span: tuple[float, float] | None = None
    others: dict[str, str] = field(default_factory=dict)


def attempt(make: Callable[[], Comparison]) -> Comparison:
    """What it makes; where that cannot be made yet, a comparison that says why."""
    try:
        return make()
    except Explained as why:
        return Comparison([], "There is nothing to compare here yet", str(why))


# ---------------------------------------------------------------------------------------- the study


def primary(points: pd.DataFrame, score: str, end: float | None) -> Comparison:
    """The study's question: the better WARP against the better REINFORCE."""
    main = _primary(score, end)
    seeds = list(main.by_prompt)
    arms = [arm for arm in ARMS if arm in (main.arm, *_finished("reinforce"))]
    rivals = _finished("reinforce")
    each = contrasts.against_each(("primary", main.arm), rivals, main.high, score, seeds)
    differences = {
        f"− {'the LITI line of ' if which else ''}{ARMS[rival]}": one
        for (rival, which), one in each.items()
    }
    sides = [_arm(points, ("primary", arm), seeds, score) for arm in arms]
    return _study(sides, main, score, differences)


def best_of_n(points: pd.DataFrame, score: str, end: float | None) -> Comparison:
    """The better WARP against best-of-n from SFT, a ceiling that trains nothing."""
    whole = _primary("reward", None)
    arm, high = ("primary", whole.arm), end or _planned("tuning")
    main = contrasts.over_best_of_n(arm, high, score, list(whole.by_prompt))
    seeds = list(main.by_prompt)
    models = {outcome(*arm, seed).record["reward_model"] for seed in seeds}
    best = outcomes.finished("best-of-n", "sft")
    best = {seed: unit for seed, unit in best.items() if unit.record["reward_model"] in models}
    rows = points[(points["source"] == "best-of-n") & points["seed"].isin(list(best))]
    lines = [_means(unit.kl("test"), unit.reward("test", score)) for unit in best.values()]
    sides = [_arm(points, arm, seeds, score), Side("best-of-n", GREY, rows, lines)]
    return _study(sides, main, score)


def merges(points: pd.DataFrame, score: str, end: float | None) -> Comparison:
    """The lines from SFT through SLERP and through LERP of the same two runs."""
    if score != "reward":
        raise Explained("SLERP and LERP are compared by the reward only.")
    merged = outcomes.finished("merges", "warp-m3")
    if not merged:
        raise Explained("No SLERP has been compared with LERP yet.")
    by_runs = contrasts.slerp_over_lerp(merged, end or _planned("tuning"))
    rows = points[(points["source"] == "merges") & (points["runs"] == 2)]
    sides = []
    for name, colour, method in (("SLERP", BLUE, "slerp-layer"), ("LERP", GREY, "lerp")):
        lines = [_means(*unit.through_merge(method, 2)[:2]) for unit in merged.values()]
        sides.append(Side(name, colour, rows[rows["method"] == method], lines))
    main = by_runs[f"M = 2, {outcomes.MERGES['slerp-layer']}"]
    return _study(sides, main, score, by_runs)


def dpo(points: pd.DataFrame, score: str, end: float | None) -> Comparison:
    """WARP on DPO against DPO, and whether WARP gains more over it than over REINFORCE."""
    pair = ("dpo", "warp-dpo"), ("dpo", "dpo")
    main = contrasts.difference(*pair, end or _planned("dpo-tuning"), score)
    sides = [_arm(points, arm, list(main.by_prompt), score) for arm in pair]
    gains = ("primary", "warp"), ("primary", "reinforce")
    high = min(main.high, _planned("tuning"))
    name = f"WARP's gain over DPO − its gain over REINFORCE, to {high:g} nats"
    more = {name: contrasts.difference_of_gains(pair, gains, high)} if score == "reward" else {}
    return _study(sides, main, score, more)


def _finished(kind: str) -> list[str]:
    """The arms of the primary comparison that have units, those whose name begins with `kind`."""
    named = [arm for arm in ARMS if arm.split("-")[0] == kind]
    return [arm for arm in named if outcomes.finished_seeds("primary", [arm])]


def _primary(score: str, end: float | None) -> Contrast:
    high = end or _planned("tuning")
    warps, rivals = _finished("warp"), _finished("reinforce")
    if not (warps and rivals):
        raise Explained("`python -m warp_lib study` produces the runs compared here.")
    return contrasts.contrast("primary", warps, rivals, high, score)


def _planned(experiment: str) -> float:
    """K*, nats."""
    return outcomes.settled(experiment)["high"]


def _arm(points: pd.DataFrame, arm: ArmId, seeds: list[int], score: str) -> Side:
    """An arm of the study: the points that its front may have, and each seed's front."""
    here = (points["source"] == arm[0]) & (points["arm"] == arm[1]) & points["seed"].isin(seeds)
    lines = [_means(*outcome(*arm, seed).line("test", score)) for seed in seeds]
    return Side(ARMS[arm[1]], COLOURS[arm[1]], points[here & (points["method"] != "run")], lines)


def _study(
    sides: list[Side], main: Contrast, score: str, others: Mapping[str, Effect] | None = None
) -> Comparison:
    """The verdict on the first side against its rival, of several seeds."""
    names = ARMS | {"slerp-layer": "SLERP", "lerp": "LERP"}
    arm, rival = (names.get(name, name) for name in (main.arm, main.rival))
    less = cut(main, "where a curve ends there")
    evidence = (
        f"{arm} − {rival} is {main} in mean {SCORES[score]} at equal KL, from {LOW:g} to"
        f" {main.high:g} nats{less}; {of_seeds(len(main.by_prompt))}, test prompts."
    )
    said = who_is_ahead(arm, rival, main.side, judged=score != "reward")
    if main.few:
        said = f"Too few seeds to tell {arm} from {rival}"
    in_words = {name: str(effect) for name, effect in (others or {}).items()}
    return Comparison(sides, said, evidence, (LOW, main.high), in_words)


# --------------------------------------------------------------------------------------- own choice


def own(points: pd.DataFrame, score: str, end: float | None, name: str) -> Comparison:
    """One's own run: WARP's LITI line against REINFORCE's, over the prompts of its one seed.

    Both are read straight between their points, for there are no others to choose a front on.
    REINFORCE's checkpoints are shown, and not read: too few lie between SFT and the first.
    """
    if not name:
        raise Explained("You have no run yet: `make lab` opens the notebooks that make one.")
    rows = points[points["source"] == OWN + name]
    methods = {"warp": ("WARP", BLUE), "reinforce-liti": ("REINFORCE", ORANGE)}
    sides = []
    for method, (title, colour) in methods.items():
        mine = rows[rows["method"].isin([method, method.removesuffix("-liti")])]
        line = rows[rows["method"].isin(["sft", method])].dropna(subset=[score]).sort_values("kl")
        read = (line["method"] == method).any()  # not where a judge was not asked
        lines = [(line["kl"].to_numpy(), line[score].to_numpy())] if read else []
        sides.append(Side(title, colour, mine, lines))
    try:
        if score != "reward":
            raise Explained("A run of your own is compared by the reward only.")
        run = paths.RUNS / name
        table, scores = read_results(run), read_scores(run)
        warp, rival = (straight(table, scores, method) for method in ("warp", "reinforce-liti"))
        difference, span = over_kl(warp, rival, LOW, end or math.inf)
    except Explained as why:
        return Comparison(sides, "There is no verdict here", str(why))
    interval = Interval.of(difference)
    evidence = (
        f"WARP − REINFORCE, each on its LITI line, is {interval} in mean r̃ at equal KL, from"
        f" {span[0]:g} to {span[1]:.2f} nats; one seed, {interval.n} test prompts. The next seed"
        " may differ."
    )
    said = who_is_ahead("WARP", "REINFORCE", interval.side, "at equal KL on this seed")
    return Comparison(sides, said, evidence, span)


def _means(kl: np.ndarray, scores: np.ndarray) -> Line:
    return kl, scores.mean(1)


PRESETS: dict[str, Callable[[pd.DataFrame, str, float | None], Comparison]] = {
    "WARP vs REINFORCE": primary,
    "WARP vs best-of-n": best_of_n,
    "SLERP vs LERP": merges,
    "WARP-DPO vs DPO": dpo,
}
