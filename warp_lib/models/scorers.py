"""Encoders that score texts: a pretrained encoder with a scalar head, not yet trained, or a ready
classifier, opened by name.
"""

import copy
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..fast import attention, machine
from ..fast.dense import laid_out, multiply_in_parts
from ..runs.checkpoint import load, weights_of
from ..runs.errors import Explained
from ..runs.identities import config_of, tokenizer_identity
from ..runs.seeds import stream
from ..runs.store import digest
from . import encoders, hub, loading
from .model_files import Unfit, first_line, said_of

# lengths are padded to a multiple of it: the processor's kernels are compiled anew for every new
# shape
SHAPES = 16
ROWS = 5120  # tokens that are scored together in a training step
LONGEST = 512  # tokens of a text that are read
Module = TypeVar("Module", bound=nn.Module)


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
            model = loading.open_model(
                AutoModelForSequenceClassification,
                source,
                partial(encoders.counts, beyond=beyond),
                config=config,
            )
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
        model = loading.open_model(AutoModelForSequenceClassification, source)
        labels = [str(label) for _, label in sorted((model.config.id2label or {}).items())]
        if len(labels) != 2 or labels[0].lower().startswith("pos"):
            raise Unfit(
                f"has the labels {', '.join(labels)}; a classifier that is used as it is"
                " (reward_steps=0) has two, negative and positive"
            )
        loading.refuse_vocabulary(tokenizer, model.config.vocab_size)
        encoders.agree_on_padding(tokenizer, model.config)
        scorer = EncoderScorer(model, tokenizer, [])
        scorer.check()
    return scorer


def freeze(model: PreTrainedModel, layers: int) -> list[nn.Module]:
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
