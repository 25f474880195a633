"""Completing prompts token by token: with any model, and faster with GPT-2. On a GPU `cuda_graphs` does it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from . import machine


def positions(mask: Tensor) -> Tensor:
    """Position ids under left padding: the first real token stands at 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row from softmax(logits), by inverting the distribution function: (n, vocabulary) → (n, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    level = torch.rand(len(logits), 1, device=logits.device, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True).clamp(max=logits.shape[-1] - 1)


Draw = Callable[[Tensor], Tensor]
"""Picks ids (n, 1) from logits (n, vocabulary)."""


def decode(model: PreTrainedModel, tokens: Tensor, mask: Tensor, new: int, draw: Draw) -> Tensor:
    """Complete `tokens` by `new` tokens with any transformers model: (n, new)."""
    n = len(tokens)
    cache = DynamicCache(config=model.config)
    completion = []
    for _ in range(new):
        at = positions(mask)[:, -tokens.shape[1] :]
        logits = model(tokens, attention_mask=mask.long(), position_ids=at, past_key_values=cache, logits_to_keep=1).logits
        tokens = draw(logits[:, -1])
        completion.append(tokens)
        mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
    return torch.cat(completion, 1)


def decode_gpt2(model: PreTrainedModel, tokens: Tensor, mask: Tensor, new: int, draw: Draw) -> Tensor:
    """`decode` for GPT-2, whose many small calls per token cost transformers more than the arithmetic: same numbers, less between them."""
    body, heads = model.transformer, model.config.n_head
    n, prompt = tokens.shape
    first = model(tokens, attention_mask=mask.long(), position_ids=positions(mask), use_cache=True, logits_to_keep=1)
    dtype, width = first.logits.dtype, model.config.n_embd

    blocks = []
    for block, kept in zip(body.h, first.past_key_values.layers, strict=True):
        cache = torch.empty(n, 2, heads, prompt + new, width // heads, dtype=dtype, device=tokens.device)  # keys and values
        cache[:, 0, :, :prompt], cache[:, 1, :, :prompt] = kept.keys, kept.values
        layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        dense = [affine(layer.weight.to(dtype), layer.bias.to(dtype), n) for layer in layers]
        blocks.append((block.ln_1, block.ln_2, block.mlp.act, cache, *dense))
    head = affine(model.lm_head.weight.to(dtype).T, torch.zeros(model.config.vocab_size, dtype=dtype, device=tokens.device), n)
    hidden_by = torch.zeros(n, 1, 1, prompt + new, dtype=dtype, device=tokens.device)
    hidden_by[:, 0, 0, :prompt].masked_fill_(~mask, -torch.inf)
    position = mask.sum(1)

    completion = [draw(first.logits[:, -1])]
    with torch.autocast(tokens.device.type, enabled=False):
        for s in range(prompt, prompt + new - 1):
            x = body.wte.weight[completion[-1][:, 0]] + body.wpe.weight[position]
            for ln_1, ln_2, act, cache, c_attn, attn_proj, c_fc, mlp_proj in blocks:
                qkv = c_attn(ln_1(x).to(dtype)).view(n, 3, heads, -1)
                cache[:, :, :, s] = qkv[:, 1:]
                keys, values = cache[:, :, :, : s + 1].unbind(1)
                a = F.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values, hidden_by[..., : s + 1])
                x = x + attn_proj(a.reshape(n, width))
                x = x + mlp_proj(act(c_fc(ln_2(x).to(dtype))))
            completion.append(draw(head(body.ln_f(x).to(dtype))))
            position = position + 1
    return torch.cat(completion, 1)


def affine(weight: Tensor, bias: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """x (rows, in) ↦ x @ weight + bias, for many x, without gradients."""
    return laid_out(weight, bias, rows) or partial(torch.addmm, bias, mat2=weight)


def laid_out(weight: Tensor, bias: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """x (…, in) ↦ x @ weight + bias by weights laid out once as the processor's kernels read them, and not anew for each x.

    None where the processor does not multiply bfloat16. That is what torch's compiler does too, by the same operations; torch has no public
    name for them, and without them it is None too.

    Args:
        rows: of x, about: the layout is made for them.
    """
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    if not known or weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not machine.bfloat16_by():
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous(), rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def is_plain_gpt2(model: PreTrainedModel) -> bool:
    c = model.config
    return c.model_type == "gpt2" and c.scale_attn_weights and not (c.scale_attn_by_inverse_layer_idx or c.reorder_and_upcast_attn)
