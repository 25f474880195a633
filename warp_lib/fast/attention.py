"""Attention for training a small encoder on a processor: transformers' eager one, its scores kept
in the dtype of the products.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "narrow"
# types of models whose attention is the plain one, and whose layers take no more
FOR = ("bert", "distilbert", "electra", "roberta")


def use(model: PreTrainedModel) -> None:
    """Have the model attend by `attention`, if it is one of those that can. It must not be training
    with dropout.
    """
    if model.config.model_type in FOR:
        model.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v for q, k, v (n, heads, tokens, width): (n, tokens, heads,
    width).

    Autocast would take the scores to float32, mask and soften them there and convert them back, and
    each of these reads and writes all of them. In bfloat16 half as much is moved; the softmax
    itself computes in float32 either way. For crops this is faster than the fused kernel, whose
    backward on a processor is slow, and for whole reviews as fast.
    """
    n, heads, tokens = query.shape[:3]
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
        # its least number is float32's, which bfloat16 would round to −∞
        if attention_mask is not None:
            scores.view(n, heads, tokens, -1).add_(
                attention_mask.clamp(min=torch.finfo(scores.dtype).min).to(scores.dtype)
            )
        out = torch.bmm(scores.softmax(-1), value.flatten(0, 1))
    return out.view(n, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
