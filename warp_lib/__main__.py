"""The command line: ``python -m warp_lib COMMAND``. Each command is a function below, whose
signature and docstring are its options and its help.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.exceptions import UnknownOptionError, UnusedCliTokensError
from cyclopts.help import DefaultFormatter

from .runs.errors import Explained, reason
from .runs.jobs import Runner, interrupted_by_signals, run_here
from .runs.progress import TerminalProgress
from .settings import PROFILES, Settings, number, typed

STOPPED = "Stopped. What is finished is kept; run the same command to go on."


class Failed(Exception):
    """A command cannot go on; the message is for the person at the terminal."""


class Help(DefaultFormatter):
    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        console.print(f"usage: {usage}", markup=False, highlight=False)


APP = App(
    "python -m warp_lib",
    "WARP, reproduced as a report of notebooks.",
    version_flags=(),
    help_format="plaintext",
    help_formatter=Help(),
    # both --learning_rate and --learning-rate are taken
    default_parameter=Parameter(name_transform=str, negative=()),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 asked for something that does not
    exist. Raises SystemExit where it has only shown its help.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        with interrupted_by_signals():
            code = APP(words)
    except UnusedCliTokensError as error:
        word = (error.unused_tokens or [""])[0]
        return say(f"One word too many: {word}. {see_help(words[0])}", 2)
    except UnknownOptionError as error:
        return say(f"{error} {see_help(words[0])}", 2)
    except CycloptsError as error:
        return say(str(error.msg or error), 2)
    except KeyboardInterrupt:
        return say(STOPPED, 1)
    except BrokenPipeError:  # as under `| head`: nobody reads on
        return 1
    except (Explained, Failed) as error:
        return say(error, 1)
    except OSError as error:
        where = error.filename or words[0]
        return say(
            f"{where}: {reason(error)}. What is finished is kept; fix that and run it again.", 1
        )
    if code is None:  # help was shown: asked for, or as there was no command
        sys.exit(0 if words else 2)
    return code


def see_help(command: str) -> str:
    """Where the words that a command takes are listed."""
    return f"`python -m warp_lib {command} --help` says what it takes."


@contextmanager
def refusing() -> Iterator[None]:
    """Inside, a ValueError refuses the words of the command."""
    try:
        yield
    except ValueError as error:
        raise CycloptsError(str(error)) from error


def as_number(_: type, tokens: Sequence[Token]) -> int | float | str:
    return number(tokens[0].value)


def as_jobs(_: type, tokens: Sequence[Token]) -> int:
    if isinstance(jobs := number(text := tokens[0].value), int) and jobs >= 1:
        return jobs
    raise ValueError(f"--jobs must be a whole number of at least 1, not {text}.")


Profile = Annotated[
    str,
    Parameter(
        help=f"{', '.join(PROFILES)}: source of every setting not given (defaults shown: laptop's)"
    ),
]
# Those that are given; Settings checks them and says what is allowed.
Overrides = TypedDict(
    "Overrides",
    # its keys are Settings' fields
    {
        f.name: Annotated[  # pyright: ignore[reportGeneralTypeIssues]
            f.type,
            Parameter(
                help=f"{f.metadata['doc']} [default: {f.default}]",
                converter=None if f.type is str else as_number,
            ),
        ]
        for f in fields(Settings)
    },
    total=False,
)
Jobs = Annotated[int, Parameter(converter=as_jobs)]
Cluster = Annotated[
    str | None,
    Parameter(help="run on a Ray cluster: HOST:PORT, auto, or local (this machine's GPUs)"),
]
Repeated = Annotated[tuple[str, ...], Parameter(show_default=False)]


def runner_on(cluster: str | None) -> Runner:
    """What runs jobs: on this machine, or on the cluster, which is looked for when there is
    something to run.
    """
    if cluster is None:
        return run_here

    def run(*jobs: Any) -> None:
        from .runs.cluster import connected  # only now: it needs Ray

        with connected(cluster) as there:
            there.run(*jobs)

    return run


@APP.command
def report(
    *, profile: Profile = "laptop", cluster: Cluster = None, **overrides: Unpack[Overrides]
) -> int:
    """Run the notebooks and write runs/NAME/report.html."""
    with refusing():
        settings = Settings.profile(profile, **overrides)
    from .report.run import run_report  # only now: it takes a second to import

    run_report(settings, profile, dict(overrides), runner_on(cluster))
    return 0


@APP.command
@refusing()
def sweep(
    notebook: Path,
    /,
    *,
    grid: Annotated[Repeated, Parameter(alias="-g")] = (),
    parameter: Annotated[Repeated, Parameter(alias="-p")] = (),
    name: str = "sweep",
    jobs: Jobs = 1,
    cluster: Cluster = None,
) -> int:
    """Run a notebook over a grid of its parameters, and collect the results in one table.

    Args:
        notebook: the notebook, e.g. notebooks/03_warp.ipynb
        grid: NAME=VALUE,VALUE,…: a parameter and its values; repeatable
        parameter: NAME=VALUE: the same for all jobs; repeatable
        name: folder of the sweep under runs/
        jobs: jobs at a time, which share the processors
    """
    from .report.sweep import sweep as run_sweep

    varied = {
        name: [typed(name, value) for value in values.split(",")]
        for name, values in pairs(grid, "-g NAME=VALUE,VALUE,…").items()
    }
    fixed = {n: typed(n, value) for n, value in pairs(parameter, "-p NAME=VALUE").items()}
    table, failed = run_sweep(notebook, name, varied, fixed, jobs, runner_on(cluster))
    print(f"The results: {table}" if table else "No job wrote a table of results.")
    if failed:
        logs = "; ".join(f"{job.title} ({job.log})" for job in failed)
        return say(f"{len(failed)} failed: {logs}", 1)
    return 0


def pairs(texts: Sequence[str], form: str) -> dict[str, str]:
    """NAME=VALUE split, each name once. Raises ValueError otherwise."""
    by_name: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise ValueError(f"{text!r} is not of the form {form}")
        if name in by_name:
            raise ValueError(f"{name} is given twice.")
        by_name[name] = value
    return by_name


@APP.command
@refusing()
def study(
    *experiments: str, jobs: Jobs = 1, unit: str | None = None, cluster: Cluster = None
) -> int:
    """Run what is left of the study's experiments, and keep it in data/study/.

    Args:
        experiments: of warp_lib/study (default: tuning, primary, best-of-n, grid,
            merges, averages, angles, dpo-tuning, dpo; by name only: anchors, long-run, turnover,
            defaults, precision)
        jobs: units at a time, which share the processors
        unit: ARM-SEED: only this unit of the experiment
    """
    from .study.run import run as run_study

    try:
        run_study(list(experiments), TerminalProgress(), jobs, unit, runner_on(cluster))
    except (RuntimeError, Explained) as error:  # of a unit; other words than there are: ValueError
        return say(error, 1)
    return 0


@APP.command
@refusing()
def pack(*, profile: Profile = "laptop", **overrides: Unpack[Overrides]) -> int:
    """Pack the task vectors of WARP's and REINFORCE's policies into data/task_vectors/."""
    settings = Settings.profile(profile, **overrides)
    from .experiment import Experiment
    from .study import kept_reward
    from .tools import task_vectors

    experiment, progress = Experiment(settings), TerminalProgress()
    # where the settings are the study's, its reward model: the policies are then the study's own
    reward = kept_reward.read(settings) or experiment.reward(progress)
    rewards = {"reward": reward} | experiment.judges(progress)
    tuned = task_vectors.train(experiment, reward, progress)
    record = task_vectors.commit(experiment, tuned, rewards, progress)
    for name, vector in record["vectors"].items():
        size, error = vector["bytes"] / 1e6, vector["relative_error"]
        print(f"{name}: {size:.2f} MB, relative error {error:.2f}")
    return 0


@APP.command
@refusing()
def merge(
    base: str,
    /,
    *runs: str,
    out: Path,
    eta: Annotated[float, Parameter(converter=as_number)] = 1.0,
    merge: str = "slerp",
    per: str = "layer",
    dtype: str | None = None,
) -> int:
    """Merge runs of your own model, from folders into a folder: base + η · SLERP of the task
    vectors.

    Args:
        base: the model the runs began from: a folder of safetensors, or a hub id
        runs: the models trained from it; one alone is interpolated (LITI)
        out: a new or empty folder
        eta: 0 to 1 is LITI, beyond extrapolates
        merge: slerp or lerp of the task vectors
        per: one angle of SLERP per layer, tensor or model
        dtype: float32, bfloat16 or float16 (default: what holds the base's and the runs' numbers)
    """
    import pandas as pd

    from .tools.merge_folders import RoundingWarning, merge_folders

    with whole_or_nothing() as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RoundingWarning)
        rows = merge_folders(
            base, runs, out, eta=eta, merge=merge, per=per, dtype=dtype, progress=progress
        )
    print(
        pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)
        if rows
        else "One run: there is no angle to report."
    )
    for warning in caught:
        if warning.category is RoundingWarning:
            say(f"Warning: {warning.message}", 0)
    print(f"The merged model: {out}")
    return 0


@APP.command
@refusing()
def verify(run: str, /) -> int:
    """Recompute KL and reward of a run's saved policies with plain transformers, and compare with
    its results.csv.

    Args:
        run: the run's folder under runs/, e.g. laptop
    """
    from .fast import machine
    from .tools.verify import described
    from .tools.verify import verify as verify_run

    machine.prepare()
    with whole_or_nothing() as progress:
        checks = verify_run(run, progress)
    print(described(checks))
    return 0 if all(check.agrees for check in checks) else 1


@APP.command
def publish(*, name: str = "laptop") -> int:
    """Copy a run's notebooks and figures into notebooks/ and figures/.

    Args:
        name: the run's folder under runs/
    """
    from .report.publish import publish as publish_run

    publish_run(name)
    return 0


@APP.command
def keep(run: str, /) -> int:
    """Copy what a run's report measured into data/scale/, which notebook 10 shows.

    Args:
        run: the run's folder under runs/, e.g. smollm2-small
    """
    with refusing():
        name = Settings.profile(name=run).name
    from .report.kept import keep as keep_run

    print(f"Kept: {keep_run(name)}")
    return 0


@contextmanager
def whole_or_nothing() -> Iterator[TerminalProgress]:
    """For a command that leaves nothing behind when it fails or is stopped, and says so."""
    progress = TerminalProgress()
    try:
        yield progress
    except ValueError:  # a file that cannot be written is an OSError too, and says so itself
        raise
    except (OSError, KeyboardInterrupt) as error:
        raise Failed(f"Nothing was written: {str(error) or 'stopped'}.") from error
    finally:
        while progress.bars:
            progress.end()  # the sentence gets a line of its own


def say(error: Exception | str, code: int) -> int:
    print(error, file=sys.stderr)
    return code


def as_program() -> int:
    """`main`, for a process whose output may be cut off, as by `| head`."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        return 1
    finally:
        with suppress(OSError):
            # what Python flushes when it ends has somewhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(as_program())
