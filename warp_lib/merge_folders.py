"""WARP's merge for models that do not fit into memory: from folders of safetensors to a folder, one layer at a time.

θ = θ_base + η · (merge of the runs' task vectors). The merged folder has the base's files, shard by shard, with other numbers in them: a
file's header says where each tensor goes, so none has to wait in memory for the rest of its shard.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from . import hub
from .merging import Weights, geometry, interpolate, layer_of, lerp, slerp, slerp_shares, task_vector
from .progress import Progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # as transformers calls them
BESIDE = (
    "config.json", "generation_config.json", "*processor_config.json", "chat_template*",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
)  # fmt: skip
DTYPES = {  # of plain weights and of buffers, as a file's header spells them; anything else is quantised
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

LARGEST_ETA = 1000  # beyond, nothing of the base is left in what is rounded

Rows = list[dict[str, str | int | float]]


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its type as the header spells it, and the byte of the file at which it begins."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Model:
    """A `save_pretrained` folder, the name it was asked for by, and where its tensors lie."""

    name: str
    folder: Path
    tensors: dict[str, Stored]

    @classmethod
    def find(cls, name: str) -> "Model":
        """The local folder or the hub's model called `name`. Raises ValueError when it cannot be had or holds no plain safetensors."""
        folder = Path(os.path.expanduser(name))  # as it is where there is no such user
        if not folder.is_dir():
            hub.check("model", name)
            try:
                folder = Path(snapshot_download(name, allow_patterns=[SINGLE, INDEX, "model-*.safetensors", *BESIDE]))
            except Exception as error:  # the hub's library has a dozen of them
                raise ValueError(
                    f"{name!r} is neither a local folder nor a model the hub gave ({type(error).__name__}: check the name and the network)."
                ) from error
        try:
            config, tensors = json.loads((folder / "config.json").read_text()), _tensors(folder)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{name!r} cannot be merged: {' '.join(str(error).split()).rstrip('.')}.") from error
        odd = [f"{n} is {t.dtype}" for n, t in tensors.items() if t.dtype not in DTYPES]
        if odd or config.get("quantization_config"):
            raise ValueError(f"{name!r} is quantised ({(odd or ['its config.json says so'])[0]}); a merge needs the weights from before.")
        return cls(name, folder, tensors)

    def read(self, names: Sequence[str], dtypes: dict[str, torch.dtype]) -> Weights:
        """The tensors called `names`, each in the type that `dtypes` gives it."""
        weights = {}
        for file in {self.tensors[n].file for n in names}:
            with safe_open(file, framework="pt") as opened:
                weights |= {n: opened.get_tensor(n) for n in names if self.tensors[n].file == file}
        return {n: weights[n].to(dtypes[n]) for n in names}


def merge_folders(
    base: str,
    runs: Sequence[str],
    out: Path,
    *,
    eta: float = 1.0,
    merge: str = "slerp",
    per: str = "layer",
    progress: Progress | None = None,
) -> Rows:
    """Write the folder `out`: base + η · merge of the runs' task vectors, in base's dtypes, with its config and tokenizer.

    One layer of the base and of each run is in memory at a time. The arithmetic is at least float32 and rounded once, at the end.

    Args:
        base: θ_init, a local folder or a hub id.
        runs: folders or hub ids of the trained models, M ≥ 1. One alone is interpolated (LITI); SLERP takes more than two in order.
        out: the folder to write. Nothing of it is seen before all of it is there.
        eta: 0 to 1 is LITI, 1 the merge itself; beyond, it extrapolates.
        merge: "slerp" or "lerp".
        per: where SLERP takes one angle: "layer", "tensor", or "model", for which everything is read twice.
        progress: told of every layer.

    Returns the rows of `merging.geometry`, layer by layer; a and b number the runs, so that a single one has no rows. They are in
    `out`/merge.json, too, with the inputs.

    Raises ValueError, before anything is written, for a value, a model or a folder that will not do.
    """
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not math.isfinite(eta):
        raise ValueError(f"eta must be a finite number, not {eta!r}.")
    if abs(eta) > LARGEST_ETA:
        raise ValueError(f"eta must be from {-LARGEST_ETA} to {LARGEST_ETA}, not {eta!r}.")
    for setting, value, known in (("merge", merge, ("slerp", "lerp")), ("per", per, ("layer", "tensor", "model"))):
        if value not in known:
            raise ValueError(f"{setting} must be {' or '.join(known)}, not {value!r}.")
    if not runs:
        raise ValueError("a merge needs at least one run.")
    out = Path(os.path.expanduser(out)).resolve()
    if out == out.parent:
        raise ValueError(f"{out} cannot be the folder to write; name another.")
    part = out.with_name(f"{out.name}.part")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and is not an empty folder; name another.")
    if part.exists():
        raise ValueError(f"{part} is there: either another merge is writing it, or one was killed and it can be removed.")

    theta, *finals = (Model.find(name) for name in (base, *runs))
    for final in finals:
        _check(theta, final)
    layers: dict[str, list[str]] = {}
    for name in sorted(theta.tensors, key=_numerically):
        layers.setdefault(layer_of(name), []).append(name)

    progress = progress or Progress()
    part.mkdir(parents=True)
    try:
        _lay_out(theta, part)
        if merge == "lerp":
            average = lerp
        elif per == "model" and len(runs) > 1:
            angles = [row for layer in progress.track(layers, "angles") for row in _measure(*_read(theta, finals, layers[layer]))]
            average = partial(_combine, shares=_shares(_whole(angles), len(runs)))
        else:
            average = partial(slerp, per=per)
        rows = []
        for layer in progress.track(layers, "merge"):
            rows += _merge(theta, finals, layers[layer], average, eta, part)
        rows += _whole(rows)
        record = {
            "base": _origin(theta), "runs": [_origin(final) for final in finals],
            "eta": eta, "merge": merge, "per": per if merge == "slerp" else None,
            "geometry": [{column: None if value != value else value for column, value in row.items()} for row in rows],  # JSON has no nan
        }  # fmt: skip
        (part / "merge.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        if out.exists():
            out.rmdir()  # it is empty, and not everywhere can a folder be renamed onto another
        part.rename(out)
    except BaseException:  # an interrupt, too, leaves nothing half-written
        shutil.rmtree(part)
        raise
    return rows


def _merge(theta: Model, finals: list[Model], names: list[str], average: Callable, eta: float, part: Path) -> Rows:
    """Merge a layer into its places in the files of `part`, and measure it. A function: its tensors are gone before the next are read."""
    base, runs = _read(theta, finals, names)
    target = average(base, runs) if len(runs) > 1 else runs[0]  # base + (run − base) would not be the run to the last bit
    merged = interpolate(base, target, eta)
    for name in names:
        stored = theta.tensors[name]
        with (part / stored.file.name).open("r+b") as file:
            file.seek(stored.start)
            file.write(merged[name].to(DTYPES[stored.dtype]).contiguous().flatten().view(torch.uint8).numpy())
    return _measure(base, runs)


def _read(theta: Model, finals: list[Model], names: list[str]) -> tuple[Weights, list[Weights]]:
    """A layer of the base and of the runs, in one type, at least float32: a merge in bfloat16 would be rounded at each of its steps."""
    own = {n: DTYPES[theta.tensors[n].dtype] for n in names}
    wide = {n: torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype for n, dtype in own.items()}
    return theta.read(names, wide), [final.read(names, wide) for final in finals]


def _measure(base: Weights, runs: list[Weights]) -> Rows:
    """The geometry of one layer; none when it holds no floating-point numbers."""
    return [row for row in geometry(base, runs) if row["layer"] != "model"]


def _whole(rows: Rows) -> Rows:
    """The geometry of the whole model from that of its layers: their dot products and squared norms add up."""
    whole = []
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows):
        pair = [row for row in rows if (row["a"], row["b"]) == (a, b)]
        dot, norm_a, norm_b = sum(map(_dot, pair)), *(math.hypot(*(row[norm] for row in pair)) for norm in ("norm_a", "norm_b"))
        degrees = math.degrees(_angle(dot, norm_a * norm_b))
        whole.append({"layer": "model", "a": a, "b": b, "degrees": degrees, "norm_a": norm_a, "norm_b": norm_b})
    return whole


def _dot(row: dict[str, str | int | float]) -> float:
    """The dot product of two task vectors, from their angle and norms."""
    product = row["norm_a"] * row["norm_b"]
    return product * math.cos(math.radians(row["degrees"])) if product else 0.0


def _angle(dot: float, product: float) -> float:
    """The angle in radians from a dot product and the product of the norms; nan when one of them is zero."""
    return math.acos(max(-1.0, min(1.0, dot / product))) if product else math.nan


def _shares(whole: Rows, runs: int) -> list[float]:
    """What `merging.slerp` per model takes of each task vector, from the whole model's angles and norms alone.

    It goes from the merge of the first m − 1 to the m-th, and both are sums of task vectors: their dot products give its angle.
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
    return {n: t + sum(s * d[n] for s, d in zip(shares, deltas, strict=True)) if t.is_floating_point() else t for n, t in base.items()}


def _lay_out(theta: Model, part: Path) -> None:
    """The files of the base in `part`, its weights' with their headers only."""
    for file in {stored.file for stored in theta.tensors.values()}:
        with file.open("rb") as opened:
            size = opened.read(8)
            (part / file.name).write_bytes(size + opened.read(int.from_bytes(size, "little")))
    sharded = [] if (theta.folder / SINGLE).is_file() else [theta.folder / INDEX]
    beside = {file for pattern in BESIDE for file in theta.folder.glob(pattern) if file.is_file()}
    for file in [*sharded, *beside]:
        shutil.copyfile(file, part / file.name)


def _tensors(folder: Path) -> dict[str, Stored]:
    """Where each tensor lies. Raises OSError, ValueError or SafetensorError where files are missing, damaged or contradict the index."""
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise ValueError(f"it has no {SINGLE} and no {INDEX} (.bin files can run code when opened, none is: convert with save_pretrained)")
    places = json.loads((folder / INDEX).read_text()).get("weight_map")
    if not places:
        raise ValueError(f"{INDEX} has no weight_map")
    if odd := [file for file in places.values() if Path(file).name != file or not file.endswith(".safetensors")]:
        raise ValueError(f"its index names {odd[0]!r}, which is not a safetensors file beside it")
    shards = [_header(folder / file) for file in sorted(set(places.values()))]
    found = [(name, stored.file.name) for shard in shards for name, stored in shard.items()]
    if odd := sorted(places.items() ^ set(found)):
        raise ValueError(f"its index and its shards do not agree on {odd[0][0]}")
    return {name: stored for shard in shards for name, stored in shard.items()}


def _header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, from its header: eight bytes that hold its length, JSON, then the numbers."""
    with safe_open(file, framework="pt"):  # which refuses a damaged file
        pass
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {n: Stored(file, t["dtype"], tuple(t["shape"]), 8 + size + t["data_offsets"][0]) for n, t in header.items()}


def _check(theta: Model, final: Model) -> None:
    """Raise ValueError where a run does not have the base's tensors."""
    if odd := sorted(theta.tensors.keys() ^ final.tensors.keys()):
        here, absent = (theta.name, final.name) if odd[0] in theta.tensors else (final.name, theta.name)
        raise ValueError(f"{odd[0]} is in {here!r} and not in {absent!r}; a merge needs the same tensors on both sides.")
    for name, stored in theta.tensors.items():
        if stored.shape != (other := final.tensors[name].shape):
            raise ValueError(f"{name} has shape {stored.shape} in {theta.name!r} and {other} in {final.name!r}.")


def _origin(model: Model) -> dict[str, str]:
    """What was asked for, and where it was; a folder that the hub's library made is named by the commit."""
    return {"name": model.name, "folder": str(model.folder.resolve())}


def _numerically(name: str) -> list[str | int]:
    """Sorts layer 2 before layer 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
