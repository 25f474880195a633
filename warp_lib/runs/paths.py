"""Where things lie: the repository, and the folder of everything that is generated, with its
size.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import Explained, writing

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS, FIGURES = ROOT / "notebooks", ROOT / "figures"
RUNS = Path(os.environ.get("WARP_RUNS") or ROOT / "runs").resolve()


def write_whole(file: Path, text: str) -> None:
    """Write a text so that a reader finds the old file or the new one, never half of it."""
    part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with writing(file):
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def folder(name: str) -> Path:
    """The folder of the run called `name`, made if need be."""
    made = RUNS / name
    with writing(made):
        made.mkdir(parents=True, exist_ok=True)
    return made


@contextmanager
def locked(name: str, command: str) -> Iterator[None]:
    """Inside, no other process runs this command under this name. Raises Explained at once where
    one does.
    """
    lock = FileLock(folder(name) / f"{command}.lock", blocking=False)
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire()
        except Timeout:  # an OSError too
            raise Explained(
                f"another {command} called {name!r} is running; wait for it, or give this one"
                " another --name."
            ) from None
    try:
        yield
    finally:
        lock.release()


def size_line() -> str:
    """How much the stored runs take, and how to free it."""
    files = [f for f in RUNS.rglob("*") if f.is_file()]
    entries = len(list((RUNS / "store").glob("*/record.json")))
    return (
        f"{RUNS.name}/ holds {entries} stored results in"
        f" {sum(f.stat().st_size for f in files) / 1e6:,.0f} MB; `make clean` frees it."
    )
