"""Runs and jobs on a Ray cluster of two nodes: the same bits as here, whatever is lost on the way.

What needs the cluster runs in processes of its own, in the cluster's network (see two_nodes.py).
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from warp_lib.__main__ import main
from warp_lib.runs import paths

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not HAS_RAY, reason="Ray is not installed: pip install 'ray[default]'"
)
HERE = Path(__file__).parent

ENTER = """
import ctypes, os, sys, time
# into the network of the cluster's head, if it has one of its own
ctypes.CDLL(None).setns(os.open(f"/proc/{sys.argv.pop(1)}/ns/net", os.O_RDONLY), 0)
from pathlib import Path
from warp_lib.runs import cluster, paths
address = sys.argv.pop(1)
def not_shared():
    seen = cluster.Cluster.__init__
    cluster.Cluster.__init__ = lambda self, sign: seen(self, sign.with_name("not-there.tmp"))
"""

# WARP of two runs on a policy so small that a step takes no time, but for a reward that waits.
WARP = """
import hashlib
from functools import partial
import torch
from conftest import tiny_policy
from warp_lib.interactive.live import Watched
from warp_lib.merging import slerp
from warp_lib.reinforce import reinforce
from warp_lib.reward import Reward
from warp_lib.runs.progress import Progress, Stopped
from warp_lib.settings import Settings
from warp_lib.warp import warp

base = Path(sys.argv[1])

class Fives:
    # How often w5 stands in a text. met: a folder; waits until two processes have been there.
    identity = "fives"
    def __init__(self, met=None, seconds=0.0):
        self.met, self.seconds = met, seconds
    def __call__(self, texts):
        from warp_lib.runs import checkpoint
        checkpoint.SECONDS = 0  # after every step
        if self.met:
            (self.met / str(os.getpid())).touch()
            until = time.monotonic() + 150  # a worker begins by importing torch, perhaps slowly
            while len(list(self.met.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            assert len(list(self.met.iterdir())) > 1, "the runs are not side by side"
        time.sleep(self.seconds)
        return torch.tensor([float(text.split().count("w5")) for text in texts])

def trained(folder, map, progress, scorer=Fives(), steps=5, iterations=2, runs=2):
    paths.RUNS = base / folder
    policy, prompts = tiny_policy(), [[a, b, (a * b) % 12] for a in range(12) for b in range(12)]
    settings = Settings(max_new_tokens=3, batch_size=8, learning_rate=0.01)
    align = partial(reinforce, policy=policy, theta_sft=policy.weights(), prompts=prompts,
        reward=Reward(scorer, 0.0, 1.0), settings=settings, steps=steps, progress=progress)
    found = warp(policy.weights(), align, iterations=iterations, runs=runs, eta=0.25, merge=slerp,
        seed=0, map=map)
    return [i.merged for i in found]

def same(ones, others):
    return all(torch.equal(a[n], b[n]) for a, b in zip(ones, others, strict=True) for n in a)

def store(folder):
    return {str(f.relative_to(base / folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in (base / folder / "store").rglob("*.safetensors")}
"""


class Nodes:
    """Two nodes of one processor each."""

    def __init__(self, holder: subprocess.Popen):
        self.holder = holder
        self.address = holder.stdout.readline().strip()

    @contextmanager
    def driving(self, script: str, *words: object) -> Iterator[subprocess.Popen]:
        """A process that is connected to nothing yet."""
        command = [sys.executable, "-c", ENTER + script, str(self.holder.pid), self.address]
        path = os.pathsep.join([str(paths.ROOT), str(HERE)])
        driver = subprocess.Popen(
            [*command, *map(str, words)],
            cwd=paths.ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield driver
        finally:
            driver.kill()
            driver.communicate()

    def drive(self, script: str, *words: object) -> SimpleNamespace:
        """What such a process printed, and how it ended."""
        with self.driving(script, *words) as driver:
            out, err = driver.communicate(timeout=300)
        return SimpleNamespace(code=driver.returncode, out=out, err=err)

    def lose_one(self) -> None:
        """Kill the second node, and begin another."""
        self.holder.stdin.write("\n")
        self.holder.stdin.flush()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    log = tmp_path_factory.mktemp("nodes") / "log"
    with log.open("w") as said:
        holder = subprocess.Popen(
            [sys.executable, str(HERE / "two_nodes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
    try:
        two = Nodes(holder)
        if not two.address:
            pytest.skip(f"a Ray cluster does not start here: {log.read_text().splitlines()[-1]}")
        yield two
        holder.stdin.close()
        holder.wait(60)
    finally:
        if holder.poll() is None:
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()


@needs_ray
def test_two_runs_side_by_side_are_those_of_one_machine(nodes, tmp_path):
    """Bit for bit, under the same keys, where no folder is shared; and what is stored is not sent
    for again.
    """
    script = """
one_by_one = trained("here", map, Progress())
not_shared()
(met := base / "met").mkdir()
paths.RUNS = base / "apart"
with cluster.connected(address) as there:
    watched = Watched()
    far = trained("apart", partial(there.map, progress=watched), watched, Fives(met))
    assert same(one_by_one, far) and store("here") == store("apart"), store("apart")
    assert len(watched.loops) == 4 and not watched.running() and len(watched.all) == 5
    assert all(loop.done == 5 and len(loop.points) == 5 for loop in watched.loops)
    assert len(list(met.iterdir())) == 2  # workers are kept from one iteration to the next
    # more runs than there is room for, two of them stored
    five = {"iterations": 1, "runs": 5}
    far_five = trained("apart", partial(there.map, progress=watched), watched, **five)
    assert same(trained("here", map, Progress(), **five), far_five)
    paths.RUNS = base / "apart"
    there._train = None
    assert same(far, trained("apart", partial(there.map, progress=watched), watched))
print("equal")
"""
    done = nodes.drive(WARP + script, tmp_path)
    assert done.out == "equal\n", done.err


@needs_ray
def test_what_is_stopped_or_lost_goes_on_to_the_same_end(nodes, tmp_path):
    """Stop reaches both workers; a node that is killed in the middle costs no step."""
    script = """
import threading
one_by_one = trained("here", map, Progress(), steps=40, iterations=1)
paths.RUNS = base / "far"
slow = Fives(seconds=0.1)
with cluster.connected(address) as there:
    def run(watched):
        return trained("far", partial(there.map, progress=watched), watched, slow, 40, 1)
    def when_both_are_at(step, watched, do):
        def look():
            while len(watched.loops) < 2 or min(loop.done for loop in watched.loops) < step:
                time.sleep(0.1)
            do()
        threading.Thread(target=look, daemon=True).start()
    asked = []
    first = Watched()
    when_both_are_at(3, first, lambda: (asked.append(time.monotonic()), first.stop.set()))
    try:
        run(first)
    except Stopped:
        print(f"stopped after {time.monotonic() - asked[0]:.1f} s", file=sys.stderr)
        assert time.monotonic() - asked[0] < 5
    second = Watched()
    when_both_are_at(15, second, lambda: print("lose one", flush=True))
    assert same(one_by_one, run(second)) and store("here") == store("far")
    begun = [(loop.title, loop.before) for loop in second.loops]
    assert len(begun) == 3 and all(before >= 3 for _, before in begun[:2]), begun
    assert begun[2][1] >= 10, begun  # from its checkpoint
print("equal")
"""
    with nodes.driving(WARP + script, tmp_path) as driver:
        assert driver.stdout.readline() == "lose one\n", driver.stderr.read()
        nodes.lose_one()
        out, err = driver.communicate(timeout=120)
    assert "equal" in out, err  # with what Ray says of its node
    assert nodes.holder.stdout.readline() == "again\n"


CELL = """
from warp_lib.runs.results import write_results
from warp_lib.settings import Settings
settings = Settings.from_notebook(globals())
if settings.runs == 2:
    raise RuntimeError("broken here")
row = {"method": "sft", "runs": settings.runs, "reward": settings.runs / 4}
write_results(settings.name, "toy", [row], {}, [], {})
"""


@needs_ray
def test_a_sweep_whose_jobs_run_elsewhere(nodes, tmp_path):
    """Its notebook goes there, tables, logs and executed notebooks come back, and a job that fails
    fails alone.
    """
    cells = [
        nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(CELL),
    ]
    notebook = tmp_path / "toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    script = """
from warp_lib.__main__ import main
not_shared()
paths.RUNS = Path(sys.argv[1]).parent / "runs"
grid = ["-g", "runs=1,2,3", "-p", "profile=smoke", "--name", "grid"]
sys.exit(main(["sweep", sys.argv[1], *grid, "--cluster", address]))
"""
    done = nodes.drive(script, notebook)
    runs = tmp_path / "runs"
    assert done.code == 1 and done.err.count("1 failed: runs = 2 (") == 1, done.err
    assert "FAILED: RuntimeError: broken here (see " in done.out and "3/3" in done.out, done.out
    table = pd.read_csv(runs / "grid" / "toy.csv")
    assert table[["sweep_runs", "reward"]].values.tolist() == [[1, 0.25], [3, 0.75]]
    assert len(list((runs / "grid" / "sweep" / "toy").glob("*.log"))) == 3
    assert not list(runs.rglob("*.tmp"))


@needs_ray
def test_ctrl_c_ends_all(nodes, tmp_path):
    """Guards: jobs that outlive the command, on nodes that it has left."""
    script = """
from warp_lib.__main__ import runner_on
from warp_lib.runs.jobs import Job
paths.RUNS = Path(sys.argv[1])
code = "import os, sys, time; open(sys.argv[1] + str(os.getpid()), 'w'); time.sleep(600)"
words = [sys.executable, "-c", code, f"{sys.argv[1]}/pid-"]
runner_on(address)([Job(title, words) for title in "abc"], print, 1, 1)
"""
    with nodes.driving(script, tmp_path) as driver:
        until = time.monotonic() + 60
        while len(pids := list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        driver.send_signal(signal.SIGINT)
        sent = time.monotonic()
        numbers = [int(file.name.removeprefix("pid-")) for file in pids]
        while any(map(alive, numbers)) and time.monotonic() < sent + 30:
            time.sleep(0.05)
        took = time.monotonic() - sent
        _, err = driver.communicate(timeout=30)
    assert len(numbers) == 2 and took < 5 and "KeyboardInterrupt" in err, (numbers, took, err)


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


@needs_ray
def test_a_cluster_that_does_not_answer_is_one_sentence(monkeypatch, capsys, tmp_path):
    from warp_lib.runs import cluster

    monkeypatch.setattr(cluster, "REACH", 3.0)
    command = ["sweep", str(paths.NOTEBOOKS / "03_warp.ipynb"), "-g", "runs=1", "--name", "far"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in (f"127.0.0.1:{port}", "127.0.0.1:1", "nowhere", "127.0.0.1:x"):
            began = time.monotonic()
            assert main([*command, "--cluster", address]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"no Ray cluster answers at {address!r}; give HOST:PORT")
            assert said.count("\n") == 1 and time.monotonic() - began < 10


def test_without_ray_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "warp_lib.runs.cluster", raising=False)
    command = ["sweep", str(paths.NOTEBOOKS / "03_warp.ipynb"), "-g", "runs=1", "--name", "far"]
    assert main([*command, "--cluster", "auto"]) == 2
    assert capsys.readouterr().err == (
        "a cluster needs Ray, which is not installed: pip install 'ray[default]>=2.50'.\n"
    )


def test_one_file_knows_ray():
    sources = (paths.ROOT / "warp_lib").rglob("*.py")
    knowing = [file.name for file in sources if "import ray" in file.read_text()]
    assert knowing == ["cluster.py"]
