"""Dense layers in bfloat16 on a processor, by the operations that torch's own compiler calls.

torch has no public name for them. Where they are not there, or the processor does not multiply bfloat16, nothing here is used.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import machine


def known(weight: Tensor) -> bool:
    """Whether these operations can multiply by the weight."""
    named = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return named and weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and bool(machine.bfloat16_by())


def affine(weight: Tensor, bias: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, in) ↦ x @ weight + bias, for many x, without gradients."""
    return laid_out(weight, bias, rows) or partial(torch.addmm, bias, mat2=weight)


def laid_out(weight: Tensor, bias: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """x (…, in) ↦ x @ weight + bias by weights laid out once as the processor's kernels read them, and not anew for each x.

    None where that is not `known`.

    Args:
        rows: of x, about: the layout is made for them.
    """
    if not known(weight):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def write_bias_once(model: nn.Module) -> None:
    """Have the model's dense layers add their biases as `Dense` does, wherever they multiply in bfloat16 and the operations are `known`.

    A layer that was given a `forward` of its own keeps it. Does nothing on an accelerator.
    """
    for layer in model.modules() if machine.device().type == "cpu" else ():
        if type(layer) in (Conv1D, nn.Linear) and layer.bias is not None and "forward" not in vars(layer):
            layer.forward = partial(_forward, layer)


def _forward(layer: Conv1D | nn.Linear, x: Tensor) -> Tensor:
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    weight, bias = layer.weight.to(dtype), layer.bias.to(dtype)
    if not known(weight):
        return type(layer).forward(layer, x)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    return Dense.apply(rows, weight if isinstance(layer, Conv1D) else weight.T, bias).view(*x.shape[:-1], -1)


class Dense(torch.autograd.Function):
    """x (n, in), weight (in, out), bias (out,) ↦ x @ weight + bias. As `torch.addmm`, which first writes the bias to every row."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight.T, bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # A weight's gradient lies in memory as the weight does, or it would be copied.
        of_weight = x.T @ gradient if weight.is_contiguous() else (gradient.T @ x).T
        return gradient @ weight.T if ctx.needs_input_grad[0] else None, of_weight, gradient.sum(0)
