"""What this machine computes fastest with: device, dtype and threads; and memory that is kept."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar

import datasets
import torch
import transformers


def device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    here = torch.accelerator.current_accelerator(check_available=True)
    return here or torch.device("cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the machine multiplies it in hardware, float32 elsewhere (an emulated bfloat16
    is slower).
    """
    if device().type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return torch.bfloat16 if device().type == "cpu" and bfloat16_by() else torch.float32


def bfloat16_by() -> str | None:
    """The instructions by which the processor multiplies bfloat16, the fastest that it has; None
    where it has none.
    """
    # from torch 2.12 on
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return next((name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)), None)


def autocast() -> AbstractContextManager:
    """Matrix products in `fast_dtype`, weights rounded to it. Enter it in the thread that
    computes.
    """
    dtype = fast_dtype()
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


# how a policy is passed in training → bfloat16 parts of a weight; 0: none
PRECISIONS = {"split": 2, "bfloat16": 1, "float32": 0}
_parts = ContextVar("parts", default=1)


def parts() -> int:
    """As how many numbers a policy's weight is written here (see `dense`): 1 in float32."""
    return _parts.get()


@contextmanager
def passes(precision: str) -> Iterator[None]:
    """Passes of a policy in training: what is sampled from and scored inside.

    As with autocast, it holds for the thread that enters it, and a machine whose `fast_dtype` is
    float32 computes in that. Outside, a policy is passed in float32: there everything is measured.

    Args:
        precision: "split": bfloat16 products of weights in two parts, within 0.02 nats a completion
            of float32; "bfloat16": of rounded weights, another policy; "float32".
    """
    narrow = PRECISIONS[precision] if fast_dtype() != torch.float32 else 0
    before = _parts.set(narrow or 1)
    try:
        with autocast() if narrow else nullcontext():
            yield
    finally:
        _parts.reset(before)


def dtype_here(on: torch.device) -> torch.dtype:
    """What products are computed in here on that device: autocast's dtype inside it, else
    float32.
    """
    return (
        torch.get_autocast_dtype(on.type) if torch.is_autocast_enabled(on.type) else torch.float32
    )


def prepare() -> None:
    """Once per process, before anything long: memory that is kept, and libraries that do not talk
    over our progress.
    """
    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next step instead of handing every large tensor back
    to the system.

    Training allocates the same hundred-megabyte tensors each step; faulting their pages in anew
    took 40% of a language-modelling step. This holds for glibc's main arena only, which is why
    `jobs.MEMORY` asks for no other. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_memory_back() -> None:
    """Hand what `keep_freed_memory` kept to the system, before other processes need it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def release_threads() -> None:
    """Let the calling thread's OpenMP helpers go, before another thread computes; they come back
    with its next operation.

    Every thread that computes has helpers of its own. Once all of them outnumber the processors,
    GNU's OpenMP puts them to sleep after each operation, and a training step takes half as long
    again. Does nothing where OpenMP cannot be asked.
    """
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):
        return
    pause(1)  # omp_pause_soft


def device_name() -> str:
    """What a record calls the device: the accelerator's own name, or "cpu"."""
    return torch.cuda.get_device_name() if device().type == "cuda" else device().type


def describe() -> dict[str, str | int]:
    """What a record says of the machine that made it."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "device": device_name(),
        "dtype": str(fast_dtype()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
