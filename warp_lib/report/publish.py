"""Publishing a report: its executed notebooks and figures, committed without traces of when and
where they were made.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..runs import paths
from ..runs.errors import Explained
from .page import shown_outputs, tags


def publish(name: str) -> None:
    """Copy the executed notebooks of ``runs/<name>`` into notebooks/ and its figures into figures/,
    without traces of when and where.

    Raises Explained, and copies nothing, when one of them is missing, failed, was edited since,
    or shows a path of this machine.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    folder = paths.RUNS / name
    sources = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    files = [folder / "notebooks" / source.name for source in sources]
    if missing := [file.stem for file in files if not file.exists()] or ([] if files else ["all"]):
        raise Explained(f"runs/{name} has not run these notebooks: {', '.join(missing)}.")
    clean = {}
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        parameters = notebook.metadata.get("papermill", {}).get("parameters", {})
        _refuse_unfinished(notebook, file.stem)
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        _refuse_paths(notebook, file.stem)
        if _sources(_strip(notebook)) != _sources(nbformat.read(paths.NOTEBOOKS / file.name, 4)):
            raise Explained(
                f"{file.stem} was edited since runs/{name} ran it; run the report again, or the"
                " edit would be lost."
            )
        clean[file.name] = nbformat.writes(notebook) + "\n"
    for target, text in clean.items():
        paths.write_whole(paths.NOTEBOOKS / target, text)
    figures = sorted(f for f in (folder / "figures").glob("*") if f.is_file())
    paths.FIGURES.mkdir(exist_ok=True)
    for figure in figures:
        shutil.copyfile(figure, paths.FIGURES / figure.name)
    made = ", ".join(f"{key}={value}" for key, value in parameters.items()) or "the defaults"
    print(
        f"Published {len(clean)} notebooks and {len(figures)} files of figures from runs/{name},"
        f" made with {made}."
    )


def _sources(notebook: NotebookNode) -> list[str]:
    """What a person wrote: every cell's source but the repeated answer."""
    return [cell.source for cell in notebook.cells if "answer-here" not in tags(cell)]


def _strip(notebook: NotebookNode) -> NotebookNode:
    """The notebook without papermill's traces, times and widgets; cell ids, sources, outputs and
    counts stay.
    """
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    for cell in notebook.cells:
        for trace in ["papermill", "execution"] + ([] if tags(cell) else ["tags"]):
            cell.metadata.pop(trace, None)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={
            "name": "python",
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "pygments_lexer": "ipython3",
        },
    )
    return notebook


def _refuse_unfinished(notebook: NotebookNode, stem: str) -> None:
    failed = any(output.output_type == "error" for output in shown_outputs(notebook))
    left = any(
        cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None
        for cell in notebook.cells
    )
    if failed or left:
        raise Explained(f"{stem} did not run to its end; run the report again before publishing.")


def _refuse_paths(notebook: NotebookNode, stem: str) -> None:
    """Refuse outputs with absolute paths: they tell about one machine and are wrong on every
    other.
    """
    known = [paths.ROOT, paths.RUNS, Path.home(), Path.cwd(), sys.prefix, tempfile.gettempdir()]
    resolved = [Path(path).resolve() for path in known]
    here = "|".join(re.escape(str(path)) for path in resolved if len(path.parts) > 1)
    anywhere = r"/(?:home|root|Users|tmp|usr|opt|var|mnt|srv)/|[A-Z]:\\\w"
    for output in shown_outputs(notebook):
        for text in _texts(output):
            if leak := re.search(rf"(?<![\w.])(?:{here}|{anywhere})[^\s'\"<>)]*", text):
                raise Explained(
                    f"{stem} shows the path {leak[0]} in an output; print a path relative to the"
                    " project and run it again."
                )


def _texts(value: Any) -> Iterator[str]:
    """Every string in an output, but for images and packed numbers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "bdata" and not (key.startswith("image/") and key != "image/svg+xml"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
