"""Where things lie: the repository, and the folder of everything that is generated."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path(os.environ.get("WARP_RUNS") or ROOT / "runs").resolve()


def write_whole(file: Path, text: str) -> None:
    """Write a text so that a reader finds the old file or the new one, never half of it."""
    part = file.with_name(f"{file.name}.tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def folder(name: str) -> Path:
    """The folder of the run called `name`, made if need be."""
    made = RUNS / name
    made.mkdir(parents=True, exist_ok=True)
    return made
