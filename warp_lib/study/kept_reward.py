"""The study's reward model, kept in the repository: whatever machine goes on with the study, its
units are rewarded alike.

Two machines that train it from the same seed get two reward models, for they round differently;
what was rewarded by different ones cannot be compared.
"""

import json
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file

from ..models.scorers import EncoderScorer, untrained
from ..reward import SEED, Reward
from ..runs import paths
from ..runs.checkpoint import load, weights_of
from ..runs.errors import Explained
from ..runs.store import save_tensors
from ..settings import Settings
from . import outcomes

# What it depends on: its training, and the completions over which it is standardised.
MADE_BY = (
    "encoder",
    "reviews",
    "reward_layers",
    "reward_trained",
    "reward_steps",
    "reward_learning_rate",
)
MADE_BY += ("policy", "max_new_tokens", "temperature")


def file() -> Path:
    """Where it lies: the tensors that training changed, and beside them in the metadata what it was
    made by and its standardisation.
    """
    return outcomes.FOLDER / "reward_model.safetensors"


def write(reward: Reward, settings: Settings) -> None:
    """Keep the reward model that was trained with these settings, unless one is kept already."""
    assert isinstance(reward.raw, EncoderScorer)
    paths.RUNS.mkdir(parents=True, exist_ok=True)
    with FileLock(paths.RUNS / "kept-reward.lock"):  # units may be run side by side
        if file().exists():
            return
        trained, before = weights_of(reward.raw.model), weights_of(_untrained(settings).model)
        changed = {
            name: weight
            for name, weight in trained.items()
            if not torch.equal(weight, before[name])
        }
        record = {
            "mean": reward.mean,
            "sd": reward.sd,
            "identity": reward.identity,
            "settings": _made_by(settings),
        }
        file().parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file(), changed, {"record": json.dumps(record)})


def read(settings: Settings) -> Reward | None:
    """The kept reward model; None if there is none, or if these settings make another.

    Raises ValueError when the file, or the encoder that it belongs to, is not the one that was
    kept.
    """
    if not file().exists():
        return None
    with safe_open(file(), "pt") as opened:
        record = json.loads(opened.metadata()["record"])
    if record["settings"] != _made_by(settings):
        return None
    scorer = _untrained(settings)
    load(scorer.model, weights_of(scorer.model) | load_file(file()))
    reward = Reward(EncoderScorer(scorer.model, scorer.tokenizer, []), record["mean"], record["sd"])
    if reward.identity != record["identity"]:
        raise Explained(
            f"the reward model read from {file().name} is not the one that was kept: it, or its"
            " encoder, has changed."
        )
    return reward


def _untrained(settings: Settings) -> EncoderScorer:
    return untrained(settings.encoder, settings.reward_layers, SEED)


def _made_by(settings: Settings) -> dict[str, str | int | float]:
    return {name: getattr(settings, name) for name in MADE_BY}
