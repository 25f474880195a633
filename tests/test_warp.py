"""The loop over iterations and runs against computations by hand, with trainers that are pure
functions, and once with REINFORCE.
"""

import math
from functools import partial

import pytest
import torch
from conftest import tiny_policy, token_ids

from warp_lib.merging import Weights, angle, interpolate, lerp, slerp, task_vector
from warp_lib.reinforce import reinforce
from warp_lib.reward import Reward
from warp_lib.runs.progress import Progress
from warp_lib.runs.store import digest
from warp_lib.settings import Settings
from warp_lib.warp import Run, RunId, warp

# the task vectors of run m in iteration i
STEPS = {(1, 1): (1.0, 0.0), (1, 2): (0.0, 2.0), (2, 1): (-4.0, 0.0), (2, 2): (0.0, 3.0)}


def weights(*values: float) -> Weights:
    return {"a": torch.tensor([values[0]]), "b.w": torch.tensor([values[1]])}


def values(theta: Weights) -> tuple[float, float]:
    return theta["a"].item(), theta["b.w"].item()


class Aligner:
    """Adds a known vector to the initial weights, and notes what it was called with."""

    def __init__(self, moves=STEPS):
        self.moves, self.inits, self.run_ids = moves, [], []

    def __call__(self, theta_init: Weights, run_id: RunId) -> Run:
        self.inits.append(values(theta_init))
        self.run_ids.append(run_id)
        a, b = (
            v + d
            for v, d in zip(
                values(theta_init), self.moves[run_id.iteration, run_id.run], strict=True
            )
        )
        return Run(weights(a, b), {}, [], 1.5)


def run_warp(merge, aligner=None, theta=None, **options):
    given = {"iterations": 2, "runs": 2, "eta": 0.25, "seed": 0} | options
    return list(
        warp(
            weights(1.0, 1.0) if theta is None else theta,
            aligner or Aligner(),
            merge=merge,
            **given,
        )
    )


# of two orthogonal task vectors: their coefficient
MERGES = {"lerp": (lerp, 0.5), "slerp": (partial(slerp, per="model"), math.sqrt(0.5))}


@pytest.mark.parametrize("name", MERGES)
def test_two_iterations_by_hand(name):
    """Guards: η inverted (hidden at ½), LITI from θ_sft or a no-op, the next iteration begun at the
    merge or at a run.
    """
    merge, c = MERGES[name]
    one, two = run_warp(merge, aligner := Aligner())
    merged_1 = (1 + c * 1, 1 + c * 2)
    liti_1 = (1 + c / 4, 1 + c / 2)
    merged_2 = (liti_1[0] - c * 4, liti_1[1] + c * 3)
    liti_2 = (liti_1[0] - c, liti_1[1] + c * 3 / 4)
    for seen, expected in (
        (one.merged, merged_1),
        (one.liti, liti_1),
        (two.merged, merged_2),
        (two.liti, liti_2),
        (two.init, liti_1),
    ):
        assert values(seen) == pytest.approx(expected)
    assert sum(aligner.inits, ()) == pytest.approx((1.0, 1.0) * 2 + liti_1 * 2)
    assert [values(run.weights) for run in one.runs] == [(2.0, 1.0), (1.0, 3.0)]
    assert (one.number, two.number, one.seconds) == (1, 2, 3.0)


def test_every_run_has_its_own_seed():
    """Guards: all M runs on one seed, an iteration that repeats the last one's shuffles, a pipeline
    seed without effect.
    """
    first, second = Aligner(), Aligner()
    run_warp(lerp, first, seed=0)
    run_warp(lerp, second, seed=1)
    assert len({*first.run_ids, *second.run_ids}) == 8


def test_a_run_has_an_iteration():
    """Guards: the first run of no iteration on the streams of iteration 1."""
    with pytest.raises(ValueError, match="run 1 of warp needs its iteration"):
        RunId(0, "warp", run=1)


def test_nothing_is_overwritten():
    """Guards: a merge or a LITI written into θ_init or θ_sft, which makes LITI a no-op and every
    task vector zero.
    """
    theta = weights(1.0, 1.0)
    one, two = run_warp(lerp, theta=theta)
    assert values(theta) == values(one.init) == (1.0, 1.0)
    assert (
        len({values(t) for t in (one.init, *(r.weights for r in one.runs), one.merged, one.liti)})
        == 5
    )
    assert (
        len({values(t) for t in (two.init, *(r.weights for r in two.runs), two.merged, two.liti)})
        == 5
    )


@pytest.mark.parametrize("merge", [lerp, slerp])
def test_one_run_is_its_own_merge(merge):
    """Guards: M = 1 divided by something else than one."""
    for i in run_warp(merge, runs=1):
        assert values(i.merged) == pytest.approx(values(i.runs[0].weights)) and len(i.runs) == 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_eta_at_its_ends(eta):
    """Guards: η inverted: at 0 every iteration begins where the last one did, at 1 where it
    merged.
    """
    one, two = run_warp(slerp, eta=eta)
    assert values(one.liti) == values(two.init) == values(one.init if eta == 0 else one.merged)


def test_three_runs_are_merged_over_the_same_init():
    """Guards: runs trained one after another instead of side by side; a run left out of the
    merge.
    """
    moves = {1: (3.0, 0.0), 2: (0.0, 6.0), 3: (9.0, 9.0)}
    (one,) = run_warp(
        lerp, Aligner({(1, m): move for m, move in moves.items()}), runs=3, iterations=1, eta=0.5
    )
    assert values(one.merged) == pytest.approx((5.0, 6.0)) and values(one.liti) == pytest.approx(
        (3.0, 3.5)
    )


def test_iterations_come_one_by_one():
    """Guards: results shown only after the last iteration, and work done before it is asked for."""
    iterations = warp(
        weights(1.0, 1.0), aligner := Aligner(), iterations=2, runs=2, eta=0.25, merge=lerp, seed=0
    )
    assert aligner.run_ids == [] and next(iterations).number == 1 and len(aligner.run_ids) == 2


def test_any_trainer_can_be_averaged():
    """Guards: a loop that needs REINFORCE: noisy gradient descent on a bowl; the merge is nearer
    its bottom than the runs are.
    """
    bottom = torch.tensor([3.0, -2.0, 1.0, 4.0])

    def descend(theta_init: Weights, run_id: RunId) -> Run:
        theta = theta_init["w"].clone()
        noise = torch.Generator().manual_seed(10 * run_id.iteration + run_id.run)
        for _ in range(50):
            theta -= 0.1 * (theta - bottom + 2 * torch.randn(4, generator=noise))
        return Run({"w": theta}, {}, [], 0.0)

    far = {"w": torch.full((4,), 100.0)}
    *_, last = warp(far, descend, iterations=3, runs=8, eta=0.5, merge=lerp, seed=0)
    distance = [(run.weights["w"] - bottom).norm().item() for run in last.runs]
    assert (last.merged["w"] - bottom).norm() < 0.7 * sum(distance) / len(distance)


class Fives:
    """A scorer: how often w5 stands in the text."""

    identity = digest("fives")

    def __call__(self, texts):
        return torch.tensor([float(token_ids(text).count(5)) for text in texts])


def test_reinforce_in_the_loop(store):
    """Guards: runs that hardly differ (one shuffle, one stream): their task vectors form a wide
    angle; θ_sft and θ_init stay.
    """
    policy, prompts = tiny_policy(), [[a, b, (a * b) % 12] for a in range(12) for b in range(12)]
    theta_sft = policy.weights()
    before = {name: t.clone() for name, t in theta_sft.items()}
    settings = Settings(max_new_tokens=3, batch_size=8, learning_rate=0.01, runs=2, eta=0.25)
    align = partial(
        reinforce,
        policy=policy,
        theta_sft=theta_sft,
        prompts=prompts,
        reward=Reward(Fives(), 0.0, 1.0),
        settings=settings,
        steps=3,
        progress=Progress(),
    )
    one, two = warp(theta_sft, align, iterations=2, runs=2, eta=0.25, merge=slerp, seed=0)
    for i in (one, two):
        deltas = [task_vector(i.init, run.weights) for run in i.runs]
        assert math.degrees(angle(*(list(d.values()) for d in deltas))) > 20
        assert [len(run.history) for run in i.runs] == [3, 3] and all(
            run.history[0]["kl_anchor"] == 0 for run in i.runs
        )
        expected = interpolate(i.init, i.merged, 0.25)
        assert all(
            torch.equal(i.liti[name], t) and not torch.equal(t, i.init[name])
            for name, t in expected.items()
        )
    assert two.init is one.liti and all(
        torch.equal(theta_sft[name], t) for name, t in before.items()
    )
