"""Log-probabilities over a vocabulary with EOS masked."""

from collections.abc import Sequence

import torch
from torch import Tensor

MASKED = -1e30  # a logit whose probability is exactly 0, and whose p·log p is 0 and not nan
CACHED = 2**19  # numbers that stay in a processor's cache


def masked(
    logits: Tensor, temperature: float, eos_ids: Sequence[int], work: Tensor | None = None
) -> Tensor:
    """Logits / τ with EOS masked, whose softmax is the one distribution: the same shape, float32;
    in the memory of `work` if given.
    """
    out = torch.empty_like(logits, dtype=torch.float32) if work is None else work[: len(logits)]
    out.copy_(logits).mul_(1 / temperature)
    for eos in eos_ids:  # not by a list, which an accelerator would wait for
        out[..., eos] = MASKED
    return out


def at_once(one: Tensor) -> int:
    """How many tensors like `one` to work on together: as many as stay in the cache, or on an
    accelerator enough to keep it busy.
    """
    return max(1, (CACHED if one.device.type == "cpu" else 64 * CACHED) // one.numel())


class ChosenLogProbs(torch.autograd.Function):
    """log softmax(`masked` logits) at the chosen tokens, (n, vocabulary) → (n,), and its gradient.

    The same as cross-entropy, but a few rows at a time: what autograd would keep for the whole
    vocabulary, in float32 and several times over, never leaves the processor's cache. Where a
    gradient is asked for, what it is made of is kept in the memory of the logits, which nothing
    else may need: probabilities, less 1 at the chosen token.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, chosen: Tensor, temperature: float, eos_ids: Sequence[int]
    ) -> Tensor:
        rows, log_p = at_once(logits[0]), logits.new_empty(len(logits), dtype=torch.float32)
        work = logits.new_empty(rows, logits.shape[1], dtype=torch.float32)
        for k in range(0, len(logits), rows):
            part = masked(logits[k : k + rows], temperature, eos_ids, work)
            here = slice(k, k + rows)
            part.sub_(part.amax(-1, keepdim=True))
            of_chosen = part.gather(-1, chosen[here, None])
            total = part.exp_().sum(-1, keepdim=True)
            log_p[here] = (of_chosen - total.log())[:, 0]
            # 1 is taken away in float32: of a likely token nothing would be left in bfloat16
            if ctx.needs_input_grad[0]:
                logits[here] = part.div_(total).scatter_add_(
                    -1, chosen[here, None], -torch.ones_like(total)
                )
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return log_p

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (difference,) = ctx.saved_tensors
        return (
            difference * (gradient / -ctx.temperature).to(difference.dtype)[:, None],
            None,
            None,
            None,
        )
