"""Dense layers in bfloat16 whose weights are not rounded: W = hi + lo (+ …), each part a bfloat16
number.

Autocast rounds a weight to bfloat16's 8 bits in every pass, and a task vector of reinforcement
learning is smaller than that for most weights: the pass runs another, nearer policy (see
`rounding`). Two parts keep 16 bits, and where the weights before training are themselves bfloat16
numbers, 8 bits of the smallest change. x @ [hi; lo] is one product of twice the depth, summed in
float32 and rounded once.

On a processor the products are asked of the operations that torch's own compiler calls, for which
torch has no public name. Where they are not there, or the processor does not multiply bfloat16,
plain ones are used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import machine


def known(weight: Tensor) -> bool:
    """Whether the compiler's operations can multiply by the weight."""
    named = all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    return (
        named
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and bool(machine.bfloat16_by())
    )


def in_parts(weight: Tensor, parts: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A float32 weight as a sum of `parts` narrower numbers, laid one after the other along `dim`.

    Each part is what the ones before it leave over, rounded: one part is the rounded weight.
    """
    terms, rest = [], weight.detach()
    for _ in range(parts):
        terms.append(rest.to(dtype))
        rest = rest - terms[-1]
    return terms[0] if parts == 1 else torch.cat(terms, dim)


def repeated(x: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    """x (…, in) as `dtype`, once for each part of the weight it is multiplied by: (…, parts ·
    in).
    """
    if parts == 1:
        return x.to(dtype)
    out = x.new_empty(*x.shape[:-1], parts, x.shape[-1], dtype=dtype)
    return out.copy_(x.unsqueeze(-2)).flatten(-2)


def affine(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, in) ↦ x @ weight + bias, for many x, without gradients."""
    plain = (
        partial(torch.mm, mat2=weight) if bias is None else partial(torch.addmm, bias, mat2=weight)
    )
    return laid_out(weight, bias, rows) or plain


def laid_out(weight: Tensor, bias: Tensor | None, rows: int) -> Callable[[Tensor], Tensor] | None:
    """x (…, in) ↦ x @ weight + bias by weights laid out once as the processor's kernels read them,
    and not anew for each x.

    None where that is not `known`.

    Args:
        rows: of x, about: the layout is made for them.
    """
    if not known(weight):
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def multiply_in_parts(model: nn.Module) -> None:
    """Have the model's dense layers multiply as `Dense` does under autocast to bfloat16, by as many
    parts as `machine.parts` says there.

    A layer that was given a `forward` of its own keeps it.
    """
    for layer in model.modules():
        ours = type(layer) in (Conv1D, nn.Linear) and "forward" not in vars(layer)
        if ours and isinstance(layer, (Conv1D, nn.Linear)):
            vars(layer)["forward"] = partial(_forward, layer)


@contextmanager
def written_once(model: nn.Module, rows: int) -> Iterator[None]:
    """Inside, the layers' parts are made and laid out once, for work that asks for them many times
    and changes no weight.

    Args:
        rows: of the products, about.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, (Conv1D, nn.Linear))
        and getattr(layer.forward, "func", None) is _forward
    ]
    try:
        for layer in layers:
            vars(layer)["product"] = of_layer(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("product", None)


def of_layer(layer: Conv1D | nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, in) ↦ the layer's output, for many x, without gradients, by the weight as it is now
    and in the precision here.
    """
    dtype = machine.dtype_here(layer.weight.device)
    parts = machine.parts()
    conv = isinstance(layer, Conv1D)
    weight = in_parts(layer.weight, parts, 0 if conv else 1, dtype)
    product = affine(
        weight if conv else weight.T,
        None if layer.bias is None else layer.bias.detach().to(dtype),
        rows,
    )
    return lambda x: product(repeated(x, parts, dtype))


def plain_forward(layer: Conv1D | nn.Linear, x: Tensor) -> Tensor:
    """What the layer's class computes, whatever `forward` it was given."""
    return nn.Linear.forward(layer, x) if isinstance(layer, nn.Linear) else Conv1D.forward(layer, x)


def _forward(layer: Conv1D | nn.Linear, x: Tensor) -> Tensor:
    dtype = machine.dtype_here(x.device)
    if dtype == torch.float32:
        return plain_forward(layer, x)
    rows = x.reshape(-1, x.shape[-1])
    if product := vars(layer).get("product"):
        out = product(rows)
    else:
        out = Dense.apply(
            rows.to(dtype), layer.weight, layer.bias, machine.parts(), isinstance(layer, Conv1D)
        )
    return out.view(*x.shape[:-1], -1)


class Dense(torch.autograd.Function):
    """x (n, in) in bfloat16, weight and bias in float32 ↦ x @ weight + bias in bfloat16, the weight
    as a sum of `parts`.

    `torch.addmm` first writes the bias to every row; this does not, where the operation is `known`.
    The gradient of x is taken by the first part alone: it is rounded to as many bits itself.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, parts: int, conv: bool
    ) -> Tensor:
        """conv: the weight is (in, out), as GPT-2's; else (out, in)."""
        ctx.save_for_backward(x, weight)
        ctx.conv, ctx.biased = conv, bias is not None
        written = in_parts(weight, parts, 0 if conv else 1, x.dtype)
        written, rows = written if conv else written.T, repeated(x, parts, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if known(written):
            return torch.ops.mkldnn._linear_pointwise(rows, written.T, bias, "none", [], "")
        return rows @ written if bias is None else torch.addmm(bias, rows, written)

    @staticmethod
    def backward(
        ctx, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            first = weight.to(x.dtype)
            of_x = gradient @ (first.T if ctx.conv else first)
        if ctx.needs_input_grad[1]:  # lies in memory as the weight does, or it would be copied
            of_weight = (x.T @ gradient if ctx.conv else gradient.T @ x).to(weight.dtype)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0).to(weight.dtype)
        return of_x, of_weight, of_bias, None, None
