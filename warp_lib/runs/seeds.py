"""Many independent random streams, most of them from one seed.

Every random choice in the project draws from its own stream, named by its role: ``stream(seed,
"warp", i, m, "sampling", t)`` has nothing in common with ``stream(seed, "warp", i, m, "prompts",
0)``. Two runs can therefore not share a shuffle by accident, and a run that is resumed at step t
needs no stored random state: the stream of step t is a function of its name.
"""

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(*role: str | int) -> int:
    """The 63-bit seed of the stream named by `role`, e.g. ``stream("evaluation", "test")``."""
    digest = hashlib.sha256(json.dumps(role).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_stream(*role: str | int) -> np.random.Generator:
    """A NumPy generator for shuffles and draws on the host."""
    return np.random.default_rng(stream(*role))


def torch_stream(*role: str | int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A torch generator on `device`, for sampling tokens."""
    import torch  # only now: who draws prompts needs none

    return torch.Generator(device=device).manual_seed(stream(*role))
