"""The report: the notebooks executed, and one page made of them."""

import json
import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import nbformat

from ..runs import paths
from ..runs.commit import COMMIT
from ..runs.errors import Explained
from ..runs.jobs import Ended, Job, Runner, run_here
from ..runs.progress import duration
from ..runs.results import MACHINE
from ..settings import Settings
from .page import shown_outputs, tags, write_page

# What a notebook waits for. All others wait for the first, which trains the reward model, and need
# nothing of each other.
AFTER = {"05_pareto": ("03_warp", "04_reinforce_baseline")}
DEAD_KERNEL = 138  # papermill's exit code
# what an answer is of that is not the report's own run, by a tag of the cell that shows it on top
OTHERS = {"of-the-study": "the study", "of-kept-runs": "the runs kept in `data/scale`"}


def run_report(
    settings: Settings, profile: str, overrides: dict[str, Any], runner: Runner = run_here
) -> Path:
    """Execute the notebooks with ``settings``, which are those of `profile` and `overrides`, and
    write ``runs/<name>/report.html``.

    With the bundled policy, on a processor, two are run side by side as soon as they can be, on
    half of its threads each: that is quicker than one after another. The executed notebooks are
    kept in ``runs/<name>/notebooks``, up to a cell that fails; then Explained says which and why.
    """
    import torch  # only now: it takes seconds

    from ..fast import machine

    sources = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise Explained("there are no notebooks to run in notebooks/.")
    if settings.policy != Settings().policy:  # the bundled one takes minutes
        from .ahead import cost

        machine.prepare()
        print(cost(settings, profile), flush=True)
        machine.give_memory_back()  # the kernels need it
    folder = paths.folder(settings.name)
    paths.folder(f"{settings.name}/notebooks")
    parameters = {"profile": profile} | {
        name: value for name, value in overrides.items() if value is not None
    }
    targets = {source.stem: folder / "notebooks" / source.name for source in sources}
    jobs = []
    for source in sorted(sources, key=lambda source: source.stem in AFTER):
        stem = source.stem
        after = (jobs[0].title, *AFTER.get(stem, ())) if jobs else ()
        jobs.append(notebook_job(stem, source, targets[stem], parameters, after=after))
    began, finished = time.monotonic(), []

    def tell(ended: Ended) -> None:
        stem = ended.job.title
        if ended.code:
            raise Explained(f"{stem}: {why(ended, targets[stem])}")
        _answer_on_top(targets[stem], settings)
        finished.append(stem)
        state = f"finished, {duration(time.monotonic() - began)} in all"
        print(f"[{len(finished)}/{len(jobs)}] {stem}: {state}\n\n", end="", flush=True)

    threads = torch.get_num_threads()
    # two of a larger policy would need twice its memory, and its operations gain from threads
    small = settings.policy == Settings().policy and machine.device().type == "cpu"
    at_once = 2 if threads > 1 and small else 1
    with paths.locked(settings.name, "report"):
        try:
            runner(jobs, tell, at_once, threads)
        finally:
            _note_machine(folder / MACHINE, time.monotonic() - began)
    page = folder / "report.html"
    write_page([*targets.values()], page, f"WARP, checked: {settings.name}")
    print(f"The report: {page}\n{paths.size_line()}")
    return page


def _note_machine(file: Path, seconds: float) -> None:
    """Write where and when a report was made, of which commit, and how long all its calls took."""
    from ..fast import machine

    before = 0.0
    with suppress(OSError, ValueError, KeyError):  # there is none yet, or it is damaged
        before = json.loads(file.read_text())["seconds"]
    made = machine.describe() | {"commit": COMMIT, "date": date.today().isoformat()}
    with suppress(OSError):  # a report is more than a note on it
        paths.write_whole(file, json.dumps(made | {"seconds": before + seconds}))


def notebook_job(
    title: str,
    source: Path,
    executed: Path,
    parameters: dict[str, Any],
    log: Path | None = None,
    after: Collection[str] = (),
) -> Job:
    """A notebook with its parameters, executed into `executed` by papermill (see `executing`), in
    a kernel of this Python and this package. What its cells print is what the job prints.
    """
    words = [sys.executable, "-m", "warp_lib.report.executing", str(source), str(executed)]
    words += "--stdout-file - --kernel python3 --language python".split()
    words += "--start-timeout 300 --no-progress-bar".split()
    for parameter, value in parameters.items():
        words += ["-r" if isinstance(value, str) else "-p", parameter, str(value)]
    path = filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])
    # a JUPYTER_PATH may hold another "python3"
    env = {"PYTHONPATH": os.pathsep.join(path), "JUPYTER_PATH": ""}
    return Job(title, words, env, log, after, [source])


def why(ended: Ended, executed: Path) -> str:
    """Why a notebook's job failed, in one sentence."""
    if ended.code < 0 or ended.code == DEAD_KERNEL:
        return (
            "its kernel was ended, by hand or for want of memory. What is finished is kept; run the"
            " same command to go on."
        )
    try:
        outputs = shown_outputs(nbformat.read(executed, as_version=4))
        error = next(output for output in outputs if output.output_type == "error")
    # not the notebook's: a kernel that did not start, a disk that is full
    except (OSError, ValueError, StopIteration):
        return ended.last
    reason = (error.evalue.strip().splitlines() or [""])[-1]
    if error.traceback == [error.evalue]:  # it shows as its message alone, which says it all
        return reason
    return f"{error.ename}: {reason} (what ran, and the traceback: {executed})"


def _answer_on_top(file: Path, settings: Settings) -> None:
    """Repeat the answer, which a notebook's last cell computes, right below its question."""
    notebook = nbformat.read(file, as_version=4)
    answers = [
        o.data["text/markdown"]
        for o in shown_outputs(notebook, "answer")
        if "text/markdown" in o.get("data", {})
    ]
    for cell in notebook.cells:
        if answers and "answer-here" in tags(cell):
            own = f"run `{settings.name}`, seed {settings.seed}"
            of = next((OTHERS[tag] for tag in tags(cell) if tag in OTHERS), own)
            cell.source = f"{answers[-1]}\n\n*Computed by the last cell, from {of}.*"
    notebook.metadata.pop("widgets", None)  # papermill keeps their state, which only a kernel shows
    paths.write_whole(file, nbformat.writes(notebook))
