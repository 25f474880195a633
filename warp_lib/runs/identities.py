"""What tokenizers, configurations, losses and rankings are called in keys of the store."""

import json
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import Explained
from .store import digest

PACKAGE = __name__.split(".")[0] + "."
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that a tokenizer does to a text: normaliser, splitting, merges, added tokens,
    decoding; not its vocabulary alone.
    """
    around = {
        "side": tokenizer.padding_side,
        "clean up": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    }
    around["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        # these two are the last call's
        return digest(
            {k: v for k, v in whole.items() if k not in ("truncation", "padding")}, around
        )
    settings = {
        k: repr(v)
        for k, v in tokenizer.init_kwargs.items()
        if isinstance(v, PLAIN) and not k.startswith(("name", "vocab_file"))
    }
    return digest(type(tokenizer).__qualname__, tokenizer.get_vocab(), settings, around)


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration, for keys: not where it lies, nor which release wrote it."""
    config = model.config.to_diff_dict()
    return {k: v for k, v in config.items() if not k.startswith(("_", "transformers"))}


def function_identity(function: Callable) -> str:
    """What a loss or a ranking is called in keys: this project's own by its name, another by its
    attribute `identity`, a string that changes with what it computes. Raises Explained without.
    """
    if isinstance(identity := getattr(function, "identity", None), str):
        return identity
    name = getattr(function, "__qualname__", "")
    if (getattr(function, "__module__", None) or "").startswith(PACKAGE) and name.isidentifier():
        return name  # at the top of a module: neither a lambda nor within another function
    raise Explained(
        f"{name or type(function).__name__} as a loss or a ranking needs an attribute `identity`, a"
        " string that changes with what it computes: the store keeps results under it."
    )
