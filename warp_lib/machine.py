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

    Training allocates the same hundred-megabyte tensors each step; faulting their pages in anew took 40% of a language-modelling step.
    Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_name() -> str:
    """What a record calls the device: the accelerator's own name, or "cpu"."""
    return torch.cuda.get_device_name() if device().type == "cuda" else device().type
