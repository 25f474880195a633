"""What this machine computes fastest with: the device, the number format, the threads; and memory that is kept once it was asked for."""

import ctypes
import sys
from contextlib import AbstractContextManager

import datasets
import torch
import transformers


def device() -> torch.device:
    """The accelerator where there is one, else the processor."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the machine multiplies it in hardware, float32 elsewhere (an emulated bfloat16 is slower)."""
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device().type != "cpu":
        return torch.float32
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # from torch 2.12 on
    return torch.bfloat16 if any(abilities.get(a) for a in ("amx_bf16", "avx512_bf16")) else torch.float32


def autocast() -> AbstractContextManager:
    """Matrix products in `fast_dtype`, weights in float32. Enter it in the thread that computes."""
    dtype = fast_dtype()
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


def prepare() -> None:
    """Once per process, before anything long: memory that is kept, and libraries that do not talk over our progress."""
    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next step instead of handing every large tensor back to the system.

    Training allocates the same hundred-megabyte tensors each step; faulting their pages in anew took 40% of a language-modelling step. One
    arena for all threads, because those of other threads than the main one are too small for such tensors. Elsewhere than on Linux with
    glibc this does nothing.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_threads() -> None:
    """Let the calling thread's OpenMP helpers go, before another thread computes; they come back with its next operation.

    Every thread that computes has helpers of its own. Once all of them outnumber the processors, GNU's OpenMP puts them to sleep after each
    operation, and a training step takes half as long again. Does nothing where OpenMP cannot be asked.
    """
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):
        return
    pause(1)  # omp_pause_soft


def device_name() -> str:
    """What a record calls the device: the accelerator's own name, or "cpu"."""
    return torch.cuda.get_device_name() if device().type == "cuda" else device().type
