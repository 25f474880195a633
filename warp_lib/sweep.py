"""A grid over any parameters of a notebook: a papermill job for each combination, resumed where it stopped, collected in one table."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from . import paths
from .live import duration
from .report import kernel_environment
from .settings import Settings

Values = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One combination: what varies, everything that the notebook is given, and where it is executed."""

    varied: Values
    parameters: Values
    executed: Path

    @property
    def title(self) -> str:
        """The combination in words."""
        return ", ".join(f"{name} = {value}" for name, value in self.varied.items())

    @property
    def log(self) -> Path:
        """What papermill said."""
        return self.executed.with_suffix(".log")


def plan(notebook: Path, name: str, grid: dict[str, list[Any]], fixed: Values) -> list[Job]:
    """The jobs of the sweep `name`: each combination of the grid's values, with `fixed` for all.

    Each job is a run of its own, named after the sweep and the combination, so that no two write the same tables. Raises ValueError in one
    sentence for a notebook that is not there, an unknown parameter or a value that is not allowed, before anything runs.
    """
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"sweep needs a notebook that is there, and {notebook} is not one.")
    if not grid:
        raise ValueError("sweep needs at least one -g NAME=VALUE,VALUE,… to vary.")
    if both := sorted((grid.keys() | {"name"}) & fixed.keys()) or sorted({"name"} & grid.keys()):
        raise ValueError(f"{both[0]} is set by the sweep itself and cannot be given to it again.")
    jobs = []
    for values in product(*grid.values()):
        varied = dict(zip(grid, values, strict=True))
        slug = re.sub(r"[^\w.=-]", "_", "-".join(f"{k}={v}" for k, v in varied.items())).replace("=", "-")
        parameters = fixed | varied | {"name": f"{name}-{slug}"}
        Settings.profile(**parameters)  # refuses what is not allowed
        jobs.append(Job(varied, parameters, paths.RUNS / name / "sweep" / notebook.stem / f"{slug}.ipynb"))
    if len({job.executed for job in jobs}) < len(jobs):
        raise ValueError("the grid holds the same combination twice.")
    return jobs


def sweep(notebook: Path, name: str, grid: dict[str, list[Any]], fixed: Values, at_once: int = 1) -> tuple[Path | None, list[Job]]:
    """Execute the jobs of `plan`, `at_once` at a time, and collect the rows of their results tables.

    A job that an earlier sweep finished with the same notebook and parameters is not executed again; a job that fails does not stop the
    others. The processors are shared out evenly, so that every job has the same number of threads.

    Returns the table ``runs/<name>/<notebook>.csv`` (None when no job wrote results), and the jobs that failed.
    """
    jobs = plan(notebook, name, grid, fixed)
    todo = [job for job in jobs if not _finished(job, notebook)]
    began, done = time.monotonic(), 0
    print(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them done before", flush=True)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with kernel_environment(), ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(_execute, job, notebook, threads): job for job in todo}
        try:
            for future in as_completed(running):
                done += 1
                to_go = (time.monotonic() - began) / done * (len(todo) - done)
                state = "done" if future.result() else f"FAILED, see {running[future].log}"
                print(f"[{done}/{len(todo)}] {running[future].title}: {state}", end="", flush=True)
                print(
                    f", about {duration(to_go)} to go" if done < len(todo) else f" · {duration(time.monotonic() - began)} in all",
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # the running ones were interrupted with us
            raise
    return collect(jobs, notebook, name), [job for job in jobs if not _finished(job, notebook)]


def collect(jobs: list[Job], notebook: Path, name: str) -> Path | None:
    """One table of the results that the finished jobs wrote, with a column for each parameter that varies."""
    tables = []
    for job in jobs:
        rows = paths.RUNS / job.parameters["name"] / "results" / f"{notebook.stem}.csv"
        if _finished(job, notebook) and rows.exists():
            table = pd.read_csv(rows)
            for place, (parameter, value) in enumerate(job.varied.items()):
                table.insert(place, f"sweep_{parameter}", value)
            tables.append(table)
    if not tables:
        return None
    target = paths.folder(name) / f"{notebook.stem}.csv"
    paths.write_whole(target, pd.concat(tables).to_csv(index=False))
    return target


def _execute(job: Job, notebook: Path, threads: int) -> bool:
    """Run one job in a process of its own; whether it came to its end."""
    job.executed.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(job.executed),
        "-k",
        "python3",
        "--language",
        "python",
        "--no-progress-bar",
    ]
    for parameter, value in job.parameters.items():
        command += ["-r" if isinstance(value, str) else "-p", parameter, str(value)]
    with job.log.open("w", encoding="utf-8") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    return ended.returncode == 0


def _finished(job: Job, notebook: Path) -> bool:
    """Whether the job's executed notebook is there, whole, and made from this notebook with these parameters."""
    try:
        executed = nbformat.read(job.executed, 4)
    except (OSError, ValueError):  # not there, or cut short
        return False
    made = executed.metadata.get("papermill", {})
    sources = [list(_code(nb)) for nb in (executed, nbformat.read(notebook, 4))]
    return (
        made.get("end_time") is not None
        and not made.get("exception")
        and made.get("parameters") == job.parameters
        and sources[0] == sources[1]
    )


def _code(notebook: nbformat.NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", []):
            yield cell.source
