"""Runs and jobs on the machines of a Ray cluster: the only file that knows of Ray.

Everything is done by workers, processes on the cluster that begin with a copy of this checkout.
One trains WARP's runs (`Cluster.map`): what it is sent it builds once and keeps, weights lie in
Ray's object store as they are. Another runs one job's command (`Cluster.run`). Where the folder of
runs is on a disk that all machines share, workers use it; where it is not, each has one of its own,
and what it finishes is copied into the caller's.
"""

import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch

from ..fast import machine
from . import paths
from .errors import Explained, writing
from .jobs import MEMORY, Ended, Job, Tell, in_order, interrupted_by_signals, run_here
from .progress import NOTED, Progress, Stopped
from .store import NotStored, only_stored, surroundings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to nobody
# Read when Ray is imported, here and in workers: tensors are kept as the bytes that they are.
ENVIRONMENT = {"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1", **MEMORY}
os.environ |= ENVIRONMENT
try:
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import (  # pyright: ignore[reportMissingImports]
        RayError,
        RayTaskError,
    )
except ImportError as error:
    raise Explained(
        "a cluster needs Ray, which is not installed: pip install 'ray[default]>=2.50'."
    ) from error
warnings.filterwarnings("ignore", "Zero-copy tensor serialization is enabled")  # nobody writes

REACH = 25.0  # seconds in which a cluster has to answer
LOOK = 0.3  # seconds between two looks at a worker
PATIENCE = 10.0  # seconds that a worker has to stop by itself
RETRIES = 3  # of work whose worker or machine was lost
WAITING = 64  # jobs that wait for room in the cluster at a time, so that it may grow
LEFT_OUT = re.compile(r"\.(lock|part|tmp|trial)$|\.damaged\d*$")  # unfinished, or of one machine
Files = dict[str, np.ndarray]  # a path on the caller's machine → its bytes


@contextmanager
def connected(address: str) -> Iterator["Cluster"]:
    """The cluster at an address; at the end of the block nothing of it runs there any more.

    Args:
        address: HOST:PORT of its head; "auto", the one that this machine belongs to; or "local",
            this machine's processors and GPUs alone.

    Raises Explained where Ray is not installed, and where no cluster answers within half a minute.
    """
    if address != "local":
        _reach(address)
    left_out = ["/.git", "/.venv", "/figures", "/tests", "/benchmarks", "/runs"]
    if paths.RUNS.is_relative_to(paths.ROOT):
        left_out.append(f"/{paths.RUNS.relative_to(paths.ROOT)}")
    sent = {"working_dir": str(paths.ROOT), "excludes": left_out, "env_vars": ENVIRONMENT}
    alone: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=sent, **alone
        )
    except (OSError, RuntimeError, ValueError) as error:  # another version, say
        why = " ".join(str(error).split())
        raise Explained(f"the Ray cluster at {address!r} cannot be used: {why}") from error
    # a file by which workers know the folder of runs for this one
    sign = paths.RUNS / f"cluster-{uuid.uuid4().hex}.tmp"
    try:
        with writing(sign):
            sign.parent.mkdir(parents=True, exist_ok=True)
            sign.touch()
        with interrupted_by_signals():  # Ray took them over
            cluster = Cluster(sign)
            try:
                yield cluster
            finally:
                cluster.end()
    finally:
        sign.unlink(missing_ok=True)
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise Explained unless a cluster answers. Ray itself waits longer, and may end the process
    that asks.
    """
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), 5).close()
        ask = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
        words = [sys.executable, "-c", ask, address]
        subprocess.run(words, capture_output=True, timeout=REACH, check=True)
    except (OSError, ValueError, OverflowError, subprocess.SubprocessError) as error:
        raise Explained(
            f"no Ray cluster answers at {address!r}; give HOST:PORT of its head, auto (the cluster"
            " that this machine belongs to) or local (this machine alone)."
        ) from error


class Cluster:
    """A Ray cluster that this process is connected to (see `connected`)."""

    def __init__(self, sign: Path):
        self._sign = sign
        self._kind = ray.remote(Worker)
        self._workers: list[Any] = []  # all that run
        self._idle: list[Any] = []  # of these the ones that train, and wait for the next iteration
        self._waiting: set[int] = set()  # what is mapped and has no worker yet
        self._sent: tuple[Any, Any] = (None, None)  # what was mapped last, and where it lies

    def map(self, function: Callable, *iterables: Iterable, progress: Progress) -> list[Any]:
        """What `warp` takes as its `map`, with a progress bound: each call of an aligner on a
        worker of its own, side by side.

        What the store of this machine has is not asked for. What is trained comes into it under the
        keys of a local run, and on the same kind of machine with as many threads it is the same bit
        for bit.

        Args:
            function: keeps what it computes in the store, as aligners do; one that does not, is
                called here.
            progress: shows the runs beside each other, and stops all.

        Raises Stopped; what a run raises, when all others have ended; Explained where the
        cluster's machines are of another kind than this one, or a worker is lost again and again.
        """
        items = list(zip(*iterables, strict=False))
        with only_stored():
            stored = [_asked(function, item) for item in items]
        if missing := [item for item, one in zip(items, stored, strict=True) if one is None]:
            if self._sent[0] is not function:
                self._sent = function, ray.put(function)
            parts = {id(part): part for item in missing for part in item}
            parts = {key: ray.put(part) for key, part in parts.items()}
            sent = [[parts[id(part)] for part in item] for item in missing]
            self._waiting = set(range(len(sent)))
            with ThreadPoolExecutor(len(sent)) as pool:
                try:
                    training = [
                        pool.submit(self._train, number, one, progress.beside())
                        for number, one in enumerate(sent)
                    ]
                    wait(training)
                except BaseException:
                    self.end()
                    raise
            for one in training:
                one.result()
        return [function(*i) if one is None else one for i, one in zip(items, stored, strict=True)]

    def _train(self, number: int, parts: list[Any], progress: Progress) -> None:
        """One call of what is mapped. Its entries are in this store when it returns."""
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._begin(torch.get_num_threads(), 1)
        try:
            _, there = self._follow(worker, worker.about.remote(), progress)
            self._waiting.discard(number)
            for name, here in surroundings().items():
                if there[name] != here:
                    raise Explained(
                        f"the cluster's {name} is {there[name]}, this machine's {here}, so its runs"
                        " would not be this machine's: begin from a machine of the cluster's kind."
                    )
            self._keep(self._follow(worker, worker.train.remote([self._sent[1]], parts), progress))
        finally:
            self._waiting.discard(number)
            if self._waiting:  # for the room that it takes
                self._end(worker)
            elif worker in self._workers:  # not lost
                self._idle.append(worker)

    def run(self, jobs: Sequence[Job], tell: Tell, at_once: int, threads: int) -> None:
        """A `jobs.Runner`: as many jobs at a time as there is room for, each on as many threads as
        `run_here` would give it, and where there are GPUs on one of them, or on its share of one.

        at_once: jobs that share one machine's processors, or one GPU.
        """

        def run(job: Job, alone: bool) -> Ended:
            shared_by = 1 if alone else at_once
            worker = self._begin(max(1, threads // shared_by), shared_by)
            try:
                shared, _ = self._follow(worker, worker.about.remote(), Progress())
                places = [*job.brings, *([] if shared else [paths.RUNS])]
                sent = {str(file): ray.put(np.fromfile(file, np.uint8)) for file in _files(places)}
                ended, back = self._follow(worker, worker.job.remote(job, sent), Progress())
                self._keep(back)
                return ended
            except BrokenPipeError:  # nobody reads what is printed
                raise
            except Exception as error:  # this job's alone
                return Ended(job, 1, str(error) or type(error).__name__)
            finally:
                self._end(worker)  # others wait for its room

        in_order(jobs, tell, min(WAITING, max(1, len(jobs))), run, self.end)

    def _begin(self, threads: int, shared_by: int) -> Any:
        """A new worker, when there is room for it. Where there are GPUs it has one, or its share,
        and no more processors than belong to it."""
        there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = [one for one in there if one.get("GPU")]
        most = [one.get("CPU", 1) // one.get("GPU", 1) for one in gpus or there]
        threads = max(1, min(threads, int(min(most) if gpus else max(most))))
        worker = self._kind.options(
            num_cpus=threads,
            num_gpus=1 / shared_by if gpus else 0,
            max_restarts=RETRIES,
            max_task_retries=-1,  # Ray counts a try every few seconds until it knows of the loss
            max_concurrency=2,  # it works, and is looked at
        ).remote(str(self._sign), str(paths.ROOT), sys.executable, threads)
        self._workers.append(worker)
        return worker

    def _follow(self, worker: Any, task: Any, progress: Progress) -> Any:
        """A task's result. Meanwhile `progress` says what its worker says, and hands Stop on."""
        life, depth, asked = None, 0, None

        def hear(look: Any) -> None:
            nonlocal life, depth
            try:
                now, calls = ray.get(look, timeout=PATIENCE)
            except RayError:
                return  # it is gone; another takes its place, or the task says so
            if now != life:
                for _ in range(depth):
                    progress.end()
                life, depth = now, 0
            for name, arguments, numbers in calls:
                if name == "write":
                    print(*arguments, end="", flush=True)
                else:
                    getattr(progress, name)(*arguments, **numbers)
                    depth += {"begin": 1, "end": -1}.get(name, 0)

        look = worker.look.remote(False)
        while not ray.wait([task], timeout=LOOK)[0]:
            if ray.wait([look], timeout=0)[0]:
                hear(look)
                look = worker.look.remote(progress.stop.is_set())
            if progress.stop.is_set():
                asked = asked or time.monotonic()
                if time.monotonic() > asked + (PATIENCE if life else 0):  # or waits for room
                    self._end(worker)
                    raise Stopped("stopped")
        hear(look)
        hear(worker.look.remote(False))
        try:
            return ray.get(task)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._end(worker)
            why = " ".join(str(error).split())
            raise Explained(
                f"its worker on the cluster was lost {RETRIES + 1} times, by hand or for want of"
                f" memory, or could not begin. What is finished is kept. Ray says: {why}"
            ) from error

    def _keep(self, files: Files) -> None:
        """Write what a worker finished. An entry of the store appears whole, as those made here."""
        store, mine = paths.RUNS / "store", f"{uuid.uuid4().hex}.tmp"
        entries = set()
        for name, content in files.items():
            file = Path(name)
            if file.is_relative_to(store):
                entry = store / file.relative_to(store).parts[0]
                entries.add(entry)
                part = entry.with_name(f"{entry.name}.{mine}") / file.relative_to(entry)
            else:
                part = file.with_name(f"{file.name}.{mine}")
            with writing(file):
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(content.data)
                if not file.is_relative_to(store):
                    part.replace(file)
        for entry in entries:
            part = entry.with_name(f"{entry.name}.{mine}")
            with writing(entry):
                try:
                    part.rename(entry)
                except OSError:
                    if not entry.exists():  # else another worker made it, too
                        raise
                    rmtree(part)

    def _end(self, worker: Any) -> None:
        with suppress(ValueError):
            self._workers.remove(worker)
            ray.kill(worker)

    def end(self) -> None:
        """End all workers, and what they began."""
        self._idle.clear()
        for worker in list(self._workers):
            self._end(worker)


def _asked(function: Callable, item: tuple) -> Any:
    """What a function returns, None where that is not stored."""
    try:
        return function(*item)
    except NotStored:
        return None


class Worker:
    """A process on the cluster that works for one caller.

    Args:
        sign: a file in the caller's folder of runs, which is shared where it is seen.
        root, python: the caller's checkout and Python.
        threads: to compute with.
    """

    def __init__(self, sign: str, root: str, python: str, threads: int):
        torch.set_num_threads(threads)
        machine.prepare()
        self.life = uuid.uuid4().hex
        self.threads = threads
        # in Ray's copy of the checkout, which goes when the caller does
        self.home = tempfile.mkdtemp(prefix="runs-", dir=os.getcwd())
        runs, self.shared = str(Path(sign).parent), Path(sign).exists()
        paths.RUNS = Path(runs if self.shared else self.home + runs)
        self.places = {root: str(paths.ROOT), python: sys.executable, runs: str(paths.RUNS)}
        self.built: dict[str, Any] = {}  # the last thing that was mapped

    def about(self) -> tuple[bool, dict[str, Any]]:
        """Whether the caller's folder of runs is shared; what results depend on here."""
        return self.shared, surroundings()

    def look(self, stop: bool) -> tuple[str, list[tuple]]:
        """Which worker this is, for one that took another's place is another; what its work has
        said since the last look. Has it stop.
        """
        if stop:
            NOTED.stop.set()
        return self.life, NOTED.take()

    def train(self, function: list[Any], parts: list[Any]) -> Files:
        """Call a function; the entries that it left, where the store is not shared."""
        NOTED.stop.clear()
        if (key := function[0].hex()) not in self.built:
            self.built = {key: ray.get(function[0])}
        before = self._stamps(())
        with redirect_stdout(NOTED):
            self.built[key](*ray.get(parts))
        return self._changed(before, ())

    def job(self, job: Job, sent: Mapping[str, Any]) -> tuple[Ended, Files]:
        """Run a job here on the files that were sent; how it ended, and what it wrote."""
        for name, content in sent.items():
            file = Path(self.home + name)
            file.parent.mkdir(parents=True, exist_ok=True)
            arrived: Any = ray.get(content)
            file.write_bytes(arrived.data)
        words, log = [self._here(word, job) for word in job.words], job.log
        log = Path(self._here(str(log), job)) if log else None
        for word in [*words, *([str(log)] if log else [])]:
            if Path(word).is_relative_to(paths.RUNS):
                Path(word).parent.mkdir(parents=True, exist_ok=True)
        env = {"WARP_RUNS": str(paths.RUNS), "OMP_NUM_THREADS": str(self.threads)}
        env |= {name: self._here(value, job) for name, value in job.env.items()}
        before, ended = self._stamps(job.brings), []
        with redirect_stdout(NOTED):
            run_here([replace(job, words=words, env=env, log=log)], ended.append, 1, self.threads)
        back = self._changed(before, job.brings)
        rmtree(self.home)  # the next job has a worker of its own
        return replace(ended[0], job=job), back

    def _here(self, text: str, job: Job) -> str:
        """A text with the caller's paths as they are here, the longest first."""
        places = self.places | {str(place): f"{self.home}{place}" for place in job.brings}
        known = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(rf"({known})(?![\w.-])", lambda match: places[match[0]], text)

    def _stamps(self, brings: Collection[Path]) -> dict[Path, tuple[int, int]]:
        """The files that the caller has to have, and when they were written."""
        places = [Path(f"{self.home}{place}") for place in brings]
        files = _files(places if self.shared else [*places, paths.RUNS])
        return {file: ((s := file.stat()).st_mtime_ns, s.st_size) for file in files}

    def _changed(self, before: Mapping[Path, Any], brings: Collection[Path]) -> Files:
        now = self._stamps(brings)
        changed = [file for file, stamp in now.items() if before.get(file) != stamp]
        return {str(file).removeprefix(self.home): np.fromfile(file, np.uint8) for file in changed}


def _files(places: Iterable[Path]) -> list[Path]:
    """The finished files in folders, and files themselves."""
    return [
        file
        for place in places
        for file in [place, *place.rglob("*")]
        if file.is_file() and not any(map(LEFT_OUT.search, file.relative_to(place).parts))
    ]
