"""On a GPU: work of one shape that is asked for again and again, captured as a graph once and then
replayed.

A forward is hundreds of small kernels, and asking for them one by one takes longer than they do.
What is captured here is transformers' own forward and backward; only a Llama's single token is
written out, and its blocks are compiled.
"""

import copy
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.models.llama.modeling_llama import rotate_half
from transformers.pytorch_utils import Conv1D

from . import machine
from .decoding import NextToken, is_plain_llama, positions
from .dense import in_parts, plain_forward, repeated

WARM_UPS = 2  # of what is captured, before it is
MOVING = ("dynamic", "longrope")  # angles that are made anew when a text grows long


def can_capture(model: PreTrainedModel) -> bool:
    """Whether there is a GPU, and the model always asks it for the same: its cache holds all
    tokens, its code follows no numbers.
    """
    if machine.device().type != "cuda" or not model._can_compile_fullgraph:
        return False
    rope = getattr(model.config, "rope_parameters", None) or {}
    return rope.get("rope_type") not in MOVING and all(
        type(layer) is StaticLayer for layer in StaticCache(model.config, 1).layers
    )


def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run` as a graph: when called, the same kernels work on the same memory, and the same tensor
    is filled anew.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside), keeping_no_casts():
        for _ in range(WARM_UPS):  # libraries set themselves up
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), keeping_no_casts():
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    # and with it the tensors that the graph works on: it does not keep their memory from others
    replay.run = run
    return replay


def keeping_no_casts() -> torch.autocast:
    """The autocast there is, without its memory of weights that it has cast: a graph would go on
    reading them after they are freed.
    """
    kind = machine.device().type
    return torch.autocast(
        kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
    )


# Sampling


class Completion:
    """`decode` for batches of one shape: (tokens, mask, next_token) → completions (n, new).

    Args:
        model: its weights may change in place between two calls.
        n, prompt, new: rows, tokens of their prompts with padding, tokens to complete them by.
    """

    def __init__(self, model: PreTrainedModel, n: int, prompt: int, new: int):
        self.prompt, self.new = prompt, new
        # attention copies masks of other lengths
        longest = -(-(prompt + max(new, WARM_UPS)) // 8) * 8
        self.model, self.refresh = in_few_bits(model)
        self.layers = [NarrowLayer(longest) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=[*self.layers])
        self.tokens = torch.zeros(n, prompt, dtype=torch.long, device=model.device)
        self.token, self.position = (
            torch.zeros(n, 1, dtype=torch.long, device=model.device) for _ in range(2)
        )
        # of what is to come; the future is hidden besides
        self.mask = torch.ones(n, longest, dtype=torch.long, device=model.device)
        go_on = llama_token(self) if is_plain_llama(model) else self._go_on
        self.begin = captured(self._begin)
        self.go_on = captured(go_on)

    def _begin(self) -> Tensor:
        """The prompts into the cache, and the logits after them: (n, vocabulary)."""
        for layer in self.layers:
            layer.cumulative_length.zero_()
        at = positions(self.mask[:, : self.prompt])
        return self.model(
            self.tokens,
            attention_mask=self.mask,
            position_ids=at,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits[:, -1]

    def _go_on(self) -> Tensor:
        """One more token each, and the logits after it: (n, vocabulary)."""
        logits = self.model(
            self.token,
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits[:, -1]
        self.position += 1
        return logits

    def __call__(self, tokens: Tensor, mask: Tensor, next_token: NextToken) -> Tensor:
        self.refresh()
        self.tokens.copy_(tokens)
        self.mask[:, : self.prompt] = mask
        completion = [next_token(self.begin())]
        self.position.copy_(mask.sum(1, keepdim=True))
        for _ in range(1, self.new):
            self.token.copy_(completion[-1])
            completion.append(next_token(self.go_on()))
        return torch.cat(completion, 1)


class NarrowLayer(StaticLayer):
    """Keys and values of a layer in autocast's dtype, to which attention rounds them anyway;
    rotated keys come in float32.
    """

    cumulative_length: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, longest: int):
        super().__init__(longest)
        self.kept = machine.dtype_here(machine.device())

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        return super().update(key_states.to(self.kept), value_states.to(self.kept), *args, **kwargs)


def in_few_bits(model: PreTrainedModel) -> tuple[PreTrainedModel, Callable[[], None]]:
    """A copy that multiplies by weights in autocast's dtype, in `machine.parts` (see `dense`), and
    shares all else with the model; and what writes these weights anew from the model's."""
    dtype, parts = machine.dtype_here(model.device), machine.parts()
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    # each: the copy's, the model's, and along which dimension the parts lie
    weights, biases = [], []
    for module in twin.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            dim, wide = int(isinstance(module, nn.Linear)), module.weight.detach()
            module.weight = nn.Parameter(
                in_parts(wide, parts, dim, dtype).clone(), requires_grad=False
            )
            weights.append((module.weight, wide, dim))
            if module.bias is not None:
                wide = module.bias.detach()
                module.bias = nn.Parameter(wide.to(dtype, copy=True), requires_grad=False)
                biases.append((module.bias, wide))
            vars(module)["forward"] = partial(_of_parts, module, parts)

    def refresh() -> None:
        rest = [wide for _, wide, _ in weights]
        for part in range(parts):  # the copy's weights may have moved since
            narrow = [
                weight.narrow(dim, part * wide.shape[dim], wide.shape[dim])
                for weight, wide, dim in weights
            ]
            torch._foreach_copy_(narrow, rest)  # pyright: ignore[reportPrivateImportUsage]
            if part + 1 < parts:
                rounded = [some.float() for some in narrow]
                rest = torch._foreach_sub(rest, rounded)  # pyright: ignore[reportPrivateImportUsage]
        for bias, wide in biases:
            bias.copy_(wide)

    return twin, refresh


def _of_parts(layer: nn.Linear | Conv1D, parts: int, x: Tensor) -> Tensor:
    return plain_forward(layer, repeated(x, parts, layer.weight.dtype))


def llama_token(completion: Completion) -> Callable[[], Tensor]:
    """`_go_on` for a Llama: what is multiplied by one input is multiplied at once, and blocks are
    compiled.
    """
    model, layers = completion.model, completion.layers
    mask, position = completion.mask, completion.position
    body, c, dtype = model.model, model.config, machine.dtype_here(model.device)
    heads_of_a_key = c.num_attention_heads // c.num_key_value_heads
    columns = torch.arange(mask.shape[1], device=mask.device)
    weights = [
        (
            block.input_layernorm.weight,
            joined(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
            block.self_attn.o_proj.weight,
            block.post_attention_layernorm.weight,
            joined(block.mlp.gate_proj, block.mlp.up_proj),
            block.mlp.down_proj.weight,
        )
        for block in body.layers
    ]
    block = compiled(llama_block)

    def token() -> Tensor:
        at = layers[0].cumulative_length
        seen = (mask.bool() & (columns <= at))[:, None, None]
        hidden_by = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)
        hidden_by = hidden_by.expand(-1, c.num_key_value_heads, heads_of_a_key, -1)
        x = body.embed_tokens.weight[completion.token[:, 0]]
        cos, sin = body.rotary_emb(x[:, None], position)
        for layer, kept in zip(weights, layers, strict=True):
            x = block(
                x, cos, sin, at[None], hidden_by, kept.keys, kept.values, *layer, c.rms_norm_eps
            )
        at += 1
        position.add_(1)
        return model.lm_head(F.rms_norm(x, x.shape[1:], body.norm.weight, c.rms_norm_eps))

    def without_autocast() -> Tensor:
        with torch.autocast(mask.device.type, enabled=False):
            return token()

    return without_autocast


def llama_block(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    at: Tensor,
    hidden_by: Tensor,
    keys: Tensor,
    values: Tensor,
    norm_1: Tensor,
    q_k_v: Tensor,
    o: Tensor,
    norm_2: Tensor,
    gate_up: Tensor,
    down: Tensor,
    eps: float,
) -> Tensor:
    """A Llama's block for one token in each row, x (n, width) ↦ (n, width); heads that share keys
    read them together.

    Args:
        cos, sin: (n, 1, size) of the token's place.
        at: (1,) where the token stands in the cache; it is written there.
        hidden_by: (n, shared, heads / shared, longest) 0, or −∞ where nothing is to be seen.
        keys, values: (n, shared, longest, size) of the cache.
        norm_1 … down: the block's weights, (out, parts · in).
    """
    n, shared, _, size = keys.shape
    parts, dtype = q_k_v.shape[1] // x.shape[1], keys.dtype
    heads = o.shape[1] // (parts * size)

    def product(y: Tensor, weight: Tensor) -> Tensor:
        return F.linear(repeated(y, parts, dtype), weight)

    qkv = product(F.rms_norm(x, norm_1.shape, norm_1, eps), q_k_v).view(n, heads + 2 * shared, size)
    qk, v = qkv.split((heads + shared, shared), 1)
    q, k = (qk * cos + rotate_half(qk) * sin).to(dtype).split((heads, shared), 1)
    keys.index_copy_(2, at, k[:, :, None])
    values.index_copy_(2, at, v[:, :, None])
    a = F.scaled_dot_product_attention(
        q.reshape(n, shared, heads // shared, size), keys, values, hidden_by
    )
    x = x + product(a.reshape(n, heads * size), o)
    gate, up = product(F.rms_norm(x, norm_2.shape, norm_2, eps), gate_up).chunk(2, 1)
    return x + product(F.silu(gate) * up, down)


def joined(*products: nn.Linear) -> Tensor:
    """The weights of products as one, whose parts they are from now on."""
    whole = torch.cat([product.weight.data for product in products])
    for product, part in zip(
        products, whole.split([product.out_features for product in products]), strict=True
    ):
        product.weight.data = part
    return whole


@lru_cache
def compiled(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`run` by torch's compiler; as it is where that fails, as it does without Triton or a C
    compiler.

    It is compiled for each new shape, and so rounds the same whatever came before; after eight of
    them in a process torch runs others as they are, and its log says so.
    """
    fast: Callable[..., Tensor] | None = None  # `run` itself once that has failed

    def attempt(*arguments) -> Tensor:
        nonlocal fast
        if fast is not run:
            try:
                fast = fast or torch.compile(run, dynamic=False)
                return fast(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                fast = run
                # torch's own names the backend only
                error = getattr(error, "inner_exception", error)
                why = (str(error).strip() or repr(error)).splitlines()[0]
                warnings.warn(
                    f"Sampling is slower than it could be, for torch.compile fails here: {why}",
                    stacklevel=2,
                )
        return run(*arguments)

    return attempt


# Scoring


class LogProbs(nn.Module):
    """What a policy's `log_probs` computes, as a module of tensors: ((n, prompt + new) tokens,
    mask) → (n, new).
    """

    def __init__(self, model: PreTrainedModel, log_probs: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.log_probs = model, log_probs

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.log_probs(tokens, mask)


def scoring(
    model: PreTrainedModel,
    log_probs: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    mask: Tensor,
) -> Callable[[Tensor, Tensor], Tensor]:
    """`log_probs` for batches of the shape of (tokens, mask), and with its backward if gradients
    are on.

    The model's weights may change in place between two calls. A call's backward comes before the
    next call, and gradients, which are memory of the graph, are cleared between them.
    """
    tokens, mask = tokens.clone(), mask.clone()
    with keeping_no_casts():
        if torch.is_grad_enabled():
            # capturing has a stream of its own
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            replay: Any = torch.cuda.make_graphed_callables(
                LogProbs(model, log_probs), (tokens, mask), allow_unused_input=True
            )
            return lambda tokens, mask: replay(tokens, mask).clone()
        run = captured(lambda: log_probs(tokens, mask))

    def score(*batch: Tensor) -> Tensor:
        tokens.copy_(batch[0])
        mask.copy_(batch[1])
        return run().clone()

    return score
