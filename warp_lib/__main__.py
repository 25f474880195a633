"""The command line: ``python -m warp_lib report``, ``sweep``, ``study``, ``pack``, ``merge``,
``verify`` and ``publish``.
"""

import argparse
import os
import sys
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from .runs.errors import Explained, reason
from .runs.jobs import interrupted_by_signals
from .settings import PROFILES, Settings, number, typed

STOPPED = "Stopped. What is finished is kept; run the same command to go on."


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 asked for something that does not
    exist.
    """
    parser = argparse.ArgumentParser(
        prog="python -m warp_lib", description="WARP, reproduced as a report of notebooks."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "report",
        help="run the notebooks and write runs/NAME/report.html",
        allow_abbrev=False,
        usage="python -m warp_lib report [--profile PROFILE] [--SETTING VALUE …]",
    )
    add_settings(command)
    command.set_defaults(run=report)

    command = commands.add_parser(
        "sweep",
        help="run a notebook over a grid of its parameters, and collect the results in one table",
        allow_abbrev=False,
        usage=(
            "python -m warp_lib sweep NOTEBOOK -g NAME=VALUE,VALUE,… [-g …] [-p NAME=VALUE …]"
            " [--name NAME] [--jobs N]"
        ),
    )
    command.add_argument("notebook", type=Path, help="the notebook, e.g. notebooks/03_warp.ipynb")
    command.add_argument(
        "-g",
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="a parameter and its values; repeatable",
    )
    command.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the same for all jobs; repeatable",
    )
    command.add_argument(
        "--name", default="sweep", help="folder of the sweep under runs/ (default: sweep)"
    )
    command.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="jobs at a time, the processors shared out among them (default: 1)",
    )
    command.set_defaults(run=sweep)

    command = commands.add_parser(
        "study",
        help="run what is left of the study's experiments, and keep it in data/study/",
        allow_abbrev=False,
        usage="python -m warp_lib study [EXPERIMENT …] [--jobs N] [--unit ARM-SEED]",
    )
    command.add_argument(
        "experiment",
        nargs="*",
        help="of warp_lib/study (default: tuning, primary, best-of-n, grid, merges)",
    )
    command.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="units at a time, the processors shared out among them (default: 1)",
    )
    command.add_argument("--unit", metavar="ARM-SEED", help="only this unit of the experiment")
    command.set_defaults(run=study)

    command = commands.add_parser(
        "pack",
        help="pack the task vectors of WARP's and REINFORCE's policies into data/task_vectors/",
        allow_abbrev=False,
        usage="python -m warp_lib pack [--profile PROFILE] [--SETTING VALUE …]",
    )
    add_settings(command)
    command.set_defaults(run=pack)

    command = commands.add_parser(
        "merge",
        help=(
            "merge the runs of a model of your own, folders to folder: base + η · SLERP of the task"
            " vectors"
        ),
        allow_abbrev=False,
        usage=(
            "python -m warp_lib merge BASE RUN [RUN …] --out FOLDER [--eta NUMBER] [--merge"
            " slerp|lerp] [--per layer|tensor|model] [--dtype float32|bfloat16|float16]"
        ),
    )
    command.add_argument(
        "base",
        metavar="BASE",
        help="the model the runs began from: a folder of safetensors, or a hub id",
    )
    command.add_argument(
        "trained",
        nargs="+",
        metavar="RUN",
        help="the models trained from it; one alone is interpolated (LITI)",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a folder that is not there yet, or empty",
    )
    command.add_argument(
        "--eta",
        type=number,
        default=1.0,
        metavar="NUMBER",
        help="0 to 1 is LITI, beyond extrapolates (default: 1)",
    )
    command.add_argument(
        "--merge",
        default="slerp",
        metavar="MERGE",
        help="slerp or lerp of the task vectors (default: slerp)",
    )
    command.add_argument(
        "--per",
        default="layer",
        metavar="GROUP",
        help="one angle of SLERP per layer, tensor or model (default: layer)",
    )
    command.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: what holds the base's and the runs' numbers)",
    )
    command.set_defaults(run=merge)

    command = commands.add_parser(
        "verify",
        help=(
            "recompute KL and reward of a run's saved policies with plain transformers, and compare"
            " with its results.csv"
        ),
        usage="python -m warp_lib verify RUN",
        allow_abbrev=False,
    )
    command.add_argument("name", metavar="RUN", help="the run's folder under runs/, e.g. laptop")
    command.set_defaults(run=verify)

    command = commands.add_parser(
        "publish",
        help="copy a run's notebooks and figures into notebooks/ and figures/",
        allow_abbrev=False,
    )
    command.add_argument(
        "--name", default="laptop", help="the run's folder under runs/ (default: laptop)"
    )
    command.set_defaults(run=publish)

    args, unknown = parser.parse_known_args(argv)
    try:
        with interrupted_by_signals():
            return args.run(args, unknown)
    except KeyboardInterrupt:
        return say(STOPPED, 1)
    except BrokenPipeError:  # as under `| head`: nobody reads on
        return 1
    except Explained as error:
        return say(error, 1)
    except OSError as error:
        return say(
            f"{error.filename or args.run.__name__}: {reason(error)}. What is finished is kept;"
            " mend that and run it again.",
            1,
        )


def report(args: argparse.Namespace, unknown: list[str]) -> int:
    try:
        settings, overrides = given_settings(args, unknown)
    except ValueError as error:
        return say(error, 2)
    from .report.run import run_report  # only now: it takes a second to import

    run_report(settings, args.profile, overrides)
    return 0


def sweep(args: argparse.Namespace, unknown: list[str]) -> int:
    from .report.sweep import sweep as run_sweep

    try:
        if unknown:
            raise ValueError(
                f"sweep takes no {unknown[0]}; parameters are given as -p NAME=VALUE or -g"
                " NAME=VALUE,VALUE,…"
            )
        if args.jobs < 1:
            raise ValueError(f"--jobs must be a whole number of at least 1, not {args.jobs}.")
        grid = {
            name: [typed(name, value) for value in values.split(",")]
            for name, values in pairs(args.grid, "-g NAME=VALUE,VALUE,…")
        }
        fixed = {name: typed(name, value) for name, value in pairs(args.parameter, "-p NAME=VALUE")}
        table, failed = run_sweep(args.notebook, args.name, grid, fixed, args.jobs)
    except ValueError as error:
        return say(error, 2)
    print(f"The results: {table}" if table else "No job wrote a table of results.")
    return (
        say(f"{len(failed)} failed: {'; '.join(f'{job.title} ({job.log})' for job in failed)}", 1)
        if failed
        else 0
    )


def study(args: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        return say(f"study takes names of experiments only, not {unknown[0]}.", 2)
    from .runs.progress import TerminalProgress
    from .study.run import run as run_study

    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs must be a whole number of at least 1, not {args.jobs}.")
        run_study(args.experiment, TerminalProgress(), args.jobs, args.unit)
    except ValueError as error:
        return say(error, 2)
    except RuntimeError as error:
        return say(error, 1)
    return 0


def pack(args: argparse.Namespace, unknown: list[str]) -> int:
    try:
        settings, _ = given_settings(args, unknown)
    except ValueError as error:
        return say(error, 2)
    from .experiment import Experiment
    from .runs.progress import TerminalProgress
    from .tools import task_vectors

    progress = TerminalProgress()
    try:
        experiment = Experiment(settings)
        record = task_vectors.commit(experiment, task_vectors.train(experiment, progress), progress)
    except ValueError as error:
        return say(error, 2)
    for name, vector in record["vectors"].items():
        print(
            f"{name}: {vector['bytes'] / 1e6:.2f} MB, relative error {vector['relative_error']:.2f}"
        )
    return 0


def merge(args: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        return say(
            f"merge takes no {unknown[0]}; its options are --out, --eta, --merge, --per and"
            " --dtype.",
            2,
        )
    import pandas as pd

    from .runs.progress import TerminalProgress
    from .tools.merge_folders import RoundingWarning, merge_folders

    progress = TerminalProgress()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RoundingWarning)
            given = {"eta": args.eta, "merge": args.merge, "per": args.per, "dtype": args.dtype}
            rows = merge_folders(args.base, args.trained, args.out, **given, progress=progress)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        while progress.bars:
            progress.end()  # the sentence gets a line of its own
        return (
            say(error, 2)
            if isinstance(error, ValueError)
            else say(f"Nothing was written: {str(error) or 'stopped'}.", 1)
        )
    print(
        pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format)
        if rows
        else "One run: there is no angle to report."
    )
    for warning in caught:
        if warning.category is RoundingWarning:
            say(f"Warning: {warning.message}", 0)
    print(f"The merged model: {args.out}")
    return 0


def verify(args: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        return say(f"verify takes the name of one run only, not {unknown[0]}.", 2)
    from .fast import machine
    from .runs.progress import TerminalProgress
    from .tools.verify import described
    from .tools.verify import verify as verify_run

    machine.prepare()
    progress = TerminalProgress()
    try:
        checks = verify_run(args.name, progress)
    except (ValueError, KeyboardInterrupt) as error:
        while progress.bars:
            progress.end()  # the sentence gets a line of its own
        return (
            say(error, 2)
            if isinstance(error, ValueError)
            else say("Stopped. Nothing was written.", 1)
        )
    print(described(checks))
    return 0 if all(check.agrees for check in checks) else 1


def pairs(given: list[str], form: str) -> list[tuple[str, str]]:
    """NAME=VALUE split, each name once. Raises ValueError otherwise."""
    split = [text.partition("=") for text in given]
    names = [name for name, _, _ in split]
    if odd := [
        text
        for text, (name, sign, value) in zip(given, split, strict=True)
        if not (name and sign and value)
    ]:
        raise ValueError(f"{odd[0]!r} is not of the form {form}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice.")
    return [(name, value) for name, _, value in split]


def publish(args: argparse.Namespace, unknown: list[str]) -> int:
    if unknown:
        return say(f"publish takes --name only, not {unknown[0]}.", 2)
    from .report.publish import publish as publish_run

    publish_run(args.name)
    return 0


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for the profile and one for each setting."""
    parser.add_argument(
        "--profile",
        default="laptop",
        help=f"settings to start from: {', '.join(PROFILES)} (default: laptop)",
    )
    for f in fields(Settings):
        dashed = f.name.replace("_", "-")
        spellings = dict.fromkeys([f"--{dashed}", f"--{f.name}"])
        kind, text = (str if f.type is str else number), f.metadata["doc"].replace("%", "%%")
        parser.add_argument(
            *spellings, dest=f.name, type=kind, metavar=f.type.__name__.upper(), help=text
        )


def given_settings(args: argparse.Namespace, unknown: list[str]) -> tuple[Settings, dict[str, Any]]:
    """The settings that the command line asks for, and those of them that it names. Raises
    ValueError in one sentence.
    """
    overrides = {
        f.name: getattr(args, f.name) for f in fields(Settings) if getattr(args, f.name) is not None
    }
    if unknown and not unknown[0].startswith("--"):
        raise ValueError(f"{args.run.__name__} takes options only, not {unknown[0]!r}.")
    # refused by Settings, with the nearest name
    misspelt = {word[2:].split("=")[0].replace("-", "_"): "" for word in unknown[:1]}
    return Settings.profile(args.profile, **overrides, **misspelt), overrides


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
