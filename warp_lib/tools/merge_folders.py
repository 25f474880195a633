"""WARP's merge for models that do not fit into memory: folders of safetensors, layer by layer.

θ = θ_base + η · (merge of the runs' task vectors). The merged folder has the base's files, shard by
shard, with other numbers in them: a file's header is written first and says where each tensor goes,
so none has to wait in memory for the rest of its shard.

A tensor is written in the dtype that holds the base's and every run's numbers: most of a float32
task vector is lost when it is rounded to a bfloat16 base's dtype, for at most weights it is smaller
than the spacing of bfloat16 numbers.
"""

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..merging import (
    Weights,
    geometry,
    interpolate,
    layer_of,
    lerp,
    norm,
    slerp,
    slerp_shares,
    task_vector,
)
from ..models import hub
from ..models.model_files import (
    BESIDE,
    INDEX,
    SINGLE,
    Stored,
    Unfit,
    configuration,
    read_json,
    refuse_non_finite,
    said_of,
)
from ..models.model_files import tensors as stored_tensors
from ..runs.progress import Progress

# of a model that transformers does not know: copied, so that the merged folder opens as the base
# does; never run
OWN_CODE = "*.py"
# of plain weights and of buffers, as a file's header spells them; anything else is quantised
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SPELLED = {dtype: text for text, dtype in DTYPES.items()}
# of --dtype
CHOICES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# a rounding error as a share of the task vector's norm: from here on it is warned of even where no
# dtype was chosen
NOTICED = 0.01

LARGEST_ETA = 1000  # beyond, nothing of the base is left in what is rounded

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Place(Stored):
    """Where a tensor is to be written: the byte of the file at which it begins."""

    start: int


@dataclass(frozen=True)
class Model:
    """A `save_pretrained` folder, the name it was asked for by, and where its tensors lie."""

    name: str
    folder: Path
    tensors: dict[str, Stored]

    @classmethod
    def find(cls, name: str) -> "Model":
        """The local folder or the hub's model called `name`.

        Raises ValueError when it cannot be had or holds no plain safetensors.
        """
        with said_of(repr(name)):
            folder = hub.model_folder(name, whole=_has_weights, also=[OWN_CODE])
            configuration(folder)
            tensors = stored_tensors(folder)
            if odd := [f"{n} is {t.dtype}" for n, t in tensors.items() if t.dtype not in DTYPES]:
                raise Unfit(
                    f"is quantised ({odd[0]}): give the weights from before, which can be trained"
                    " and merged"
                )
        return cls(name, folder, tensors)

    def read(self, names: Sequence[str], dtypes: dict[str, torch.dtype]) -> Weights:
        """The tensors called `names`, each in the dtype that `dtypes` says.

        Raises ValueError if one holds NaN or infinity.
        """
        weights = {}
        for file in {self.tensors[n].file for n in names}:
            with safe_open(file, framework="pt") as opened:
                weights |= {n: opened.get_tensor(n) for n in names if self.tensors[n].file == file}
        with said_of(repr(self.name)):
            refuse_non_finite(weights.items())
        return {n: weights[n].to(dtypes[n]) for n in names}


class RoundingWarning(UserWarning):
    """The merged weights were rounded, and what that costs of the task vector."""


@dataclass
class Rounding:
    """What the written dtype costs of the task vector merged − base, added up tensor by tensor.

    moved: weights that the merge changes; stayed: those of them that are written as what the base's
    weight would be written as; error and length: squared norms of written − merged and of merged −
    base, over all floating-point tensors.
    """

    moved: int = 0
    stayed: int = 0
    error: float = 0.0
    length: float = 0.0

    def add(self, base: Tensor, merged: Tensor, written: Tensor) -> None:
        """Count a tensor in."""
        if merged.is_floating_point() and merged.numel():
            changed = merged != base
            self.moved += int(changed.sum())
            self.stayed += int((changed & (written == base.to(written.dtype))).sum())
            self.error += norm([written.to(merged.dtype) - merged]) ** 2
            self.length += norm([merged - base]) ** 2

    def shares(self) -> dict[str, float]:
        """error: the rounding error's norm over the task vector's; unmoved: of changed weights,
        those that are written as the base's.
        """
        if not self.length:
            return {"error": 0.0, "unmoved": 0.0}
        return {"error": math.sqrt(self.error / self.length), "unmoved": self.stayed / self.moved}


def merge_folders(
    base: str,
    runs: Sequence[str],
    out: Path,
    *,
    eta: float = 1.0,
    merge: str = "slerp",
    per: str = "layer",
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Write the folder `out`: base + η · merge of the runs' task vectors, with base's config and
    tokenizer.

    One layer of the base and of each run is in memory at a time. The arithmetic is at least float32
    and rounded once, at the end.

    Args:
        base: θ_init, a local folder or a hub id.
        runs: folders or hub ids of the trained models, M ≥ 1. One alone is interpolated (LITI);
            SLERP takes more than two in order.
        out: the folder to write. Nothing of it is seen before all of it is there.
        eta: 0 to 1 is LITI, 1 the merge itself; beyond, it extrapolates.
        merge: "slerp" or "lerp".
        per: where SLERP takes one angle: "layer", "tensor", or "model", for which everything is
            read twice.
        dtype: of the floating-point weights in `out`: "float32", "bfloat16" or "float16". None: for
            each tensor the narrowest that holds the numbers of the base and of every run, so that a
            bfloat16 base with float32 runs gives float32.
        progress: told of every layer.

    Returns the rows of `merging.geometry`, layer by layer; a and b number the runs, so that a
    single one has no rows. They are in `out`/merge.json, too, with the inputs and with what
    rounding cost (see `Rounding.shares`).

    Warns (RoundingWarning) of what is lost when `dtype` is narrower than the numbers merged, or
    when rounding loses 1% of the task vector: the merge of bfloat16 weights is seldom a bfloat16
    number.

    Raises ValueError, before anything is written, for a value, a model or a folder that will not
    do; and for NaN or infinity in a model once it is read, or a weight beyond `dtype`'s range, with
    nothing left of what was written.
    """
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not math.isfinite(eta):
        raise ValueError(f"eta must be a finite number, not {eta!r}.")
    if abs(eta) > LARGEST_ETA:
        raise ValueError(f"eta must be from {-LARGEST_ETA} to {LARGEST_ETA}, not {eta!r}.")
    choices = {"merge": (merge, ("slerp", "lerp")), "per": (per, ("layer", "tensor", "model"))}
    for setting, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{setting} must be {' or '.join(known)}, not {value!r}.")
    if dtype is not None and dtype not in CHOICES:
        raise ValueError(f"dtype must be {', '.join(CHOICES)} or left out, not {dtype!r}.")
    if not runs:
        raise ValueError("a merge needs at least one run.")
    out = Path(os.path.expanduser(out)).resolve()
    if out == out.parent:
        raise ValueError(f"{out} cannot be the folder to write; name another.")
    part = out.with_name(f"{out.name}.part")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and is not an empty folder; name another.")
    if part.exists():
        raise ValueError(
            f"{part} is there: either another merge is writing it, or one was killed and it can be"
            " removed."
        )

    theta, *tuned = (Model.find(name) for name in (base, *runs))
    for final in tuned:
        _check(theta, final)
    exact = _exact_dtypes(theta, tuned)
    written = {
        n: CHOICES[dtype] if dtype and exact[n].is_floating_point else exact[n] for n in exact
    }
    layers: dict[str, list[str]] = {}
    for name in sorted(theta.tensors, key=_numerically):
        layers.setdefault(layer_of(name), []).append(name)

    progress = progress or Progress()
    _beside(theta)
    part.mkdir(parents=True)
    try:
        places, rounding = _lay_out(theta, part, written), Rounding()
        if merge == "lerp":
            average = lerp
        elif per == "model" and len(runs) > 1:
            angles = [
                row
                for layer in progress.track(layers, "angles")
                for row in _measure(*_read(theta, tuned, layers[layer], exact))
            ]
            average = partial(_combine, shares=_shares(_whole(angles), len(runs)))
        else:
            average = partial(slerp, per=per)
        rows = []
        for layer in progress.track(layers, "merge"):
            rows += _merge(theta, tuned, layers[layer], exact, average, eta, places, rounding)
        rows += _whole(rows)
        record = {
            "base": _origin(theta),
            "runs": [_origin(final) for final in tuned],
            "eta": eta,
            "merge": merge,
            "per": per if merge == "slerp" else None,
            "dtype": dtype,
            "rounding": rounding.shares(),
            # JSON has no nan
            "geometry": [
                {column: None if value != value else value for column, value in row.items()}
                for row in rows
            ],
        }
        (part / "merge.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        if out.exists():
            out.rmdir()  # it is empty, and not everywhere can a folder be renamed onto another
        part.rename(out)
    except BaseException:  # an interrupt, too, leaves nothing half-written
        shutil.rmtree(part)
        raise
    _warn_of_rounding(rounding, written, exact, dtype)
    return rows


def _warn_of_rounding(
    rounding: Rounding,
    written: dict[str, torch.dtype],
    exact: dict[str, torch.dtype],
    dtype: str | None,
) -> None:
    narrowed = any(torch.promote_types(written[n], exact[n]) != written[n] for n in exact)
    shares = rounding.shares()
    if rounding.moved and (narrowed or shares["error"] > NOTICED):
        names = {_name(kind) for kind in written.values() if kind.is_floating_point}
        keeps = "--dtype float32 keeps it"
        better = "without --dtype nothing is rounded" if dtype == "float32" else keeps
        warnings.warn(
            f"rounding to {' and '.join(sorted(names))} costs {shares['error']:.1%} of the task"
            " vector (the error's norm over the task vector's), and"
            f" {shares['unmoved']:.1%} of the weights that the merge moves stay the base's;"
            f" {better}.",
            RoundingWarning,
            stacklevel=3,
        )


def _merge(
    theta: Model,
    tuned: list[Model],
    names: list[str],
    exact: dict[str, torch.dtype],
    average: Callable,
    eta: float,
    places: dict[str, Place],
    rounding: Rounding,
) -> Rows:
    """Merge a layer into its `places`, and measure it.

    A function, so that its tensors are gone before the next are read.
    """
    base, runs = _read(theta, tuned, names, exact)
    # base + (run − base) would not be the run to the last bit
    target = average(base, runs) if len(runs) > 1 else runs[0]
    merged = interpolate(base, target, eta)
    for name in names:
        place = places[name]
        tensor = merged[name].to(dtype := DTYPES[place.dtype])
        if dtype.is_floating_point and tensor.isinf().any() and merged[name].isfinite().all():
            raise ValueError(
                f"{name} does not fit into {_name(dtype)}, whose largest number is"
                f" {torch.finfo(dtype).max:g}."
            )
        rounding.add(base[name], merged[name], tensor)
        with place.file.open("r+b") as file:
            file.seek(place.start)
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return _measure(base, runs)


def _read(
    theta: Model, tuned: list[Model], names: list[str], exact: dict[str, torch.dtype]
) -> tuple[Weights, list[Weights]]:
    """A layer of the base and of the runs, in one dtype.

    At least float32: a merge in bfloat16 would be rounded at each of its steps.
    """
    wide = {
        n: torch.promote_types(exact[n], torch.float32) if exact[n].is_floating_point else exact[n]
        for n in names
    }
    return theta.read(names, wide), [final.read(names, wide) for final in tuned]


def _exact_dtypes(theta: Model, tuned: list[Model]) -> dict[str, torch.dtype]:
    """Each tensor's narrowest dtype that holds the base's and every run's numbers.

    What is not floating-point stays the base's.
    """
    dtypes = {}
    for name, stored in theta.tensors.items():
        own = DTYPES[stored.dtype]
        others = [DTYPES[final.tensors[name].dtype] for final in tuned]
        dtypes[name] = reduce(torch.promote_types, others, own) if own.is_floating_point else own
    return dtypes


def _name(dtype: torch.dtype) -> str:
    """As a config.json and --dtype say it."""
    return str(dtype).removeprefix("torch.")


def _measure(base: Weights, runs: list[Weights]) -> Rows:
    """The geometry of one layer; none when it holds no floating-point numbers."""
    return [row for row in geometry(base, runs) if row["layer"] != "model"]


def _whole(rows: Rows) -> Rows:
    """The geometry of the whole model from that of its layers: dot products and squared norms add
    up.
    """
    whole = []
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows):
        pair = [row for row in rows if (row["a"], row["b"]) == (a, b)]
        norms = {n: math.hypot(*(row[n] for row in pair)) for n in ("norm_a", "norm_b")}
        degrees = math.degrees(_angle(sum(map(_dot, pair)), math.prod(norms.values())))
        whole.append({"layer": "model", "a": a, "b": b, "degrees": degrees} | norms)
    return whole


def _dot(row: dict[str, Any]) -> float:
    """The dot product of two task vectors, from their angle and norms."""
    product = row["norm_a"] * row["norm_b"]
    return product * math.cos(math.radians(row["degrees"])) if product else 0.0


def _angle(dot: float, product: float) -> float:
    """The angle in radians from a dot product and the product of the norms, nan when that is 0."""
    return math.acos(max(-1.0, min(1.0, dot / product))) if product else math.nan


def _shares(whole: Rows, runs: int) -> list[float]:
    """What `merging.slerp` per model takes of each task vector, from the whole model's geometry.

    It goes from the merge of the first m − 1 to the m-th, and both are sums of task vectors: their
    dot products give its angle.
    """
    gram = torch.zeros(runs, runs, dtype=torch.float64)
    for row in whole:
        a, b = row["a"] - 1, row["b"] - 1
        gram[a, a], gram[b, b] = row["norm_a"] ** 2, row["norm_b"] ** 2
        gram[a, b] = gram[b, a] = _dot(row)
    shares = torch.eye(runs, dtype=torch.float64)[0]
    for m in range(1, runs):
        squared = max(0.0, (shares @ gram @ shares).item())
        omega = _angle((shares @ gram[m]).item(), math.sqrt(squared * gram[m, m].item()))
        of_merged, of_next = slerp_shares(omega, 1 / (m + 1))
        shares *= of_merged
        shares[m] = of_next
    return shares.tolist()


def _combine(base: Weights, runs: list[Weights], shares: list[float]) -> Weights:
    """base + Σ share · task vector."""
    deltas = [task_vector(base, run) for run in runs]
    return {
        n: (
            t + sum(s * d[n] for s, d in zip(shares, deltas, strict=True))
            if t.is_floating_point()
            else t
        )
        for n, t in base.items()
    }


def _lay_out(theta: Model, part: Path, dtypes: dict[str, torch.dtype]) -> dict[str, Place]:
    """The base's files in `part`, its weights' with their headers only.

    Returns where each tensor belongs, in its dtype. What says something of dtypes says what is true
    now: the headers, the sizes in the index, config.json.
    """
    places = {}
    for file in sorted({stored.file for stored in theta.tensors.values()}):
        inside = [(n, t.shape, dtypes[n]) for n, t in theta.tensors.items() if t.file == file]
        places |= _write_header(part / file.name, inside, like=file)
    for file in _beside(theta):
        target = part / file.relative_to(theta.folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (part / INDEX).is_file():
        index = json.loads((part / INDEX).read_text())
        size = sum(math.prod(place.shape) * dtypes[n].itemsize for n, place in places.items())
        index["metadata"] = (index.get("metadata") or {}) | {"total_size": size}
        _write_json(part / INDEX, index)
    kinds = {dtype for dtype in dtypes.values() if dtype.is_floating_point}
    as_base = all(DTYPES[stored.dtype] == dtypes[n] for n, stored in theta.tensors.items())
    # of several, the one in which transformers opens all of them without rounding
    if len(kinds) == 1 or (kinds and not as_base):
        config = json.loads((part / "config.json").read_text())
        true = _with_dtype(config, _name(reduce(torch.promote_types, kinds)))
        if true != config:
            _write_json(part / "config.json", true)
    return places


def _write_json(file: Path, value: Any) -> None:
    """As transformers writes them."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(f"{text}\n", encoding="utf-8")


def _write_header(
    file: Path, tensors: list[tuple[str, tuple[int, ...], torch.dtype]], like: Path
) -> dict[str, Place]:
    """Begin a safetensors file with its header, which keeps the metadata of `like`.

    Returns where its tensors (name, shape, dtype) belong. They follow each other without a gap,
    wide dtypes first, so that each begins at a multiple of its numbers' size, as readers expect.
    """
    with safe_open(like, framework="numpy") as opened:
        metadata = opened.metadata()
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, shape, dtype in sorted(tensors, key=lambda tensor: -tensor[2].itemsize):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SPELLED[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    return {
        n: Place(file, SPELLED[dtype], shape, 8 + len(text) + header[n]["data_offsets"][0])
        for n, shape, dtype in tensors
    }


def _with_dtype(config: Any, name: str) -> Any:
    """A config.json whose dtype fields say `name`, those of configs within it too; none is added.

    Older ones call the field "torch_dtype".
    """
    if not isinstance(config, dict):
        return config
    return {
        k: name if k in ("dtype", "torch_dtype") and isinstance(v, str) else _with_dtype(v, name)
        for k, v in config.items()
    }


def _beside(theta: Model) -> list[Path]:
    """The base's files that are copied: configuration, tokenizer, templates, index, its own code.

    Raises ValueError if one is a link out of the folder: what it shows would be handed on with the
    merged model. The hub's cache, whose snapshots are links into the same model's blobs, is one
    folder.
    """
    around = theta.folder.resolve()
    if around.parent.name == "snapshots" and around.parents[1].name.startswith("models--"):
        around = around.parents[1]
    sharded = [] if (theta.folder / SINGLE).is_file() else [INDEX]
    files = sorted(
        {file for pattern in (*sharded, *BESIDE, OWN_CODE) for file in theta.folder.glob(pattern)}
    )
    for file in files:
        if not file.resolve().is_relative_to(around):
            name = file.relative_to(theta.folder)
            raise ValueError(
                f"{theta.name!r} cannot be a merge's base: its {name} is a link to"
                f" {file.resolve()}, outside of the folder; replace it by a copy, or remove it."
            )
    with said_of(repr(theta.name)):
        for file in files:
            if file.is_file() and file.suffix == ".json":
                read_json(file)  # a damaged one would make a folder that cannot be opened
    return [file for file in files if file.is_file()]


def _has_weights(folder: Path) -> bool:
    """Whether a download holds what a merge reads."""
    try:
        return bool(configuration(folder) and stored_tensors(folder))
    except Unfit:
        return False


def _check(theta: Model, final: Model) -> None:
    """Raise ValueError where a run does not have the base's tensors."""
    if odd := sorted(theta.tensors.keys() ^ final.tensors.keys()):
        here, absent = (
            (theta.name, final.name) if odd[0] in theta.tensors else (final.name, theta.name)
        )
        raise ValueError(
            f"{odd[0]} is in {here!r} and not in {absent!r}; a merge needs the same tensors on both"
            " sides."
        )
    for name, stored in theta.tensors.items():
        if stored.shape != (other := final.tensors[name].shape):
            raise ValueError(
                f"{name} has shape {stored.shape} in {theta.name!r} and {other} in {final.name!r}."
            )


def _origin(model: Model) -> dict[str, str]:
    """What was asked for, and where it was: a folder of the hub's cache is named by the commit."""
    return {"name": model.name, "folder": str(model.folder.resolve())}


def _numerically(name: str) -> list[str | int]:
    """Sorts layer 2 before layer 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
