"""A grid over any parameters of a notebook: a papermill job for each combination, resumed where it
stopped, collected in one table.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from ..runs import paths
from ..runs.errors import Explained
from ..runs.jobs import Ended, Runner, run_here
from ..runs.progress import duration
from ..runs.results import readable
from ..settings import LONGEST_NAME, Settings
from .page import tags
from .run import notebook_job

Values = dict[str, Any]


@dataclass(frozen=True)
class Combination:
    """One of the grid: what varies, everything that the notebook is given, and where it is
    executed.
    """

    varied: Values
    parameters: Values
    executed: Path

    @property
    def title(self) -> str:
        """The combination in words."""
        return ", ".join(f"{name} = {value}" for name, value in self.varied.items())

    @property
    def log(self) -> Path:
        """What its cells and papermill said."""
        return self.executed.with_suffix(".log")

    @property
    def unfinished(self) -> Path:
        """Where it is executed until it has come to its end."""
        return self.executed.with_suffix(".part.ipynb")


def plan(notebook: Path, name: str, grid: dict[str, list[Any]], fixed: Values) -> list[Combination]:
    """The jobs of the sweep `name`: each combination of the grid's values, with `fixed` for all.

    Each job is a run of its own, named after the sweep and the combination, so that no two write
    the same tables. Raises ValueError in one sentence for a notebook that is not there, an unknown
    parameter or a value that is not allowed, before anything runs.
    """
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"sweep needs a notebook that is there, and {notebook} is not one.")
    if not grid:
        raise ValueError("sweep needs at least one -g NAME=VALUE,VALUE,… to vary.")
    named = [*grid, *fixed, "name"]
    if twice := [parameter for parameter in named if named.count(parameter) > 1]:
        raise ValueError(f"{twice[0]} is set by the sweep itself and cannot be given to it again.")
    Settings.profile(name=name)
    jobs: dict[str, Combination] = {}
    for values in product(*grid.values()):
        varied = dict(zip(grid, values, strict=True))
        words = "-".join(f"{k}-{v}" for k, v in varied.items())
        slug = re.sub(r"[^\w.-]", "_", words)[-100:].lstrip(".")
        if slug in jobs:
            raise ValueError(
                f"two combinations of the grid are called {slug}; leave one of them out."
            )
        parameters = fixed | varied | {"name": f"{name}-{slug}"}
        if len(parameters["name"].encode()) > LONGEST_NAME:  # shortened, and still its own
            whole = hashlib.sha256(parameters["name"].encode()).hexdigest()
            parameters["name"] = f"{name[:40]}-{whole[:24]}"
        Settings.profile(**parameters)  # refuses what is not allowed
        executed = paths.RUNS / name / "sweep" / notebook.stem / f"{slug}.ipynb"
        jobs[slug] = Combination(varied, parameters, executed)
    return list(jobs.values())


def sweep(
    notebook: Path,
    name: str,
    grid: dict[str, list[Any]],
    fixed: Values,
    jobs_at_once: int = 1,
    runner: Runner = run_here,
) -> tuple[Path | None, list[Combination]]:
    """Execute the jobs of `plan`, and collect the rows of their results tables.

    A job that an earlier sweep finished with the same notebook, parameters, library and models is
    not executed again; one that fails does not stop the others. Several jobs at a time share the
    processors evenly.

    Returns the table ``runs/<name>/<notebook>.csv`` (None when no job wrote results), and the jobs
    that failed.
    """
    jobs = plan(notebook, name, grid, fixed)
    _refuse_other_parameters(name, fixed)
    todo = [job for job in jobs if not _finished(job, notebook)]
    print(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them done before", flush=True)
    titled = {job.title: job for job in todo}
    began, failed, ended = time.monotonic(), [], []

    def tell(one: Ended) -> None:
        job = titled[one.job.title]
        ended.append(job)
        if one.code:
            failed.append(job)
        else:
            job.unfinished.replace(job.executed)
        seconds, done = time.monotonic() - began, len(ended)
        to_go = seconds / done * (len(todo) - done)
        left = f"about {duration(to_go)} to go" if to_go else f"{duration(seconds)} in all"
        state = f"FAILED: {one.last} (see {job.log})" if one.code else "done"
        print(f"[{done}/{len(todo)}] {job.title}: {state}, {left}", flush=True)

    for job in todo:
        job.executed.parent.mkdir(parents=True, exist_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    commands = [
        notebook_job(job.title, notebook, job.unfinished, job.parameters, job.log) for job in todo
    ]
    with paths.locked(name, "sweep"):
        runner(commands, tell, jobs_at_once, threads)
    done = [job for job in jobs if job not in failed]
    return _collect(done, notebook, name), [job for job in jobs if job in failed]


def _refuse_other_parameters(name: str, fixed: Values) -> None:
    """Raise Explained if the sweep `name` was begun with other parameters for all its jobs: both
    would write into the same folders.
    """
    file = paths.folder(name) / "sweep.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged
        before = fixed
    if before != fixed:
        words = ", ".join(f"{key}={value}" for key, value in before.items()) or "no -p"
        raise Explained(
            f"the sweep {name!r} was begun with {words}; give this one another --name, or remove"
            f" {file.parent}."
        )
    paths.write_whole(file, json.dumps(fixed))


def _collect(jobs: list[Combination], notebook: Path, name: str) -> Path | None:
    """One table of the results that the jobs wrote, with a column for each parameter that
    varies.
    """
    tables = []
    for job in jobs:
        rows = paths.RUNS / job.parameters["name"] / "results" / f"{notebook.stem}.csv"
        for _, table, _ in readable([rows] if rows.exists() else []):
            for column, (parameter, value) in enumerate(job.varied.items()):
                table.insert(column, f"sweep_{parameter}", value)
            tables.append(table)
    if not tables:
        return None
    target = paths.folder(name) / f"{notebook.stem}.csv"
    paths.write_whole(target, pd.concat(tables).to_csv(index=False))
    return target


def _finished(job: Combination, notebook: Path) -> bool:
    """Whether the job was executed from this notebook, with these parameters, since the library,
    the bundled policy and the folders that parameters name last changed.
    """
    try:
        executed = nbformat.read(job.executed, 4)
    except (OSError, ValueError):  # not there, or damaged
        return False
    read = [(paths.ROOT / "warp_lib").rglob("*.py"), (paths.ROOT / "data" / "policy").iterdir()]
    for setting in job.parameters.keys() & {"policy", "encoder", "reviews"}:
        if (folder := Path(str(job.parameters[setting]))).is_dir():
            read.append(file for file in folder.iterdir() if file.is_file())
    changed = max(file.stat().st_mtime for file in chain(*read))
    return (
        job.executed.stat().st_mtime >= changed
        and executed.metadata["papermill"]["parameters"] == job.parameters
        and _code(executed) == _code(nbformat.read(notebook, 4))
    )


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [cell.source for cell in code if "injected-parameters" not in tags(cell)]
