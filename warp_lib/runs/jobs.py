"""Running jobs, each a command: several at a time, each after those it waits for, and all their
processes ended together.

Whatever a job starts inherits a mark in its environment: kernels, their browsers, processes in
sessions of their own. Who carries it is ended when the jobs are left, by whatever way; and should
this process die without leaving them, a watcher ends them, which notices that the pipe from here
has closed. The watcher is this file run as a program: nothing but the standard library is imported
here.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType

MARK = "WARP_JOBS"
# What glibc reads when a process begins; the Makefile says the same. One arena, because notebooks
# train in threads, and in any other arena than the main one a step of GPT-2's size took 40% more of
# the processor's time (see `machine.keep_freed_memory`). Huge pages, because in small ones a step
# takes 1.07 times as long (`make bench ARGS=pages`). Neither changes a bit of a result.
MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"}
GRACE = 1.5  # seconds between asking a process to end and ending it
# SIGINT raises KeyboardInterrupt already
SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@dataclass(frozen=True)
class Job:
    """A command to run: all that whoever runs it, here or elsewhere, has to know.

    Attributes:
        title: its name in the terminal, which no job beside it has.
        words: the program and its arguments.
        env: variables on top of the environment that there is, and of `MEMORY`.
        log: where all that it says is kept; without one, what it prints shows in the terminal,
            after its title.
        after: titles of the jobs that must have ended before it begins.
        brings: files and folders beside runs/ that it reads or writes; where it runs elsewhere,
            they go along and come back.
    """

    title: str
    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    after: Collection[str] = ()
    brings: Collection[Path] = ()


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code, 0 for well, and the last line that it said."""

    job: Job
    code: int
    last: str


Tell = Callable[[Ended], None]
Runner = Callable[[Sequence[Job], Tell, int, int], None]
"""Runs jobs as `run_here` does, wherever it does."""


def run_here(jobs: Sequence[Job], tell: Tell, at_once: int, threads: int) -> None:
    """Run jobs on this machine, `at_once` at a time, in their order but each after those that it
    waits for.

    Of several at a time each computes with ``threads // at_once`` threads; one that all others
    wait for has no other beside it, and as many as it would have alone. `tell` is called in this
    thread. Raises what it raises, and KeyboardInterrupt at Ctrl-C, SIGTERM and SIGHUP, when the
    processes of all jobs have been ended and no further one begins.
    """
    shared = {"OMP_NUM_THREADS": str(max(1, threads // at_once))} if at_once > 1 else {}
    with together() as mark:
        carried = {MARK: f"{os.environ.get(MARK, '')} {mark}"}

        def run(job: Job, alone: bool) -> Ended:
            return _run(job, carried | ({} if alone else shared) | dict(job.env))

        in_order(jobs, tell, at_once, run, lambda: end(mark))


def in_order(
    jobs: Sequence[Job],
    tell: Tell,
    at_once: int,
    run: Callable[[Job, bool], Ended],
    stop: Callable[[], None],
) -> None:
    """Run jobs by ``run(job, alone)``, each in a thread, `at_once` at a time, in their order but
    each after those that it waits for.

    alone: all others wait for it. `tell` is called in this thread. Whatever is raised here or by
    `tell`, is raised again when all have ended, for which ``stop()`` is called until they have.
    """
    waiting, running = list(jobs), dict[Future[Ended], Job]()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                unfinished = {job.title for job in (*waiting, *running.values())}
                ready = [job for job in waiting if unfinished.isdisjoint(job.after)]
                for job in ready[: at_once - len(running)]:
                    waiting.remove(job)
                    others = [other for other in jobs if other is not job]
                    alone = bool(others) and all(job.title in other.after for other in others)
                    running[pool.submit(run, job, alone)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    tell(future.result())
        except BaseException:
            while wait(running, timeout=0).not_done:
                stop()
                wait(running, timeout=0.2)
            raise


def _run(job: Job, env: Mapping[str, str]) -> Ended:
    """Run a job out of Ctrl-C's reach. Raises OSError where what it prints cannot be shown."""
    refused: list[OSError] = []
    with job.log.open("w+b") if job.log else TemporaryFile() as log:
        process = subprocess.Popen(
            job.words,
            stdin=subprocess.DEVNULL,
            stdout=log if job.log else subprocess.PIPE,
            stderr=log,
            env={**MEMORY, **os.environ, **env},
            process_group=0,
        )
        if process.stdout:
            print(f"{job.title}: begins\n", end="", flush=True)
            shown = threading.Thread(target=_show, args=(job.title, process, refused), daemon=True)
            shown.start()
        code = process.wait()
        if process.stdout:
            shown.join(1)  # a process that the job left behind may hold the pipe open
        if refused:
            raise refused[0]
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return Ended(job, code, lines[-1] if lines else f"exit code {code}")


def _show(title: str, process: subprocess.Popen[bytes], refused: list[OSError]) -> None:
    """Show what a job prints, line by line, until it ends. Where nobody reads it any more, as under
    `| head`, the job is ended, and why goes into `refused`.
    """
    for line in process.stdout or ():  # all of them, or the job would wait for its pipe
        if (text := line.decode(errors="replace").rstrip("\n")) and not refused:
            try:
                print(f"{title}: {text}\n", end="", flush=True)
            except OSError as error:
                refused.append(error)
                process.terminate()


@contextmanager
def together() -> Iterator[str]:
    """A mark. Processes that carry it, in `MARK` of their environment, end with the block: at its
    end, by an error, Ctrl-C, SIGTERM or SIGHUP (both raise KeyboardInterrupt here), or this
    process's death.
    """
    mark = uuid.uuid4().hex
    watcher = subprocess.Popen(
        [sys.executable, "-IS", __file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with interrupted_by_signals():
            yield mark
    finally:
        end(mark)
        watcher.communicate()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP do what Ctrl-C does. Only the main thread can hear them; elsewhere
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # under nohup SIGHUP stays ignored
    before = {
        number: signal.signal(number, _interrupt)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt


def end(mark: str) -> None:
    """End all processes that carry a mark: ask them to, and soon after no longer ask."""
    until = time.monotonic() + GRACE
    asked: set[int] = set()
    while there := marked(mark):
        for process in there - asked if time.monotonic() < until else there:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL)
        asked |= there
        if time.monotonic() > until + GRACE:
            return  # what cannot be killed, waits for a disk
        time.sleep(0.05)


def marked(mark: str) -> set[int]:
    """The processes that carry a mark, but not this one."""
    needle, ids = mark.encode(), set()
    if Path("/proc/self/environ").exists():
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if needle in environ.read_bytes():
                    ids.add(int(environ.parent.name))
    else:  # macOS and the BSDs
        listed = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True).stdout
        ids = {
            int(line.split()[0])
            for line in listed.splitlines()
            if needle in line and __file__.encode() not in line
        }
    return ids - {os.getpid()}


def _watch(mark: str) -> None:
    """Wait until the pipe closes, as it does when the process at its other end is gone, and end who
    carries the mark.
    """
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end(mark)


if __name__ == "__main__":
    _watch(sys.argv[1])
