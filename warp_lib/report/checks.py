"""What notebooks measure of scorers and policies beside their training: accuracy, loss, samples."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from ..evaluate import language_loss
from ..experiment import Experiment
from ..merging import Weights
from ..models.scorers import classifier
from ..prompts import PROMPT_TOKENS
from ..reward import Reward, Scorer
from ..runs.errors import Explained
from ..runs.progress import Progress
from ..runs.store import digest, memoise

STOCK = "lvwerra/distilbert-imdb"  # what the student report compares its reward model with
CROPS = (50, 150, None)  # words of a review that a scorer is tested on: a completion's, more, all


def stock_classifier(experiment: Experiment) -> dict[str, Reward]:
    """`STOCK`, to be compared with the reward model; nothing where it is neither downloaded nor can
    be.
    """
    try:
        scorer = classifier(STOCK)
    except Explained:
        return {}
    return {STOCK.split("/")[1]: Reward.standardised(scorer, experiment.sft_texts)}


def accuracies(
    experiment: Experiment, rewards: dict[str, Reward], progress: Progress
) -> pd.DataFrame:
    """How well each scorer tells positive from negative validation reviews, by how many words of
    them it sees (see `accuracy`).
    """
    held = experiment.reviews.validation

    def make(_) -> dict:
        rows = []
        for words in progress.track(CROPS, "accuracy"):
            texts = [" ".join(text.split()[:words]) for text in held["text"]]
            positive, negative = (
                [t for t, k in zip(texts, held["label"], strict=True) if k == label]
                for label in (1, 0)
            )
            rows += [
                {"scorer": n, "words": words or "whole"} | accuracy(r.raw, positive, negative)
                for n, r in rewards.items()
            ]
        return {"rows": rows}

    inputs = {
        "scorers": {n: r.raw.identity for n, r in rewards.items()},
        "reviews": digest(held["text"][:], held["label"][:]),
        "crops": CROPS,
    }
    return pd.DataFrame(memoise("accuracy", inputs, make).record["rows"])


def accuracy(scorer: Scorer, positive: Sequence[str], negative: Sequence[str]) -> dict[str, float]:
    """How well a scorer tells positive from negative reviews it was not trained on.

    pairwise: share of all (positive, negative) pairs ordered rightly (ties half), which is the area
    under the ROC curve; plain: share classified rightly at the threshold that splits the scores in
    halves of the classes' sizes; scale: half the distance between the class means, the size of a
    confident logit. Standard errors with `_se`: of pairwise by DeLong's variance, of plain
    binomial.
    """
    up, down = scorer(positive).double(), scorer(negative).double()
    wins = (up[:, None] > down).double() + 0.5 * (up[:, None] == down).double()
    both = torch.cat([up, down])
    threshold = both.sort().values[len(down) - 1 : len(down) + 1].mean()
    plain = torch.cat([up > threshold, down <= threshold]).double().mean().item()
    return {
        "pairwise": wins.mean().item(),
        "pairwise_se": (
            (wins.mean(1).var() / len(up) + wins.mean(0).var() / len(down)).sqrt().item()
        ),
        "plain": plain,
        "plain_se": math.sqrt(plain * (1 - plain) / len(both)),
        "scale": (up.mean() - down.mean()).item() / 2,
    }


def openings_loss(experiment: Experiment) -> tuple[float, float]:
    """The policy's loss on openings of validation reviews, as long as prompt and completion:
    nats per token, and its standard error.
    """
    texts = experiment.reviews.validation["text"][:]
    tokens = PROMPT_TOKENS[1] + experiment.settings.max_new_tokens

    def make(_) -> dict:
        return dict(zip(("loss", "se"), language_loss(experiment.sft, texts, tokens), strict=True))

    inputs = {
        "policy": experiment.policy.identity,
        "theta": digest(experiment.theta_sft),
        "texts": digest(texts),
        "tokens": tokens,
    }
    loss = memoise("openings-loss", inputs, make).record
    return loss["loss"], loss["se"]


def samples(
    experiment: Experiment, thetas: dict[str, Weights], rewards: dict[str, Reward], prompts: int = 3
) -> list[dict[str, Any]]:
    """A completion of the first test prompts by each policy, with its reward and its KL to SFT."""
    decode, rows = experiment.policy.tokenizer.batch_decode, []
    starts = decode(experiment.test_prompts[:prompts])
    for name, theta in thetas.items():
        seen = experiment.evaluate(theta, rewards)
        first = seen.rollouts.completions[:: experiment.settings.test_samples]
        for k, (prompt, completion) in enumerate(zip(starts, decode(first[:prompts]), strict=True)):
            scores = {
                "reward r̃": seen.scores["reward"][k, 0].item(),
                "KL, nats": seen.scores["kl"][k, 0].item(),
            }
            rows.append({"policy": name, "prompt": prompt, "completion": completion} | scores)
    return sorted(rows, key=lambda row: row["prompt"])
