"""The study's experiments, as a list of units.

An experiment compares arms, each a way to train with its settings; a unit is one seed of one arm.
Every arm's checkpoints are evaluated on validation prompts, which choose (trials, points of a
front), and on test prompts, which count.
"""

from collections.abc import Callable
from typing import Any

from .arms import (
    COMMON,
    Arm,
    by_averaging_checkpoints,
    by_dpo,
    by_iterated_dpo,
    by_merging,
    by_merging_without_order,
    by_reinforce,
    by_stepping_back,
    by_warp,
    by_warp_beside_one_run,
    by_warp_dpo,
    by_warp_dpo_once,
    by_warp_dpo_own,
    settings_of,
)
from .outcomes import EARLIER, SEEDS, TUNING_SEED, settled
from .units import Angles, BestOfN, Passes, Training, Unit

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
    arms = [(f"{name}-{t}", arm, TRIALS[t]) for t in TRIALS for name, arm in PRIMARY.items()]
    common = {"held_out": "validation"}
    return [_unit("tuning", name, arm, TUNING_SEED, given | common) for name, arm, given in arms]


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
    between = tuple(
        _tuned("primary", name, PRIMARY[name], name, seed)
        for name in ("reinforce", "reinforce-2b")
        for seed in ONE_MACHINE
    )
    return [Angles("angles", "seeds", settings_of(ONE_MACHINE[0]), between)]


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
    return [BestOfN("best-of-n", "sft", settings_of(seeds[0])) for seeds in (EARLIER, SEEDS)]


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
            settings = settings_of(seed, common | {"precision": trained})
            units.append(
                Passes("precision", f"warp-{trained}", settings, by_warp_beside_one_run, others)
            )
    return units


def _named(*listed: Callable[[], list[Unit]]) -> dict[str, Callable[[], list[Unit]]]:
    return {units.__name__.replace("_", "-"): units for units in listed}


NOW = _named(tuning, primary, best_of_n, grid, merges, averages, angles)
LATER = _named(anchors, duration, more_runs, restarts, defaults, precision)
LATER |= _named(dpo_tuning, dpo, reference)
# the arms whose settings an experiment decides when it ends
TUNED = {"tuning": tuple(PRIMARY), "dpo-tuning": ("warp-dpo", "dpo")}
EXPERIMENTS = NOW | LATER


def _unit(experiment: str, name: str, arm: Arm, seed: int, given: dict[str, Any]) -> Unit:
    return Training(experiment, name, settings_of(seed, given | arm.changes), arm.train)


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
