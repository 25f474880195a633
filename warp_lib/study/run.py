"""Running the study, unit by unit. A unit that ended is kept in data/study/ and never run again."""

import os
import sys

import torch

from ..runs.commit import COMMIT
from ..runs.jobs import MARK, Ended, Job, Runner, run_here
from ..runs.progress import Progress
from ..runs.store import write_json
from . import outcomes, plan, units
from .units import Unit, Unlike


def run(
    names: list[str],
    progress: Progress,
    jobs: int = 1,
    only: str | None = None,
    runner: Runner = run_here,
) -> None:
    """Run the units of the experiments `names` (none: those of `NOW`) that have not ended yet; or
    of them the one whose record is called `only`. Several `jobs` at a time are processes of their
    own, one is this process; another `runner` runs all of them. A unit whose seed was begun on
    another kind of machine is left out.

    Raises ValueError for an unknown experiment, and RuntimeError, when all others have ended, for
    units that failed beside others.
    """
    if unknown := [name for name in names if name not in plan.EXPERIMENTS]:
        raise ValueError(
            f"there is no experiment {unknown[0]!r}; there are {', '.join(plan.EXPERIMENTS)}."
        )
    for name in names or plan.NOW:
        listed = plan.EXPERIMENTS[name]()
        if only and only not in (known := [unit.file.stem for unit in listed]):
            raise ValueError(f"{name} has no unit {only!r}; it has {', '.join(known)}.")
        waiting = [unit for unit in listed if not unit.finished and only in (None, unit.file.stem)]
        if not waiting and MARK not in os.environ:
            ended = f"{only} has" if only else f"{len(listed)} of {len(listed)} units have"
            print(f"{name}: nothing to do, {ended} ended.", flush=True)
        at_once = min(jobs, len(waiting))
        if at_once > 1 or (waiting and runner is not run_here):
            _run_side_by_side(waiting, at_once, runner)
        else:
            for unit in waiting:
                if MARK not in os.environ:  # whoever runs this as a job has said its title
                    print(f"[{listed.index(unit) + 1}/{len(listed)}] {unit.title}", flush=True)
                try:
                    units.run_unit(unit, progress)
                # another kind of machine must run it: the next seeds need not wait for it
                except Unlike as error:
                    print(f"Left out: {error}", flush=True)
        if (
            name in plan.TUNED
            and all(unit.finished for unit in listed)
            and not (outcomes.FOLDER / f"{name}.json").exists()
        ):
            decided = outcomes.settle(name, plan.TUNED[name])
            write_json(outcomes.FOLDER / f"{name}.json", decided)


def _run_side_by_side(waiting: list[Unit], at_once: int, runner: Runner) -> None:
    """Run units in processes of their own, which share the processors out.

    One small policy leaves an accelerator idle most of the time; cores too, which wait for each
    other in its many small operations (see `side_by_side` in benchmarks/run.py).
    """
    failed, ended = [], []

    def tell(one: Ended) -> None:
        ended.append(one)
        failed.extend([f"{one.job.title} ({one.last})"] if one.code else [])
        state = "FAILED" if one.code else "ended"
        print(f"[{len(ended)}/{len(waiting)}] {one.job.title}: {state}", flush=True)

    runner([_job(unit) for unit in waiting], tell, at_once, torch.get_num_threads())
    if failed:
        raise RuntimeError(f"{len(failed)} failed: {'; '.join(failed)}")


def _job(unit: Unit) -> Job:
    """The command that runs one unit, and what it must know where there is no repository."""
    words = ["-m", "warp_lib", "study", unit.experiment, "--unit", unit.file.stem]
    env = {"WARP_STUDY": str(outcomes.FOLDER), "WARP_COMMIT": COMMIT}
    return Job(unit.title, [sys.executable, *words], env, brings=[outcomes.FOLDER])
