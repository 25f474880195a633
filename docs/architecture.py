"""Draw the rooms of `warp_lib` into architecture.md, from what they import.

python docs/architecture.py
"""

import re
from pathlib import Path

import grimp

PAGE = Path(__file__).with_suffix(".md")
ROOT = "the paper"  # the files that lie in warp_lib itself


def room(module: str) -> str:
    """The room of a module: "fast" for "warp_lib.fast.dense"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ROOT


def picture() -> str:
    """Mermaid: each room with its files, and who imports whom, without what follows from it."""
    library = grimp.build_graph("warp_lib", cache_dir=None)
    files: dict[str, list[str]] = {}
    imports: dict[str, set[str]] = {}
    for module in sorted(library.modules - {"warp_lib", "warp_lib.__main__"}):
        here = room(module)
        if not library.find_children(module):
            files.setdefault(here, []).append(module.rpartition(".")[2])
        others = map(room, library.find_modules_directly_imported_by(module))
        imports.setdefault(here, set()).update(other for other in others if other != here)
    boxes = [f'    {key(name)}["<b>{name}</b><br>{", ".join(files[name])}"]' for name in files]
    arrows = [
        f"    {key(name)} --> {key(other)}"
        for name, below in imports.items()
        for other in sorted(below)
        if not any(other in imports[between] for between in below)
    ]
    return "\n".join(["```mermaid", "flowchart TD", *boxes, *arrows, "```"])


def key(name: str) -> str:
    """A room's name as Mermaid's identifier."""
    return name.replace(" ", "_")


def page() -> str:
    """architecture.md with today's picture."""
    return re.sub(r"```mermaid\n.*?```", lambda _: picture(), PAGE.read_text(), flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page())
