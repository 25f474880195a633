"""Dense layers by the compiler's operations and the attention that trains the reward model, against
torch's and transformers' own.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
)
from transformers.pytorch_utils import Conv1D

from warp_lib.fast import attention, machine
from warp_lib.fast.dense import Dense, affine, in_parts, multiply_in_parts, written_once

in_hardware = pytest.mark.skipif(
    not machine.bfloat16_by(), reason="used where the processor multiplies bfloat16"
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_affine_is_the_plain_product(dtype, monkeypatch):
    """In float64 as the oracle, with the weights laid out anew and without. Guards: a transposed
    weight, a forgotten bias.
    """
    draw = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(*shape, generator=draw).to(dtype) for shape in ((40, 70), (70,), (64, 40))
    )
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
    layers = nn.Sequential(
        Conv1D(70, 40), nn.GELU(), nn.Linear(70, 30), nn.GELU(), nn.Linear(30, 20, bias=False)
    )
    nn.init.normal_(layers[0].bias)
    return layers


def passes(model: nn.Module, precision: str) -> list[torch.Tensor]:
    """Output, and gradients of the input and of all weights."""
    x = torch.randn(2, 9, 40, generator=torch.manual_seed(1)).requires_grad_()
    with machine.passes(precision):
        out = model(x)
    weights = torch.randn(out.shape, generator=torch.manual_seed(2))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *model.parameters()])]


@in_hardware
@pytest.mark.parametrize("precision", machine.PRECISIONS)
def test_layers_give_torchs_numbers(precision, monkeypatch):
    """Forward and gradients. Guards: a transposed weight, a forgotten bias, a gradient that is not
    there or not laid out as its weight.
    """
    plain, changed = stack(), stack()
    multiply_in_parts(changed)
    calls = []
    monkeypatch.setattr(
        Dense,
        "forward",
        lambda *given, usual=Dense.forward: calls.append(given[-2]) or usual(*given),
    )
    got = passes(changed, precision)
    assert calls == [machine.PRECISIONS[precision]] * (0 if precision == "float32" else 3)
    for one, expected in zip(got, passes(plain, precision), strict=True):
        torch.testing.assert_close(one, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
        assert one.dtype == expected.dtype and one.stride() == expected.stride()


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Compute in bfloat16 whatever the machine is fast at."""
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)


def test_two_parts_keep_a_weight_and_the_smallest_change_of_it():
    """Guards: a second part of the weight and not of what the first leaves; parts that are added in
    bfloat16.
    """
    weight = torch.randn(50, 60, generator=torch.manual_seed(0))
    one, two = in_parts(weight, 1, 0), in_parts(weight, 2, 0).view(2, 50, 60).double().sum(0)
    assert torch.equal(one, weight.bfloat16())
    assert ((two - weight).abs() <= weight.abs() * 2**-16).all() and (
        (one - weight).abs() > weight.abs() * 2**-12
    ).float().mean() > 0.5
    before = weight.bfloat16().float()  # as the bundled policy's are
    for step in (1e-3, 1e-5, 1e-6):
        change = (before + step * weight.sign()) - before  # what float32 keeps of it
        seen = in_parts(before + change, 2, 1).unflatten(1, (2, 60)).double().sum(1) - before
        assert ((seen - change).abs() <= change.abs() * 2**-7).all()


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("available", [True, False])
def test_a_product_in_two_parts_is_the_float32_weights(conv, available, narrow, monkeypatch):
    """What x @ (W + δ) adds to x @ W, with δ below bfloat16's spacing, against float64. Guards:
    rounded weights, a second part that is multiplied by other inputs, or added after the first was
    rounded; parts along the wrong side."""
    if not available:
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    draw = torch.manual_seed(0)
    layer = Conv1D(30, 40) if conv else nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.bfloat16())
        change = 3e-4 * layer.weight.abs() * torch.randn(layer.weight.shape, generator=draw)
        multiply_in_parts(layer)
        x = torch.randn(200, 40, generator=draw).bfloat16()
        wide = (
            (lambda w: x.double() @ w.double()) if conv else (lambda w: x.double() @ w.double().T)
        )
        found = {}
        for precision in ("split", "bfloat16"):
            with machine.passes(precision):
                before = layer(x).double()
                layer.weight.add_(change)
                after = layer(x).double()
                layer.weight.sub_(change)
            of_change = wide(change)
            # Outputs are rounded, so single differences are too; their regression on the exact ones
            # is not.
            found[precision] = ((after - before) * of_change).sum() / of_change.square().sum()
    assert abs(found["split"] - 1) < 0.1 and abs(found["bfloat16"]) < 0.3


def test_what_is_written_once_is_what_is_written_anew(narrow):
    """Guards: other parts, a bias forgotten, weights that stay laid out when they have changed."""
    layers = stack()
    multiply_in_parts(layers)
    x = torch.randn(5, 40, generator=torch.manual_seed(1))
    with torch.no_grad(), machine.passes("split"):
        anew = layers(x)
        with written_once(layers, 5):
            torch.testing.assert_close(layers(x), anew, atol=0.02, rtol=0)
            layers[0].bias.add_(1.0)
            torch.testing.assert_close(layers(x), anew, atol=0.02, rtol=0)
        assert (layers(x) - anew).abs().max() > 0.1


@in_hardware
def test_a_copy_multiplies_by_its_own_weights():
    """Guards: a layer of a copied model that still calls the first one's; a layer with a forward of
    its own, which loses it.
    """
    first = stack()
    first[2].forward = partial(torch.mul, 2.0)
    multiply_in_parts(first)
    copied = copy.deepcopy(first)
    with torch.no_grad(), machine.passes("split"):
        copied[0].bias.add_(1.0)
        x = torch.zeros(1, 40)
        assert torch.equal(
            first[0](x).float(), first[0].bias.bfloat16().float()[None]
        ) and not torch.equal(first[0](x), copied[0](x))
        assert torch.equal(first[2](x), 2 * x)


ENCODERS = {
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            intermediate_size=32,
        )
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=20, dim=16, n_heads=2, n_layers=2, hidden_dim=32)
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("padded", [True, False])
def test_attention_is_transformers_eager_one(kind, padded, float32):
    """Hidden states and gradients in float32. Guards: scores unscaled or scaled twice, padding
    attended to, heads mixed.
    """
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
        found.append(
            [
                hidden,
                *torch.autograd.grad(
                    hidden.square().sum(),
                    [p for n, p in model.named_parameters() if "pooler" not in n],
                ),
            ]
        )
    for one, expected in zip(*found, strict=True):
        torch.testing.assert_close(
            one, expected, atol=1e-4 * max(1.0, expected.abs().max().item()), rtol=0
        )


def test_attention_in_bfloat16_sees_no_padding():
    """Guards: a mask whose least number bfloat16 rounds to −∞, so that a row of padding alone is no
    number.
    """
    q, k, v = (torch.randn(1, 2, 3, 4, generator=torch.manual_seed(n)).bfloat16() for n in range(3))
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 0, :] = mask[..., :, 2] = torch.finfo(torch.float32).min
    out, _ = attention.attention(nn.Module(), q, k, v, mask, 0.5)
    assert out.isfinite().all()
    weights = (0.5 * q.float() @ k.float().mT)[..., 1:, :2].softmax(-1)
    torch.testing.assert_close(
        out[:, 1:].float(), (weights @ v[..., :2, :].float()).transpose(1, 2), atol=0.03, rtol=0
    )


def test_attention_is_only_for_models_whose_own_is_the_plain_one():
    """Guards: fewer keys than queries, as Llama may have."""
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=32,
        )
    )
    before = llama.config._attn_implementation
    attention.use(llama)
    assert llama.config._attn_implementation == before != attention.NAME
