"""Weight averaging against outside oracles: mergekit's numbers, the paper's lemmas, closed forms
worked out by hand.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from warp_lib.merging import (
    Weights,
    geometry,
    interpolate,
    layer_of,
    lerp,
    slerp,
    slerp_without_order,
    task_vector,
)

MERGES = [
    lerp,
    slerp,
    lambda base, tuned: slerp(base, tuned, per="tensor"),
    lambda base, tuned: slerp(base, tuned, per="model"),
]
MERGES += [slerp_without_order]
MERGE_NAMES = ["lerp", "slerp-layer", "slerp-tensor", "slerp-model", "slerp-without-order"]
EVERY = [
    *MERGES,
    *(lambda base, tuned, eta=eta: interpolate(base, tuned[0], eta) for eta in (0.0, 0.3, 1.0)),
]
EVERY_NAMES = [*MERGE_NAMES, "liti-0", "liti-0.3", "liti-1"]
every_merge = pytest.mark.parametrize("merge", MERGES, ids=MERGE_NAMES)
everything = pytest.mark.parametrize("merge", EVERY, ids=EVERY_NAMES)
Merge = Callable[[Weights, list[Weights]], Weights]


def weights(values: dict[str, list], dtype: torch.dtype = torch.float32) -> Weights:
    return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}


def moved(base: Weights, *deltas: dict[str, list]) -> list[Weights]:
    """The runs that lie at these task vectors from base."""
    return [{name: base[name] + torch.tensor(delta[name]) for name in base} for delta in deltas]


def one(base: list[float], *deltas: list[float]) -> tuple[Weights, list[Weights]]:
    """A model of a single tensor, and its runs."""
    theta = weights({"h.0.w": base})
    return theta, moved(theta, *({"h.0.w": delta} for delta in deltas))


def random(seed: int, scale: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"wte.weight": (5, 4), "h.0.w": (4, 4), "h.0.b": (4,), "h.1.w": (4, 4), "h.1.b": (4,)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def near(a: Weights, b: Weights, atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=0, atol=atol) for n in a)


def delta_of(base: Weights, merged: Weights) -> list[float]:
    return task_vector(base, merged)["h.0.w"].tolist()


def norm(base: Weights, other: Weights) -> float:
    return math.sqrt(
        sum(d.double().square().sum().item() for d in task_vector(base, other).values())
    )


def at_degrees(degrees: float, length: float = 1.0) -> list[float]:
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


# --- mergekit -------------------------------------------------------------------------------------

BASE = {
    "h.0.w": [[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]],
    "h.0.v": [[-0.3, 0.8, 0.1], [0.6, -0.9, 1.2]],
    "h.1.w": [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]],
}
# Angles of the first two runs: 122° (norms .7, 1.3), 62° (norms 3.9, .08), and colinear: δ_2 = 2
# δ_1.
DELTA_1 = {
    "h.0.w": [[0.3, -0.1, 0.2], [0.0, 0.4, -0.5]],
    "h.0.v": [[2.0, 1.0, -1.0], [0.5, 0.0, 3.0]],
    "h.1.w": [[0.1, 0.2, -0.3], [0.4, 0.5, -0.6]],
}
DELTA_2 = {
    "h.0.w": [[-0.2, 0.6, 0.1], [0.7, 0.1, 0.9]],
    "h.0.v": [[0.01, 0.03, 0.02], [-0.02, 0.05, 0.04]],
    "h.1.w": [[0.2, 0.4, -0.6], [0.8, 1.0, -1.2]],
}
DELTA_3 = {
    "h.0.w": [[0.1, 0.0, -0.4], [0.2, -0.3, 0.1]],
    "h.0.v": [[-1.0, 0.5, 0.0], [0.25, 1.5, -0.5]],
    "h.1.w": [[0.5, -0.5, 0.25], [0.0, 0.75, -1.0]],
}
# mergekit 0.1.5 (torch 2.13.0, float32), for each tensor: b + nuslerp(0.5, a1 - b, a2 - b, dim=-1,
# flatten=True), a_m = b + δ_m. Its registered merge method, called on TensorGroup.from_tensors([b,
# a1, a2], base_index=0) with weight 0.5, gives the same digits.
NUSLERP_2 = {
    "h.0.w": [[0.6025282, -0.4873593, 2.3075843], [2.2176971, 0.7626407, -0.3398874]],
    "h.0.v": [[0.8735614, 1.4013772, -0.4721842], [0.8802536, -0.8708069, 2.9749386]],
    "h.1.w": [[1.1500001, 2.3000002, 2.5500002], [-0.4, -1.25, -3.8999999]],
}
# Likewise: b + nuslerp(1/3, nuslerp(0.5, a1 - b, a2 - b, flatten=True), a3 - b, flatten=True).
NUSLERP_3 = {
    "h.0.w": [[0.6477616, -0.5318006, 2.0644326], [2.2637227, 0.5558342, -0.3213187]],
    "h.0.v": [[0.2651368, 1.7469406, -0.4920978], [1.0523241, 0.1041108, 2.7120774]],
    "h.1.w": [[1.2977275, 2.0274241, 2.7695205], [-0.5664647, -1.1740656, -4.0289898]],
}


def test_slerp_of_two_runs_is_mergekits_nuslerp() -> None:
    base = weights(BASE)
    assert near(
        slerp(base, moved(base, DELTA_1, DELTA_2), per="tensor"), weights(NUSLERP_2), atol=2e-6
    )


def test_slerp_of_three_runs_is_mergekits_nuslerp_iterated() -> None:
    base = weights(BASE)
    assert near(
        slerp(base, moved(base, DELTA_1, DELTA_2, DELTA_3), per="tensor"),
        weights(NUSLERP_3),
        atol=2e-6,
    )


# --- the paper's lemmas ---------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 30, 60, 90, 120, 170])
@pytest.mark.parametrize("length", [1e-3, 2.5, 1e3])
def test_slerp_keeps_the_norm_of_equal_norm_task_vectors_and_lerp_shortens_it(
    degrees: int, length: float
) -> None:
    cosine = math.cos(math.radians(degrees))
    base, (a, b) = one([0.0, 0.0], at_degrees(0, length), at_degrees(degrees, length))
    # A run given twice moves λ: merging (a, a, b) goes a third of the way from a to b.
    for share, runs in ((1 / 2, [a, b]), (1 / 3, [a, a, b])):
        assert norm(base, slerp(base, runs)) == pytest.approx(length, rel=1e-5)
        shortened = length * math.sqrt(1 - 2 * (1 - cosine) * (share - share**2))
        assert norm(base, lerp(base, runs)) == pytest.approx(shortened, rel=1e-5)
        # … along the arc at constant speed: Ω·λ from a.
        assert delta_of(base, slerp(base, runs)) == pytest.approx(
            at_degrees(degrees * share, length), rel=1e-4, abs=1e-5 * length
        )


def test_lerp_of_orthogonal_task_vectors_has_0_7071_of_their_norm() -> None:
    base, runs = one([5.0, 5.0], [0.0, 2.0], [2.0, 0.0])
    assert norm(base, lerp(base, runs)) == pytest.approx(0.7071 * 2, rel=1e-4)
    assert norm(base, slerp(base, runs)) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("per", ["layer", "tensor", "model"])
def test_slerp_of_two_runs_is_lerp_over_cos_of_half_the_angle_whatever_the_norms(per: str) -> None:
    base, a, b = random(0), random(1, 0.1), random(2, 3.0)
    straight = task_vector(base, lerp(base, [a, b]))
    curved = task_vector(base, slerp(base, [a, b], per=per))
    groups = {
        "model": [list(base)],
        "tensor": [[n] for n in base],
        "layer": [["wte.weight"], ["h.0.w", "h.0.b"], ["h.1.w", "h.1.b"]],
    }
    for names in groups[per]:
        u, v = (torch.cat([(run[n] - base[n]).flatten() for n in names]) for run in (a, b))
        half = torch.acos(u @ v / (u.norm() * v.norm())) / 2
        assert all(
            torch.allclose(curved[n], straight[n] / torch.cos(half), rtol=0, atol=1e-5)
            for n in names
        )


def test_lerp_is_the_mean_of_the_runs() -> None:
    base, runs = random(0), [random(seed) for seed in (1, 2, 3)]
    assert near(
        lerp(base, runs),
        {name: (runs[0][name] + runs[1][name] + runs[2][name]) / 3 for name in base},
    )


# --- more than two runs, and one ------------------------------------------------------------------


def test_coefficients_of_orthogonal_runs_are_the_papers_and_depend_on_the_order() -> None:
    base, (a, b, c, d) = one([7.0] * 4, *torch.eye(4).tolist())
    assert delta_of(base, slerp(base, [a, b, c])) == pytest.approx(
        [0.6124, 0.6124, 0.5, 0], abs=1e-4
    )
    assert delta_of(base, slerp(base, [c, a, b])) == pytest.approx(
        [0.6124, 0.5, 0.6124, 0], abs=1e-4
    )
    # λ = 1/4 of a right angle: the three before shrink by cos 22.5°, the fourth enters with sin
    # 22.5°.
    assert delta_of(base, slerp(base, [a, b, c, d])) == pytest.approx(
        [0.5658, 0.5658, 0.4619, 0.3827], abs=1e-4
    )
    assert delta_of(base, lerp(base, [a, b, c])) == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 0], abs=1e-5
    )


def test_slerp_without_order_is_slerp_of_two_and_has_no_order_of_three() -> None:
    """Two at 80°, of length 2; three orthogonal ones: each takes 1/√3 of the sphere, where the
    paper's form takes (.612, .612, .5).
    """
    base, tuned = one([0.5, -1.0], at_degrees(0, 2.0), at_degrees(80, 2.0))
    assert near(slerp_without_order(base, tuned), slerp(base, tuned))
    base, tuned = one([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    assert delta_of(base, slerp_without_order(base, tuned)) == pytest.approx([3**-0.5] * 3)
    base, tuned = random(0), [random(m, scale=m) for m in (1, 2, 3)]
    merged, turned = slerp_without_order(base, tuned), slerp_without_order(base, tuned[::-1])
    assert near(merged, turned) and not near(slerp(base, tuned), slerp(base, tuned[::-1]))
    for layer in ("wte", "h.0", "h.1"):  # each as long as its task vectors are on average
        part = {name: t for name, t in base.items() if layer_of(name) == layer}
        assert norm(part, merged) == pytest.approx(
            sum(norm(part, final) for final in tuned) / 3, rel=1e-5
        )


def test_the_order_of_two_runs_does_not_matter() -> None:
    base, a, b = random(0), random(1), random(2, 3.0)
    assert near(slerp(base, [a, b]), slerp(base, [b, a]))


@every_merge
def test_a_single_run_is_its_own_merge(merge: Merge) -> None:
    base, run = random(0), random(1)
    assert near(merge(base, [run]), run)


# --- where one angle is taken ---------------------------------------------------------------------


def test_angle_per_layer_tensor_and_model() -> None:
    base = weights({"h.0.w": [3.0, 3.0], "h.0.v": [-1.0, 4.0], "h.1.u": [0.0, 9.0]})
    runs = moved(
        base,
        {"h.0.w": [1.0, 0.0], "h.0.v": [1.0, 0.0], "h.1.u": [2.0, 0.0]},
        {"h.0.w": [0.0, 1.0], "h.0.v": [1.0, 0.0], "h.1.u": [0.0, 2.0]},
    )
    # Each tensor's merge is k·(δ_1 + δ_2) with k = 1/(2 cos(Ω/2)).
    right, sixty, parallel = 1 / math.sqrt(2), 1 / math.sqrt(3), 1 / 2
    # cos Ω = 1/6: the dot is 0 + 1 + 0, both squared norms are 1 + 1 + 4
    sixth = 1 / (2 * math.sqrt((1 + 1 / 6) / 2))
    scales = {
        "tensor": (right, parallel, right),
        "layer": (sixty, sixty, right),
        "model": (sixth, sixth, sixth),
    }
    for per, (w, v, u) in scales.items():
        delta = task_vector(base, slerp(base, runs, per=per))
        assert delta["h.0.w"].tolist() == pytest.approx([w, w], abs=1e-6)
        assert delta["h.0.v"].tolist() == pytest.approx([2 * v, 0], abs=1e-6)
        assert delta["h.1.u"].tolist() == pytest.approx([2 * u, 2 * u], abs=2e-6)
    # the paper's is the default
    assert near(slerp(base, runs), slerp(base, runs, per="layer"), atol=0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("transformer.wte.weight", "transformer.wte"),
        ("transformer.wpe.weight", "transformer.wpe"),
        ("transformer.h.0.ln_1.weight", "transformer.h.0"),
        ("transformer.h.11.attn.c_attn.bias", "transformer.h.11"),
        ("transformer.ln_f.bias", "transformer.ln_f"),
        ("lm_head.weight", "lm_head"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.layers.1.self_attn.q_proj.weight", "model.layers.1"),
        ("model.layers.10.mlp.down_proj.weight", "model.layers.10"),
        ("model.layers.1.mlp.experts.10.w2.weight", "model.layers.1"),
        ("model.norm.weight", "model.norm"),
        ("0.weight", "0"),
        ("temperature", "temperature"),
    ],
)
def test_layer_of(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_layer_1_is_not_layer_10() -> None:
    first, tenth = "model.layers.1.mlp.weight", "model.layers.10.mlp.weight"
    base = weights({first: [0.0, 0.0], tenth: [0.0, 0.0]})
    runs = moved(
        base, {first: [1.0, 0.0], tenth: [5.0, 0.0]}, {first: [0.0, 1.0], tenth: [5.0, 0.0]}
    )
    merged = slerp(base, runs)
    assert merged[first].tolist() == pytest.approx([0.7071, 0.7071], abs=1e-4)
    assert merged[tenth].tolist() == pytest.approx([5.0, 0.0])


# --- of δ, by its angle ---------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "tensor", "model"])
@pytest.mark.parametrize("common", [0.0, 1.0, 1024.0])
def test_slerp_is_of_task_vectors_not_of_weights(per: str, common: float) -> None:
    base, runs = one([common] * 3, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    assert delta_of(base, slerp(base, runs, per=per)) == pytest.approx(
        [0.7071, 0.7071, 0.0], abs=2e-4
    )


@pytest.mark.parametrize("length", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_the_angle_does_not_depend_on_the_norms(length: float) -> None:
    # Under an acos of the bare dot all short vectors are orthogonal (0.7071) and all long ones
    # parallel (0.5).
    base, runs = one([0.0, 0.0], at_degrees(0, length), at_degrees(60))
    a, b = (1 / math.sqrt(3), 1 / math.sqrt(3))
    expected = [a * u + b * v for u, v in zip(at_degrees(0, length), at_degrees(60), strict=True)]
    assert delta_of(base, slerp(base, runs)) == pytest.approx(expected, rel=1e-5)


# --- degenerate cases -----------------------------------------------------------------------------


@every_merge
@pytest.mark.parametrize("m", [2, 3])
def test_identical_runs_merge_into_that_run(merge: Merge, m: int) -> None:
    base, run = random(0), random(1)
    assert near(merge(base, [run] * m), run)


@pytest.mark.parametrize("degrees", [1e-8, 1e-5, 1e-3, 1e-2])
def test_nearly_parallel_runs_merge_as_by_lerp(degrees: float) -> None:
    base, runs = one([0.0, 0.0], at_degrees(0), at_degrees(degrees, 3.0))
    assert near(slerp(base, runs), lerp(base, runs))


def test_parallel_runs_of_different_norms_merge_as_by_lerp() -> None:
    base, runs = one([1.0, 1.0], [3.0, 4.0], [6.0, 8.0])
    assert near(slerp(base, runs), weights({"h.0.w": [5.5, 7.0]}))


@pytest.mark.parametrize("times", [3.0, -3.0])
def test_a_cosine_that_rounds_to_more_than_1_is_still_an_angle(times: float) -> None:
    base = weights({"h.0.w": [0.0, 0.0, 0.0]})
    cosines = []
    for k in range(1, 100):
        delta = torch.tensor([k / 10, 0.7, 0.3])
        a, b = delta.double(), (times * delta).double()
        cosines.append(((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).item())
        merged = slerp(base, [{"h.0.w": delta}, {"h.0.w": times * delta}])
        assert torch.allclose(merged["h.0.w"], (1 + times) / 2 * delta, atol=1e-5)
    assert max(map(abs, cosines)) > 1  # so the test means something


def test_opposite_task_vectors_merge_as_by_lerp() -> None:
    base, runs = one([1.0, 2.0], [3.0, 4.0], [-3.0, -4.0])
    assert near(slerp(base, runs), base)
    base, runs = one([1.0, 2.0], [3.0, 4.0], [-9.0, -12.0])
    assert near(slerp(base, runs), weights({"h.0.w": [-2.0, -2.0]}))


def test_nearly_opposite_task_vectors_keep_their_norm() -> None:
    base, runs = one([0.0, 0.0], at_degrees(0), at_degrees(179.9))
    assert norm(base, slerp(base, runs)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("per", ["layer", "tensor", "model"])
def test_a_zero_task_vector_merges_as_by_lerp(per: str) -> None:
    base, runs = one([1.0, 2.0], [0.0, 0.0], [3.0, 4.0])
    for order in (runs, runs[::-1]):
        assert near(slerp(base, order, per=per), weights({"h.0.w": [2.5, 4.0]}))


@every_merge
def test_a_tensor_that_no_run_moved_stays_exactly_as_it_was(merge: Merge) -> None:
    base, runs = random(0), [random(1), random(2), random(3)]
    for run in runs:
        run["wte.weight"] = base["wte.weight"].clone()
    assert torch.equal(merge(base, runs)["wte.weight"], base["wte.weight"])
    assert all(torch.equal(t, base[name]) for name, t in merge(base, [base, base, base]).items())


# --- memory, ties, types --------------------------------------------------------------------------


def with_buffer(w: Weights, value: int) -> Weights:
    return w | {
        "h.0.steps": torch.tensor([value, value]),
        "h.0.mask": torch.tensor([bool(value % 2)]),
    }


@everything
def test_inputs_stay_as_they_were_and_the_result_shares_no_memory_with_them(merge: Merge) -> None:
    base, tuned = with_buffer(random(0), 4), [with_buffer(random(1), 5), with_buffer(random(2), 6)]
    before = [{name: tensor.clone() for name, tensor in w.items()} for w in (base, *tuned)]
    for runs in (tuned, tuned[:1]):
        merged = merge(base, runs)
        theirs = {t.untyped_storage().data_ptr() for w in (base, *tuned) for t in w.values()}
        assert theirs.isdisjoint(t.untyped_storage().data_ptr() for t in merged.values())
        for tensor in merged.values():
            tensor.zero_()
        assert all(
            torch.equal(w[n], old[n])
            for w, old in zip((base, *tuned), before, strict=True)
            for n in w
        )


def test_liti_after_a_merge_goes_somewhere() -> None:
    base, runs = random(0), [random(1), random(2)]
    merged = slerp(base, runs)
    liti = interpolate(base, merged, 0.5)
    assert norm(base, merged) > 1
    assert norm(base, liti) == pytest.approx(norm(base, merged) / 2, rel=1e-5)
    assert norm(merged, liti) == pytest.approx(norm(base, merged) / 2, rel=1e-5)


def tied(embedding: list[float], block: list[float]) -> Weights:
    w = {"wte.weight": torch.tensor(embedding), "h.0.w": torch.tensor(block)}
    return w | {"lm_head.weight": w["wte.weight"]}


@pytest.mark.parametrize("merge", EVERY[:-1], ids=EVERY_NAMES[:-1])
def test_tied_tensors_are_merged_once_and_stay_tied(merge: Merge) -> None:
    base = tied([0.5, 1.0], [2.0, 0.0])
    runs = [
        tied([1.5, 1.0], [2.0, 1.0]),
        tied([1.5, 1.0], [3.0, 0.0]),
    ]
    untied = [{name: w[name].clone() for name in ("wte.weight", "h.0.w")} for w in (base, *runs)]
    merged, alone = merge(base, runs), merge(untied[0], untied[1:])
    assert list(merged) == list(base)
    # The angle per model tells: 60° with the embedding counted once, 48° with it counted twice.
    assert near({name: merged[name] for name in alone}, alone)
    assert merged["lm_head.weight"] is merged["wte.weight"]


def test_tied_tensors_stay_tied_at_the_end_of_an_interpolation() -> None:
    merged = interpolate(tied([0.5, 1.0], [2.0, 0.0]), tied([1.5, 1.0], [2.0, 1.0]), 1.0)
    assert merged["lm_head.weight"] is merged["wte.weight"]


def test_a_tie_that_a_run_has_broken_is_refused() -> None:
    """Guards: one of a run's two tensors left out without a word. Equal ones merge as before."""
    base, run = tied([0.5, 1.0], [2.0, 0.0]), tied([1.5, 1.0], [2.0, 1.0])
    run["lm_head.weight"] = run["wte.weight"].clone()
    assert near(slerp(base, [run]), run)
    run["lm_head.weight"] += 1
    for merge in (lerp, slerp, lambda base, runs: interpolate(base, runs[0], 0.5)):
        with pytest.raises(ValueError, match=r"lm_head\.weight and wte\.weight are one tensor"):
            merge(base, [run])


def test_tied_tensors_of_one_layer_count_once_in_its_angle() -> None:
    base, *runs = (
        tied(*values)
        for values in ([[0.0, 0.0]] * 2, [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    )
    names = {"wte.weight": "h.0.tied", "h.0.w": "h.0.w", "lm_head.weight": "h.0.again"}
    base, *runs = ({names[n]: t for n, t in w.items()} for w in (base, *runs))
    merged = slerp(base, runs)
    assert merged["h.0.w"].tolist() == pytest.approx([1 / math.sqrt(3)] * 2)  # 60°
    assert [row["degrees"] for row in geometry(base, runs)] == pytest.approx([60, 60])
    assert [row["norm_a"] for row in geometry(base, runs)] == pytest.approx([math.sqrt(2)] * 2)


@every_merge
def test_integer_buffers_stay_the_bases(merge: Merge) -> None:
    base, runs = with_buffer(random(0), 4), [with_buffer(random(1), 5), with_buffer(random(2), 7)]
    merged = merge(base, runs)
    assert list(merged) == list(base)
    assert merged["h.0.steps"].tolist() == [4, 4] and merged["h.0.steps"].dtype == torch.int64
    assert merged["h.0.mask"].tolist() == [False] and merged["h.0.mask"].dtype == torch.bool


@everything
def test_bfloat16_stays_bfloat16_and_is_rounded_only_once(merge: Merge) -> None:
    base, *runs = ({n: t.bfloat16() for n, t in random(seed).items()} for seed in (0, 1, 2))
    exact = merge(
        {n: t.float() for n, t in base.items()},
        [{n: t.float() for n, t in run.items()} for run in runs],
    )
    merged = merge(base, runs)
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    assert all(torch.equal(merged[n], exact[n].bfloat16()) for n in merged)


@everything
def test_the_result_of_parameters_needs_no_gradient(merge: Merge) -> None:
    base, *runs = (
        {n: torch.nn.Parameter(t) for n, t in random(seed).items()} for seed in (0, 1, 2)
    )
    merged = merge(base, runs)
    assert not any(t.requires_grad for t in merged.values())


# --- interpolation --------------------------------------------------------------------------------


def bits(w: Weights) -> list[Tensor]:
    return [t.view(torch.int32) for t in w.values()]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_interpolation_is_exact_at_both_ends(scale: float) -> None:
    base, target = random(0), random(1, scale)
    for eta, end in ((0, base), (0.0, base), (1, target), (1.0, target)):
        assert all(
            torch.equal(x, y)
            for x, y in zip(bits(interpolate(base, target, eta)), bits(end), strict=True)
        )


def test_interpolation_goes_from_base_to_target() -> None:
    base, target = weights({"h.0.w": [2.0, -4.0]}), weights({"h.0.w": [4.0, 4.0]})
    expected = {
        -0.5: [1.0, -8.0],
        0.25: [2.5, -2.0],
        0.3: [2.6, -1.6],
        0.75: [3.5, 2.0],
        1.2: [4.4, 5.6],
    }
    for eta, values in expected.items():
        assert near(interpolate(base, target, eta), weights({"h.0.w": values}))


def test_liti_lies_at_eta_of_the_merges_distance() -> None:
    base = random(0)
    merged = slerp(base, [random(1), random(2), random(3)])
    for eta in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 1.2):
        assert norm(base, interpolate(base, merged, eta)) == pytest.approx(
            eta * norm(base, merged), rel=1e-5
        )


# --- errors ---------------------------------------------------------------------------------------


@every_merge
def test_a_merge_of_nothing_is_an_error(merge: Merge) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        merge(random(0), [])


@everything
def test_different_names_or_shapes_are_an_error_that_names_them(merge: Merge) -> None:
    base = random(0)
    fewer = {name: t for name, t in base.items() if name != "h.1.b"}
    for run in (fewer, base | {"h.2.w": torch.zeros(4, 4)}):
        with pytest.raises(ValueError, match=r"'h\.1\.b'|'h\.2\.w'"):
            merge(base, [run])
    with pytest.raises(ValueError, match=r"h\.0\.b has shape \(4,\) in the base and \(4, 1\)"):
        merge(base, [base | {"h.0.b": torch.zeros(4, 1)}])


@every_merge
def test_every_run_is_checked(merge: Merge) -> None:
    base = random(0)
    with pytest.raises(ValueError, match=r"h\.0\.b"):
        merge(base, [random(1), base | {"h.0.b": torch.zeros(1)}])


@pytest.mark.parametrize("per", ["row", "Layer", "", None])
def test_an_unknown_place_for_the_angle_is_an_error(per: str) -> None:
    with pytest.raises(ValueError, match="layer, tensor or model"):
        slerp(random(0), [random(1)], per=per)


@pytest.mark.parametrize("eta", [math.nan, math.inf, -math.inf])
def test_eta_must_be_finite(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        interpolate(random(0), random(1), eta)


# --- geometry -------------------------------------------------------------------------------------


def test_geometry_of_task_vectors_by_hand() -> None:
    base = weights(
        {"wte.weight": [1.0, 1.0], "h.0.w": [8.0, 8.0], "h.0.b": [-2.0], "h.1.w": [0.0, 0.0]}
    ) | {"h.0.n": torch.tensor([3])}
    runs = [
        moved(base, delta)[0]
        for delta in (
            {
                "wte.weight": [1.0, 0.0],
                "h.0.w": [3.0, 0.0],
                "h.0.b": [4.0],
                "h.0.n": [1],
                "h.1.w": [2.0, 0.0],
            },
            {
                "wte.weight": [0.0, 2.0],
                "h.0.w": [6.0, 0.0],
                "h.0.b": [8.0],
                "h.0.n": [9],
                "h.1.w": [-1.0, 0.0],
            },
            {
                "wte.weight": [1.0, 1.0],
                "h.0.w": [0.0, 5.0],
                "h.0.b": [0.0],
                "h.0.n": [0],
                "h.1.w": [0.0, 0.0],
            },
        )
    ]
    model = [math.sqrt(30), math.sqrt(105), math.sqrt(27)]  # dots of the pairs: 50 − 2, 1, 2
    turns = {
        (1, 2): 48 / (model[0] * model[1]),
        (1, 3): 1 / (model[0] * model[2]),
        (2, 3): 2 / (model[1] * model[2]),
    }
    expected = [
        ("wte", 1, 2, 90, 1, 2),
        ("wte", 1, 3, 45, 1, math.sqrt(2)),
        ("wte", 2, 3, 45, 2, math.sqrt(2)),
        ("h.0", 1, 2, 0, 5, 10),
        ("h.0", 1, 3, 90, 5, 5),
        ("h.0", 2, 3, 90, 10, 5),
        ("h.1", 1, 2, 180, 2, 1),
        ("h.1", 1, 3, math.nan, 2, 0),
        ("h.1", 2, 3, math.nan, 1, 0),
        *(
            ("model", a, b, math.degrees(math.acos(c)), model[a - 1], model[b - 1])
            for (a, b), c in turns.items()
        ),
    ]
    rows = geometry(base, runs)
    columns = ["layer", "a", "b", "degrees", "norm_a", "norm_b"]
    assert [list(row) for row in rows] == [columns] * len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert list(row.values())[:3] == list(wanted[:3])
        assert list(row.values())[3:] == pytest.approx(wanted[3:], abs=1e-4, nan_ok=True)


def test_geometry_is_of_task_vectors_and_checks_its_input() -> None:
    base, runs = one([1000.0, 1000.0], [1.0, 0.0], [0.0, 1.0])
    assert [row["degrees"] for row in geometry(base, runs)] == pytest.approx([90, 90])
    assert geometry(base, runs[:1]) == []
    with pytest.raises(ValueError, match="at least one run"):
        geometry(base, [])


def test_task_vector_of_bfloat16_is_an_exact_float32() -> None:
    base = weights({"h.0.w": [256.0]}, torch.bfloat16)
    final = weights({"h.0.w": [1.0078125]}, torch.bfloat16)
    delta = task_vector(base, final)["h.0.w"]
    assert delta.dtype == torch.float32 and delta.item() == -254.9921875
