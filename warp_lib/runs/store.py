"""The memory of runs: what was computed once under a key made of its inputs is never computed
again.

An entry is a folder ``runs/store/<kind>-<key>`` with safetensors files and a ``record.json`` that
holds the inputs, the results and the files' digests. It is made in ``….part`` and renamed when
complete, under one lock per key: a reader sees all of it or nothing. A damaged entry is moved
aside, to ``….damaged``, and made anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..fast import machine
from . import paths
from .errors import Explained, Unwritable, reason, say_once, writing
from .paths import write_whole

FORMAT = 7  # raised when the same inputs give other results than before
# where a computation may leave what it goes on from; no part of its result
CHECKPOINT = "checkpoint.safetensors"
NO_RESULT = ("record.json", CHECKPOINT)  # files of an entry


@dataclass(frozen=True)
class Entry:
    """One finished computation: its folder and its record."""

    folder: Path
    record: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of ``<stem>.safetensors``, on the CPU."""
        return load_file(self.folder / f"{stem}.safetensors")


def digest(*parts: Any) -> str:
    """SHA-256, as 24 hex digits, of tensors, state dicts and JSON values."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"tensor {part.dtype}{tuple(part.shape)}:".encode())
            sha.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, Mapping) and any(isinstance(v, Tensor) for v in part.values()):
            for name in sorted(part):
                sha.update(f"named {digest(name)}{digest(part[name])}".encode())
        else:
            text = json.dumps(part, sort_keys=True).encode()
            sha.update(f"json {len(text)}:".encode() + text)  # the length keeps neighbours apart
    return sha.hexdigest()[:24]


def memoise(kind: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]) -> Entry:
    """The stored result of the computation `kind` on `inputs`, computed by `make` if it is not
    there yet.

    Args:
        kind: a word for people who look into the folder, e.g. "run".
        inputs: JSON values that determine the result; the machine's device, dtype and torch version
            are added.
        make: computes into the folder it is given and returns the JSON record. The folder outlives
            an interruption, so `make` may leave what it goes on from there, in a file called
            `CHECKPOINT`; it is removed when the record is written, not before.

    Damaged entries (a missing file, another digest, a record that is none) are moved aside, which
    is said, and made anew. Raises Explained for an entry that cannot be read, and before anything
    is computed for a store that cannot be written; inside `only_stored` NotStored.
    """
    inputs = inputs | surroundings()
    key = f"{kind}-{digest(inputs)}"
    folder = paths.RUNS / "store" / key
    part = folder.with_name(f"{key}.part")
    # without the lock: an entry appears whole, and a store that only is read need not be writable
    if record := _intact(folder):
        return Entry(folder, record["result"])
    if _ask_only.get():
        raise NotStored(kind, part)
    with ExitStack() as locked:
        with writing(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            locked.enter_context(FileLock(folder.with_name(f"{key}.lock")))
        if record := _intact(folder):
            return Entry(folder, record["result"])
        with writing(folder.parent):
            _move_aside(folder)
            part.mkdir(exist_ok=True)
            _try_writing(folder.parent, part)
        if not (record := _intact(part)):
            record = _record(kind, inputs, make(part), part)
        with writing(folder):
            for left in [*part.glob(f"{CHECKPOINT}*"), *part.glob("*.tmp")]:
                left.unlink(missing_ok=True)
            part.rename(folder)
        return Entry(folder, record["result"])


def _record(
    kind: str, inputs: dict[str, Any], result: dict[str, Any], part: Path
) -> dict[str, Any]:
    """Write the record of what was computed into `part`, and return it as a later reader gets
    it.
    """
    kept = [f for f in sorted(part.iterdir()) if f.suffix != ".tmp" and f.name not in NO_RESULT]
    record = {"kind": kind, "inputs": inputs, "threads": torch.get_num_threads()}
    record |= {"result": result, "files": {f.name: file_digest(f) for f in kept}}
    record = json.loads(json.dumps(record))
    write_json(part / "record.json", record | {"digest": digest(record)})
    return record


class NotStored(Exception):
    """Asked for inside `only_stored`, and not there. part: where its computation left what it goes
    on from, if it was begun.
    """

    def __init__(self, kind: str, part: Path):
        super().__init__(f"{kind} is not stored")
        self.kind, self.part = kind, part


_ask_only: ContextVar[bool] = ContextVar("only_stored", default=False)


@contextmanager
def only_stored() -> Iterator[None]:
    """Inside, the store answers and nothing is computed, written or waited for: what is not in it
    raises NotStored.
    """
    before = _ask_only.set(True)
    try:
        yield
    finally:
        _ask_only.reset(before)


def _move_aside(folder: Path) -> None:
    """Give a damaged entry another name, under which nobody looks for it but a person, and say
    so.
    """
    if folder.exists():
        names = (folder.with_name(f"{folder.name}.damaged{number or ''}") for number in count())
        aside = next(name for name in names if not name.exists())
        folder.rename(aside)
        say_once(f"{folder} was damaged: it is now called {aside.name}, and is computed again.")


def _try_writing(store: Path, part: Path) -> None:
    """Find out whether the result can be written and renamed, before hours are spent on it."""
    trial = store / f"{part.name}.trial"
    trial.touch()
    trial.replace(part / "trial.tmp")
    (part / "trial.tmp").unlink()


def surroundings() -> dict[str, Any]:
    """What every result depends on beside its inputs. Other processors and numbers of threads round
    the same passes otherwise: weights give the same numbers but for the last digits, a training
    samples other tokens from the first of them on."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": machine.device_name(),
        "dtype": str(machine.fast_dtype()),
    }


def records(kind: str) -> Iterator[dict[str, Any]]:
    """The records (inputs, result) of all stored computations of a kind, the latest first. Their
    other files are not looked at.
    """
    # none in the making or moved aside
    files = [
        file
        for file in (paths.RUNS / "store").glob(f"{kind}-*/record.json")
        if not file.parent.suffix
    ]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            record = _read_record(file.parent)
        except OSError as error:
            say_once(f"{file} is passed over: {reason(error)}.")
            continue
        if record:
            yield record
        else:
            say_once(f"{file} is passed over: it is damaged.")


def _intact(folder: Path) -> dict | None:
    """The record of a whole, undamaged entry; None if there is none or it is damaged. Raises
    Explained if that cannot be found out.
    """
    try:
        record = _read_record(folder)
        files = record["files"].items() if record else ()
        whole = all(file_digest(folder / name) == expected for name, expected in files)
        return record if whole else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Explained(
            f"{folder} cannot be read: {reason(error)}. It is left as it is; make it readable, or"
            " remove it to have it computed again."
        ) from error


def _read_record(folder: Path) -> dict | None:
    """An entry's record, None if there is none or it is not what was written. Raises OSError if it
    cannot be read.
    """
    try:
        record = json.loads((folder / "record.json").read_text())
        whole = record.pop("digest") == digest(record)
        return (
            record if whole and isinstance(record["files"], dict) and "result" in record else None
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return None


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json.dumps(value, indent=1))


def save_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    whole = file.with_name(f"{file.name}.tmp")
    with writing(file):
        try:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
                whole,
                metadata,
            )
        except SafetensorError as error:  # how it reports a full disk
            raise Unwritable(f"{file} cannot be written: {error}.") from error
        whole.replace(file)
