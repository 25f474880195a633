"""The rooms of the library: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from warp_lib.runs.paths import ROOT

LIBRARY = ROOT / "warp_lib"
# From the bottom up; "" is the library's root, the paper. A room imports itself and what stands
# before it.
ORDER = ["fast", "runs", "", "study", "tools", "report", "interactive"]
FILES = sorted(file for file in LIBRARY.rglob("*.py") if file.name != "__main__.py")


def room(file: Path) -> str:
    return "" if file.parent == LIBRARY else file.parent.name


def imported(file: Path) -> Iterator[str]:
    """The rooms of what a file imports of the library, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for name in node.names:
                found = (
                    base / name.name
                    if node.module is None or (base / f"{name.name}.py").exists()
                    else base
                )
                yield room(found.with_suffix(".py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_a_room_imports_only_what_stands_below_it(file):
    above = {other for other in imported(file) if ORDER.index(other) > ORDER.index(room(file))}
    assert not above, f"{file.relative_to(ROOT)} imports {sorted(above)}"


def test_every_room_is_in_the_order_and_says_what_it_is():
    rooms = {file.parent.name for file in LIBRARY.rglob("*.py") if file.parent != LIBRARY}
    assert rooms == set(ORDER) - {""}
    for name in rooms:
        assert ast.get_docstring(ast.parse((LIBRARY / name / "__init__.py").read_text()))
