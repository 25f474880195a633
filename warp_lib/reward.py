"""Rewards: the Bradley–Terry model that trains the policy, and two judges that never do.

A Bradley–Terry reward is known only up to offset and scale, so every score here is standardised
once over the SFT policy's completions of training prompts: r̃ = (r − mean) / sd. β, plots and
comparisons are in r̃.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .fast import attention, machine
from .fast.dense import laid_out, multiply_in_parts
from .models import encoders, hub, loading
from .models.model_files import Unfit, first_line, refuse_non_finite, said_of
from .runs.checkpoint import Checkpoint, load, weights_of
from .runs.errors import Explained
from .runs.identities import config_of, tokenizer_identity
from .runs.progress import Progress
from .runs.seeds import numpy_stream, stream
from .runs.store import digest, memoise, save_tensors

# positive and as many negative reviews in a training step: of crops, and of whole reviews
CROPPED, WHOLE = 32, 4
WORDS = (24, 120)  # shortest and longest crop; a completion with its prompt has about 50 words
WHOLE_EVERY = 6  # steps: one of them reads whole reviews
# lengths are padded to a multiple of it: the processor's kernels are compiled anew for every new
# shape
SHAPES = 16
ROWS = 5120  # tokens that are scored together in a training step
LONGEST = 512  # tokens of a review that are read
Module = TypeVar("Module", bound=nn.Module)
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


class EncoderScorer:
    """One logit per text from a pretrained encoder with a scalar head, or the positive label's from
    one with two.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        history: list[dict[str, float]],
    ):
        nn.Module.to(model.float().eval(), machine.device())
        self.model = model
        self.tokenizer = tokenizer
        self.history = history
        _float32_head(self.model)
        multiply_in_parts(self.model)
        longest = min(LONGEST, encoders.positions(self.model), tokenizer.model_max_length)
        self.longest = int(longest)
        self.identity = digest(
            weights_of(self.model),
            self.longest,
            config_of(self.model),
            self.tokenizer.get_vocab(),
            *_beyond_vocabulary(tokenizer),
        )

    def __reduce__(self) -> tuple:
        """To another process it goes as architecture, tokenizer and weights, with its identity,
        which may depend on where a package is installed.
        """
        model = (type(self.model), self.model.config, weights_of(self.model))
        return _arrived, (*model, self.tokenizer, self.history, self.identity)

    @torch.no_grad()
    def check(self) -> None:
        """Score a text of one word and one as long as any that is read. Raises Unfit if that fails,
        or a score is not a finite number.
        """
        kind = type(self.model).__name__
        words = self.tokenizer.convert_ids_to_tokens(list(range(min(len(self.tokenizer), 16))))
        long = " ".join(str(word) for word in words) or "a"
        try:
            with machine.autocast():
                scores = self.model(
                    **self._batch([long.split()[-1], f"{long} " * (self.longest // len(words) + 1)])
                ).logits[:, -1]
        except Exception as error:  # whatever a model's own forward raises
            why = f"{type(error).__name__}: {first_line(error)}"
            raise Unfit(
                f"cannot score texts: {kind} fails at a text of {self.longest} tokens ({why})"
            ) from error
        if not scores.isfinite().all():
            raise Unfit(f"cannot score texts: {kind} gives a score that is not a finite number")

    def logits(self, texts: Sequence[str]) -> Tensor:
        """(n,) on the device, with gradients where they are on: what training reads."""
        with machine.autocast():
            return self.model(**self._batch(texts)).logits[:, -1].float()

    def _batch(self, texts: Sequence[str]) -> BatchEncoding:
        """What the model reads, on the device."""
        batch = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.longest,
            padding=True,
            return_tensors="pt",
            pad_to_multiple_of=None if self.longest % SHAPES else SHAPES,
        )
        return batch.to(machine.device())

    @cached_property
    def _narrow(self) -> PreTrainedModel:
        """The model as it is at the first score, but for the head in `fast_dtype`."""
        # a copied head still calls the float32 one, see `_float32_head`
        return _narrowed(self.model)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Logits (n,) on the CPU. Texts of similar length are scored together."""
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        scores = torch.empty(len(texts))
        for start in range(0, len(texts), 128):
            rows = order[start : start + 128]
            scores[rows] = self._narrow(**self._batch([texts[k] for k in rows])).logits[:, -1].cpu()
        return scores


def _arrived(kind, config, weights, tokenizer, history, identity: str) -> EncoderScorer:
    """The scorer that another process sent."""
    scorer = EncoderScorer(load(kind(config), weights), tokenizer, history)
    scorer.identity = identity
    return scorer


def _beyond_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What a scorer's identity says of its tokenizer beside the vocabulary.

    Nothing of the bundled one, which comes from a package of one version: identities of its scorers
    are recorded in data/study.
    """
    bundled = encoders.bundled()
    return (
        []
        if bundled and Path(tokenizer.name_or_path) == bundled
        else [tokenizer_identity(tokenizer)]
    )


def _narrowed(module: Module) -> Module:
    """A copy in `fast_dtype` that is not to be trained: faster than autocast, which converts back
    and forth.
    """
    narrow = copy.deepcopy(module).to(machine.fast_dtype())
    for layer in narrow.modules():
        # a head of one label or two stays as it is, see `_float32_head`
        if isinstance(layer, nn.Linear) and layer.out_features > 2 and layer.bias is not None:
            if fast := laid_out(layer.weight.detach().T, layer.bias.detach(), ROWS):
                vars(layer)["forward"] = fast
    return narrow


def _float32_head(model: PreTrainedModel) -> None:
    """Have the head compute in float32: a logit rounded to bfloat16 has 8 bits, too coarse a
    reward. Raises Unfit without one.
    """
    labels = model.config.num_labels
    head = next(
        (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels), None
    )
    if head is None:
        raise Unfit(
            f"cannot be given a scalar head: {type(model).__name__} has none that is known here"
        )

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), head.weight, head.bias)

    vars(head)["forward"] = forward


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
        frozen = _freeze(scorer.model, layers - trained)
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


def _freeze(model: PreTrainedModel, layers: int) -> list[nn.Module]:
    """Keep the embeddings and the first `layers` layers as they are (0: train everything). Raises
    ValueError if they are not found.

    Returns those of these layers that compute as they do when texts are scored, all in
    `fast_dtype`, until their attribute `forward` is deleted; so the trained layers, which come
    after them, are given what they will be given then. Other kinds of encoders, whose layers may be
    given more than hidden states and a mask, go on as they are.
    """
    if not layers:
        return []
    stacks = [
        m
        for m in model.modules()
        if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers
    ]
    embeddings = getattr(model.base_model, "embeddings", None)
    if not stacks or embeddings is None:
        raise Explained(
            f"reward_trained must be reward_layers for this encoder: {type(model).__name__} does"
            " not tell its layers apart."
        )
    frozen = list(stacks[0][:layers])
    for module in (embeddings, *frozen):
        module.requires_grad_(False)
    if model.config.model_type not in attention.FOR:
        return []
    for layer in frozen:
        layer.forward = partial(_forward_narrowed, _narrowed(layer))
    return frozen


def _forward_narrowed(narrow: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a frozen layer makes of hidden states, by its `_narrowed` copy and in that format."""
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        return narrow(hidden.to(machine.fast_dtype()), *args, **kwargs)


def crop(text: str, words: int, draw: np.random.Generator) -> str:
    """`words` consecutive words of a review: its first ones in half of the cases, as a completion
    is an opening.
    """
    split = text.split()
    start = 0 if draw.random() < 0.5 else draw.integers(0, max(1, len(split) - words + 1))
    return " ".join(split[start : start + words])


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


def untrained(encoder: str, layers: int, seed: tuple) -> EncoderScorer:
    """The untrained scorer: the pretrained encoder's first layers, and a head drawn from the stream
    `seed`.

    Raises ValueError as `encoders.find` does, and for weights that are missing or not finite, or an
    encoder that cannot score texts.
    """
    source, tokenizer, config = encoders.find(encoder, layers)
    beyond = range(layers, config.num_hidden_layers)
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        config.layer_types = kinds[:layers]
    config.num_hidden_layers = layers
    with said_of(f"encoder={encoder!r}"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(*seed, "head"))
            model, problems = loading.open_model(
                AutoModelForSequenceClassification, source, config=config
            )
        encoders.refuse_tensors(model, problems, beyond)
        refuse_non_finite(model.named_parameters())
        scorer = EncoderScorer(model, tokenizer, [])
        scorer.check()
    return scorer


def classifier(name: str) -> EncoderScorer:
    """A ready classifier of reviews as a scorer: its logit of the label 1, positive.

    Args:
        name: a local folder or a hub id, such as lvwerra/distilbert-imdb.

    Raises ValueError in one sentence when it is not there, is damaged, or has other labels.
    """
    with said_of(f"encoder={name!r}"):
        if name == "minilm":
            raise Unfit("is no classifier, and reward_steps=0 uses one as it is")
        source = hub.model_folder(name, ())
        loading.inspect(source, causal=False)
        tokenizer = loading.open_tokenizer(source)
        model, problems = loading.open_model(AutoModelForSequenceClassification, source)
        labels = [str(label) for _, label in sorted((model.config.id2label or {}).items())]
        if len(labels) != 2 or labels[0].lower().startswith("pos"):
            raise Unfit(
                f"has the labels {', '.join(labels)}; a classifier that is used as it is"
                " (reward_steps=0) has two, negative and positive"
            )
        loading.refuse_tensors(
            model,
            problems["missing_keys"],
            problems["unexpected_keys"],
            problems["mismatched_keys"],
        )
        refuse_non_finite(model.named_parameters())
        loading.refuse_vocabulary(tokenizer, model.config.vocab_size)
        encoders.agree_on_padding(tokenizer, model.config)
        scorer = EncoderScorer(model, tokenizer, [])
        scorer.check()
    return scorer
