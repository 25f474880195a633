"""Dense layers by the compiler's operations and the attention that trains the reward model, against torch's and transformers' own."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, LlamaConfig, LlamaModel
from transformers.pytorch_utils import Conv1D

from warp_lib import attention, machine
from warp_lib.dense import Dense, affine, write_bias_once

in_hardware = pytest.mark.skipif(not machine.bfloat16_by(), reason="used where the processor multiplies bfloat16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_affine_is_the_plain_product(dtype, monkeypatch):
    """In float64 as the oracle, with the weights laid out anew and without. Guards: a transposed weight, a forgotten bias."""
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((40, 70), (70,), (64, 40)))
    exact = x.double() @ weight.double() + bias.double()
    for available in (True, False):
        monkeypatch.setattr(torch.ops, "mkldnn", torch.ops.mkldnn if available else object())
        got = affine(weight, bias, 64)
        for rows in (x, x[:3]):  # the number of rows it was laid out for, and another
            error = (got(rows).double() - exact[: len(rows)]).abs().max()
            assert error < (0.1 if dtype == torch.bfloat16 else 1e-4) and got(rows).dtype == dtype


def stack() -> nn.Sequential:
    """Layers of both kinds, a nonlinearity between; their biases are not 0."""
    torch.manual_seed(0)
    layers = nn.Sequential(Conv1D(70, 40), nn.GELU(), nn.Linear(70, 30), nn.GELU(), nn.Linear(30, 20, bias=False))
    nn.init.normal_(layers[0].bias)
    return layers


def passes(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, and gradients of the input and of all weights, under autocast to `dtype`."""
    x = torch.randn(2, 9, 40, generator=torch.manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(x)
    weights = torch.randn(out.shape, generator=torch.manual_seed(2))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])]


@in_hardware
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_bias_written_once_gives_torchs_numbers(dtype, monkeypatch):
    """Forward and gradients. Guards: a transposed weight, a forgotten bias, a gradient that is not there or not laid out as its weight."""
    plain, changed = stack(), stack()
    write_bias_once(changed)
    calls = []
    monkeypatch.setattr(Dense, "forward", lambda *given, usual=Dense.forward: calls.append(1) or usual(*given))
    got = passes(changed, dtype)
    assert len(calls) == (2 if dtype == torch.bfloat16 else 0)
    for one, expected in zip(got, passes(plain, dtype), strict=True):
        torch.testing.assert_close(one, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
        assert one.dtype == expected.dtype and one.stride() == expected.stride()


@in_hardware
def test_a_copy_multiplies_by_its_own_weights():
    """Guards: a layer of a copied model that still calls the first one's; a layer with a forward of its own, which loses it."""
    first = stack()
    first[2].forward = partial(torch.mul, 2.0)
    write_bias_once(first)
    copied = copy.deepcopy(first)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        copied[0].bias.add_(1.0)
        x = torch.zeros(1, 40)
        assert torch.equal(first[0](x).float(), first[0].bias.bfloat16().float()[None]) and not torch.equal(first[0](x), copied[0](x))
        assert torch.equal(first[2](x), 2 * x)


ENCODERS = {
    "bert": lambda: BertModel(BertConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=20, dim=16, n_heads=2, n_layers=2, hidden_dim=32)),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("padded", [True, False])
def test_attention_is_transformers_eager_one(kind, padded, float32):
    """Hidden states and gradients in float32. Guards: scores unscaled or scaled twice, padding attended to, heads mixed."""
    torch.manual_seed(0)
    eager = ENCODERS[kind]().eval()
    for p in eager.parameters():
        nn.init.normal_(p, std=0.5)
    ours = copy.deepcopy(eager)
    eager.set_attn_implementation("eager")
    attention.use(ours)
    assert ours.config._attn_implementation == attention.NAME
    tokens = torch.randint(20, (3, 7))
    mask = torch.ones_like(tokens)
    if padded:
        mask[0, 4:] = 0
    found = []
    for model in (ours, eager):
        hidden = model(tokens, attention_mask=mask).last_hidden_state[mask.bool()]
        found.append([hidden, *torch.autograd.grad(hidden.square().sum(), [p for n, p in model.named_parameters() if "pooler" not in n])])
    for one, expected in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-4 * max(1.0, expected.abs().max().item()), rtol=0)


def test_attention_in_bfloat16_sees_no_padding():
    """Guards: a mask whose least number bfloat16 rounds to −∞, so that a row of padding alone is no number."""
    q, k, v = (torch.randn(1, 2, 3, 4, generator=torch.manual_seed(n)).bfloat16() for n in range(3))
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 0, :] = mask[..., :, 2] = torch.finfo(torch.float32).min
    out, _ = attention.attention(nn.Module(), q, k, v, mask, 0.5)
    assert out.isfinite().all()
    weights = (0.5 * q.float() @ k.float().mT)[..., 1:, :2].softmax(-1)
    torch.testing.assert_close(out[:, 1:].float(), (weights @ v[..., :2, :].float()).transpose(1, 2), atol=0.03, rtol=0)


def test_attention_is_only_for_models_whose_own_is_the_plain_one():
    """Guards: fewer keys than queries, as Llama may have."""
    llama = LlamaModel(LlamaConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32))
    before = llama.config._attn_implementation
    attention.use(llama)
    assert llama.config._attn_implementation == before != attention.NAME
