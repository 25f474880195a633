"""Task vectors small enough to commit: −1, 0 or 1 for each weight, a scale for each row.

The codes are squeezed by Huffman's code.

Weights that moved little become 0, the others of a row one size: their mean. All sizes are then
scaled together, so that the task vector keeps its length, which the zeros would take from it. What
is left is noise; how much there is of it, and what it does to the policy, is measured where the
vectors are made (`task_vectors`).
"""

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..merging import Weights, norm

# of the vector's root mean square: what is smaller becomes 0. A larger one makes smaller files and
# a larger error
THRESHOLD = 0.92
POWERS = torch.tensor([81, 27, 9, 3, 1], dtype=torch.uint8)  # five codes make one byte


def pack(delta: Weights) -> Weights:
    """Each tensor of a task vector as ``<name>.codes``, bytes, and ``<name>.scales``, bfloat16
    (rows,).

    One threshold for all of them: rows that moved less have more zeros, which cost less. Raises
    ValueError for a number that is not finite.
    """
    size = sum(tensor.numel() for tensor in delta.values())
    threshold = THRESHOLD * norm(delta.values()) / math.sqrt(size)
    if not math.isfinite(threshold):
        raise ValueError("the task vector holds a number that is not finite.")
    codes, scales = {}, {}
    for name, tensor in delta.items():
        rows = _rows(tensor.detach().float())
        kept = rows.abs() > threshold
        codes[name] = rows.sign() * kept
        scales[name] = (rows.abs() * kept).sum(1) / kept.sum(1).clamp(min=1)
    length = norm(scales[name][:, None] * codes[name] for name in codes)
    longer = norm(delta.values()) / length if length else 0.0
    packed = {f"{name}.scales": (scale * longer).bfloat16() for name, scale in scales.items()}
    digits = {name: (1 + signs).to(torch.uint8).flatten() for name, signs in codes.items()}
    return packed | {f"{name}.codes": _squeeze(each) for name, each in digits.items()}


def unpack(packed: Mapping[str, Tensor], like: Weights) -> Weights:
    """The task vector that `pack` packed, float32, with the names and shapes of the weights `like`.

    Raises ValueError when it belongs to weights of other names or shapes, or is damaged.
    """
    if odd := sorted({name.rpartition(".")[0] for name in packed} ^ like.keys()):
        raise ValueError(f"the task vector is of another policy: {odd[0]!r} is only on one side.")
    delta = {}
    for name, weights in like.items():
        scales = packed[f"{name}.scales"].float()
        codes = _expand(packed[f"{name}.codes"], weights.numel())
        if codes is None or len(scales) != len(_rows(weights)):
            raise ValueError(
                f"{name} of the task vector is damaged, or of another shape than"
                f" {tuple(weights.shape)}."
            )
        delta[name] = (_rows(codes.view(weights.shape)) * scales[:, None]).view(weights.shape)
    return delta


def _rows(tensor: Tensor) -> Tensor:
    """A tensor as rows; a vector is one."""
    return tensor.reshape(-1, tensor.shape[-1])


def _squeeze(codes: Tensor) -> Tensor:
    """Codes 0, 1, 2, (n,), as bytes.

    Huffman's code alone: there are no repetitions to find, and looking for them costs space here.
    """
    padding = codes.new_ones(-len(codes) % len(POWERS))
    fives = torch.cat([codes, padding]).view(-1, len(POWERS))
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    numbers = (fives * POWERS).sum(1, dtype=torch.uint8).numpy().tobytes()
    squeezed = coder.compress(numbers) + coder.flush()
    return torch.frombuffer(bytearray(squeezed), dtype=torch.uint8)


def _expand(squeezed: Tensor, count: int) -> Tensor | None:
    """`count` values −1, 0, 1 (float32) from what `_squeeze` gave; None if not so many."""
    coder, expected = zlib.decompressobj(-15), -(-count // len(POWERS))
    try:
        # never more than that, whatever the file says
        fives = coder.decompress(squeezed.numpy().tobytes(), expected + 1)
    except zlib.error:
        return None
    if len(fives) != expected or max(fives, default=0) >= 3 ** len(POWERS):
        return None
    fives = torch.frombuffer(bytearray(fives), dtype=torch.uint8)
    return (fives[:, None] // POWERS % 3).flatten()[:count].float() - 1
