"""What a report on a large policy costs is said before it starts."""

import json
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_policy

from warp_lib.fast import machine
from warp_lib.points import Point, reinforce_points, warp_points
from warp_lib.policy import Policy
from warp_lib.report import ahead
from warp_lib.report import run as report_run
from warp_lib.runs.errors import Explained
from warp_lib.runs.progress import a_step
from warp_lib.settings import Settings
from warp_lib.warp import Iteration, Run


class Clock:
    """A policy whose passes take time on a clock of its own: `fixed` and `each` a row."""

    def __init__(self, monkeypatch, fixed: float, each: float):
        self.now, self.fixed, self.each = 0.0, fixed, each
        monkeypatch.setattr(ahead.time, "perf_counter", lambda: self.now)
        self.model = SimpleNamespace(zero_grad=lambda: None)

    def sample(self, prompts, *_):
        self.now += self.fixed + self.each * len(prompts)

    def log_probs(self, *_):
        return torch.zeros(1, requires_grad=True)


@pytest.mark.parametrize(("fixed", "each"), [(3.0, 0.5), (0.0, 2.0), (5.0, 0.0)])
def test_seconds_are_extrapolated(fixed, each, monkeypatch):
    """Guards: a fixed cost multiplied by the rows."""
    monkeypatch.setattr(ahead.machine, "passes", lambda _: nullcontext())
    policy = Clock(monkeypatch, fixed, each)
    for rows in (64, 1000):
        found = ahead._seconds(policy, Settings(), rows, "split", True)
        assert found == pytest.approx(fixed + each * rows)


def test_what_is_counted_is_what_the_notebooks_do(monkeypatch):
    """Steps and evaluated policies. Guards: a count that the report has left behind."""
    settings = Settings.profile("smoke", policy="some/name", iterations=3, runs=2)
    monkeypatch.setattr(Policy, "from_name", lambda _: tiny_policy())
    monkeypatch.setattr(ahead, "_seconds", lambda *_, **__: 1.0)
    sentence = ahead.cost(settings, "smollm2")
    weights = {"w": torch.zeros(1)}
    run = Run(weights, {4 * (k + 1): weights for k in range(6)}, [{"seconds": 1.0}] * 24, 1.0)
    iterations = [Iteration(n, weights, [run] * 2, weights, weights) for n in (1, 2, 3)]
    points: list[Point] = [*warp_points(weights, iterations, settings)]
    points += reinforce_points(weights, run, settings)
    assert f"evaluating {len(points)} policies on 16 completions" in sentence
    assert "--profile smollm2-small" in sentence
    assert "--profile" not in ahead.cost(settings, "smollm2-small")
    assert "48 steps of 8 completions take about 48 s (1 s a step)" in sentence


def test_it_is_said_first(store, monkeypatch, capsys):
    """And a policy that is not there ends the report before a notebook starts. What a report took
    is noted also of one that was stopped, and all its calls count.
    """
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(report_run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ahead, "cost", lambda settings, _: f"{settings.policy} costs much.")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def runner(jobs, tell, at_once, threads):
        assert (at_once, threads) == (1, 4)  # two would need twice the memory
        assert capsys.readouterr().out == "smollm2-imdb costs much.\n"
        raise KeyboardInterrupt

    for seconds, profile in ((7, "smollm2"), (7, "smollm2-small"), (14, "smollm2-small")):
        settings = Settings.profile(profile)
        with pytest.raises(KeyboardInterrupt):
            report_run.run_report(settings, profile, {}, runner)
        noted = json.loads((store / settings.name / "machine.json").read_text())
        assert noted["seconds"] == seconds and noted["dtype"] == str(machine.fast_dtype())
    monkeypatch.undo()
    with pytest.raises(Explained, match="^policy='/no/such' is not there"):
        report_run.run_report(Settings.profile("smoke", policy="/no/such"), "smoke", {}, runner)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_memory_that_was_kept_is_given_back():
    """Guards: gigabytes that the timed passes leave with the process that waits for the kernels."""
    code = """
import torch
from pathlib import Path
from warp_lib.fast import machine

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

machine.prepare()
before = pages()
blocks = [torch.ones(2_000_000) for _ in range(50)]
del blocks
kept = pages() - before
machine.give_memory_back()
print(kept, pages() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert left < kept / 4


def test_a_step_is_told_to_two_digits_and_no_exponent():
    assert [a_step(seconds) for seconds in (153.2, 15.31, 1.52, 0.2)] == [
        "150 s a step",
        "15 s a step",
        "1.5 s a step",
        "0.2 s a step",
    ]
