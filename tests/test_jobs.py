"""Jobs: in their order, several at a time; and whatever ends the process that runs them, theirs end
within five seconds.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from warp_lib.runs import jobs, paths
from warp_lib.runs.jobs import marked, together

# A child, its child in a session of its own, and a grandchild whose parent has gone; none of them
# listens to SIGTERM or SIGHUP.
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, __file__], start_new_session=True)
    words = [sys.executable, __file__]
    again = f"import subprocess; subprocess.Popen({words}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", again])
open(f"{__file__}.{os.getpid()}", "w").close()
time.sleep(600)
"""
PARENT = """
import sys
from functools import partial
from warp_lib.runs.jobs import together
words = [sys.executable, sys.argv[1], "parent"]
with together() as running:
    jobs = {name: partial(running.command, words, {}) for name in "ab"}
    running.run(jobs, 2, lambda name, error: None)
"""

# What people start, whose jobs begin such processes.
STUDY = """
import sys
from warp_lib.settings import Settings
from warp_lib.study import study
study._command = lambda unit: [sys.executable, sys.argv[1], "parent"]
settings = [Settings.profile("smoke", seed=seed) for seed in range(2)]
units = [study.Training("e", "warp", s, study.by_warp) for s in settings]
study._run_side_by_side(units, 2)
"""
SWEEP = """
import sys
from warp_lib.__main__ import main
grid = ["-g", "runs=1,2", "-p", "profile=smoke", "--jobs", "2"]
sys.exit(main(["sweep", sys.argv[1].replace(".py", ".ipynb"), *grid]))
"""
CELL = """
import os, subprocess, sys, time
for number in (os.getpid(), os.getppid()):
    open(f"{script}.{number}", "w").close()
subprocess.Popen([sys.executable, script, "parent"], start_new_session=True)
time.sleep(600)
"""


def alive(numbers: list[int]) -> list[int]:
    found = []
    for number in numbers:
        try:
            os.kill(number, 0)
            if Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(number)
        except OSError:
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_all_ends_within_five_seconds(tmp_path, how):
    """Guards: workers that outlive a killed parent, kernels and browsers that outlive a stopped
    sweep.
    """
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    words = [sys.executable, "-c", PARENT, str(script)]
    parent = subprocess.Popen(
        words, cwd=paths.ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 60
    while (
        len(begun := [int(file.suffix[1:]) for file in tmp_path.glob("stubborn.py.*")]) < 6
        and time.monotonic() < until
    ):
        time.sleep(0.1)
    assert len(begun) == len(alive(begun)) == 6
    parent.send_signal(getattr(signal, how))
    sent = time.monotonic()
    while alive(begun) and time.monotonic() < sent + 30:
        time.sleep(0.05)
    assert time.monotonic() - sent < 5
    assert parent.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
@pytest.mark.parametrize(
    "command, how, processes",
    [(STUDY, "SIGINT", 6), (STUDY, "SIGKILL", 6), (SWEEP, "SIGTERM", 10)],
    ids=["study-SIGINT", "study-SIGKILL", "sweep-SIGTERM"],
)
def test_a_study_and_a_sweep_end_with_their_processes(tmp_path, command, how, processes):
    """Guards: a command that starts its processes elsewhere than in `together`: units that all
    others follow, papermill and kernels that go on.
    """
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    cells = [
        nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"script = {str(script)!r}\n{CELL}"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), script.with_suffix(".ipynb"))
    parent = subprocess.Popen(
        [sys.executable, "-c", command, str(script)],
        cwd=paths.ROOT,
        env=os.environ | {"WARP_RUNS": str(tmp_path / "runs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while (
        len(begun := [int(file.suffix[1:]) for file in tmp_path.glob("stubborn.py.*")]) < processes
        and time.monotonic() < until
    ):
        time.sleep(0.1)
    try:
        assert len(begun) == len(alive(begun)) == processes
        parent.send_signal(getattr(signal, how))
        sent = time.monotonic()
        while alive(begun) and time.monotonic() < sent + 30:
            time.sleep(0.05)
        assert time.monotonic() - sent < 5
        assert parent.wait(10)
    finally:
        for number in alive(begun):
            os.kill(number, signal.SIGKILL)


def test_jobs_wait_for_those_they_need():
    order, lock = [], threading.Lock()

    def job(name: str) -> None:
        with lock:
            order.append(f"{name} begins")
        time.sleep(0.05)
        with lock:
            order.append(f"{name} ends")

    ended = []
    with together() as running:
        calls = {name: lambda name=name: job(name) for name in "abcd"}
        running.run(
            calls,
            2,
            lambda name, error: ended.append((name, error)),
            {"b": "a", "c": "a", "d": "bc"},
        )
    assert sorted(ended) == [(name, None) for name in "abcd"]
    places = {word: order.index(word) for word in order}
    assert places["a ends"] < min(places["b begins"], places["c begins"]) and places[
        "d begins"
    ] > max(places["b ends"], places["c ends"])
    assert max(places["b begins"], places["c begins"]) < min(places["b ends"], places["c ends"])


def test_an_error_is_told_and_the_others_go_on():
    told = {}
    with together() as running:
        running.run({"a": lambda: 1 / 0, "b": lambda: None}, 1, told.__setitem__)
    assert isinstance(told["a"], ZeroDivisionError) and told["b"] is None


def test_what_tell_raises_ends_all(tmp_path):
    """A report whose notebook failed does not wait for the one beside it."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    begun, never = time.monotonic(), []

    def tell(name: str, error: BaseException | None) -> None:
        raise ValueError(f"{name} failed")

    with pytest.raises(ValueError, match="^b failed$"), together() as running:
        calls = {
            "a": lambda: running.command(sleep, {}),
            "b": lambda: time.sleep(0.3),
            "c": lambda: never.append("c"),
        }
        running.run(calls, 2, tell)
    assert time.monotonic() - begun < 5 and not never and not marked(running.mark)
    assert running.command(sleep, {})[0] == 1  # nor does anything begin later


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv(jobs.MARK, "outer")
    with together() as running:
        assert os.environ[jobs.MARK].split() == ["outer", running.mark]
    assert os.environ[jobs.MARK] == "outer"


def test_a_name_is_used_by_one_report_at_a_time(store):
    """Guards: two reports that write the same notebooks; a lock that is left by who was killed."""
    code = (
        "import sys; from warp_lib.runs import paths\nwith paths.locked('x', 'report'):\n   "
        " print('held', flush=True); sys.stdin.read()"
    )
    around = os.environ | {"WARP_RUNS": str(store)}
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=paths.ROOT,
        env=around,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError,
        match=(
            "^another report called 'x' is running; wait for it, or give this one another --name.$"
        ),
    ):
        with paths.locked("x", "report"):
            pass
    other.kill()
    other.communicate()
    with paths.locked("x", "report"), paths.locked("x", "sweep"), paths.locked("y", "report"):
        pass
