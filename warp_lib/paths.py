"""Where things lie: the repository, and the folder of everything that is generated."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path(os.environ.get("WARP_RUNS") or ROOT / "runs").resolve()


def folder(name: str) -> Path:
    """The folder of the run called `name`, made if need be."""
    made = RUNS / name
    made.mkdir(parents=True, exist_ok=True)
    return made
