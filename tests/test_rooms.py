"""The rooms of the library. Who may import whom is import-linter's business: see pyproject.toml."""

import runpy
from pathlib import Path

import pytest

from warp_lib.runs.paths import ROOT

ROOMS = sorted(folder for folder in (ROOT / "warp_lib").iterdir() if list(folder.glob("*.py")))


@pytest.mark.parametrize("folder", ROOMS, ids=lambda folder: folder.name)
def test_every_room_says_what_it_is(folder: Path):
    assert (folder / "__init__.py").read_text().startswith('"""')


def test_the_picture_of_the_rooms_is_todays():
    """Guards: files and arrows of yesterday in docs/architecture.md."""
    drawn = runpy.run_path(str(ROOT / "docs" / "architecture.py"))["page"]()
    assert (ROOT / "docs" / "architecture.md").read_text() == drawn, "run docs/architecture.py"
