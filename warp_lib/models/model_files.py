"""A model's files, looked at without opening the model: what is wrong with them, in one sentence.
No torch here, for `hub` reads them.

Only safetensors are read, for the other formats can run code or hold no plain weights.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..runs.errors import Explained, reason

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # as transformers calls them
TORCH_FILE = "pytorch_model.bin"  # and what it is called in a model of before safetensors
BESIDE = (  # a model's files other than its weights
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
# what is downloaded of a model
FILES = (SINGLE, INDEX, "model-*.safetensors", *BESIDE, "adapter_config.json")
TORCH_FILES = (TORCH_FILE, "pytorch_model-*.bin", f"{TORCH_FILE}.index.json")
# a tokenizer has at least one of them
TOKENIZERS = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")
OTHERS = {  # weights that are not read
    "*.bin": ".bin files can run code when opened",
    "*.pt": ".pt files can run code when opened",
    "*.pth": ".pth files can run code when opened",
    "*.gguf": "GGUF files hold quantised weights",
    "*.h5": ".h5 files are TensorFlow's",
    "*.msgpack": ".msgpack files are Flax's",
}
CONVERT = "open it where it was made and save it with save_pretrained, which writes safetensors"
POINTER = b"version https://git-lfs"


class Unfit(ValueError):
    """What is wrong with something that was to be loaded, as the rest of a sentence whose subject
    is its name.
    """


@contextmanager
def said_of(subject: str) -> Iterator[None]:
    """Complete the sentence of an `Unfit` that is raised inside: Explained, "{subject} {what is
    wrong}.".
    """
    try:
        yield
    except Unfit as error:
        raise Explained(f"{subject} {error}.") from error


def first_line(error: BaseException, longest: int = 160) -> str:
    """What a library's error says, in one line without its full stop, to be put into a sentence."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[0].split()) if lines else type(error).__name__
    return (text if len(text) <= longest else f"{text[:longest].rsplit(' ', 1)[0]} …").rstrip(
        ".:; "
    )


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises Unfit."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise Unfit(f"cannot be read: {file.name}: {reason(error)}") from error
    refuse_pointer(file, raw)
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = first_line(error)
        raise Unfit(f"has a damaged {file.name}: it is not valid JSON ({why})") from error


def refuse_pointer(file: Path, raw: bytes) -> None:
    """Raise Unfit if a file's first bytes are those of a Git LFS pointer."""
    if raw.startswith(POINTER):
        raise Unfit(
            f"has a Git LFS pointer in place of {file.name}: run `git lfs pull` in its folder"
        )


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; its type as the header spells it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def tensors(folder: Path) -> dict[str, Stored]:
    """Where each tensor of a model lies, read from headers alone. Raises Unfit where weights are
    missing, damaged or not safetensors.
    """
    if (folder / SINGLE).is_file():
        header = _header(folder / SINGLE)
        if not header:
            raise Unfit(f"has an empty {SINGLE}: it holds no tensor")
        return header
    if not (folder / INDEX).is_file():
        raise Unfit(_other_weights(folder))
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not places or not isinstance(places, dict):
        raise Unfit(f"has a damaged {INDEX}: it has no weight_map")
    for file in places.values():
        if Path(str(file)).name != file or not file.endswith(".safetensors"):
            raise Unfit(
                f"has a damaged {INDEX}: it names {file!r}, which is not a safetensors file"
                " beside it"
            )
    if absent := sorted(file for file in set(places.values()) if not (folder / file).is_file()):
        raise Unfit(
            f"lacks {absent[0]}, one of {len(set(places.values()))} files that its index names:"
            " copy it there or download it again"
        )
    shards = [_header(folder / file) for file in sorted(set(places.values()))]
    stored_in = [(name, stored.file.name) for shard in shards for name, stored in shard.items()]
    if odd := sorted(places.items() ^ set(stored_in)):
        raise Unfit(f"has an index and weights that do not agree on {odd[0][0]}")
    return {name: stored for shard in shards for name, stored in shard.items()}


def _other_weights(folder: Path) -> str:
    """What a folder without safetensors as transformers names them has instead."""
    for pattern, why in OTHERS.items():
        if others := sorted(
            file.name for file in folder.glob(pattern) if file.name != "training_args.bin"
        ):
            return f"has no {SINGLE}, only {others[0]} ({why}): {CONVERT}"
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        return (
            f"has {others[0]} but neither {SINGLE} nor {INDEX}: give the files the names that"
            " save_pretrained gives"
        )
    return f"has no weights: there is neither {SINGLE} nor {INDEX} in it"


def _header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, from its header. Raises Unfit."""
    try:
        with file.open("rb") as opened:
            refuse_pointer(file, opened.read(len(POINTER)))
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            return {n: Stored(file, s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except OSError as error:
        raise Unfit(f"cannot be read: {file.name}: {reason(error)}") from error
    except SafetensorError as error:
        why = first_line(error).removeprefix("Error while deserializing header: ")
        raise Unfit(
            f"has a damaged or incomplete {file.name}, {file.stat().st_size:,} bytes ({why}); copy"
            " or download it again"
        ) from error


def is_whole(folder: Path) -> bool:
    """Whether a folder has a configuration, all files of its weights and a tokenizer, whatever is
    in them.
    """
    if not (folder / "config.json").is_file() or not has_tokenizer(folder):
        return False
    try:
        tensors(folder)
    except Unfit:
        return False
    return True


def torch_files(folder: Path) -> list[Path]:
    """The .bin files of a model that has no safetensors; none unless all of them are there, with a
    configuration and a tokenizer. Raises Unfit for a damaged index.
    """
    files = [folder / TORCH_FILE]
    if (index := folder / f"{TORCH_FILE}.index.json").is_file():
        places = read_json(index)
        places = places.get("weight_map") if isinstance(places, dict) else None
        if not isinstance(places, dict):
            raise Unfit(f"has a damaged {index.name}: it has no weight_map")
        # a name alone: nothing outside the folder is opened
        files = [folder / Path(str(name)).name for name in sorted(set(places.values()))]
    needed = [folder / "config.json", *files]
    return files if has_tokenizer(folder) and all(file.is_file() for file in needed) else []


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any(file.is_file() for pattern in TOKENIZERS for file in folder.glob(pattern))


def configuration(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises Unfit where there is none, or where it is not that of a model
    with plain weights of its own.
    """
    if (folder / "adapter_config.json").is_file():
        adapter = read_json(folder / "adapter_config.json")
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        of = f" for {base!r}" if isinstance(base, str) else ""
        raise Unfit(
            f"is a LoRA adapter{of}, not a whole model: merge it into its base (peft's"
            " merge_and_unload) and save the result"
        )
    if not (folder / "config.json").is_file():
        inside = sorted(file.parent.name for file in folder.glob("*/config.json"))
        if inside:
            raise Unfit(f"has no config.json: did you mean its subfolder {inside[0]!r}")
        raise Unfit("has no config.json, so it is not a folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Unfit(
            "has a config.json without a model_type, so nobody can tell what kind of model it is"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else None
        raise Unfit(
            f"is quantised ({method or 'its config.json says so'}): give the weights from before,"
            " which can be trained and merged"
        )
    return config


def refuse_non_finite(weights: Iterable[tuple[str, "Tensor"]]) -> None:
    """Raise Unfit if a tensor holds NaN or infinity."""
    for name, weight in weights:
        if weight.is_floating_point() and not weight.isfinite().all():
            what = "NaN" if weight.isnan().any() else "infinity"
            raise Unfit(f"holds {what} in {name}: its training diverged, or its file is damaged")
