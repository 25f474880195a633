"""The committed task vectors, by which a fresh clone has trained policies without training."""

import json
import shlex
import sys
from datetime import date
from typing import Any

from safetensors.torch import load_file

from ..experiment import Experiment
from ..merging import Weights, geometry, norm, task_vector
from ..reward import Reward
from ..runs.commit import COMMIT
from ..runs.errors import Explained
from ..runs.paths import ROOT
from ..runs.progress import Progress
from ..runs.store import digest, save_tensors, write_json
from ..settings import Settings
from ..study.fronts import Interval, signed
from .deltas import pack, unpack

FOLDER = ROOT / "data" / "task_vectors"
RECORD = FOLDER / "task_vectors.json"


def train(experiment: Experiment, reward: Reward, progress: Progress) -> dict[str, Weights]:
    """Name → weights of WARP's policy, its last runs, and REINFORCE's policy of as many steps.

    Trained, or from the store. The runs are those of notebooks 03 and 04, or of the study's units,
    with the same settings.
    """
    align = experiment.aligner(reward, progress)
    last = experiment.warp(align)[-1]
    long = experiment.long_run(align, "reinforce", experiment.settings.steps)
    runs = {f"run {m}": run.weights for m, run in enumerate(last.runs, start=1)}
    return {"WARP": last.merged, **runs, "REINFORCE": long.weights}


def commit(
    experiment: Experiment,
    tuned: dict[str, Weights],
    rewards: dict[str, Reward],
    progress: Progress,
) -> dict[str, Any]:
    """Pack θ − θ_sft of each policy into `FOLDER`; measure, write and return what that changed."""
    sft, vectors, kept = experiment.theta_sft, {}, []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, theta in progress.track(list(tuned.items()), "packing"):
        delta, file = task_vector(sft, theta), f"{name.lower().replace(' ', '-')}.safetensors"
        packed = pack(delta)
        save_tensors(FOLDER / file, packed)
        back = unpack(packed, sft)
        kept.append({n: t + back[n] for n, t in sft.items()})
        lost = {n: back[n] - d for n, d in delta.items()}
        vectors[name] = {
            "file": file,
            "bytes": (FOLDER / file).stat().st_size,
            "norm": norm(delta.values()),
            "relative_error": norm(lost.values()) / norm(delta.values()),
        } | _measured(experiment, theta, kept[-1], rewards)
    angles = {}
    for row, packed_row in zip(
        geometry(sft, list(tuned.values())), geometry(sft, kept), strict=True
    ):
        if row["layer"] == "model":
            names = " and ".join(list(tuned)[row[side] - 1] for side in "ab")
            angles[names] = {"degrees": row["degrees"], "degrees_packed": packed_row["degrees"]}
    record = {
        "settings": experiment.settings.asdict(),
        "sft": digest(sft),
        "reward_model": rewards["reward"].identity,
        "commit": COMMIT,
        "command": shlex.join(["python", "-m", "warp_lib", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "vectors": vectors,
        "angles": angles,
    }
    write_json(RECORD, record)
    return record


def _measured(
    experiment: Experiment, theta: Weights, packed: Weights, rewards: dict[str, Reward]
) -> dict[str, Any]:
    """Rewards and KL on test prompts of a policy and of its packed self, and their difference.

    With standard errors; the difference is paired by prompt.
    """
    before, after = experiment.evaluate(theta, rewards), experiment.evaluate(packed, rewards)
    numbers = {}
    for score in (*rewards, "kl"):
        difference = Interval.of((after.scores[score] - before.scores[score]).mean(1).tolist())
        numbers[score] = {
            "true": [before.summary[score], before.summary[f"{score}_se"]],
            "packed": [after.summary[score], after.summary[f"{score}_se"]],
            "packed_minus_true": [difference.mean, difference.low, difference.high],
        }
    return numbers


def record() -> dict[str, Any]:
    """Where the committed vectors come from, and what packing changed."""
    return json.loads(RECORD.read_text())


def settings() -> Settings:
    """What the committed policies were trained with."""
    return Settings(**record()["settings"])


def committed(theta_sft: Weights) -> dict[str, Weights]:
    """Name → task vector θ − θ_sft, unpacked.

    Raises ValueError when θ_sft is not the policy that they belong to.
    """
    known = record()
    if digest(theta_sft) != known["sft"]:
        raise Explained(
            f"the committed task vectors belong to policy={known['settings']['policy']!r} as it was"
            f" on {known['date']}."
        )
    files = {name: FOLDER / vector["file"] for name, vector in known["vectors"].items()}
    return {name: unpack(load_file(file), theta_sft) for name, file in files.items()}


def rows() -> list[dict[str, Any]]:
    """What packing changed on test prompts, a row a vector: ± 2 standard errors, 95% intervals."""

    def pair(values: list[float]) -> str:
        return f"{values[0]:.2f} ± {2 * values[1]:.2f}".replace("-", "−")

    def interval(values: list[float]) -> str:
        mean, low, high = (signed(value, 2) for value in values)
        return f"{mean} ({low} to {high})"

    return [
        {
            "policy": name,
            "MB": vector["bytes"] / 1e6,
            "relative error of δ": vector["relative_error"],
            "r̃ as trained": pair(vector["reward"]["true"]),
            "packed − trained": interval(vector["reward"]["packed_minus_true"]),
            "KL as trained, nats": pair(vector["kl"]["true"]),
            "packed − trained, nats": interval(vector["kl"]["packed_minus_true"]),
        }
        for name, vector in record()["vectors"].items()
    ]


def angle_rows() -> list[dict[str, Any]]:
    """Angles between task vectors over the whole model, as trained and as packed.

    Independent noise turns them apart.
    """
    return [
        {"task vectors": pair, "Ω, degrees": a["degrees"], "packed": a["degrees_packed"]}
        for pair, a in record()["angles"].items()
    ]
