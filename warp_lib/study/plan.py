"""The study's experiments, as a list of units.

An experiment compares arms, each a way to train with its settings; a unit is one seed of one arm.
Every arm's checkpoints are evaluated on validation prompts, which choose (trials, points of a
front), and on test prompts, which count.
"""

from collections.abc import Callable, Sequence
from typing import Any

from . import arms
from .arms import COMMON, Arm, settings_of
from .outcomes import SEEDS, TUNING_SEED, settled
from .units import Angles, BestOfN, Passes, Training, Unit

# What the primary contrast compares at equal compute, 400 steps of batch 64. Each method has one
# choice of its own, made on validation prompts.
WARP = {"warp": Arm(arms.by_warp), "warp-eta-0.8": Arm(arms.by_warp, {"eta": 0.8})}
REINFORCE = {
    "reinforce": Arm(arms.by_reinforce),
    "reinforce-2b": Arm(arms.by_reinforce, {"batch_size": 128}),
}
PRIMARY = WARP | REINFORCE
# The same trials for each of them.
TRIALS = {
    "a": {"learning_rate": 1e-5, "beta": 0.3},
    "b": {"learning_rate": 3e-5, "beta": 0.3},
    "c": {"learning_rate": 1e-5, "beta": 1.0},
    "d": {"learning_rate": 3e-5, "beta": 1.0},
}


def tuning() -> list[Unit]:
    """Learning rate and β: the same trials for each arm of the primary contrast, on one seed,
    judged on validation prompts.
    """
    common = {"held_out": "validation", "judge_steps": 0}
    return [
        _unit("tuning", f"{name}-{trial}", arm, TUNING_SEED, TRIALS[trial] | common)
        for trial in TRIALS
        for name, arm in PRIMARY.items()
    ]


def primary() -> list[Unit]:
    """The better of two WARPs against the better of two rivals of equal compute."""
    return _tuned("primary", {name: (arm, name) for name, arm in PRIMARY.items()}, SEEDS)


def grid() -> list[Unit]:
    """The student report's plot: I and M of 1 to 3, and REINFORCE to the largest I·M·T. An arm
    passes through its smaller I.
    """
    size = {"iterations": 3}
    listed = {f"warp-m{m}": (Arm(arms.by_warp, size | {"runs": m}), "warp") for m in (1, 2, 3)}
    listed["reinforce-900"] = (Arm(arms.by_reinforce, size | {"runs": 3}), "reinforce")
    return _tuned("grid", listed, SEEDS[:3])


def merges() -> list[Unit]:
    """SLERP against LERP, and against LERP made longer: M of 2 and 3, from the first runs of the
    grid.
    """
    return _tuned("merges", {"warp-m3": (Arm(arms.by_merging, {"runs": 3}), "warp")}, SEEDS[:3])


def averages() -> list[Unit]:
    """What else can be averaged of the primary contrast's runs and of `merges`': nothing is trained
    where these are stored.
    """
    listed = {
        "checkpoints": (Arm(arms.by_averaging_checkpoints), "reinforce"),
        "step-back": (Arm(arms.by_stepping_back), "warp"),
        "without-order": (Arm(arms.by_merging_without_order, {"runs": 3}), "warp"),
    }
    return _tuned("averages", listed, SEEDS[:3])


def angles() -> list[Unit]:
    """Ω between REINFORCE's runs of different seeds, along their way and by their batch."""
    between = _tuned("primary", {name: (arm, name) for name, arm in REINFORCE.items()}, SEEDS[:3])
    return [Angles("angles", "seeds", settings_of(SEEDS[0]), tuple(between))]


# All of them spend 400 steps on pairs of the completions of 2 · 800 prompts.
DPO = {
    "warp-dpo": Arm(arms.by_warp_dpo),
    "dpo": Arm(arms.by_dpo),
    "warp-dpo-once": Arm(arms.by_warp_dpo_once),
    "dpo-iterated": Arm(
        arms.by_iterated_dpo, {"runs": 1, "eta": 1.0, "steps": 2 * COMMON["steps"]}
    ),
}
PAIRS = {"pair_prompts": 800, "mu": 0.0}


def dpo_tuning() -> list[Unit]:
    """Learning rate and β of WARP-DPO and of DPO, by the trials that the primary contrast had; no
    judge takes part in choosing.
    """
    listed = [
        (f"{name}-{trial}", DPO[name], TRIALS[trial])
        for trial in TRIALS
        for name in TUNED["dpo-tuning"]
    ]
    common = PAIRS | {"held_out": "validation", "judge_steps": 0}
    return [
        _unit("dpo-tuning", name, arm, TUNING_SEED, given | common) for name, arm, given in listed
    ]


def dpo() -> list[Unit]:
    """WARP on DPO with pairs made anew, against DPO, on five seeds; and on two of them what tells
    its causes apart. Each at the settings of the tuned one that is trained alike.
    """
    alike = {name: "warp-dpo" if name.startswith("warp") else "dpo" for name in DPO}
    given = {name: _decided("dpo-tuning", tuned) | PAIRS for name, tuned in alike.items()}
    asked = TUNED["dpo-tuning"]
    ordered = [(name, seed) for seed in SEEDS[:5] for name in asked]
    ordered += [(name, seed) for seed in SEEDS[:2] for name in DPO if name not in asked]
    return [_unit("dpo", name, DPO[name], seed, given[name]) for name, seed in ordered]


def anchors() -> list[Unit]:
    """REINFORCE with SFT as its fixed anchor (μ = 0) at β and β/3, and with an anchor ten times as
    quick; with the EMA it is the primary contrast's.
    """
    beta = _decided("tuning", "reinforce")["beta"]
    changes = {
        "fixed": {"mu": 0.0},
        "fixed-third": {"mu": 0.0, "beta": beta / 3},
        "quick": {"mu": 0.1},
    }
    listed = {name: (Arm(arms.by_reinforce, given), "reinforce") for name, given in changes.items()}
    return _tuned("anchors", listed, SEEDS[:3])


# Where hacking begins: little pull, long steps, an anchor that turns over twenty times in a run.
LONG = {"steps": 200, "iterations": 5, "learning_rate": 3e-5, "beta": 0.1, "mu": 0.1}


def long_run() -> list[Unit]:
    """WARP of five iterations against REINFORCE of as many completions, 2,000 steps or 1,000 of
    twice the batch.
    """
    listed = {"warp": WARP["warp"]} | REINFORCE
    return [
        _unit("long-run", name, arm, seed, LONG)
        for seed in SEEDS[:2]
        for name, arm in listed.items()
    ]


def turnover() -> list[Unit]:
    """An anchor that turns over five times in a run of T steps (μ·T = 5), for both methods."""
    return [
        _unit("turnover", name, PRIMARY[name], seed, _decided("tuning", name) | {"mu": 0.05})
        for seed in SEEDS[:2]
        for name in ("warp", "reinforce")
    ]


def best_of_n() -> list[Unit]:
    """Best-of-n from SFT, by the reward that trains the others."""
    return [BestOfN("best-of-n", "sft", settings_of(SEEDS[0]))]


SMALLER = {"test_prompts": 100, "test_samples": 4}  # as the report


# The report's learning rate and β: that of which 400 steps of REINFORCE end at no more than about
# 10 nats and below the 99th percentile of real positives; of several the one with the most reward.
def defaults() -> list[Unit]:
    """What the report's learning rate and β are chosen by, on validation prompts."""
    common = {"held_out": "validation", "judge_steps": 0} | SMALLER
    return [
        _unit("defaults", f"reinforce-{n}", REINFORCE["reinforce"], TUNING_SEED, given | common)
        for n, given in TRIALS.items()
    ]


def precision() -> list[Unit]:
    """What rounding weights to bfloat16 in a pass does to what is measured, and to training:
    trained both ways, measured in float32.
    """
    common = {"learning_rate": 1e-5, "beta": 0.3, "judge_steps": 0, "front_points": 6} | SMALLER
    units = []
    for seed in (10, 11, 12):
        for trained, others in (("split", ("split", "bfloat16")), ("bfloat16", ())):
            settings = settings_of(seed, common | {"precision": trained})
            units.append(
                Passes(
                    "precision", f"warp-{trained}", settings, arms.by_warp_beside_one_run, others
                )
            )
    return units


def _named(*listed: Callable[[], list[Unit]]) -> dict[str, Callable[[], list[Unit]]]:
    return {units.__name__.replace("_", "-"): units for units in listed}


NOW = _named(tuning, primary, best_of_n, grid, merges, averages, angles, dpo_tuning, dpo)
LATER = _named(anchors, long_run, turnover, defaults, precision)
# the arms whose settings an experiment decides when it ends
TUNED = {"tuning": tuple(PRIMARY), "dpo-tuning": ("warp-dpo", "dpo")}
EXPERIMENTS = NOW | LATER


def _unit(experiment: str, name: str, arm: Arm, seed: int, given: dict[str, Any]) -> Unit:
    return Training(experiment, name, settings_of(seed, given | arm.changes), arm.train)


def _tuned(experiment: str, listed: dict[str, tuple[Arm, str]], seeds: Sequence[int]) -> list[Unit]:
    """Units of arms, each with the arm of the primary contrast whose learning rate and β, as tuning
    chose them, it has.
    """
    return [
        _unit(experiment, name, arm, seed, _decided("tuning", like))
        for seed in seeds
        for name, (arm, like) in listed.items()
    ]


def _decided(experiment: str, arm: str) -> dict[str, Any]:
    """The learning rate and β that an experiment's trials decided for an arm."""
    return {
        knob: value for knob, value in settled(experiment)["chosen"][arm].items() if knob != "trial"
    }
