"""The memory of runs: what was computed once under a key made of its inputs is never computed again.

An entry is a folder ``runs/store/<kind>-<key>`` with safetensors files and a ``record.json`` that holds the inputs, the results and the
files' digests. It is made in ``….part`` and renamed when complete, under one lock per key: a reader sees all of it or nothing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import machine
from .paths import RUNS, write_whole

FORMAT = 7  # raised when the same inputs give other results than before
_only_stored = ContextVar("only_stored", default=False)


@dataclass(frozen=True)
class Entry:
    """One finished computation: its folder and its record."""

    folder: Path
    record: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of ``<stem>.safetensors``, on the CPU."""
        return load_file(self.folder / f"{stem}.safetensors")


class Missing(LookupError):
    """What was asked for inside `only_stored` is not in the store."""


@contextmanager
def only_stored() -> Iterator[None]:
    """Inside, `remember` computes nothing and writes nothing: it raises Missing for what is not stored, or damaged."""
    before = _only_stored.set(True)
    try:
        yield
    finally:
        _only_stored.reset(before)


def digest(*parts: Any) -> str:
    """SHA-256, as 24 hex digits, of tensors, state dicts and JSON values."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"tensor {part.dtype}{tuple(part.shape)}:".encode())
            sha.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for name in sorted(part):
                sha.update(f"named {digest(name)}{digest(part[name])}".encode())
        else:
            text = json.dumps(part, sort_keys=True).encode()
            sha.update(f"json {len(text)}:".encode() + text)  # the length keeps neighbours apart
    return sha.hexdigest()[:24]


def remember(kind: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The stored result of the computation `kind` on `inputs`, computed by `make` if it is not there yet.

    Args:
        kind: a word for people who look into the folder, e.g. "run".
        inputs: JSON values that determine the result; the machine's device, dtype and torch version are added.
        make: computes into the folder it is given and returns the JSON record. The folder outlives an interruption, so `make` may leave
            checkpoints there and go on from them; it removes them when it is done.

    Damaged entries (a missing file, another digest, an unreadable record) are thrown away and made anew.
    """
    inputs = inputs | surroundings()
    key = f"{kind}-{digest(inputs)}"
    folder, part = RUNS / "store" / key, RUNS / "store" / f"{key}.part"
    if _only_stored.get():
        if record := _intact(folder):
            return Entry(folder, record["result"])
        raise Missing(f"no {key}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{key}.lock")):
        if record := _intact(folder):
            return Entry(folder, record["result"])
        shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(exist_ok=True)
        result = make(part)
        files = {f.name: file_digest(f) for f in sorted(part.iterdir()) if f.name != "record.json"}  # one may be left by a kill
        record = {"kind": kind, "inputs": inputs, "threads": torch.get_num_threads(), "result": result, "files": files}
        record = json.loads(json.dumps(record))  # as a later reader gets it
        write_json(part / "record.json", record | {"digest": digest(record)})
        part.rename(folder)
        return Entry(folder, record["result"])


def surroundings() -> dict[str, Any]:
    """What every result depends on beside its inputs. On other processors and numbers of threads it differs by rounding only."""
    return {
        "format": FORMAT, "torch": torch.__version__, "device": machine.device_name(), "dtype": str(machine.fast_dtype()),
    }  # fmt: skip


def records(kind: str) -> Iterator[dict[str, Any]]:
    """The records (inputs, result) of all stored computations of a kind, the latest first. Their other files are not looked at."""
    files = (RUNS / "store").glob(f"{kind}-*/record.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        yield json.loads(file.read_text())


def _intact(folder: Path) -> dict | None:
    """The record of a whole, undamaged entry, else None."""
    try:
        record = json.loads((folder / "record.json").read_text())
        whole = record.pop("digest") == digest(record)
        return record if whole and all(file_digest(folder / name) == expected for name, expected in record["files"].items()) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json.dumps(value, indent=1))


def save_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    whole = file.with_name(f"{file.name}.tmp")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, whole, metadata)
    whole.replace(file)
