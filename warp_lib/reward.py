"""Rewards: the Bradley–Terry model that trains the policy, and two judges that never do.

A Bradley–Terry reward is known only up to offset and scale, so every score here is standardised
once over the SFT policy's completions of training prompts: r̃ = (r − mean) / sd. β, plots and
comparisons are in r̃.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .fast import attention, machine
from .models.scorers import LONGEST, EncoderScorer, freeze, untrained
from .runs.checkpoint import Checkpoint, load, weights_of
from .runs.errors import Explained
from .runs.progress import Progress
from .runs.seeds import numpy_stream
from .runs.store import digest, memoise, save_tensors

# positive and as many negative reviews in a training step: of crops, and of whole reviews
CROPPED, WHOLE = 32, 4
WORDS = (24, 120)  # shortest and longest crop; a completion with its prompt has about 50 words
WHOLE_EVERY = 6  # steps: one of them reads whole reviews
SEED = ("reward",)  # names the streams from which the reward model is trained


class Scorer(Protocol):
    """Scores texts: ``scorer(texts)`` gives each a number, (n,) on the CPU.

    identity: a digest of what the scores depend on, for keys.
    """

    identity: str

    def __call__(self, texts: Sequence[str], /) -> Tensor: ...


@dataclass(frozen=True)
class Reward:
    """A scorer of texts, standardised: ``reward(texts)`` is r̃, (n,); ``reward.raw(texts)`` the
    logit before it.
    """

    raw: Scorer
    mean: float
    sd: float

    def __post_init__(self) -> None:
        if not (
            math.isfinite(self.mean) and math.isfinite(self.sd) and self.sd > 1e-6 * abs(self.mean)
        ):
            raise Explained(
                "r̃ cannot be standardised: over SFT's completions this reward's scores have mean"
                f" {self.mean:g} and standard deviation {self.sd:g}. It tells no text from another;"
                " train it with more reward_steps or a smaller reward_learning_rate."
            )

    @classmethod
    def standardised(cls, raw: Scorer, sft_texts: Sequence[str]) -> "Reward":
        """r̃ has mean 0 and standard deviation 1 over `sft_texts`, scored once and then remembered.
        Never clipped.
        """

        def make(_) -> dict:
            scores = raw(sft_texts)
            moments = {"mean": scores.mean().item(), "sd": scores.std().item()}
            cls(raw, **moments)  # which refuses what nothing can be divided by, before it is kept
            return moments

        inputs = {"scorer": raw.identity, "texts": digest(list(sft_texts))}
        return cls(raw, **memoise("standard", inputs, make).record)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return (self.raw(texts) - self.mean) / self.sd

    @property
    def identity(self) -> str:
        """A digest of what the scores depend on, for keys."""
        return digest(self.raw.identity, self.mean, self.sd)


def train_encoder_scorer(
    encoder: str,
    layers: int,
    trained: int,
    reviews: datasets.Dataset,
    *,
    steps: int,
    learning_rate: float,
    seed: tuple,
    progress: Progress,
) -> EncoderScorer:
    """Train a scalar head on `encoder`'s first `layers` layers, and the last `trained` of them,
    with the Bradley–Terry loss, or load them from the store.

    −log σ(r⁺ − r⁻), over all pairs of a positive and a negative review that the step reads. A step
    reads crops of one length, from half a completion's to more than twice it, half of them openings
    as completions are; or, one step in `WHOLE_EVERY`, fewer but whole reviews. The embeddings are
    trained when all layers are.
    """
    scorer = untrained(encoder, layers, seed)
    texts, labels = np.array(reviews["text"][:], dtype=object), np.array(reviews["label"][:])
    inputs = {
        "init": scorer.identity,
        "texts": digest(texts.tolist(), labels.tolist()),
        "trained": trained,
        "steps": steps,
        "learning_rate": learning_rate,
        "seed": list(seed),
        "reads": [CROPPED, WHOLE, WORDS, WHOLE_EVERY],
    }

    def make(folder: Path) -> dict:
        usual = scorer.model.config._attn_implementation or "eager"
        if machine.device().type == "cpu":
            attention.use(scorer.model)
        frozen = freeze(scorer.model, layers - trained)
        optimiser = torch.optim.AdamW(
            [p for p in scorer.model.parameters() if p.requires_grad],
            learning_rate,
            weight_decay=0.0,
            fused=True,
        )
        checkpoint = Checkpoint(folder, {"encoder": scorer.model}, [optimiser])
        positive, negative = (texts[labels == k] for k in (1, 0))
        with checkpoint:
            for step in checkpoint.steps(progress, steps, f"{seed[0]} · {layers} layers"):
                optimiser.param_groups[0]["lr"] = learning_rate * min(
                    1.0, (step + 1) / 20, (steps - step) / (0.5 * steps)
                )
                draw = numpy_stream(*seed, "reviews", step)
                n, words = (
                    (CROPPED, int(np.exp(draw.uniform(*np.log(WORDS)))))
                    if step % WHOLE_EVERY
                    else (WHOLE, LONGEST)
                )
                chosen = np.concatenate([draw.choice(positive, n), draw.choice(negative, n)])
                scores = scorer.logits([crop(text, words, draw) for text in chosen])
                margins = scores[:n, None] - scores[None, n:]
                loss = -F.logsigmoid(margins).mean()
                optimiser.zero_grad()
                progress.check()
                loss.backward()
                progress.check()
                numbers = {"loss": loss.item(), "accuracy": (margins > 0).float().mean().item()}
                checkpoint.refuse_not_finite(loss, numbers)
                optimiser.step()
                checkpoint.history.append(numbers)
                progress.log(**numbers)
        save_tensors(folder / "model.safetensors", weights_of(scorer.model))
        scorer.model.set_attn_implementation(usual)
        for layer in frozen:
            del layer.forward
        return {"history": checkpoint.history}

    entry = memoise("reward", inputs, make)
    return EncoderScorer(
        load(scorer.model, entry.tensors("model")), scorer.tokenizer, entry.record["history"]
    )


def crop(text: str, words: int, draw: np.random.Generator) -> str:
    """`words` consecutive words of a review: its first ones in half of the cases, as a completion
    is an opening.
    """
    split = text.split()
    start = 0 if draw.random() < 0.5 else draw.integers(0, max(1, len(split) - words + 1))
    return " ".join(split[start : start + words])
