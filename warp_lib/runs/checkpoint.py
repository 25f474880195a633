"""Where an unfinished training stands, so that it goes on after a stop or a kill, on as many
threads exactly as if nothing had happened.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import Explained, reason
from .progress import Progress, Stopped
from .store import CHECKPOINT, digest, file_digest, save_tensors

SECONDS = 60  # between two checkpoints
Module = TypeVar("Module", bound=nn.Module)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's weights on the CPU; tied tensors stand once, under one name."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def load(model: Module, weights: dict[str, Tensor]) -> Module:
    """Copy weights into a model, in place."""
    for name, p in model.named_parameters():
        p.copy_(weights[name])
    return model


class NotFinite(Explained):
    """A training met a number that is not finite. What it had learnt before is kept."""


class Checkpoint:
    """The modules and optimisers of a training, with the history of its steps, in one file that is
    found intact or not at all.

    It vouches for the folder's other files too, such as weights kept along the way: when one of
    them is gone or changed, the training starts over.
    Steps draw from streams named by their number (`seeds`), so there is no random state to keep.

    As a context it is saved when Stopped or NotFinite leaves the block, be it between two steps or
    within one, before anything of it was learnt.
    """

    def __init__(
        self, folder: Path, modules: dict[str, nn.Module], optimisers: list[torch.optim.Optimizer]
    ):
        self.file = folder / CHECKPOINT
        self.modules, self.optimisers = modules, optimisers
        self.history: list[dict[str, float]] = []
        self._resume()
        self.saved = time.monotonic()

    def steps(self, progress: Progress, total: int, title: str) -> Iterator[int]:
        """The steps still to do; the body appends one row a step to `history`. Saved once a
        minute.
        """
        self.title, done = title, len(self.history)
        for step in progress.track(range(done, total), title, done, total):
            yield step
            if time.monotonic() - self.saved > SECONDS:
                self.save()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, Stopped | NotFinite):
            self.save()

    def refuse_not_finite(self, loss: Tensor, numbers: dict[str, float]) -> None:
        """Raise NotFinite if anything that the optimiser is about to learn from is not a finite
        number: the last place where nothing of the step remains. A gradient whose norm overflows
        counts: Adam would square it."""
        odd = [name for name, value in numbers.items() if not math.isfinite(value)]
        of = f"its {odd[0].replace('_', ' ')} is {numbers[odd[0]]}" if odd else ""
        if not of:
            gradients = [
                p.grad
                for o in self.optimisers
                for group in o.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            norm = nn.utils.get_total_norm(gradients)
            if torch.isfinite(loss.detach() + norm):
                return
            of = f"its {'gradient overflows' if torch.isfinite(loss) else f'loss is {loss.item()}'}"
        done = len(self.history)
        raise NotFinite(
            f"{self.title} stopped before step {done + 1}: {of}. The {done} steps before it are"
            " kept, and nothing is stored as finished. A smaller learning rate, or a reward that"
            " gives finite numbers, avoids it."
        )

    def save(self) -> None:
        """Replace the file by the present state."""
        tensors = {
            f"module/{m}/{name}": p.detach().cpu()  # on a processor no copy
            for m, module in self.modules.items()
            for name, p in module.named_parameters()
        }
        for k, optimiser in enumerate(self.optimisers):
            for p, values in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser/{k}/{p}/{name}": value for name, value in values.items()}
        state = json.dumps(self.history)
        kept = json.dumps({file.name: file_digest(file) for file in _others(self.file)})
        save_tensors(
            self.file,
            tensors,
            {"history": state, "kept": kept, "digest": digest(tensors, state, kept)},
        )
        self.saved = time.monotonic()

    def remove(self) -> None:
        """Forget it: the training is done, and what came of it is kept. The store does that for
        what it remembers.
        """
        # with what a kill left half written
        for file in self.file.parent.glob(f"{self.file.name}*"):
            file.unlink()

    def _resume(self) -> None:
        """Take over the file's state; a missing or damaged file leaves everything at its
        beginning.
        """
        if not (kept := _read(self.file)):
            return
        tensors, self.history = kept
        for m, module in self.modules.items():
            load(module, _below(tensors, f"module/{m}/"))
        for k, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below(tensors, f"optimiser/{k}/").items():
                p, value = name.split("/")
                state.setdefault(int(p), {})[value] = tensor
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def steps_done(folder: Path) -> int:
    """How many steps a training that began in `folder` would not have to do again."""
    kept = _read(folder / CHECKPOINT)
    return len(kept[1]) if kept else 0


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]] | None:
    """The tensors and the history in a checkpoint's file; None if it, or one of the files it
    vouches for, is missing or damaged. Raises Explained if that cannot be found out.
    """
    try:
        tensors = load_file(checkpoint)
        with safe_open(checkpoint, "pt") as opened:
            metadata = opened.metadata()
        kept = json.loads(metadata["kept"])
        there = {file.name: file_digest(file) for file in _others(checkpoint) if file.name in kept}
        whole = (
            metadata["digest"] == digest(tensors, metadata["history"], metadata["kept"])
            and there == kept
        )
        return (tensors, json.loads(metadata["history"])) if whole else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Explained(
            f"{checkpoint} cannot be read: {reason(error)}. It is left as it is; make it readable,"
            " or remove it to have its training start over."
        ) from error
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _others(checkpoint: Path) -> list[Path]:
    """The finished files beside a checkpoint."""
    return [file for file in sorted(checkpoint.parent.glob("*.safetensors")) if file != checkpoint]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
