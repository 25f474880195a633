"""What the notebooks share: points that are measured, and settings that reach what they name."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from warp_lib import merging
from warp_lib.experiment import Experiment
from warp_lib.points import reinforce_points, warp_points
from warp_lib.policy import Policy, Rollouts
from warp_lib.report import checks
from warp_lib.settings import Settings
from warp_lib.warp import Iteration, Run

SETTINGS = Settings(front_points=5, steps=3)


def weights(*values: float) -> dict[str, torch.Tensor]:
    return {"h.0.w": torch.tensor(values)}


def test_both_fronts_run_from_sft_to_the_end_of_training():
    """Guards: a front without η = 0 or η = 1, the policies that everyone asks for; all of its
    policies in memory together.
    """
    sft, end = weights(0.0, 0.0), weights(1.0, 2.0)
    run = Run(end, {3: end}, [{"seconds": 1.0}] * 3, 3.0)
    last = Iteration(1, sft, [run, run], end, merging.interpolate(sft, end, 0.5))
    fronts = {
        "warp": warp_points(sft, [last], SETTINGS),
        "reinforce-liti": reinforce_points(sft, run, SETTINGS),
    }
    for method, points in fronts.items():
        front = [point for point in points if point.method == method]
        assert [point.eta for point in front] == [0, 0.25, 0.5, 0.75, 1]
        assert torch.equal(front[0].theta["h.0.w"], sft["h.0.w"])
        assert torch.equal(front[-1].theta["h.0.w"], end["h.0.w"])
        assert all(callable(point.made) for point in front)


@pytest.mark.parametrize(
    ("merge", "per"),
    [("lerp", "layer"), ("slerp", "layer"), ("slerp", "tensor"), ("slerp", "model")],
)
def test_the_settings_merge_is_the_one_that_merges(merge, per):
    """Guards: a setting `merge` or `slerp_per` that is ignored. Two tensors in one layer, whose
    runs' angles differ, tell all four apart.
    """
    base = {"h.0.a": torch.zeros(2), "h.0.b": torch.zeros(2), "h.1.a": torch.zeros(2)}
    runs = [
        {
            "h.0.a": torch.tensor([1.0, 0.0]),
            "h.0.b": torch.tensor([1.0, 1.0]),
            "h.1.a": torch.ones(2),
        },
        {
            "h.0.a": torch.tensor([0.0, 1.0]),
            "h.0.b": torch.tensor([1.0, 0.5]),
            "h.1.a": torch.ones(2),
        },
    ]

    def align(theta_init, run_id):
        return Run(runs[run_id.run - 1], {}, [], 0.0)

    settings = replace(SETTINGS, merge=merge, slerp_per=per, iterations=1, eta=1.0)
    experiment = SimpleNamespace(settings=settings, theta_sft=base)
    (iteration,) = Experiment.warp(experiment, align)
    all_of = {
        name: merging.lerp(base, runs) if name == "lerp" else merging.slerp(base, runs, per=name)
        for name in ("lerp", "layer", "tensor", "model")
    }
    same = [
        name
        for name, other in all_of.items()
        if all(torch.equal(iteration.merged[n], t) for n, t in other.items())
    ]
    assert same == [merge if merge == "lerp" else per]


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_a_policy_is_measured_on_the_split_of_the_settings(monkeypatch, held_out):
    """Unless another is named. Guards: test prompts where choices are made, or the reverse."""
    monkeypatch.setattr("warp_lib.experiment.evaluate", lambda theta, **given: given)
    experiment = Experiment.__new__(Experiment)  # without what would be read and loaded
    vars(experiment).update(settings=replace(SETTINGS, held_out=held_out), policy=None, sft=None)
    monkeypatch.setattr(experiment, "held_out_prompts", lambda split: {7: [f"of {split}"]})
    own, named = experiment.evaluate({}, {}), experiment.evaluate({}, {}, "train")
    assert (own["split"], own["prompts"]) == (held_out, [[f"of {held_out}"]])
    assert (named["split"], named["prompts"]) == ("train", [["of train"]])


def test_samples_are_the_completions_alone():
    """Also where the prompt's last token is half of a character, which its completion ends. Guards:
    a prompt cut off the text of both, which does not begin with it then.
    """
    policy = Policy.from_name("reviews-gpt2")
    ids, film = (policy.tokenizer(text)["input_ids"] for text in ("a ☃", " film"))
    prompt, new = ids[:-1], [ids[-1], *film]
    tokens = torch.tensor([prompt + new] * 2)
    seen = SimpleNamespace(
        rollouts=Rollouts(tokens, torch.ones_like(tokens, dtype=torch.bool), len(new)),
        scores={"reward": torch.zeros(1, 2), "kl": torch.zeros(1, 2)},
    )
    experiment = SimpleNamespace(
        policy=policy,
        test_prompts=[prompt],
        settings=SimpleNamespace(test_samples=2),
        evaluate=lambda theta, rewards: seen,
    )
    (row,) = checks.samples(experiment, {"SFT": {}}, {})
    assert row["prompt"].endswith("\ufffd") and row["completion"] == "\ufffd film"
