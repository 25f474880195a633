"""Commands in bad surroundings: one true sentence, an exit code, and nothing begun."""

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import nbformat
import psutil
import pytest
from test_report import notebook

from warp_lib import experiment
from warp_lib.__main__ import main
from warp_lib.report import run
from warp_lib.runs import paths
from warp_lib.runs.errors import Explained
from warp_lib.settings import Settings

REFUSED = [
    (["report", "--steps", "1e18"], "steps must be at most 10,000,000, not 1e+18."),
    (
        ["report", "--batch-size", "99999999999999999999999"],
        "batch_size must be at most 10,000,000, not",
    ),
    (["report", "--beta", "1e300"], "beta must be at most 10,000,000, not 1e+300."),
    (["report", "--beta", "1e999"], "beta must be a number of at least 0, not inf."),
    (["report", "--seed", "1e30"], "seed must be at most "),
    (["report", "--name", "a" * 300], "name must take at most 200 bytes, not 300."),
    (["report", "--name", "ü" * 150], "name must take at most 200 bytes, not 300."),
    (["merge", "a", "b", "--out", "/"], "/ cannot be the folder to write; name another."),
    (
        ["merge", "a", "b", "--out", "x", "--eta", "1e308"],
        "eta must be from -1000 to 1000, not 1e+308.",
    ),
    (
        ["reprot"],
        'Unknown command "reprot". Did you mean "report"? Available commands: report, sweep, ',
    ),
    (["report", "--stepz=3"], "Unknown option: --stepz. Did you mean --steps? `python -m "),
    (
        ["report", "--reward-step", "3"],
        "Unknown option: --reward-step. Did you mean --reward_steps? ",
    ),
    (["report", "--steps"], 'Command "report" parameter --steps requires an argument.'),
    (["pack", "--merge", "mean"], "merge must be slerp or lerp, not 'mean'."),
    (["sweep"], 'Command "sweep" parameter NOTEBOOK requires an argument.'),
    (["sweep", "n", "--job", "2"], "Unknown option: --job. Did you mean --jobs? `python -m "),
    (["study", "--jobs", "1.5"], "--jobs must be a whole number of at least 1, not 1.5."),
    (["study", "nothing"], "there is no experiment 'nothing'; there are tuning, "),
    (["merge", "a", "b"], 'Command "merge" parameter --out requires an argument.'),
    (["merge", "a", "--out", "x"], "a merge needs at least one run."),
    (
        ["verify", "a", "b"],
        "One word too many: b. `python -m warp_lib verify --help` says what it takes.",
    ),
    (["publish", "a"], "One word too many: a. "),
]


@pytest.mark.parametrize(
    "words, sentence", REFUSED, ids=[" ".join(words)[:50] for words, _ in REFUSED]
)
def test_refused_in_one_sentence(capsys, words, sentence):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence) and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    "words",
    [["report", "--profile", "smoke"], ["sweep", "notebooks/03_warp.ipynb", "-g", "runs=1"]],
)
@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_runs_that_cannot_be_a_folder(tmp_path, monkeypatch, capsys, words, kind):
    (tmp_path / "runs").write_text("")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs" / ("" if kind == "a file" else "x"))
    monkeypatch.chdir(paths.ROOT)
    assert main(words)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot be written: " in said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["report", "--profile", "smoke"], 1),
        (["sweep", "notebooks/03_warp.ipynb", "-g", "runs=1"], 2),
    ],
)
def test_a_name_that_is_in_use(store, capsys, monkeypatch, words, code):
    """Guards: two reports, or sweeps, that write the same notebooks at once."""
    monkeypatch.chdir(paths.ROOT)
    with paths.locked("both", words[0]):
        assert main([*words, "--name", "both"]) == code
    said = capsys.readouterr().err
    assert said == (
        f"another {words[0]} called 'both' is running; wait for it, or give this one another"
        " --name.\n"
    )


def test_a_user_that_does_not_exist(monkeypatch):
    """Guards: a traceback of pathlib's from ~nosuchuser."""
    monkeypatch.setattr(
        "warp_lib.models.hub.urlopen", lambda *_, **__: _raise(OSError("no network"))
    )
    for name in ("policy", "encoder", "reviews"):
        with pytest.raises(ValueError, match=f"^{name}='~nosuchuser/x' is "):
            experiment.Experiment(Settings.profile("smoke", **{name: "~nosuchuser/x"}))
    assert main(["merge", "~nosuchuser/x", "b", "--out", "x"]) == 2


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_the_page(monkeypatch, capsys, number):
    monkeypatch.setattr(
        run,
        "run_report",
        lambda *_: _raise(OSError(number, os.strerror(number), "runs/x/report.html")),
    )
    assert main(["report", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err.startswith(
        f"runs/x/report.html: {os.strerror(number)}. What is finished is kept"
    )


def begun(number: int, what: str) -> bool:
    """Whether a process loads torch, or one below it is a kernel."""
    if what == "torch":
        return "libtorch_cpu" in Path(f"/proc/{number}/maps").read_text()
    with suppress(psutil.Error):
        below = psutil.Process(number).children(recursive=True)
        return any("ipykernel_launcher" in process.cmdline() for process in below)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("when", ["torch", "kernel"])
def test_ctrl_c_in_the_first_seconds(tmp_path, when):
    """While torch is imported, and while the first kernel starts."""
    words = [sys.executable, "-m", "warp_lib", "report", "--profile", "smoke", "--name", "stopped"]
    started = subprocess.Popen(
        words,
        cwd=paths.ROOT,
        env=os.environ | {"WARP_RUNS": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 100
    while not begun(started.pid, when) and time.monotonic() < until:
        time.sleep(0.01)
    assert time.monotonic() < until
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert (
        started.returncode == 1
        and said == "Stopped. What is finished is kept; run the same command to go on.\n"
    )


def test_output_that_is_cut_off():
    """As by `| head -1`."""
    words = f"{sys.executable} -m warp_lib report --help"
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1"], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.startswith("usage")


@pytest.mark.parametrize("command", ["report", "pack"])
def test_help_says_what_each_setting_is(command):
    done = subprocess.run(
        [sys.executable, "-m", "warp_lib", command, "--help"],
        cwd=paths.ROOT,
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    for f in fields(Settings):
        (line,) = (line for line in lines if line.startswith(f"│ --{f.name} "))
        assert f.metadata["doc"] in line and f"[default: {f.default}]" in line


def test_without_a_command_there_is_help(capsys):
    with pytest.raises(SystemExit) as done:
        main([])
    said = capsys.readouterr()
    assert done.value.code == 2 and "Commands" in said.out and not said.err


def test_help_waits_for_nothing():
    """Guards: seconds of imports before a word is said."""
    look = (
        "import sys; from warp_lib.__main__ import main\n"
        "try: main(['report', '--help'])\n"
        "finally: assert not {'torch', 'pandas', 'nbformat', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", look], cwd=paths.ROOT, check=True, capture_output=True)


def test_a_bad_setting_in_a_notebook_is_one_line(tmp_path):
    """Under plain papermill the sentence comes last, without our traceback. Guards: sixty lines
    above it.
    """
    nbformat.write(notebook("Bad", "1"), tmp_path / "bad.ipynb")
    words = [
        sys.executable,
        "-m",
        "papermill",
        f"{tmp_path}/bad.ipynb",
        f"{tmp_path}/out.ipynb",
        "-k",
        "python3",
        "-p",
        "steps",
        "0",
    ]
    around = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        [*words, "--no-progress-bar"], env=around, capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode
        and done.stderr.strip().splitlines()[-1]
        == "steps must be a whole number of at least 1, not 0."
    )
    assert "settings.py" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_kernel_that_is_killed_is_told(tmp_path, monkeypatch, store):
    nbformat.write(
        notebook("Killed", "import os; os.kill(os.getpid(), 9)"), tmp_path / "01_killed.ipynb"
    )
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    with pytest.raises(
        Explained, match="^01_killed: its kernel was ended, by hand or for want of memory. What is"
    ):
        run.run_report(Settings.profile("smoke", name="killed"), "smoke", {"name": "killed"})
    assert not (store / "killed" / "report.html").exists()
