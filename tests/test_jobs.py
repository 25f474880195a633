"""Jobs: in their order, several at a time; and whatever ends the process that runs them, theirs end
within five seconds.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from warp_lib.runs import jobs, paths
from warp_lib.runs.jobs import Ended, Job, marked, run_here

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
from warp_lib.runs.jobs import Job, run_here
words = [sys.executable, sys.argv[1], "parent"]
run_here([Job(title, words) for title in "ab"], print, 2, 2)
"""

# What people start, whose jobs begin such processes.
STUDY = """
import sys
from warp_lib.runs.jobs import Job, run_here
from warp_lib.settings import Settings
from warp_lib.study import arms, run, units
run._job = lambda unit: Job(unit.title, [sys.executable, sys.argv[1], "parent"])
settings = [Settings.profile("smoke", seed=seed) for seed in range(2)]
listed = [units.Training("e", "warp", s, arms.by_warp) for s in settings]
run._run_side_by_side(listed, 2, run_here)
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


def python(title: str, code: str, *words: object, **about: object) -> Job:
    """A job that is a line of Python, with words for its sys.argv."""
    return Job(title, [sys.executable, "-c", code, *map(str, words)], **about)


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


def _ends_within_five_seconds(words: list[str], folder: Path, how: str, processes: int) -> None:
    """Start a command, and send it the signal `how` when its processes have begun (see
    STUBBORN).
    """
    said = folder / "said"
    with said.open("w") as log:
        parent = subprocess.Popen(
            words,
            cwd=paths.ROOT,
            env=os.environ | {"WARP_RUNS": str(folder / "runs")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + 120
    while (
        len(begun := [int(file.suffix[1:]) for file in folder.glob("stubborn.py.*")]) < processes
        and time.monotonic() < until
    ):
        time.sleep(0.1)
    try:
        assert len(begun) == len(alive(begun)) == processes, said.read_text()
        parent.send_signal(getattr(signal, how))
        sent = time.monotonic()
        while alive(begun) and time.monotonic() < sent + 30:
            time.sleep(0.05)
        assert time.monotonic() - sent < 5
        assert parent.wait(10)
    finally:
        for number in alive(begun):
            os.kill(number, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_all_ends_within_five_seconds(tmp_path, how):
    """Guards: workers that outlive a killed parent, kernels and browsers that outlive a stopped
    sweep.
    """
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    words = [sys.executable, "-c", PARENT, str(script)]
    _ends_within_five_seconds(words, tmp_path, how, 6)


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes in /proc")
@pytest.mark.parametrize(
    "command, how, processes",
    [(STUDY, "SIGKILL", 6), (SWEEP, "SIGTERM", 10)],
    ids=["study-SIGKILL", "sweep-SIGTERM"],
)
def test_a_study_and_a_sweep_end_with_their_processes(tmp_path, command, how, processes):
    """Guards: a command that starts its processes elsewhere than by `run_here`: units that all
    others follow, papermill and kernels that go on.
    """
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    cells = [
        nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"script = {str(script)!r}\n{CELL}"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), script.with_suffix(".ipynb"))
    words = [sys.executable, "-c", command, str(script)]
    _ends_within_five_seconds(words, tmp_path, how, processes)


# Notes that it began, waits until as many have, and notes that it ends.
NOTING = """
import os, sys, time
file, title, many = sys.argv[1:]
def note(word):
    with open(file, "a") as notes:
        notes.write(f"{title} {word}\\n")
note(f"begins, on {os.environ['OMP_NUM_THREADS']}")
until = time.monotonic() + 60
while open(file).read().count("begins") < int(many) and time.monotonic() < until:
    time.sleep(0.05)
note("ends")
"""


def test_jobs_wait_for_those_they_need_and_share_threads_out(tmp_path, monkeypatch):
    """`a`, which all others wait for, has the machine to itself; `b` and `c` run side by side."""
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    file, ended = tmp_path / "notes", []
    jobs = [
        python(title, NOTING, file, title, many, after=after)
        for title, after, many in (("a", "", 1), ("d", "abc", 4), ("b", "a", 3), ("c", "a", 3))
    ]
    run_here(jobs, ended.append, 2, 8)
    assert sorted((one.job.title, one.code) for one in ended) == [(title, 0) for title in "abcd"]
    order = file.read_text().splitlines()
    assert order[:2] == ["a begins, on 9", "a ends"]
    assert sorted(order[2:4]) == ["b begins, on 4", "c begins, on 4"]
    assert sorted(order[4:6]) == ["b ends", "c ends"]
    assert order[6:] == ["d begins, on 4", "d ends"]


def test_one_that_fails_is_told_with_its_last_sentence_and_the_others_go_on():
    told = []
    run_here([python("a", "1 / 0"), python("b", "print('well')")], told.append, 1, 1)
    assert [(one.job.title, one.code) for one in told] == [("a", 1), ("b", 0)]
    assert told[0].last == "ZeroDivisionError: division by zero"


def test_what_a_job_prints_shows_or_is_kept(tmp_path, capfd):
    """Guards: lines of two jobs that cannot be told apart, an unfinished last line that is lost,
    tracebacks in the terminal."""
    code, log = "print('one', end='\\n\\ntwo', flush=True); 1 / 0", tmp_path / "log"
    run_here([python("a", code), python("b", code, log=log)], lambda _: None, 1, 1)
    said = capfd.readouterr()
    assert said.out == "a: begins\na: one\na: two\n" and not said.err
    assert log.read_text().startswith("one\n\ntwoTraceback")


def test_a_job_whose_words_nobody_reads_is_ended():
    """As by `| head -1`. Guards: a job that waits for a full pipe without end."""
    chatty = "while True: print('x' * 1000, flush=True)"
    code = (
        "import sys; from warp_lib.runs.jobs import Job, run_here;"
        f" run_here([Job('a', [sys.executable, '-c', {chatty!r}])], print, 1, 1)"
    )
    words = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(
        ["bash", "-c", words], cwd=paths.ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "a: begins\n" and "BrokenPipeError" in done.stderr


def test_what_tell_raises_ends_all(tmp_path):
    """A report whose notebook failed does not wait for the one beside it."""
    began, number, never = time.monotonic(), tmp_path / "number", tmp_path / "never"
    sleep = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    wait = (
        "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.1)"
    )

    def tell(ended: Ended) -> None:
        raise ValueError(f"{ended.job.title} failed")

    jobs = [python("a", sleep, number), python("b", wait, number), python("c", sleep, never)]
    with pytest.raises(ValueError, match="^b failed$"):
        run_here(jobs, tell, 2, 2)
    assert time.monotonic() - began < 30 and not never.exists()
    assert not alive([int(number.read_text())])


def test_a_process_that_a_job_leaves_behind_ends_and_holds_nothing_up(tmp_path):
    """Guards: a browser of a kernel that was killed, which holds the job's output open."""
    leave = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time;"
        " time.sleep(600)'], start_new_session=True); open(sys.argv[1], 'w').write(str(child.pid))"
    )
    began = time.monotonic()
    run_here([python("a", leave, tmp_path / "number")], lambda _: None, 1, 1)
    assert time.monotonic() - began < 30
    assert not alive([int((tmp_path / "number").read_text())])


def test_the_environment_is_as_before(monkeypatch, capfd):
    """Jobs of a job carry both marks; nothing else of this process does."""
    monkeypatch.setenv(jobs.MARK, "outer")
    run_here([python("a", f"import os; print(os.environ['{jobs.MARK}'])")], lambda _: None, 1, 1)
    outer, mark = capfd.readouterr().out.splitlines()[-1].removeprefix("a: ").split()
    assert outer == os.environ[jobs.MARK] == "outer" and not marked(mark)


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
