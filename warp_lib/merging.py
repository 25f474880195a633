"""Weight averaging: task vectors, SLERP, LERP and interpolation towards the initialisation (LITI),
over state dicts (name → tensor).

WARP averages *task vectors* δ_m = θ_m − θ_init, never the weights themselves: those are nearly
parallel, and SLERP of nearly parallel vectors is LERP (paper, appendix on full weights).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: "transformer.h.3" for its block, otherwise the module that
    holds it ("transformer.wte").
    """
    block = re.match(r"(.*?\.\d+)\.", name)
    return block[1] if block else name.rpartition(".")[0] or name


def task_vector(base: Weights, final: Weights) -> Weights:
    """δ = θ − θ_init, at least in float32 (a difference of two bfloat16 weights would lose a third
    of itself if rounded again).
    """
    return {name: _wide(final[name]) - _wide(base[name]) for name in base}


def lerp(base: Weights, tuned: Sequence[Weights]) -> Weights:
    """θ_init + mean of the task vectors."""
    return _merge(base, tuned, "tensor", _mean)


def slerp(base: Weights, tuned: Sequence[Weights], *, per: str = "layer") -> Weights:
    """θ_init + spherical mean of the task vectors (paper, section 3.2 and its appendix on M > 2).

    Two runs: sin((1−λ)Ω)/sin Ω · δ_1 + sin(λΩ)/sin Ω · δ_2 with λ = ½. More: slerp(merge of the
    first m−1, θ_m, λ = 1/m), in order.

    Args:
        base: θ_init. The result has its names, dtypes and ties.
        tuned: the runs' weights θ_1 … θ_M, M ≥ 1, of the same names and shapes.
        per: where one angle Ω is taken: "layer" (the paper; see `layer_of`), "tensor" (mergekit,
            the student report) or "model".

    Raises ValueError when names or shapes differ, or `per` is unknown.
    """
    if per not in ("layer", "tensor", "model"):
        raise ValueError(f"per must be layer, tensor or model, not {per!r}.")

    def spherical(deltas: list[list[Tensor]]) -> list[Tensor]:
        merged = deltas[0]
        for m, delta in enumerate(deltas[1:], start=2):
            merged = _slerp_pair(merged, delta, 1 / m)
        return merged

    return _merge(base, tuned, per, spherical)


def slerp_without_order(base: Weights, tuned: Sequence[Weights]) -> Weights:
    """θ_init + the mean of the task vectors, in each layer made as long as these are on average: a
    spherical mean where no run comes first.

    For two runs of equal length it is `slerp`; of more, what `slerp` gives depends on their order.
    A layer whose task vectors cancel out keeps their mean, zero.

    Raises ValueError when names or shapes differ.
    """

    def spherical(deltas: list[list[Tensor]]) -> list[Tensor]:
        mean = _mean(deltas)
        shortened = norm(mean) / (sum(map(norm, deltas)) / len(deltas) or 1.0)
        return [t / shortened for t in mean] if shortened else mean

    return _merge(base, tuned, "layer", spherical)


def between(base: Weights, first: Weights, second: Weights, share: float) -> Weights:
    """SLERP of two task vectors, one angle a layer, by any `share` of it: 0 is `first`, ½ what
    `slerp` gives, 1 is `second`.
    """
    return _merge(
        base, [first, second], "layer", lambda deltas: _slerp_pair(deltas[0], deltas[1], share)
    )


def interpolate(base: Weights, target: Weights, eta: float) -> Weights:
    """(1−η) base + η target: LITI for 0 ≤ η ≤ 1, exact at both ends; beyond 1 it extrapolates along
    the task vector.
    """
    _check(base, [target])
    if not math.isfinite(eta):
        raise ValueError(f"eta must be a finite number, not {eta!r}.")
    names = (name for group in _groups(base, "tensor").values() for name in group)
    return _spread(
        base, {_place(base[n]): torch.lerp(_wide(base[n]), _wide(target[n]), eta) for n in names}
    )


def angle(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The angle in radians between two vectors given as lists of tensors; nan when one of them is
    zero.
    """
    dot = aa = bb = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.double().flatten(), y.double().flatten()
        dot, aa, bb = dot + (x @ y).item(), aa + (x @ x).item(), bb + (y @ y).item()
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(aa * bb)))) if aa and bb else math.nan


def geometry(base: Weights, tuned: Sequence[Weights]) -> list[dict[str, Any]]:
    """Angles and norms of the task vectors, a row for each layer and pair of runs, then for the
    whole model (layer "model").

    Columns: layer, a, b (runs, from 1), degrees, norm_a, norm_b.
    """
    _check(base, tuned)
    deltas = [task_vector(base, final) for final in tuned]
    layers = _groups(base, "layer") | {"model": _groups(base, "model").get("", [])}
    rows = []
    for layer, names in layers.items():
        vectors = [[delta[n] for n in names] for delta in deltas]
        norms = list(map(norm, vectors))
        for a, b in combinations(range(len(tuned)), 2):
            degrees = math.degrees(angle(vectors[a], vectors[b]))
            pair = {"layer": layer, "a": a + 1, "b": b + 1, "degrees": degrees}
            rows.append(pair | {"norm_a": norms[a], "norm_b": norms[b]})
    return rows


def slerp_shares(omega: float, share: float) -> tuple[float, float]:
    """SLERP's coefficients at a `share` of the angle Ω (radians); LERP's where Ω is nan, 0 or π."""
    if math.isnan(omega) or math.sin(omega) < 1e-6:
        return 1 - share, share
    whole = math.sin(omega)
    return math.sin((1 - share) * omega) / whole, math.sin(share * omega) / whole


def _mean(deltas: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(same).mean(0) for same in zip(*deltas, strict=True)]


def norm(delta: Iterable[Tensor]) -> float:
    """‖δ‖ of a vector given as tensors, summed in float64 without a copy of them."""
    return math.hypot(*(torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in delta))


def _slerp_pair(a: list[Tensor], b: list[Tensor], share: float) -> list[Tensor]:
    """SLERP from task vector a to b, by `share` of their angle; LERP where there is no angle
    (parallel, opposite or zero vectors).
    """
    of_a, of_b = slerp_shares(angle(a, b), share)
    return [of_a * x + of_b * y for x, y in zip(a, b, strict=True)]


def _groups(base: Weights, per: str) -> dict[str, list[str]]:
    """Parameter names by what they share an angle with. A tied tensor, present under several names,
    is taken once.
    """
    groups: dict[str, list[str]] = {}
    seen = set()
    for name, tensor in base.items():
        if tensor.is_floating_point() and (storage := _place(tensor)) not in seen:
            seen.add(storage)
            group = {"layer": layer_of(name), "tensor": name, "model": ""}[per]
            groups.setdefault(group, []).append(name)
    return groups


def _merge(
    base: Weights,
    tuned: Sequence[Weights],
    per: str,
    average: Callable[[list[list[Tensor]]], list[Tensor]],
) -> Weights:
    """base + average(task vectors), group by group."""
    _check(base, tuned)
    by_place = {}
    for names in _groups(base, per).values():
        deltas = [[_wide(final[n]) - _wide(base[n]) for n in names] for final in tuned]
        by_place |= {
            _place(base[n]): _wide(base[n]) + delta
            for n, delta in zip(names, average(deltas), strict=True)
        }
    return _spread(base, by_place)


def _spread(base: Weights, by_place: dict[tuple, Tensor]) -> Weights:
    """New weights under base's names, in its dtypes: ties stay ties, and tensors that are not
    floating point stay base's.
    """
    dtypes = {_place(t): t.dtype for t in base.values()}
    new = {storage: tensor.to(dtypes[storage]) for storage, tensor in by_place.items()}
    return {
        name: new[_place(t)] if t.is_floating_point() else t.detach().clone()
        for name, t in base.items()
    }


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: differences of narrower weights lose too much."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _place(tensor: Tensor) -> tuple:
    """Where a tensor lives: tied parameters share it."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _check(base: Weights, tuned: Sequence[Weights]) -> None:
    if not tuned:
        raise ValueError("a merge needs at least one run's weights.")
    firsts: dict[tuple, str] = {}
    tied = [(name, firsts.setdefault(_place(t), name)) for name, t in base.items()]
    for final in tuned:
        if odd := sorted(base.keys() ^ final.keys()):
            raise ValueError(
                f"the weights to merge must have the same names as the base; {odd[0]!r} is only on"
                " one side."
            )
        for name in base:
            if base[name].shape != final[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(base[name].shape)} in the base and"
                    f" {tuple(final[name].shape)} in a run."
                )
        for name, first in tied:
            if name != first and not torch.equal(final[name], final[first]):
                raise ValueError(
                    f"{name} and {first} are one tensor in the base and differ in a run: untie the"
                    " base's (clone one) to merge both."
                )
