"""Models from folders: inspected before they are opened, checked before they are used, refused in
one sentence.

A policy and an encoder come through here. No code that a folder brings is ever run.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import (
    CONFIG_MAPPING_NAMES,  # pyright: ignore[reportPrivateImportUsage]
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from ..fast.decoding import decoder_of, left_padded
from .model_files import (
    Unfit,
    configuration,
    first_line,
    has_tokenizer,
    read_json,
    refuse_non_finite,
    tensors,
)

# how far decoding with a cache may be from the plain forward pass, of the largest logit
AGREE = 1e-3


def inspect(folder: Path, causal: bool) -> None:
    """Look at a folder's files without opening the model.

    Args:
        folder: what `save_pretrained` wrote.
        causal: it is to write text (a policy), and otherwise to score it (an encoder).

    Raises Unfit.
    """
    config = configuration(folder)
    kind = config["model_type"]
    known = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if causal
        else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
    if kind not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise Unfit(
                f"needs code of its own to open ({kind!r} is not one of transformers' models), and"
                " such code is never run here"
            )
        raise Unfit(
            f"has a config.json with the model_type {kind!r}, which transformers"
            f" {transformers.__version__} does not know"
        )
    if kind not in known:
        able = (
            "write text from left to right"
            if causal
            else "score a text (transformers has no sequence classification for it)"
        )
        raise Unfit(f"is a {kind} model, which cannot {able}")
    tensors(folder)
    if not has_tokenizer(folder):
        raise Unfit("has no tokenizer: save the model's there, too (tokenizer.save_pretrained)")
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        if (folder / name).is_file():
            read_json(folder / name)


# Opening


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder's tokenizer. Raises Unfit."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # every library that reads tokenizers has its own
        raise Unfit(_not_opened("a tokenizer that", error)) from error


def open_model(
    auto: type,
    folder: Path,
    counts: Callable[[PreTrainedModel, str], bool] = lambda model, name: True,
    **options: Any,
) -> PreTrainedModel:
    """A folder's model in float32.

    Args:
        auto: one of transformers' AutoModel classes.
        counts: whether a tensor of this name matters. Others may be missing, superfluous, or of
            another shape.
        options: for its `from_pretrained`.

    Raises Unfit when it cannot be opened, or the file does not hold exactly its tensors (those it
    lacks would be random numbers), all of them finite.
    """
    options |= {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, problems = auto.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # a config.json can go wrong in as many ways as there are models
        raise Unfit(_not_opened("a model that", error)) from error
    if odd := sorted(each for each in problems["mismatched_keys"] if counts(model, each[0])):
        name, there, wanted = odd[0]
        raise Unfit(
            f"has a config.json and weights that do not fit together: {name} is {_shape(there)} and"
            f" should be {_shape(wanted)}"
        )
    sides = {
        "missing": ("lacks", "needs"),
        "unexpected": ("has weights too many:", "does not have"),
    }
    for side, (verb, says) in sides.items():
        if names := sorted(name for name in problems[f"{side}_keys"] if counts(model, name)):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            kind = type(model).__name__
            raise Unfit(f"{verb} {names[0]}{more}, which the {kind} of its config.json {says}")
    refuse_non_finite(model.named_parameters())
    return model


def _not_opened(what: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "needs code of its own to open, and such code is never run here"
    return f"has {what} transformers cannot open ({type(error).__name__}: {first_line(error)})"


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def refuse_vocabulary(tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
    """Raise Unfit if a tokenizer has ids beyond the `tokens` that its model has, or hardly any
    words.
    """
    last = max(tokenizer.get_vocab().values(), default=-1)
    if (size := max(last + 1, len(tokenizer))) > tokens:
        raise Unfit(
            f"does not fit its tokenizer, which has {size} tokens where the model has {tokens}"
        )
    if len(tokenizer) < 2:
        raise Unfit("has an empty tokenizer: save the model's there (tokenizer.save_pretrained)")


def open_policy(folder: Path, prompt: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 and its tokenizer, which fit together, with room for a
    prompt of so many tokens. Raises Unfit.
    """
    inspect(folder, causal=True)
    tokenizer = open_tokenizer(folder)
    model = open_model(AutoModelForCausalLM, folder)
    tokens = vocabulary(model)
    refuse_vocabulary(tokenizer, tokens)
    eos_ids = model.generation_config.eos_token_id
    listed = eos_ids if isinstance(eos_ids, list) else [] if eos_ids is None else [eos_ids]
    for eos in listed:
        if not isinstance(eos, int) or not 0 <= eos < tokens:
            raise Unfit(
                f"names {eos!r} as an end-of-sequence token, and its tokens are 0 to {tokens - 1}:"
                " correct eos_token_id"
            )
    context = getattr(model.config, "max_position_embeddings", None)
    if context and 0 < context <= prompt:
        raise Unfit(
            f"has a context of {context} tokens, too short for a prompt of {prompt} and a"
            " completion"
        )
    return model, tokenizer


def vocabulary(model: PreTrainedModel) -> int:
    """How many tokens the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.num_embeddings


@torch.no_grad()
def check_decoding(model: PreTrainedModel) -> None:
    """Decode two short prompts of different lengths, the shorter padded on the left, and compare
    with plain forward passes.

    Raises Unfit for a model that reads ahead (an encoder), or whose cache heeds neither padding nor
    positions (Mamba, RWKV).
    """
    device, tokens = model.device, vocabulary(model)
    rows, continuations = (
        [[(k * step + 1) % tokens for k in range(n)] for n, step in sizes]
        for sizes in (((3, 5), (8, 3)), ((4, 7), (4, 11)))
    )
    steps = iter(torch.tensor(continuations, device=device).T)
    kind = type(model).__name__
    padded, mask = left_padded(rows, max(map(len, rows)), device)
    seen: list[Tensor] = []

    def next_token(logits: Tensor) -> Tensor:
        seen.append(logits.float().clone())
        return next(steps)[:, None]

    def plain(ids: list[int]) -> Tensor:
        return model(torch.tensor([ids], device=device), use_cache=False).logits[0].float()

    try:
        decoder_of(model)(model, padded, mask, len(continuations[0]), next_token)
        whole = [
            plain(row + then)[len(row) - 1 : -1]
            for row, then in zip(rows, continuations, strict=True)
        ]
        before = [plain(row)[-1] for row in rows]
    except Exception as error:  # whatever a model's own forward raises
        raise Unfit(
            f"cannot write text here: {kind} fails at a short prompt ({type(error).__name__}:"
            f" {first_line(error)})"
        ) from error
    expected, got = torch.stack(whole), torch.stack(seen, 1)
    if not expected.isfinite().all():
        raise Unfit(f"gives logits that are not numbers: {kind} overflows at a short prompt")
    near = AGREE * expected.abs().max()
    if (torch.stack(before) - expected[:, 0]).abs().max() > near:
        raise Unfit(f"cannot write text from left to right: {kind} reads ahead, as encoders do")
    if not (got - expected).abs().max() <= near:
        raise Unfit(
            f"cannot be sampled in batches: {kind} reads padding as text when it decodes, as models"
            " without attention do"
        )
