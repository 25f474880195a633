"""Completing prompts token by token: with any model, and faster with GPT-2 and Llama. On a GPU
`cuda_graphs` does it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from . import machine
from .dense import of_layer, written_once

BLOCK = 64  # tokens that are drawn from together


def left_padded(
    rows: Sequence[Sequence[int]], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids as one tensor, (n, width), shorter rows behind padding; and a mask of the same
    shape, False on padding.
    """
    tokens = torch.tensor([[0] * (width - len(row)) + [*row] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(width, device=device) >= width - lengths[:, None]


def positions(mask: Tensor) -> Tensor:
    """Position ids under left padding: the first real token stands at 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def sample_token(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row from softmax(logits), (n, vocabulary) → (n, 1): first a block of neighbouring
    tokens, then one of the block.

    The logits are overwritten, so that they stay in the processor's cache.
    """
    n, tokens = logits.shape
    mass = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    if tokens % BLOCK:
        mass = F.pad(mass, (0, -tokens % BLOCK))
    mass = mass.view(n, -1, BLOCK)
    level = torch.rand(2, n, 1, device=logits.device, generator=generator)
    block = invert(mass.sum(-1), level[0])
    inside = invert(mass[torch.arange(n, device=logits.device), block[:, 0]], level[1])
    return (block * BLOCK + inside).clamp(max=tokens - 1)


def invert(mass: Tensor, level: Tensor) -> Tensor:
    """Where the distribution function of unnormalised `mass`, (n, k), passes `level` in [0, 1), (n,
    1): a place in each row, (n, 1).
    """
    # the slow part, an addition waiting for the one before, and so not of a whole vocabulary
    cumulative = mass.cumsum(-1)
    return torch.searchsorted(cumulative, level * cumulative[:, -1:], right=True).clamp(
        max=mass.shape[-1] - 1
    )


NextToken = Callable[[Tensor], Tensor]
"""Picks ids (n, 1) from logits (n, vocabulary)."""

NextLogits = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""Logits (n, vocabulary) after ids (n, q), from these, their positions (n, q), where they stand in
the cache, and what is added to the scores of attention, (n, 1, q, seen).
"""

Decoder = Callable[[PreTrainedModel, Tensor, Tensor, int, NextToken], Tensor]


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The fastest decoder that computes what the model does, on a processor."""
    if is_plain_gpt2(model):
        return decode_gpt2
    return decode_llama if is_plain_llama(model) else decode


def decode(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, new: int, next_token: NextToken
) -> Tensor:
    """Complete `tokens` by `new` tokens with any transformers model: (n, new)."""
    n = len(tokens)
    cache = DynamicCache(config=model.config)
    completion = []
    with written_once(model, n):
        for _ in range(new):
            at = positions(mask)[:, -tokens.shape[1] :]
            logits = model(
                tokens,
                attention_mask=mask.long(),
                position_ids=at,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits
            tokens = next_token(logits[:, -1])
            completion.append(tokens)
            mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
    return torch.cat(completion, 1)


def decode_gpt2(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, new: int, next_token: NextToken
) -> Tensor:
    """`decode` for GPT-2, whose many small calls per token cost transformers more than the
    arithmetic: same numbers, less between them.
    """
    body: Any = model.transformer
    heads, width = model.config.n_head, model.config.n_embd
    n, prompt = tokens.shape
    dtype, device = machine.dtype_here(tokens.device), tokens.device

    blocks = []
    for block in body.h:
        # keys and values
        cache = torch.empty(2, n, heads, prompt + new, width // heads, dtype=dtype, device=device)
        layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        dense = [of_layer(layer, n) for layer in layers]
        blocks.append((block.ln_1.forward, block.ln_2.forward, block.mlp.act, cache, *dense))
    last, of_token, of_place = body.ln_f.forward, body.wte.weight, body.wpe.weight
    head = of_layer(model.lm_head, n)

    def next_logits(ids: Tensor, at: Tensor, start: int, hidden: Tensor) -> Tensor:
        end = start + ids.shape[1]
        x = of_token[ids.flatten()] + of_place[at.flatten()]
        for ln_1, ln_2, act, cache, c_attn, attn_proj, c_fc, mlp_proj in blocks:
            qkv = c_attn(ln_1(x)).view(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            cache.narrow(3, start, end - start).copy_(qkv.narrow(0, 1, 2))
            keys, values = cache.narrow(3, 0, end).unbind(0)
            a = F.scaled_dot_product_attention(qkv.select(0, 0), keys, values, hidden)
            x = x + attn_proj(a.transpose(1, 2).reshape(-1, width))
            x = x + mlp_proj(act(c_fc(ln_2(x))))
        return head(last(x.view(n, -1, width)[:, -1]))

    return _token_by_token(next_logits, tokens, mask, new, next_token, dtype)


def decode_llama(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, new: int, next_token: NextToken
) -> Tensor:
    """`decode` for a Llama. What is multiplied by one input is multiplied at once, and heads that
    share keys read them together.
    """
    body, c = model.model, model.config
    heads, shared = c.num_attention_heads, c.num_key_value_heads
    n, prompt = tokens.shape
    dtype, device = machine.dtype_here(tokens.device), tokens.device

    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, c.rms_norm_eps)

    blocks = []
    for block in body.layers:
        attn, mlp = block.self_attn, block.mlp
        # keys and values
        cache = torch.empty(2, n, shared, prompt + new, attn.head_dim, dtype=dtype, device=device)
        layers = (
            joined(attn.q_proj, attn.k_proj, attn.v_proj),
            attn.o_proj,
            joined(mlp.gate_proj, mlp.up_proj),
            mlp.down_proj,
        )
        dense = [of_layer(layer, n) for layer in layers]
        norms = block.input_layernorm.weight, block.post_attention_layernorm.weight
        blocks.append((*norms, cache, *dense))
    of_token, head = body.embed_tokens.weight, of_layer(model.lm_head, n)

    def next_logits(ids: Tensor, at: Tensor, start: int, hidden: Tensor) -> Tensor:
        q, end = ids.shape[1], start + ids.shape[1]
        x = of_token[ids.flatten()]
        cos, sin = (t[:, :, None] for t in body.rotary_emb(x, at))  # (n, q, 1, size)
        hidden = hidden.expand(-1, heads // shared, -1, -1).reshape(n, 1, -1, end)
        for norm_1, norm_2, cache, qkv_proj, o_proj, gate_up, down in blocks:
            qkv = qkv_proj(rms_norm(x, norm_1)).view(n, q, heads + 2 * shared, -1)
            qk, v = qkv.split((heads + shared, shared), 2)
            queries, k = (qk * cos + rotate_half(qk) * sin).split((heads, shared), 2)
            for kept, fresh in zip(cache, (k, v), strict=True):
                kept.narrow(2, start, q).copy_(fresh.transpose(1, 2))
            keys, values = cache.narrow(3, 0, end).unbind(0)
            queries = queries.to(dtype).transpose(1, 2).reshape(n, shared, -1, keys.shape[-1])
            a = F.scaled_dot_product_attention(queries, keys, values, hidden)
            x = x + o_proj(a.reshape(n, heads, q, -1).transpose(1, 2).reshape(n * q, -1))
            gate, up = gate_up(rms_norm(x, norm_2)).chunk(2, 1)
            x = x + down(F.silu(gate) * up)
        return head(rms_norm(x.view(n, q, -1)[:, -1], body.norm.weight))

    return _token_by_token(next_logits, tokens, mask, new, next_token, dtype)


def _token_by_token(
    next_logits: NextLogits,
    tokens: Tensor,
    mask: Tensor,
    new: int,
    next_token: NextToken,
    dtype: torch.dtype,
) -> Tensor:
    """Complete `tokens` by `new` tokens: (n, new). Padding, and what is later, are hidden from
    attention, whose scores are of this dtype.
    """
    n, prompt = tokens.shape
    device = tokens.device
    least = torch.finfo(dtype).min  # not −∞: what padding sees, nothing, would be no number
    hidden_by = torch.zeros(n, 1, 1, prompt + new, dtype=dtype, device=device)
    hidden_by[:, 0, 0, :prompt].masked_fill_(~mask, least)
    later = torch.full((prompt, prompt), least, dtype=dtype, device=device).triu(1)

    with torch.autocast(device.type, enabled=False):
        at = positions(mask)
        completion = [
            next_token(next_logits(tokens, at, 0, torch.minimum(hidden_by[..., :prompt], later)))
        ]
        for s in range(prompt, prompt + new - 1):
            at = at[:, -1:] + 1
            completion.append(
                next_token(next_logits(completion[-1], at, s, hidden_by[..., : s + 1]))
            )
    return torch.cat(completion, 1)


def joined(*layers: nn.Linear) -> nn.Linear:
    """Layers without a bias that are given the same input, as one."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    with torch.device("meta"):
        whole = nn.Linear(weight.shape[1], len(weight), bias=False)
    whole.weight = nn.Parameter(weight, requires_grad=False)
    return whole


def is_plain_gpt2(model: PreTrainedModel) -> bool:
    c = model.config
    return (
        c.model_type == "gpt2"
        and c.scale_attn_weights
        and not (c.scale_attn_by_inverse_layer_idx or c.reorder_and_upcast_attn)
    )


def is_plain_llama(model: PreTrainedModel) -> bool:
    c = model.config
    return (
        c.model_type == "llama" and c.hidden_act == "silu" and not (c.attention_bias or c.mlp_bias)
    )
