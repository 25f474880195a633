"""What the study found: its units' tables read, fronts chosen on validation prompts and compared on test prompts. Needs no torch."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from ..runs.paths import ROOT
from .fronts import Effect, Interval, pareto, shares, weights

FOLDER = ROOT / "data" / "study"
TUNING_SEED = 999  # chooses settings, and is reported nowhere else
SEEDS = (20, 21, 22, 23, 24, 25, 26, 27)  # no earlier study had one of these
LOW = 1.0  # nats of KL where the mean of a front begins
STAGES = {"run": "single runs", "slerp": "their SLERP", "liti": "LITI, where the next begins"}
ASKED = {  # beside the primary contrast: experiment → its question in words, and how many units it has
    "grid": ("the student report's grid", 14), "merges": ("SLERP against LERP", 5), "averages": ("other averages", 9),
    "angles": ("angles between seeds", 1), "anchors": ("fixed anchors", 12),
    "duration": ("scale in T", 12), "more-runs": ("M up to 5", 1), "restarts": ("η between iterations", 3),
}  # fmt: skip
MERGES = {"slerp-layer": "an angle a layer", "slerp-tensor": "an angle a tensor", "slerp-model": "one angle"}  # the paper's first
OTHERS = {  # what else is averaged: in words → the arm of `averages`, and two of its lines, each a method and how many were averaged
    "mean of the last two checkpoints − the last": ("checkpoints", ("checkpoints", 2), ("checkpoints", 1)),
    "mean of all four checkpoints − the last": ("checkpoints", ("checkpoints", 4), ("checkpoints", 1)),
    "back to the iteration's beginning − to SFT": ("step-back", ("from-init", 2), ("from-sft", 2)),
    "SLERP of three without order − the paper's": ("without-order", ("slerp-without-order", 3), ("slerp-layer", 3)),
}
LEAST, MARGIN = 3.0, 0.5  # nats that a trial must reach to be chosen; nats that chosen ones reach beyond where fronts are compared


Place = tuple[str, str]
"""Where an arm stands in the study: its experiment and its name."""
Line = tuple[str, int]
"""Points over η of a unit: their method, and how many runs (or checkpoints) were averaged."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a unit of the study left: its rows, the scores of each point and prompt, and its record. There is one object for each unit."""

    rows: pd.DataFrame
    scores: dict[str, np.ndarray]
    record: dict[str, Any]

    @property
    def given(self) -> str:
        """What trials differ in: learning rate and β."""
        return f"lr {self.record['settings']['learning_rate']:g}, β {self.record['settings']['beta']:g}"

    def of(self, split: str) -> pd.DataFrame:
        """The rows of a split. Their index is their place in the split's `scores`."""
        return self.rows[self.rows["split"] == split].reset_index(drop=True)

    @cache  # noqa: B019 - a unit is kept for good, see `outcome`
    def points(self, split: str) -> pd.DataFrame:
        """The rows that a front may have: all but WARP's single runs. 14 different points for each arm of the primary contrast."""
        rows = self.of(split)
        return rows[rows["method"] != "run"]

    def along_eta(self, method: str) -> pd.DataFrame:
        """The rows of a line over η on test prompts, by increasing η."""
        rows = self.of("test")
        return rows[rows["method"] == method].sort_values("eta")

    def kl(self, split: str) -> np.ndarray:
        """Mean KL to SFT of each of these points, (points,), nats."""
        return self.points(split)["kl"].to_numpy()

    def reward(self, split: str, scorer: str = "reward") -> np.ndarray:
        """r̃ of each of these points and each prompt, (points, prompts); or the score of a judge."""
        return self.scores[f"{split}.{scorer}"][self.points(split).index]

    def through_merge(self, method: str, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """The line from SFT, where the unit has it, through a merge of `runs` runs and beyond, on test prompts: KL in increasing order,
        (points,), and r̃ of each prompt, (points, prompts)."""
        rows = self.of("test")
        line = rows[(rows["method"] == "sft") | ((rows["method"] == method) & (rows["runs"] == runs))].sort_values("kl")
        return line["kl"].to_numpy(), self.scores["test.reward"][line.index]

    @cache  # noqa: B019
    def front(self) -> list[int]:
        """The points that make the front, chosen on validation prompts."""
        return pareto(self.kl("validation"), self.reward("validation").mean(1))

    def reach(self, split: str) -> float:
        """The largest KL of its points, nats."""
        return self.kl(split).max()

    def line(self, split: str, scorer: str = "reward") -> tuple[np.ndarray, np.ndarray]:
        """The front as KL, (points,), in increasing order, and r̃ of each prompt, (points, prompts); or a judge's score of the same points.

        Up to the largest KL of any point it keeps its last reward: who may spend more can still take the policy that spends less.
        """
        front = np.array(self.front())
        front = front[np.argsort(self.kl(split)[front], kind="stable")]
        kl, reward = self.kl(split)[front], self.reward(split, scorer)[front]
        if self.reach(split) > kl[-1]:
            kl, reward = np.append(kl, self.reach(split)), np.concatenate([reward, reward[-1:]])
        return kl, reward

    def front_at(self, kl: Sequence[float]) -> np.ndarray | None:
        """r̃ of each prompt on the front at these KLs, (places, prompts), on test prompts; None where one of them is beyond the front."""
        own, line = self.line("test")
        return weights(own, kl).T @ line if max(kl) <= own[-1] else None

    def along_front(self, split: str, high: float, scorer: str = "reward") -> np.ndarray:
        """Each prompt's mean r̃ (or a judge's score) over KL from `LOW` to `high` nats along the front, (prompts,)."""
        kl, reward = self.line(split, scorer)
        return shares(kl, LOW, high) @ reward


@cache
def outcome(experiment: str, arm: str, seed: int) -> Outcome:
    """A finished unit. Raises FileNotFoundError for another."""
    file = FOLDER / experiment / f"{arm}-{seed}.json"
    record = json.loads(file.read_text())
    return Outcome(pd.read_csv(file.with_suffix(".csv")), load_file(file.with_suffix(".safetensors")), record)


def waiting() -> list[str]:
    """What the study asks beside its primary contrast and has not finished, in words."""
    found = []
    for name, (words, count) in ASKED.items():
        left = count - len(list((FOLDER / name).glob("*.json")))
        if left:
            found.append(words if left == count else f"{words} ({left} of {count} units left)")
    return found


def finished_seeds(experiment: str, arms: Iterable[str]) -> list[int]:
    """The seeds on which all of the arms have ended."""
    files = {file.stem for file in (FOLDER / experiment).glob("*.json")}
    ended = [{int(seed) for file in files if (seed := file.removeprefix(f"{arm}-")).isdigit()} for arm in arms]
    return sorted(set.intersection(*ended))


def tested(arms: dict[str, str], among: Iterable[int]) -> dict[str, list[Outcome]]:
    """Arm → its finished units in the order of their seeds, for those of `arms`, each with its experiment, that have any `among` them."""
    ended = {arm: [seed for seed in finished_seeds(experiment, [arm]) if seed in among] for arm, experiment in arms.items()}
    return {arm: [outcome(arms[arm], arm, seed) for seed in seeds] for arm, seeds in ended.items() if seeds}


def trials(experiment: str, arm: str) -> dict[str, Outcome]:
    """The finished trials of an arm, by name."""
    files = sorted((FOLDER / experiment).glob(f"{arm}-?-{TUNING_SEED}.json"))
    return {file.stem.split("-")[-2]: outcome(experiment, file.stem.removesuffix(f"-{TUNING_SEED}"), TUNING_SEED) for file in files}


def settle(experiment: str, arms: Iterable[str]) -> dict[str, Any]:
    """What an experiment's finished trials decide: the trial of each arm, and K*, where comparisons end.

    An arm's trial is the one with the highest mean r̃ along its front on validation prompts, from `LOW` as far as all trials of all arms
    reach; those that reach less than `LEAST` nats are left out. K* is `MARGIN` below the KL that every chosen trial reaches, in halves:
    other seeds will reach less. The chosen learning rates and β are kept with the trials' names.

    Raises ValueError when an arm has no trial left.
    """
    able = {arm: {n: t for n, t in trials(experiment, arm).items() if t.reach("validation") >= LEAST} for arm in arms}
    if lost := [arm for arm, left in able.items() if not left]:
        raise ValueError(f"no trial of {lost[0]} in {experiment} reaches {LEAST:g} nats: there is nothing to compare.")
    window = min(trial.reach("validation") for left in able.values() for trial in left.values())
    best = {arm: max(left, key=lambda n, left=left: left[n].along_front("validation", window).mean()) for arm, left in able.items()}
    high = math.floor(2 * min(able[arm][name].reach("validation") for arm, name in best.items())) / 2 - MARGIN
    given = {arm: able[arm][name].record["settings"] for arm, name in best.items()}
    chosen = {arm: {"trial": best[arm]} | {knob: given[arm][knob] for knob in ("learning_rate", "beta")} for arm in best}
    return {"high": high, "judged_to": window, "chosen": chosen}


def settled(experiment: str) -> dict[str, Any]:
    """What `settle` decided when the experiment's trials ended, kept so that nothing later can move it. Raises ValueError before that."""
    try:
        return json.loads((FOLDER / f"{experiment}.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"settings are chosen when all trials have ended: run `python -m warp_lib study {experiment}` first.") from None


def trial_rows(experiment: str, arms: Iterable[str]) -> list[dict[str, Any]]:
    """What the trials of each arm came to on validation prompts, a row each, with a mark at the one that is chosen."""
    rows, decided = [], settled(experiment)
    window = decided["judged_to"]
    for arm in arms:
        for name, trial in trials(experiment, arm).items():
            given, end, able = trial.record["settings"], int(trial.kl("validation").argmax()), trial.reach("validation") >= LEAST
            values = trial.along_front("validation", window) if able else None
            rows.append(
                {
                    "method": arm, "learning rate": f"{given['learning_rate']:g}", "β": f"{given['beta']:g}",
                    "largest KL, nats": float(trial.kl("validation")[end]), "r̃ there": float(trial.reward("validation")[end].mean()),
                    f"mean r̃ from {LOW:g} to {window:.2f} nats": float(values.mean()) if able else "reaches too little",
                    "± 2 s.e. over prompts": float(2 * values.std(ddof=1) / math.sqrt(len(values))) if able else "",
                    "chosen": "yes" if name == decided["chosen"][arm]["trial"] else "",
                }
            )  # fmt: skip
    return rows


def trial_difference(trial: Outcome, rival: Outcome, high: float) -> Interval:
    """A trial less another: mean r̃ from `LOW` to `high` nats, over the validation prompts."""
    return Interval.of(trial.along_front("validation", high) - rival.along_front("validation", high))


def angle_rows(experiment: str, arm: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Angles and norms of the runs' task vectors over the whole model, a row for each seed, iteration and pair of runs."""
    rows = []
    for seed in seeds:
        for found in outcome(experiment, arm, seed).record["geometry"]:
            if found["layer"] == "model":
                place = {"seed": seed, "iteration": found["iteration"], "runs": f"{found['a']} and {found['b']}"}
                rows.append(place | {"Ω, degrees": found["degrees"], "‖δ‖": found["norm_a"], "‖δ′‖": found["norm_b"]})
    return rows


def by_layer(experiment: str, arm: str, seeds: Iterable[int]) -> pd.DataFrame:
    """Angle between two runs' task vectors and their norm, layer by layer and over the whole model: a row for each iteration and layer with
    the mean over seeds and its 95% half width (`…_half`). Columns: iteration, layer, degrees, norm, longer.

    norm: the mean of the two. longer: 1/cos(Ω/2), how many times as long SLERP's step at λ = ½ is as LERP's (exactly, whatever the norms).
    """
    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    for seed in seeds:
        rows = pd.DataFrame(outcome(experiment, arm, seed).record["geometry"])
        rows["norm"] = (rows["norm_a"] + rows["norm_b"]) / 2
        rows["longer"] = 1 / np.cos(np.radians(rows["degrees"]) / 2)
        means = rows.groupby(["iteration", "layer"], sort=False)[["degrees", "norm", "longer"]].mean()  # a seed counts once, whatever its M
        for (iteration, layer), row in means.iterrows():
            place = found.setdefault((iteration, layer.removeprefix("transformer.")), {})
            for name, value in row.items():
                place.setdefault(name, []).append(value)
    return pd.DataFrame([{"iteration": i, "layer": layer} | _with_halves(values) for (i, layer), values in found.items()])


def end_rows(experiment: str, arms: Iterable[str], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """What each unit's point of largest KL is on test prompts, a row each: reward, judges, and the texts' variety; ± 2 standard errors."""
    columns = {
        "KL, nats": "kl", "r̃": "reward", "judge": "judge", "TF-IDF judge": "judge_tfidf", "entropy, nats a token": "entropy",
        "distinct-2": "distinct2", "SFT's perplexity": "perplexity",
    }  # fmt: skip
    rows = []
    for seed, arm in product(seeds, arms):
        points = outcome(experiment, arm, seed).points("test")
        end = points.loc[points["kl"].idxmax()]
        rows.append({"method": arm, "seed": seed} | {c: f"{end[name]:.2f} ± {2 * end[f'{name}_se']:.2f}" for c, name in columns.items()})
    return rows


def averages(experiment: str, arm: str, rivals: Iterable[str], seeds: Iterable[int]) -> dict[str, dict[str, Effect]]:
    """What WARP's averages do: of each kind of point of each iteration its r̃, its KL and its height, r̃ less a rival front's at the same
    KL (see `Outcome.line`; `height over <rival>`).

    A step back towards SFT lowers both r̃ and KL; only the height says whether it was worth it. A height is left out where a seed's KL is
    beyond the rival's.
    """
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    seeds = list(seeds)
    for seed in seeds:
        one, fronts = outcome(experiment, arm, seed), {rival: outcome(experiment, rival, seed) for rival in rivals}
        for (iteration, method), same in one.of("test").query("method in @STAGES").groupby(["iteration", "method"]):
            reward, own_kl = (one.scores[f"test.{score}"][same.index].mean(0) for score in ("reward", "kl"))
            numbers = {"r̃": reward, "KL, nats": own_kl}
            for rival, front in fronts.items():
                if (line := front.front_at(same["kl"])) is not None:
                    numbers[f"height over {rival}"] = reward - line.mean(0)
            place = found.setdefault(f"iteration {iteration:.0f}: {STAGES[method]}", {})
            for name, values in numbers.items():
                place.setdefault(name, {})[seed] = values
    order = sorted(found, key=lambda place: (place.split(":")[0], list(STAGES.values()).index(place.split(": ")[1])))
    return {place: {n: Effect(values) for n, values in found[place].items() if len(values) == len(seeds)} for place in order}


def ahead_of_judge(experiment: str, arm: str, judge: str, seeds: Iterable[int]) -> dict[float, Effect]:
    """How much more r̃ has risen since SFT than a judge's score, along the arm's front on test prompts: KL, every half nat that all
    seeds reach → the rise of r̃ less that of the score, both in SFT's standard deviations. A policy that exploits its reward model (reward
    hacking) gets further and further ahead."""
    lines = {seed: [outcome(experiment, arm, seed).line("test", scorer) for scorer in ("reward", judge)] for seed in seeds}
    end = min(kl[-1] for (kl, _), _ in lines.values())
    since_sft = {
        at: {seed: (weights(kl, [at]) - weights(kl, [0]))[:, 0] @ (reward - score) for seed, ((kl, reward), (_, score)) in lines.items()}
        for at in np.arange(0.5, end, 0.5).tolist()
    }
    return {at: Effect(by_prompt) for at, by_prompt in since_sft.items()}


def along_eta(experiment: str, arm: str, method: str, seeds: Iterable[int]) -> pd.DataFrame:
    """r̃ and KL along a line over η on test prompts: a row for each η with the mean over seeds and its 95% half width (`…_half`)."""
    rows = pd.concat([outcome(experiment, arm, seed).along_eta(method) for seed in seeds])
    groups = rows.groupby(rows["eta"].round(6))
    return pd.DataFrame([{"eta": eta} | _with_halves({c: same[c].to_list() for c in ("reward", "kl")}) for eta, same in groups])


def bend(experiment: str, arm: str, method: str, score: str, seeds: Iterable[int]) -> Effect:
    """How far a line over η lies above its chord at η = ½ on test prompts, in r̃ or KL: positive where it is concave, negative where it is
    convex."""
    rises = {}
    for seed in seeds:
        one = outcome(experiment, arm, seed)
        rows = one.along_eta(method)
        values = one.scores[f"test.{score}"][rows.index]
        rises[seed] = weights(rows["eta"], [0.5])[:, 0] @ values - (values[0] + values[-1]) / 2
    return Effect(rises)


def _with_halves(numbers: dict[str, list[float]]) -> dict[str, float]:
    """Column → its mean over seeds, and `…_half` → the half width of the 95% interval."""
    intervals = {name: Interval.of(values) for name, values in numbers.items()}
    return {name: i.mean for name, i in intervals.items()} | {f"{name}_half": i.high - i.mean for name, i in intervals.items()}


@dataclass(frozen=True, eq=False)
class Contrast(Effect):
    """An arm's front against a rival's: the difference in mean r̃ over KL from `LOW` to `high` on test prompts, the points' KL taken as
    known.

    short: seed → where its comparison ends instead of at `high`, because one of the fronts does.
    """

    arm: str
    rival: str
    high: float
    short: dict[int, float]

    @property
    def verdict(self) -> str:
        """What the interval over seeds and prompts allows to say."""
        if len(self.by_prompt) == 1:
            return "and one seed cannot say whether that holds for the next"
        if self.few:
            return "which two seeds do not decide"
        if not (side := self.side):
            return "which cannot be told from none"
        return f"so {self.arm} is {'ahead of' if side > 0 else 'behind'} {self.rival}"


def contrast(experiment: str, arm: str, rivals: list[str], high: float, scorer: str = "reward") -> Contrast:
    """An arm against the better of its rivals, the one whose front is higher on validation prompts, over the seeds that all have finished.

    The fronts and the better rival are those of the reward; `scorer` may be a judge, which then says how far they really are apart.

    A seed on which one of the fronts ends before `high` is compared as far as all of them reach; one whose arms had different reward
    models, or different judges where the judge is asked, is left out. Raises ValueError when no seed is left.
    """
    seeds, ends = _shared([(experiment, name) for name in [arm, *rivals]], high, scorer)

    def score(name: str, seed: int, split: str, scorer: str = "reward") -> np.ndarray:
        return outcome(experiment, name, seed).along_front(split, ends[seed], scorer)

    rival = max(rivals, key=lambda name: np.mean([score(name, seed, "validation").mean() for seed in seeds]))
    return _paired(arm, rival, high, {seed: score(arm, seed, "test", scorer) - score(rival, seed, "test", scorer) for seed in seeds}, ends)


def over_best_of_n(experiment: str, arm: str, high: float, scorer: str = "reward") -> Contrast:
    """An arm's fronts against best-of-n from SFT, at the KL that bounds it (see `best_of_n.kl_of_best`): in truth it may be cheaper.

    Compared as far as the largest n reaches, on the seeds that count and were scored alike, whatever their number format: it has a unit for
    each reward model. Raises ValueError when best-of-n has not been measured or no such seed is left.
    """
    best, ends, by_prompt = [outcome("best-of-n", "sft", seed) for seed in finished_seeds("best-of-n", ["sft"])], {}, {}
    for seed in shared_seeds([(experiment, arm)], scorer, SEEDS):
        one = outcome(experiment, arm, seed)
        if yardstick := next((n for n in best if _scored_alike([n, one], scorer)), None):
            kl, reward = yardstick.kl("test"), yardstick.reward("test", scorer)
            ends[seed] = min(high, kl.max(), *(one.reach(split) for split in ("validation", "test")))
            by_prompt[seed] = one.along_front("test", ends[seed], scorer) - shares(kl, LOW, ends[seed]) @ reward
    if not ends:
        raise ValueError(f"there is no seed of {experiment} for {arm}, or best-of-n has not been measured: `python -m warp_lib study`.")
    return _paired(arm, "best-of-n", high, by_prompt, ends)


def by_reward_model(experiment: str, found: Contrast) -> dict[str, Interval]:
    """A contrast's seeds apart by what rewarded them: their numbers → the interval over them."""
    groups: dict[str, list[int]] = {}
    for seed in found.by_seed:
        groups.setdefault(outcome(experiment, found.arm, seed).record["reward_model"], []).append(seed)
    return {f"seeds {', '.join(map(str, seeds))}": Interval.of([found.by_seed[seed].mean for seed in seeds]) for seeds in groups.values()}


def line_over_line(experiment: str, arm: str, seeds: Iterable[int], line: Line, other: Line, high: float) -> Contrast:
    """What one line over η has over another of the same units beside a longer step: its mean r̃ less the other's at equal KL on test
    prompts, from `LOW` to `high` nats. Both are read straight between their points, which favours the line with closer ones (06 says how
    much)."""
    ends, by_prompt = {}, {}
    for seed in seeds:
        (kl, reward), (other_kl, other_reward) = (outcome(experiment, arm, seed).through_merge(*one) for one in (line, other))
        ends[seed] = min(high, kl[-1], other_kl[-1])
        by_prompt[seed] = shares(kl, LOW, ends[seed]) @ reward - shares(other_kl, LOW, ends[seed]) @ other_reward
    return _paired(line[0], other[0], high, by_prompt, ends)


def by_reading(experiment: str, arm: str, seeds: Iterable[int], line: Line, other: Line, high: float) -> Interval:
    """What `line_over_line` would find if there were no difference: both lines' points laid onto one smooth curve, the monotone cubic one
    through the other line's points, and read straight between them."""
    from scipy.interpolate import PchipInterpolator  # as slow to import as all else here together, and the explorer asks for none of it

    found = []
    for seed in seeds:
        (kl, _), (other_kl, other_reward) = (outcome(experiment, arm, seed).through_merge(*one) for one in (line, other))
        curve, end = PchipInterpolator(other_kl, other_reward.mean(1)), min(high, kl[-1], other_kl[-1])
        found.append(shares(kl, LOW, end) @ curve(kl) - shares(other_kl, LOW, end) @ curve(other_kl))
    return Interval.of(found)


def other_averages(high: float) -> dict[str, tuple[Contrast, Interval]]:
    """Each of `OTHERS`, on the seeds that have it: what the one line has over the other, and what reading alone would make (see
    `line_over_line`, `by_reading`)."""
    found = {}
    for name, (arm, line, other) in OTHERS.items():
        compared = ("averages", arm, finished_seeds("averages", [arm]), line, other, high)
        found[name] = line_over_line(*compared), by_reading(*compared)
    return found


def slerp_over_lerp(experiment: str, arm: str, seeds: Iterable[int], high: float) -> dict[str, Contrast]:
    """SLERP's line through the merge of the same runs over LERP's, for each number of runs and each way to take angles (see
    `line_over_line`, `merging.slerp`).

    With one angle for the model SLERP of two runs lies on LERP's own line, and what is found there is what the measurement itself adds.
    """
    seeds = list(seeds)
    many = sorted({int(runs) for seed in seeds for runs in outcome(experiment, arm, seed).of("test")["runs"].dropna()})
    return {
        f"M = {runs}, {words}": line_over_line(experiment, arm, seeds, (method, runs), ("lerp", runs), high)
        for runs, (method, words) in product(many, MERGES.items())
    }


def between_seeds() -> pd.DataFrame:
    """Ω between REINFORCE's runs of different seeds, a row for each pair, arm and number of steps (see `study.Angles`). Columns: arm,
    steps, completions, a, b, degrees, norm_a, norm_b."""
    return outcome("angles", "seeds", finished_seeds("angles", ["seeds"])[0]).rows


def averaged_out(angles: pd.DataFrame) -> pd.Series:
    """Completions of a run → the angle in degrees that `between_seeds` would be, if gradients were one signal and independent noise that
    averages out over completions, all of which count alike: cos Ω = n / (n + n₀), with n₀ from the pairs of fewest completions."""
    n = np.sort(angles["completions"].unique())
    first = np.cos(np.radians(angles.loc[angles["completions"] == n[0], "degrees"])).mean()
    return pd.Series(np.degrees(np.arccos(n / (n + n[0] * (1 / first - 1)))), index=n)


def growth_rows(angles: pd.DataFrame) -> list[dict[str, Any]]:
    """For reading: angles and norms of `between_seeds`, means over its pairs, and how many times as long as at first task vectors are, and
    would be, if `averaged_out` held."""
    rows, expected = [], averaged_out(angles)
    for arm, of_arm in angles.groupby("arm"):
        means = of_arm.groupby("completions")[["degrees", "norm_a", "norm_b"]].mean()
        norms = (means["norm_a"] + means["norm_b"]) / 2
        # With signal s and noise of variance v a completion, ‖δ‖² = n² s² + n v, and cos Ω is the first part's share.
        wanted = (expected.index**2 / np.cos(np.radians(expected))) ** 0.5
        for n, norm in norms.items():
            times = {"times the first": f"{norm / norms.iloc[0]:.2f}", "if all counted alike": f"{wanted[n] / wanted.iloc[0]:.2f}"}
            place = {"method": arm, "completions": f"{n:,}", "Ω, degrees": f"{means.loc[n, 'degrees']:.1f}"}
            rows.append(place | {"if noise averaged out": f"{expected[n]:.1f}", "‖δ‖": f"{norm:.3f}"} | times)
    return rows


def difference(arm: Place, rival: Place, high: float, scorer: str = "reward", among: Iterable[int] | None = None) -> Contrast:
    """An arm against one rival, maybe of another experiment, over the seeds that they share (see `shared_seeds`, `contrast`).

    Raises ValueError when there is no such seed.
    """
    seeds, ends = _shared([arm, rival], high, scorer, among)
    a, b = ({seed: outcome(*one, seed).along_front("test", ends[seed], scorer) for seed in seeds} for one in (arm, rival))
    return _paired(arm[1], rival[1], high, {seed: a[seed] - b[seed] for seed in seeds}, ends)


def differences(
    wanted: dict[str, tuple[Place, Place]], high: float, among: Iterable[int], scorer: str = "reward"
) -> dict[str, Contrast]:  # fmt: skip
    """Those of the `wanted` differences, by name, whose arms share a seed `among` these (see `difference`)."""
    able = {name: pair for name, pair in wanted.items() if shared_seeds(pair, scorer, among)}
    return {name: difference(*pair, high, scorer, among) for name, pair in able.items()}


def difference_of_gains(of: tuple[Place, Place], than: tuple[Place, Place], high: float) -> Contrast:
    """How much more an arm gains over its rival than another arm over its own: (A − B) − (C − D), paired by seed and by prompt.

    Args:
        of, than: arm and rival.
        high: the largest KL, nats; a seed on which one of the four fronts ends before is compared as far as all of them reach.

    Raises ValueError when no seed has finished all four, scored by one reward model.
    """
    four = [*of, *than]
    seeds, ends = _shared(four, high)
    by_prompt = {}
    for seed in seeds:
        a, b, c, d = (outcome(*one, seed).along_front("test", ends[seed]) for one in four)
        by_prompt[seed] = (a - b) - (c - d)
    gains = [f"{arm} − {rival}" for (_, arm), (_, rival) in (of, than)]
    return _paired(*gains, high, by_prompt, ends)


def shared_seeds(arms: Iterable[Place], scorer: str = "reward", among: Iterable[int] | None = None) -> list[int]:
    """The seeds (`among` these, if given) on which all of the arms have ended, each in its experiment, and can be compared: from one SFT,
    in one number format, scored alike."""
    seeds = set.intersection(*(set(finished_seeds(experiment, [name])) for experiment, name in arms))
    return sorted(
        seed for seed in seeds if (among is None or seed in among) and _made_alike(units := [outcome(*one, seed) for one in arms])
        and _scored_alike(units, scorer)
    )  # fmt: skip


def _made_alike(units: list[Outcome]) -> bool:
    """Whether units began at the same SFT and computed in the same number format."""
    return len({(one.record["sft"], one.record["machine"]["dtype"]) for one in units}) == 1


def _shared(
    arms: list[Place], high: float, scorer: str = "reward", among: Iterable[int] | None = None
) -> tuple[list[int], dict[int, float]]:
    """The seeds that all arms share, and seed → the KL up to which they can be compared: `high`, or where the first of them ends.

    Raises ValueError when there is no such seed.
    """
    if not (seeds := shared_seeds(arms, scorer, among)):
        raise ValueError(f"no seed has finished all of {', '.join(f'{name} ({e})' for e, name in arms)}, scored by one {scorer}.")
    reach = {seed: min(outcome(*one, seed).reach(split) for one in arms for split in ("validation", "test")) for seed in seeds}
    return seeds, {seed: min(high, end) for seed, end in reach.items()}


def _scored_alike(units: list[Outcome], scorer: str) -> bool:
    """Whether units have the same reward model and, if `scorer` is a judge, the same of those, which every machine trains for itself.
    Units from before judges were recorded are of one kind of machine."""
    judges = {one.record.get("judges", {}).get(scorer) for one in units}
    return len({one.record["reward_model"] for one in units}) == len(judges) == 1


def _paired(arm: str, rival: str, high: float, by_prompt: dict[int, np.ndarray], ends: dict[int, float]) -> Contrast:
    """The contrast whose differences on each seed are `by_prompt`, (prompts,)."""
    return Contrast(by_prompt, arm=arm, rival=rival, high=high, short={s: end for s, end in ends.items() if end < high})
