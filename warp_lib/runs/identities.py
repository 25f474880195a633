"""What a tokenizer and a person's own function are, for keys of the store: two that do different
things never share one.
"""

import json
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

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


def function_identity(function: Callable) -> str:
    """A name that tells a function from every other: this project's own by their names, all others
    by what they compute, too.

    Two functions of one name, such as two lambdas, differ in code, defaults, or the values that
    they take from around them.

    Raises ValueError for one that uses what has no digest; an attribute `identity`, a string that
    changes with what it computes, helps.
    """
    if isinstance(identity := getattr(function, "identity", None), str):
        return identity
    if isinstance(function, partial):
        inner = function_identity(function.func)
        bound = [_value(a, inner, ()) for a in function.args]
        return f"{inner}-{digest(bound, _values(function.keywords, inner, ()))}"
    if not isinstance(function, FunctionType):
        raise ValueError(
            f"{type(function).__name__} objects as a loss or a ranking need an attribute"
            " `identity`, a string for the store."
        )
    if function.__module__.startswith(PACKAGE) and function.__qualname__ == function.__name__.strip(
        "<>"
    ):
        return function.__name__
    return f"{function.__name__}-{digest(_function(function, ()))}"


def _function(function: FunctionType, seen: tuple) -> list:
    """A function's code and the values that it reads, as JSON."""
    if function in seen:
        return ["again", seen.index(function)]
    seen, name = (*seen, function), function.__name__
    closure = dict(
        zip(
            function.__code__.co_freevars,
            (cell.cell_contents for cell in function.__closure__ or ()),
            strict=True,
        )
    )
    read = {
        n: function.__globals__[n]
        for n in sorted(_names(function.__code__))
        if n in function.__globals__
    }
    defaults = {
        "defaults": function.__defaults__ or (),
        "keyword defaults": function.__kwdefaults__ or {},
    }
    return [
        _code(function.__code__),
        _values(closure, name, seen),
        _values(read, name, seen),
        _values(defaults, name, seen),
    ]


def _code(code: CodeType) -> list:
    """Instructions, names and constants, those of functions inside included; neither file nor
    line.
    """
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [
        code.co_code.hex(),
        list(code.co_names),
        list(code.co_varnames),
        list(code.co_freevars),
        constants,
    ]


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _values(values: dict[str, Any], of: str, seen: tuple) -> dict[str, Any]:
    return {name: _value(value, of, seen) for name, value in values.items()}


def _value(value: Any, of: str, seen: tuple) -> Any:
    """A value that a function reads, as JSON. A library's function, class or module stands for
    itself, by name.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, list | tuple):
        return [_value(v, of, seen) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(v) for v in value)
    if isinstance(value, dict):
        return [[_value(k, of, seen), _value(v, of, seen)] for k, v in value.items()]
    if isinstance(value, FunctionType) and value.__module__ in ("__main__", None):
        return _function(value, seen)
    if isinstance(identity := getattr(value, "identity", None), str):
        return identity
    if isinstance(value, partial):
        return [
            _value(value.func, of, seen),
            _value(value.args, of, seen),
            _value(value.keywords, of, seen),
        ]
    if isinstance(value, FunctionType) and (
        "<locals>" in value.__qualname__ or "<lambda>" in value.__qualname__
    ):
        return _function(value, seen)
    if name := getattr(value, "__qualname__", None) or getattr(value, "__name__", None):
        return [str(getattr(value, "__module__", "")), name]
    kind = type(value).__name__
    raise ValueError(
        f"{of} uses a {kind}, which the store cannot tell from another: give {of} an attribute"
        " `identity`, a string."
    )
