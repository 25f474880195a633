"""The study's one reward model, kept in the repository: whatever machine goes on with the study, its units are rewarded alike.

Two machines that train it from the same seed get two reward models, for they round differently; units that were rewarded by different
ones cannot be compared.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from . import outcomes
from .checkpoint import load, weights_of
from .reward import EncoderScorer, Reward, untrained
from .settings import Settings
from .store import save_tensors

SEED = ("reward",)  # names the streams of its training, see `Experiment.reward`
MADE_BY = ("encoder", "reviews", "policy", "reward_layers", "reward_trained", "reward_steps", "reward_learning_rate", "max_new_tokens")


def file() -> Path:
    """Where it lies: the tensors that training changed, and beside them in the metadata what it was made by and its standardisation."""
    return outcomes.FOLDER / "reward_model.safetensors"


def write(reward: Reward, settings: Settings) -> None:
    """Keep the reward model that was trained with these settings."""
    trained, before = weights_of(reward.raw.model), weights_of(_untrained(settings).model)
    changed = {name: weight for name, weight in trained.items() if not torch.equal(weight, before[name])}
    said = {"mean": reward.mean, "sd": reward.sd, "identity": reward.identity, "settings": _made_by(settings)}
    file().parent.mkdir(parents=True, exist_ok=True)
    part = file().with_name(f"{file().name}.{os.getpid()}")  # units may be run side by side
    save_tensors(part, changed, {"record": json.dumps(said)})
    part.replace(file())


def read(settings: Settings) -> Reward | None:
    """The kept reward model; None if there is none, or if these settings make another.

    Raises ValueError when the file, or the encoder that it belongs to, is not the one that was kept.
    """
    if not file().exists():
        return None
    with safe_open(file(), "pt") as opened:
        said = json.loads(opened.metadata()["record"])
    if said["settings"] != _made_by(settings):
        return None
    scorer = _untrained(settings)
    load(scorer.model, weights_of(scorer.model) | load_file(file()))
    reward = Reward(EncoderScorer(scorer.model, scorer.tokenizer, []), said["mean"], said["sd"])
    if reward.identity != said["identity"]:
        raise ValueError(f"the reward model read from {file().name} is not the one that was kept: it, or its encoder, has changed.")
    return reward


def _untrained(settings: Settings) -> EncoderScorer:
    return untrained(settings.encoder, settings.reward_layers, SEED)


def _made_by(settings: Settings) -> dict[str, str | int | float]:
    """What the reward model depends on: its training, and the completions that it is standardised over."""
    return {name: getattr(settings, name) for name in (*MADE_BY, "temperature")}
