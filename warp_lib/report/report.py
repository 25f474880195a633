"""The report: the notebooks run, and one page made of them that opens offline. Also `publish`,
which commits a run's notebooks.
"""

import html
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from ..runs import paths
from ..runs.errors import Failed
from ..runs.jobs import together
from ..runs.progress import duration
from ..settings import Settings

if TYPE_CHECKING:
    from jupyter_client import AsyncKernelManager

NOTEBOOKS, FIGURES = paths.ROOT / "notebooks", paths.ROOT / "figures"
PLOTLY = "application/vnd.plotly.v1+json"


# errors whose message says it all
EXPLAINED = {"ValueError", "Explained", "Unwritable", "NotFinite"}
ENDED = (
    "its kernel was ended, by hand or for want of memory. What is finished is kept; run the same"
    " command to go on."
)


class ReportError(Failed):
    """The report cannot go on."""


# What a notebook waits for. All others wait for the first, which trains the reward model, and need
# nothing of each other.
AFTER = {"05_pareto": ("03_warp", "04_reinforce_baseline")}


def run_report(settings: Settings, profile: str, overrides: dict[str, Any]) -> Path:
    """Execute the notebooks with ``settings``, which are those of `profile` and `overrides`, and
    write ``runs/<name>/report.html``.

    On a processor two are run side by side, as soon as they can be, on half of its threads each:
    that is quicker than one after another. The executed notebooks are kept in
    ``runs/<name>/notebooks``, up to a cell that fails; then ReportError says which and why.
    """
    import torch  # only now: `publish` does without

    from ..fast import machine

    sources = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise ReportError("there are no notebooks to run in notebooks/.")
    folder = paths.folder(settings.name)
    paths.folder(f"{settings.name}/notebooks")
    parameters = {"profile": profile} | {
        name: value for name, value in overrides.items() if value is not None
    }
    targets = {source.stem: folder / "notebooks" / source.name for source in sources}
    threads = torch.get_num_threads()
    at_once = 2 if threads > 1 and machine.device().type == "cpu" else 1
    began, finished = time.monotonic(), []

    def run(source: Path) -> None:
        print(f"{source.stem}: begins\n", end="", flush=True)
        with kernels.next() as kernel:
            _execute(source, targets[source.stem], parameters, kernel)
        _answer_on_top(targets[source.stem], settings)

    def tell(stem: str, error: BaseException | None) -> None:
        if error:
            raise error
        finished.append(stem)
        state = f"finished, {duration(time.monotonic() - began)} in all"
        print(f"[{len(finished)}/{len(sources)}] {stem}: {state}\n\n", end="", flush=True)

    ordered = [sources[0], *sorted(sources[1:], key=lambda source: source.stem in AFTER)]
    after = {source.stem: (ordered[0].stem, *AFTER.get(source.stem, ())) for source in ordered[1:]}
    with paths.locked(settings.name, "report"), together() as running, kernel_environment():
        kernels = _Kernels(ordered, threads, at_once)
        running.run({source.stem: partial(run, source) for source in ordered}, at_once, tell, after)
    page = folder / "report.html"
    write_page([*targets.values()], page, f"WARP: {settings.name}")
    print(f"The report: {page}\n{paths.size_line()}")
    return page


class _Kernels:
    """Kernels to be used once each. While one is used, the next is started and imports what takes
    it seconds, if its notebook wants it.

    To be used inside `jobs.together`, which ends those that are left.
    """

    def __init__(self, sources: list[Path], threads: int, at_once: int):
        """The kernel of the first of `sources` has all `threads`, the others, used `at_once`, share
        them out.
        """
        shared = {"OMP_NUM_THREADS": str(threads // at_once)} if at_once > 1 else {}
        self.planned = [(source, shared if number else {}) for number, source in enumerate(sources)]
        self.waiting, self.lock = _start(*self.planned[0]), threading.Lock()

    @contextmanager
    def next(self) -> "Iterator[AsyncKernelManager]":
        """The next kernel, ended afterwards."""
        from jupyter_core.utils import run_sync

        with self.lock:
            kernel, planned = self.waiting, self.planned.pop(0)
            # ended while it waited, by hand or for want of memory
            if not run_sync(kernel.is_alive)():
                kernel = _start(*planned)
            self.waiting = _start(*self.planned[0]) if self.planned else None
        kernel.start_kernel = _never_again
        try:
            yield kernel
        finally:
            run_sync(kernel.shutdown_kernel)(now=True)


def _start(source: Path, environment: dict[str, str]) -> "AsyncKernelManager":
    """Start a kernel for a notebook."""
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync

    kernel = AsyncKernelManager(kernel_name="python3")
    heavy = (
        "import warp_lib.experiment; "
        if "warp_lib.experiment" in source.read_text(encoding="utf-8")
        else ""
    )
    imports = (
        f"--IPKernelApp.exec_lines={heavy}import warp_lib.report.rendering, plotly.io; assert"
        " plotly.io.renderers"
    )
    # what the notebook says, not its kernel
    quiet = ["--log-level=50", "--HistoryManager.hist_file=:memory:"]
    run_sync(kernel.start_kernel)(extra_arguments=[*quiet, imports], env=os.environ | environment)
    return kernel


async def _never_again(*_: Any, **__: Any) -> None:
    """In place of a kernel's `start_kernel`: nbclient starts one that it finds ended."""
    raise ReportError(ENDED)


class _Named(io.TextIOBase):
    """Where a notebook prints: the terminal, its name before every line."""

    def __init__(self, name: str):
        self.name, self.begun = name, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        sys.stdout.write("".join(f"{self.name}: {line}\n" for line in lines if line))
        sys.stdout.flush()
        return len(text)

    def close(self) -> None:
        if self.begun:
            self.write("\n")
        super().close()


def _execute(
    source: Path, target: Path, parameters: dict[str, Any], kernel: "AsyncKernelManager"
) -> None:
    """Run one notebook through papermill into `target`, in a started kernel; what it prints shows
    in the terminal as well.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # the settings cell knows the parameters, and we what failed
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        with closing(_Named(source.stem)) as terminal:
            papermill.execute_notebook(
                source,
                target,
                parameters,
                kernel_name="python3",
                language="python",
                start_timeout=300,
                progress_bar=False,
                stdout_file=terminal,
                km=kernel,
                store_widget_state=False,
            )
    except PapermillExecutionError as error:
        reason = (error.evalue.strip().splitlines() or [""])[-1]
        if error.ename in EXPLAINED:  # a setting out of its range, and nothing to look up
            raise ReportError(f"{source.stem}: {reason}") from None
        raise ReportError(
            f"{source.stem}: {error.ename}: {reason} (what ran, and the traceback: {target})"
        ) from None
    except DeadKernelError:
        raise ReportError(f"{source.stem}: {ENDED}") from None


def _answer_on_top(file: Path, settings: Settings) -> None:
    """Repeat the answer, which a notebook's last cell computes, right below its question."""
    notebook = nbformat.read(file, as_version=4)
    answers = [
        o.data["text/markdown"]
        for o in _outputs(notebook, "answer")
        if "text/markdown" in o.get("data", {})
    ]
    for cell in notebook.cells:
        if answers and "answer-here" in cell.metadata.get("tags", []):
            of = (
                "the study"
                if "of-the-study" in cell.metadata["tags"]
                else f"run `{settings.name}`, seed {settings.seed}"
            )
            cell.source = f"{answers[-1]}\n\n*Computed by the last cell; {of}.*"
    paths.write_whole(file, nbformat.writes(notebook))


@contextmanager
def kernel_environment() -> Iterator[None]:
    """Kernels of this Python and this package, that know no front end, whatever the terminal was
    started from.
    """
    before = dict(os.environ)
    for name in list(os.environ):
        # JUPYTER_PATH may hold another "python3"; the others would make the cells draw widgets that
        # nobody sees.
        if name in ("JUPYTER_PATH", "JPY_SESSION_NAME") or name.startswith("VOILA_"):
            del os.environ[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])
    )
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the debugger warns in the terminal
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# ----------------------------------------------------------------------------------------- one page

# nbconvert's plain template, with the code behind a fold.
CELLS = """
{%- extends 'basic/index.html.j2' -%}
{%- block input_group -%}
<details class="code"><summary>code</summary>{{ super() }}</details>
{%- endblock -%}
"""

# The browser itself refuses whatever the page would fetch.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; worker-src blob:;"
    " style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1f2328; --page: #fff; --soft: #f4f5f7; --line: #d5d9de; --link: #0a58ca;
}
@media (prefers-color-scheme: dark) {
  :root { --text: #dfe3e8; --page: #16191d; --soft: #21262c; --line: #3a4149; --link: #7fb2ff; }
}
body { margin: 0; background: var(--page); color: var(--text); }
body { font: 16px/1.55 system-ui, sans-serif; }
main, nav { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
nav { padding: 1rem; }
nav ol { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
a { color: var(--link); } section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; }
pre code { font-size: 1em; }
pre { line-height: 1.45; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.code { margin: .6rem 0; } summary { cursor: pointer; opacity: .75; font-size: .85rem; }
.highlight pre, .output_error pre { background: var(--soft); border-radius: 6px; }
.highlight pre, .output_error pre { padding: .6rem .8rem; }
.output_area { margin: .6rem 0; overflow-x: auto; } .output_stream pre { margin: 0; opacity: .85; }
.figure { background: #fff; color-scheme: light; border-radius: 6px; } img { max-width: 100%; }
table { border-collapse: collapse; border: 0; font-size: .9rem; }
th, td { border: 0; border-bottom: 1px solid var(--line); padding: .25rem .7rem; }
thead th { border-bottom-width: 2px; }
blockquote { margin-left: 0; padding-left: 1rem; border-left: 3px solid var(--line); }
"""


def write_page(notebooks: list[Path], page: Path, title: str) -> None:
    """Write executed notebooks as one self-contained page: interactive figures, folded code, and
    nothing fetched from anywhere.
    """
    from plotly.offline import get_plotlyjs
    from pygments.formatters import HtmlFormatter

    sections, links, figures = [], [], 0
    for file in notebooks:
        notebook = nbformat.read(file, as_version=4)
        heading = html.escape(_title(notebook) or file.stem)
        body, drawn = _body(notebook, file.stem)
        figures += drawn
        links.append(f'<li><a href="#{file.stem}">{heading}</a></li>')
        sections.append(f'<section id="{file.stem}">\n{body}\n</section>')
    light, dark = (
        HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight")
        for style in ("default", "github-dark")
    )
    style = f"{STYLE}\n{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"
    script = f"<script>{get_plotlyjs()}</script>" if figures else ""
    head = (
        '<meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width"><title>{html.escape(title)}</title>'
    )
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{head}<link rel="icon"'
        ' href="data:,">'
    )
    paths.write_whole(
        page,
        "<!doctype html>\n<html"
        f' lang="en"><head>{head}<style>{style}</style>{script}</head>\n<body>\n'
        f"<nav><strong>{html.escape(title)}</strong><ol>{''.join(links)}</ol></nav>\n<main>\n{''.join(sections)}\n</main>\n</body></html>\n",
    )


def _body(notebook: NotebookNode, stem: str) -> tuple[str, int]:
    """The HTML of one notebook's cells, and how many figures are in it."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook.metadata.pop("widgets", None)
    # The parameters are noise here, and where papermill overrode them misleading: the settings cell
    # shows what counted.
    notebook.cells = [
        cell
        for cell in notebook.cells
        if not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
    ]
    figures = 0
    for output in _outputs(notebook):
        if PLOTLY in output.get("data", {}):
            output.data = NotebookNode(
                {"text/html": _figure(output.data[PLOTLY], f"figure-{stem}-{figures}")}
            )
            figures += 1
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"cells.html.j2": CELLS})],
        template_file="cells.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        require_js_url="",
        mathjax_url="",
        mermaid_js_url="",
        jquery_url="",
    )
    body, _ = exporter.from_notebook_node(notebook)
    # Where notebooks link each other, the page links its own sections.
    links = re.compile(r'href="(?:\./)?(\d\d_\w+)\.ipynb(?:#([^"]+))?"')
    return links.sub(lambda found: f'href="#{found[2] or found[1]}"', body), figures


def _figure(figure: dict[str, Any], name: str) -> str:
    """An interactive figure as HTML, for a page that holds plotly.js already."""
    import plotly.io as pio

    figure = {part: figure[part] for part in ("data", "layout", "frames") if part in figure}
    config = {"responsive": True, "displaylogo": False}
    drawn = pio.to_html(
        figure,
        config,
        include_plotlyjs=False,
        full_html=False,
        default_height=450,
        validate=False,
        div_id=name,
    )
    return f'<div class="figure">{drawn}</div>'


def _title(notebook: NotebookNode) -> str | None:
    """The notebook's first heading, as plain text."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return re.sub(r"[`*]", "", found[1]).strip() if found else None


def _outputs(notebook: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """All outputs, or those of the cells with a `tag`, that can be shown without a kernel; the
    others, widgets, leave the notebook.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not any("widget-view" in kind for kind in output.get("data", {}))
            ]
    asked = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and (tag is None or tag in cell.metadata.get("tags", []))
    ]
    return [output for cell in asked for output in cell.outputs]


# --------------------------------------------------------------------------------------- publishing


def publish(name: str) -> None:
    """Copy the executed notebooks of ``runs/<name>`` into notebooks/ and its figures into figures/,
    without traces of when and where.

    Raises ReportError, and copies nothing, when one of them is missing, failed, was edited since,
    or shows a path of this machine.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    folder = paths.RUNS / name
    files = [
        folder / "notebooks" / source.name
        for source in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    ]
    if missing := [file.stem for file in files if not file.exists()] or ([] if files else ["all"]):
        raise ReportError(f"runs/{name} has not run these notebooks: {', '.join(missing)}.")
    clean = {}
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        parameters = notebook.metadata.get("papermill", {}).get("parameters", {})
        _refuse_unfinished(notebook, file.stem)
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        _refuse_paths(notebook, file.stem)
        if _sources(_strip(notebook)) != _sources(nbformat.read(NOTEBOOKS / file.name, 4)):
            raise ReportError(
                f"{file.stem} was edited since runs/{name} ran it; run the report again, or the"
                " edit would be lost."
            )
        clean[file.name] = nbformat.writes(notebook) + "\n"
    for target, text in clean.items():
        paths.write_whole(NOTEBOOKS / target, text)
    figures = sorted(f for f in (folder / "figures").glob("*") if f.is_file())
    FIGURES.mkdir(exist_ok=True)
    for figure in figures:
        shutil.copyfile(figure, FIGURES / figure.name)
    made = ", ".join(f"{key}={value}" for key, value in parameters.items()) or "the defaults"
    print(
        f"Published {len(clean)} notebooks and {len(figures)} files of figures from runs/{name},"
        f" made with {made}."
    )


def _sources(notebook: NotebookNode) -> list[str]:
    """What a person wrote: every cell's source but the repeated answer."""
    return [
        cell.source for cell in notebook.cells if "answer-here" not in cell.metadata.get("tags", [])
    ]


def _strip(notebook: NotebookNode) -> NotebookNode:
    """The notebook without papermill's traces, times and widgets; cell ids, sources, outputs and
    counts stay.
    """
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        for trace in (
            "papermill",
            "execution",
            *(["tags"] if not cell.metadata.get("tags") else []),
        ):
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
    failed = any(output.output_type == "error" for output in _outputs(notebook))
    left = any(
        cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None
        for cell in notebook.cells
    )
    if failed or left:
        raise ReportError(f"{stem} did not run to its end; run the report again before publishing.")


def _refuse_paths(notebook: NotebookNode, stem: str) -> None:
    """Refuse outputs with absolute paths: they tell about one machine and are wrong on every
    other.
    """
    here = [
        paths.ROOT,
        paths.RUNS,
        Path.home(),
        Path.cwd(),
        Path(sys.prefix),
        Path(tempfile.gettempdir()),
    ]
    here = "|".join(
        re.escape(str(path.resolve())) for path in here if len(path.resolve().parts) > 1
    )
    anywhere = r"/(?:home|root|Users|tmp|usr|opt|var|mnt|srv)/|[A-Z]:\\\w"
    for output in _outputs(notebook):
        for text in _texts(output):
            if found := re.search(rf"(?<![\w.])(?:{here}|{anywhere})[^\s'\"<>)]*", text):
                raise ReportError(
                    f"{stem} shows the path {found[0]} in an output; print a path relative to the"
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
