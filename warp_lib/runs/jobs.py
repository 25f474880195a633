"""Running jobs: several at a time, each after those it needs, and all their processes ended
together.

Whatever is started inside `together` carries a mark in its environment, which what it starts
inherits: kernels, their browsers, processes in sessions of their own. Who carries it is ended when
the block is left, by whatever way; and should this process die without leaving it, a watcher ends
them, which notices that the pipe from here has closed. The watcher is this file run as a program:
nothing but the standard library is imported here.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

MARK = "WARP_JOBS"
GRACE = 1.5  # seconds between asking a process to end and ending it
# SIGINT raises KeyboardInterrupt already
SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Jobs:
    """What runs inside one `together` block."""

    def __init__(self, mark: str):
        self.mark, self.ended = mark, False

    def run(
        self,
        jobs: Mapping[str, Callable[[], object]],
        at_once: int,
        tell: Callable[[str, BaseException | None], None],
        after: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Run jobs in threads, `at_once` at a time, in their order but each after those that
        `after` names for it.

        `tell` is called here, with a job's name and its error or None, when it has ended. Raises
        what `tell` raises, and KeyboardInterrupt, when the processes of all jobs have been ended
        and no further one begins.
        """
        after, waiting, running = after or {}, dict(jobs), dict[Future, str]()
        with ThreadPoolExecutor(at_once) as pool:
            try:
                while waiting or running:
                    unfinished = {*waiting, *running.values()}
                    ready = [name for name in waiting if not unfinished & set(after.get(name, ()))]
                    for name in ready[: at_once - len(running)]:
                        running[pool.submit(waiting.pop(name))] = name
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        tell(running.pop(future), future.exception())
            except BaseException:
                self.ended = True
                while wait(running, timeout=0).not_done:
                    end(self.mark)
                    wait(running, timeout=0.2)
                raise

    def command(
        self, words: list[str], env: Mapping[str, str], log: Path | None = None
    ) -> tuple[int, str]:
        """Run a command out of Ctrl-C's reach: its exit code, and the end of what it said where
        that does not go to `log`.
        """
        if self.ended:
            return 1, "stopped before it began"
        around = {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "env": os.environ | env,
            "process_group": 0,
        }
        if log:
            with log.open("w", encoding="utf-8") as file:
                return subprocess.run(words, stdout=file, **around).returncode, ""
        done = subprocess.run(words, stdout=subprocess.PIPE, **around)
        return done.returncode, done.stdout.decode(errors="replace")[-2000:]


@contextmanager
def together() -> Iterator[Jobs]:
    """Every process that begins inside ends with the block: at its end, by an error, Ctrl-C,
    SIGTERM or SIGHUP (both raise KeyboardInterrupt here), or this process's death."""
    mark, before = uuid.uuid4().hex, os.environ.get(MARK)
    watcher = subprocess.Popen(
        [sys.executable, "-IS", __file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ[MARK] = f"{before or ''} {mark}"
    try:
        with interrupted_by_signals():
            yield Jobs(mark)
    finally:
        os.environ.pop(MARK)
        if before:
            os.environ[MARK] = before
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
    # nohup
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
    needle, found = mark.encode(), set()
    if Path("/proc/self/environ").exists():
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if needle in environ.read_bytes():
                    found.add(int(environ.parent.name))
    else:  # macOS and the BSDs
        said = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True).stdout
        found = {
            int(line.split()[0])
            for line in said.splitlines()
            if needle in line and __file__.encode() not in line
        }
    return found - {os.getpid()}


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
