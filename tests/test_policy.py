"""Sampling and scoring against transformers' own forward and generate, and against exact
distributions.
"""

import copy
import gc
import warnings
import weakref
from contextlib import nullcontext
from functools import partial
from itertools import product
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import (
    END,
    every_completion,
    padded,
    plain_log_probs,
    plain_logits,
    tiny_policy,
    token_ids,
)
from scipy.stats import chisquare
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import warp_lib.fast.log_probs
import warp_lib.policy
from warp_lib.evaluate import exact_kl, language_loss
from warp_lib.fast import cuda_graphs, machine
from warp_lib.fast.decoding import decode, is_plain_gpt2, sample_token
from warp_lib.fast.log_probs import MASKED, ChosenLogProbs, masked
from warp_lib.policy import Policy, Rollouts
from warp_lib.prompts import PROMPT_TOKENS
from warp_lib.runs.seeds import torch_stream
from warp_lib.study.units import kl_of_pass
from warp_lib.tools.task_vectors import committed

PROMPTS = [[5, 2, 7, 1, 9], [4], [8, 8, 0], [6, 11, 10, 2, 1, 5, 7]]
NEW, TAU = 6, 0.7
# An architecture, and what samples it. Captured is what a GPU does; elsewhere these tests do the
# same without a graph.
SAMPLERS = [
    ("gpt2", "decode_gpt2"),
    ("gpt2", "decode"),
    ("llama", "decode_llama"),
    ("llama", "decode"),
    ("gpt2", "captured"),
    ("llama", "captured"),
]
samplers = pytest.mark.parametrize(
    ("kind", "sampler"), SAMPLERS, ids=["-".join(pair) for pair in SAMPLERS]
)
kinds = pytest.mark.parametrize("kind", ["gpt2", "llama"])


def policy_of(kind: str, sampler: str, monkeypatch, **options) -> Policy:
    monkeypatch.setattr(cuda_graphs, "can_capture", lambda model: sampler == "captured")
    if machine.device().type == "cpu":
        monkeypatch.setattr(cuda_graphs, "captured", into_one_tensor)
        monkeypatch.setattr(cuda_graphs, "compiled", lambda run: run)
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", one_backward_each)
    if sampler == "decode":
        monkeypatch.setattr(warp_lib.policy, "decoder_of", lambda model: decode)
    policy = tiny_policy(kind, **options)
    assert sampler == "captured" or warp_lib.policy.decoder_of(policy.model).__name__ == sampler
    return policy


def stream(*role):
    return torch_stream(*role, device=machine.device())


def spy_on_draw(monkeypatch, pick=sample_token) -> list[torch.Tensor]:
    """The logits that `sample_token` was given, a tensor each step; `pick` draws in its place."""
    seen = []
    monkeypatch.setattr(
        warp_lib.policy,
        "sample_token",
        lambda logits, generator: seen.append(logits.clone()) or pick(logits, generator),
    )
    return seen


def into_one_tensor(run):
    """What a graph does with its result."""
    result = run()
    return lambda: result.copy_(run())


def one_backward_each(module, *_, **__):
    """What a graph with a backward asks for: that it comes before the next call."""
    waiting = []

    def call(*given):
        assert not waiting
        result = module(*given)
        waiting.append(result.register_hook(lambda _: waiting.clear()))
        return result

    return call


def sequences(rollouts: Rollouts) -> list[list[int]]:
    return [
        tokens[mask].tolist() for tokens, mask in zip(rollouts.tokens, rollouts.mask, strict=True)
    ]


def fits(counts, probabilities) -> bool:
    """Whether counts come from these probabilities (chi-square; the cells that expect less than 5
    are taken as one).
    """
    counts, p = torch.as_tensor(counts).double(), torch.as_tensor(probabilities).double()
    rare = p * counts.sum() < 5
    counts, p = (torch.cat([t[~rare], t[rare].sum()[None]]) for t in (counts, p))
    kept = p > 0
    return (
        counts[~kept].sum() == 0
        and chisquare(counts[kept], p[kept] * counts.sum(), sum_check=False).pvalue > 1e-3
    )


# Scoring


@kinds
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@torch.no_grad()
def test_log_probs_are_those_of_the_plain_forward(kind, temperature):
    """Guards: sums over the vocabulary, a shift by one token, τ missing, EOS unmasked, padding
    attended to, positions from the padding.
    """
    policy = tiny_policy(kind)
    completions = [
        torch.randint(END + 1, 12, (NEW,), generator=torch.manual_seed(n)).tolist()
        for n in range(len(PROMPTS))
    ]
    expected = torch.stack(
        [
            plain_log_probs(policy, p + c, NEW, temperature)
            for p, c in zip(PROMPTS, completions, strict=True)
        ]
    )
    for wider in (0, 3):
        y = padded(PROMPTS, completions, wider)
        torch.testing.assert_close(policy.log_probs(y, temperature), expected, atol=1e-5, rtol=0)
        distribution = policy.log_distribution(policy.logits(y), temperature)
        torch.testing.assert_close(
            distribution.gather(-1, y.completions[..., None])[..., 0], expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [1, 100, 2**19])
def test_chosen_log_probs_and_their_gradient_are_those_of_cross_entropy(dtype, cached, monkeypatch):
    """Guards: the hand-written gradient; rows lost or counted twice where the work is cut."""
    monkeypatch.setattr(warp_lib.fast.log_probs, "CACHED", cached)
    rows, words = 37, 12
    draw = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(rows, words, generator=draw)).to(dtype).requires_grad_()
    chosen = torch.randint(END + 1, words, (rows,), generator=draw)
    weights = torch.randn(rows, generator=draw)
    found = ChosenLogProbs.apply(logits * 1, chosen, TAU, [END])  # a copy, for it is written over
    (gradient,) = torch.autograd.grad(found @ weights, logits)
    expected = -torch.nn.functional.cross_entropy(
        masked(logits, TAU, [END]), chosen, reduction="none"
    )
    (expected_gradient,) = torch.autograd.grad(expected @ weights, logits)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        gradient, expected_gradient, atol=1e-5 if dtype == torch.float32 else 0.01, rtol=0.01
    )
    assert gradient.dtype == dtype and gradient[:, END].eq(0).all() and gradient.abs().max() > 0.5


def test_the_gradient_of_a_likely_token_is_there_in_bfloat16():
    """Guards: 1 − p of a probability that was rounded, which is several percent off, or 0."""
    logits = torch.tensor(
        [[0.0, 0.0, gap] for gap in (3.0, 5.0, 8.0)], dtype=torch.bfloat16, requires_grad=True
    )
    (gradient,) = torch.autograd.grad(
        ChosenLogProbs.apply(logits * 1, torch.tensor([2, 2, 2]), 1.0, []).sum(), logits
    )
    expected = 1 - logits.detach().double().softmax(-1)[:, 2]
    torch.testing.assert_close(gradient[:, 2].double(), expected, atol=0, rtol=2**-8)


def test_chosen_log_probs_keep_what_they_are_given():
    """Guards: logits written over where nobody asks for a gradient; a second backward that reads
    what the first one left.
    """
    logits = torch.randn(3, 12, generator=torch.manual_seed(0)).requires_grad_()
    plain = logits.detach().clone()
    ChosenLogProbs.apply(plain, torch.tensor([1, 2, 3]), TAU, [END])
    assert torch.equal(plain, logits)
    total = ChosenLogProbs.apply(logits * 1, torch.tensor([1, 2, 3]), TAU, [END]).sum()
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().sum() > 1


def test_a_gpt2_computes_what_transformers_computes():
    """Guards: an activation put in the place of another one."""
    tokens = torch.tensor([[5, 2, 7, 1, 9]])
    plain = GPT2LMHeadModel(
        GPT2Config(vocab_size=12, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    ).eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p))
        expected = plain(tokens).logits
        found = (
            Policy(copy.deepcopy(plain), tiny_policy().tokenizer)
            .model(tokens.to(machine.device()))
            .logits.cpu()
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_log_distribution_is_one_without_eos():
    """Guards: EOS with a probability, or with a nan in p·log p."""
    policy = tiny_policy(ends=[END, 7])
    p = (
        log_p := policy.log_distribution(policy.logits(padded(PROMPTS, [[1] * NEW] * 4)), TAU)
    ).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    # whose exponentials no float32 holds
    far = 300 * torch.randn(5, 12, generator=torch.manual_seed(0)).to(machine.device())
    torch.testing.assert_close(
        policy.log_distribution(far, TAU), masked(far, TAU, [END, 7]).log_softmax(-1)
    )
    assert (
        (p[..., [END, 7]] == 0).all()
        and ((p * log_p)[..., [END, 7]] == 0).all()
        and (p.sum((0, 1)) > 0).sum() == 10
    )


def test_several_eos_tokens_are_all_masked():
    """Guards: a model with a list of EOS ids masked at one of them only."""
    policy = tiny_policy(ends=[7, 5])
    assert policy.eos_ids == [END, 5, 7]  # the tokenizer's own too
    with torch.no_grad():
        expected = plain_log_probs(policy, [6, 2, 1, 1], 2, TAU, ends=(END, 5, 7))
    torch.testing.assert_close(
        policy.log_probs(padded([[6, 2]], [[1, 1]]), TAU)[0], expected, atol=1e-5, rtol=0
    )
    assert not set(policy.sample([[1]] * 500, 4, 1.0, stream(0)).completions.unique().tolist()) & {
        END,
        5,
        7,
    }


def test_gradients_reach_every_weight_and_dropout_is_off():
    """Guards: scoring under no_grad or on a copy; GPT-2's dropout (0.1 in its config) left on."""
    policy, y = tiny_policy(), padded(PROMPTS, [[1] * NEW] * 4)
    policy.log_probs(y, TAU).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.model.parameters())
    assert policy.model.config.resid_pdrop > 0 and torch.equal(
        policy.log_probs(y, TAU), policy.log_probs(y, TAU)
    )


# Sampling against scoring


@samplers
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.2), ("split", 0.2)]
)
def test_the_sampler_draws_from_what_the_scorer_scores(
    kind, sampler, precision, tolerance, monkeypatch
):
    """Guards: τ, mask, padding, positions or cache in the sampler other than in the scorer: an
    off-policy gradient.

    The tolerance in bfloat16 is for decode_gpt2, which rounds elsewhere than the scorer: the
    largest of 12,000 differences was 0.08 nats, their standard deviation 0.011; on average there is
    none.
    """
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    policy, seen = policy_of(kind, sampler, monkeypatch), spy_on_draw(monkeypatch)
    with torch.no_grad(), machine.passes(precision):
        y = policy.sample(PROMPTS * 25, NEW, TAU, stream("s"))
        drawn = torch.stack(seen, 1).log_softmax(-1).gather(-1, y.completions[..., None])[..., 0]
        difference = drawn - policy.log_probs(y, TAU)
    assert difference.abs().max() < tolerance and difference.mean().abs() < tolerance / 50


@samplers
def test_sampled_log_probs_are_those_of_the_plain_forward(kind, sampler, monkeypatch, float32):
    """Guards: sampler and scorer wrong in the same way."""
    policy, seen = policy_of(kind, sampler, monkeypatch), spy_on_draw(monkeypatch)
    y = policy.sample(PROMPTS, NEW, TAU, stream("s"))
    with torch.no_grad():
        expected = torch.stack([plain_log_probs(policy, s, NEW, TAU) for s in sequences(y)])
    drawn = torch.stack(seen, 1).log_softmax(-1).gather(-1, y.completions[..., None])[..., 0]
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    assert [s[:-NEW] for s in sequences(y)] == PROMPTS and y.new == NEW


@samplers
def test_greedy_decoding_equals_generate(kind, sampler, monkeypatch, float32):
    """Guards: a cache or position error that only shows after some tokens, in rows with or without
    padding.
    """
    policy = policy_of(kind, sampler, monkeypatch)
    spy_on_draw(monkeypatch, lambda logits, _: logits.argmax(-1, keepdim=True))
    y = policy.sample(PROMPTS, 20, TAU, stream("unused"))
    prompt, mask = y.tokens[:, :-20], y.mask[:, :-20].long()
    generated = policy.model.generate(
        prompt,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=20,
        suppress_tokens=[END],
        eos_token_id=None,
        pad_token_id=END,
    )
    assert torch.equal(y.tokens, generated)
    assert len(y.completions.unique()) > 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"activation_function": "gelu_new"}),
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"activation_function": "relu"}),
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}}),
    ],
    ids=str,
)
def test_written_out_decoders_equal_decode(kind, options, monkeypatch, float32):
    """Guards: the fast decoders' own arithmetic, at every step and for every token of the
    vocabulary.
    """
    logits = []
    for sampler in (f"decode_{kind}", "decode"):
        with monkeypatch.context() as patch:
            policy = policy_of(kind, sampler, patch, **options)
            seen = spy_on_draw(patch)
            policy.sample(PROMPTS, 20, TAU, stream("s"))
        logits.append(torch.stack(seen, 1))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "option",
    [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}],
    ids=lambda option: next(iter(option)),
)
def test_decode_gpt2_is_not_used_for_its_variants(option):
    """Guards: the fast decoder, which computes plain GPT-2, run on a model that is not."""
    policy = tiny_policy()
    policy.model.config.update(option)
    assert not is_plain_gpt2(policy.model)


# What a GPU captures


@pytest.mark.parametrize("token", ["written out", "compiled", "transformers"])
def test_all_captured_tokens_of_a_llama_are_decode(token, monkeypatch, float32):
    """Guards: the arithmetic of `llama_token`, what its compilation loses (keys and values written
    in place, numbers taken for constants), and transformers' own token on a cache of fixed length,
    at every step for every token."""
    warnings.filterwarnings("error", message="Sampling is slower")
    for prompts in (PROMPTS, [*PROMPTS, [9, 1]]):  # another shape is compiled again
        logits = []
        for sampler in ("captured", "decode"):
            with monkeypatch.context() as patch:
                patch.setattr(cuda_graphs, "is_plain_llama", lambda model: token != "transformers")
                policy, seen = policy_of("llama", sampler, patch), spy_on_draw(patch)
                if token == "written out":
                    patch.setattr(cuda_graphs, "compiled", lambda run: run)
                # but for the kernels, which want a compiler for C++
                elif token == "compiled" and machine.device().type == "cpu":
                    patch.setattr(
                        cuda_graphs,
                        "compiled",
                        partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False),
                    )
                policy.sample(prompts, 20, TAU, stream("s"))
            logits.append(torch.stack(seen, 1))
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("where", ["when asked", "when called"])
def test_without_a_compiler_a_block_runs_as_it_is(where, monkeypatch):
    """Guards: sampling that fails, or tries to compile again for every token, where torch's
    compiler does not work.
    """
    fails = Mock(side_effect=RuntimeError("no C compiler\nand a long trace"))
    monkeypatch.setattr(
        torch, "compile", fails if where == "when asked" else lambda run, **_: fails
    )
    block = cuda_graphs.compiled(lambda x: x + 1)
    with pytest.warns(UserWarning, match="here: no C compiler$") as said:
        assert [block(1), block(2)] == [2, 3]
    assert len(said) == fails.call_count == 1


def test_why_a_compiler_failed(monkeypatch):
    """Guards: torch's wrapper around the reason told in its place; a GPU that is full taken for a
    missing compiler.
    """
    wrapped = RuntimeError("backend='inductor' raised:")
    wrapped.inner_exception = KeyError()
    for error, said in (
        (wrapped, r"here: KeyError\(\)$"),
        (RuntimeError(), r"here: RuntimeError\(\)$"),
    ):
        monkeypatch.setattr(torch, "compile", Mock(side_effect=error))
        with pytest.warns(UserWarning, match=said):
            assert cuda_graphs.compiled(lambda x: x + 1)(1) == 2
    full = Mock(side_effect=torch.OutOfMemoryError)
    monkeypatch.setattr(torch, "compile", lambda run, **_: full)
    block = cuda_graphs.compiled(lambda x: x + 1)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            block(1)


@pytest.mark.parametrize(
    "option",
    [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}],
    ids=lambda o: next(iter(o)),
)
def test_llama_token_is_not_used_for_its_variants(option):
    """Guards: a bias that is left out, or SiLU in place of another activation."""
    policy = tiny_policy("llama")
    assert cuda_graphs.is_plain_llama(policy.model)
    policy.model.config.update(option)
    assert not cuda_graphs.is_plain_llama(policy.model)


@kinds
def test_what_is_captured_follows_the_weights(kind, monkeypatch):
    """Guards: copies of the weights that stay what they were when captured; a cache or mask that
    holds what the last batch left.
    """
    policy, other = policy_of(kind, "captured", monkeypatch), tiny_policy(kind, seed=2)
    prompts = [PROMPTS, [[9, 1], [2] * 9, [7] * 4, [1]]]
    policy.sample(prompts[0], NEW, TAU, stream("before"))
    policy.load(other.weights())
    for batch in prompts:
        assert torch.equal(
            policy.sample(batch, NEW, TAU, stream("s")).tokens,
            other.sample(batch, NEW, TAU, stream("s")).tokens,
        )
    assert len(policy._graphs) == 1


@kinds
def test_captured_scores_are_the_plain_ones(kind, monkeypatch, float32):
    """With gradients and without. Guards: tokens, mask or weights of an earlier call; a result that
    a later call writes over.
    """
    policy = policy_of(kind, "captured", monkeypatch)
    given = [
        padded(prompts, [[k] * NEW] * 4, wider=w)
        for prompts, k, w in ((PROMPTS, 1, 2), (PROMPTS[::-1], 7, 2), (PROMPTS, 2, 0))
    ]
    policy.step_log_probs(given[0], TAU).mean().backward()
    with torch.no_grad():
        policy.step_log_probs(given[0], TAU)
    policy.load(tiny_policy(kind, seed=2).weights())
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            got, slopes = [], []
            for y in given:
                policy.model.zero_grad()
                got.append(policy.step_log_probs(y, TAU))
                if gradients:
                    got[-1].mean().backward()
                    slopes.append([p.grad.clone() for p in policy.model.parameters()])
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graphs, "can_capture", lambda model: False)
            for k, y in enumerate(given):
                policy.model.zero_grad()
                expected = policy.log_probs(y, TAU)
                torch.testing.assert_close(got[k], expected, atol=1e-5, rtol=0)
                expected.mean().backward()
                if gradients:
                    torch.testing.assert_close(
                        slopes[k], [p.grad for p in policy.model.parameters()], atol=1e-5, rtol=1e-4
                    )


def test_a_graph_keeps_what_it_works_on(monkeypatch):
    """Guards: a replay on memory that was given to others, seen once on a GPU: completions of
    noise. CUDA is played here.
    """
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Mock)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())

    def capture():
        held = torch.ones(3)
        return cuda_graphs.captured(lambda: held * 2), weakref.ref(held)

    replay, held = capture()
    gc.collect()
    assert held() is not None and torch.equal(replay(), torch.full((3,), 2.0))


def test_log_probs_may_be_asked_twice_before_a_backward(monkeypatch, float32):
    """Guards: `log_probs` captured, whose second call writes over what the first one's backward
    reads.
    """
    policy = policy_of("gpt2", "captured", monkeypatch)
    given = [padded(PROMPTS, [[k] * NEW] * 4) for k in (1, 7)]
    both = torch.autograd.grad(
        sum(policy.log_probs(y, TAU).mean() for y in given), policy.model.lm_head.weight
    )[0]
    alone = [
        torch.autograd.grad(policy.log_probs(y, TAU).mean(), policy.model.lm_head.weight)[0]
        for y in given
    ]
    torch.testing.assert_close(both, sum(alone), atol=1e-6, rtol=1e-4)


CAPTURABLE = [
    (GPT2Config(), GPT2LMHeadModel, True),
    (LlamaConfig(), LlamaForCausalLM, True),
    (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        LlamaForCausalLM,
        False,
    ),
    (MistralConfig(sliding_window=8), MistralForCausalLM, False),
    (GPTNeoConfig(), GPTNeoForCausalLM, False),
]


@pytest.mark.parametrize(
    ("config", "kind", "known"), CAPTURABLE, ids=["gpt2", "llama", "dynamic", "mistral", "gpt-neo"]
)
def test_what_forgets_or_follows_numbers_is_not_captured(config, kind, known, monkeypatch):
    """Guards: a model with a sliding window completed as if it saw all tokens."""
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda"))
    assert (
        cuda_graphs.can_capture(
            SimpleNamespace(config=config, _can_compile_fullgraph=kind._can_compile_fullgraph)
        )
        is known
    )
    monkeypatch.setattr(machine, "device", lambda: torch.device("cpu"))
    assert not cuda_graphs.can_capture(SimpleNamespace(config=config, _can_compile_fullgraph=True))


def test_a_capture_has_a_precision(monkeypatch):
    """Guards: weights captured in bfloat16 sampled from in float32; a completion of one token after
    a prompt that fills its cache.
    """
    policy = policy_of("gpt2", "captured", monkeypatch)
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    for precision in machine.PRECISIONS:
        with machine.passes(precision):
            policy.sample(PROMPTS, NEW, TAU, stream("s"))
    assert len(policy._graphs) == 3
    monkeypatch.setattr(cuda_graphs, "captured", lambda run: (run(), run(), run)[2])
    policy.sample([[1] * 63], 1, TAU, stream("s"))


def test_graphs_make_room(monkeypatch):
    """Guards: what is forgotten, or belongs to a policy that is, and still holds its memory, as it
    holds itself.
    """
    policy = policy_of("gpt2", "captured", monkeypatch)
    other = policy.clone()
    for p in (policy, other):
        p.sample(PROMPTS, 1, TAU, stream("s"))
        p.step_log_probs(padded(PROMPTS, [[1] * NEW] * 4), TAU)
    held = [weakref.ref(next(iter(policy._graphs.values()))), weakref.ref(other.model)]
    del p, other
    for new in range(2, 6):
        policy.sample(PROMPTS, new, TAU, stream("s"))
    assert [ref() for ref in held] == [None, None]


def test_a_policy_keeps_few_graphs(monkeypatch):
    """Guards: memory that grows with every new shape."""
    policy = policy_of("gpt2", "captured", monkeypatch)
    for new in range(1, 7):
        policy.sample(PROMPTS, new, TAU, stream("s"))
    assert [key[3] for key in policy._graphs] == [3, 4, 5, 6]


# The distribution that is sampled


def test_draw_follows_softmax_without_truncation():
    """Guards: greedy, top-k, top-p: of 300 tokens the 270 rare ones hold a fifth of the mass and
    appear at that rate, each.
    """
    logits = torch.cat([torch.linspace(3, 5, 30), torch.linspace(-1, 1.2, 270)])[
        torch.randperm(300, generator=torch.manual_seed(0))
    ]
    p, n = logits.double().softmax(0), 40_000
    drawn = sample_token(logits.repeat(n, 1).to(machine.device()), stream(0)).cpu()
    assert drawn.shape == (n, 1) and 0.15 < p[logits < 2].sum() < 0.25 and (p * n).min() > 5
    assert fits(drawn.flatten().bincount(minlength=300), p)


def test_draw_never_takes_a_masked_token():
    """Guards: a masked token at the vocabulary's edge (GPT-2's EOS is its last) reached by
    rounding.
    """
    for forbidden in ([0], [9], [0, 1, 8, 9], [*range(9)]):
        logits = torch.zeros(50_000, 10, device=machine.device())
        logits[:, forbidden] = MASKED
        assert sorted(sample_token(logits, stream(0)).unique().tolist()) == [
            v for v in range(10) if v not in forbidden
        ]


def test_draw_uses_one_stream_and_a_row_each():
    """Guards: a draw that ignores its generator, or gives all rows the same token."""
    same, again, other = (
        sample_token(torch.zeros(100, 10, device=machine.device()), stream(k)) for k in (1, 1, 2)
    )
    assert torch.equal(again, same) and not torch.equal(other, same) and len(same.unique()) == 10


@samplers
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_completions_have_their_exact_probabilities(
    kind, sampler, temperature, monkeypatch, float32
):
    """Guards: greedy, τ missing in sampling, EOS drawn, a second token drawn from another context:
    11² completions, chi-square.
    """
    policy, n = policy_of(kind, sampler, monkeypatch), 8000
    with torch.no_grad():
        every, _ = every_completion([5, 2], 2, 12)
        p = (
            torch.stack([plain_log_probs(policy, tokens, 2, temperature).sum() for tokens in every])
            .exp()
            .cpu()
        )
    counts = dict.fromkeys(product(range(12), repeat=2), 0)
    prompts = [[5, 2]] * n + [PROMPTS[3]]  # the last one makes padding
    for completion in policy.sample(prompts, 2, temperature, stream("c")).completions[:n].tolist():
        counts[tuple(completion)] += 1
    assert all(count == 0 for c, count in counts.items() if END in c)
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    assert fits([counts[tuple(tokens[2:])] for tokens in every], p)


def test_eos_would_be_drawn_if_it_were_not_masked():
    """Guards the guards: END is among the tiny policy's likely tokens, so a missing mask shows in
    the tests above.
    """
    with torch.no_grad():
        assert plain_logits(tiny_policy(), [5, 2, 1], 1).softmax(-1)[0, END] > 0.3


def test_a_completion_does_not_depend_on_its_batch_or_padding(monkeypatch, float32):
    """Guards: rows that see each other, padding that is seen: logits of a row alone and beside
    longer prompts are the same.
    """
    policy = tiny_policy()
    seen = spy_on_draw(monkeypatch, lambda logits, _: logits.argmax(-1, keepdim=True))
    policy.sample(PROMPTS, NEW, TAU, stream("s"))
    together = torch.stack(seen, 1)
    for row, prompt in enumerate(PROMPTS):
        seen.clear()
        policy.sample([prompt], NEW, TAU, stream("s"))
        torch.testing.assert_close(torch.stack(seen, 1)[0], together[row], atol=1e-4, rtol=0)


def test_sampling_takes_its_generator_only():
    """Guards: completions that change with torch's global state, or do not change with the
    stream.
    """
    policy = tiny_policy()
    first = policy.sample(PROMPTS * 5, NEW, TAU, stream(1)).tokens
    torch.rand(7)
    assert torch.equal(policy.sample(PROMPTS * 5, NEW, TAU, stream(1)).tokens, first)
    assert not torch.equal(policy.sample(PROMPTS * 5, NEW, TAU, stream(2)).tokens, first)


@kinds
def test_completions_that_do_not_fit_the_context_are_refused(kind, float32):
    """Guards: positions beyond the model's table."""
    policy = tiny_policy(kind)
    assert policy.sample([[1] * 7], 57, TAU, stream(0)).tokens.shape == (1, 64)
    with pytest.raises(ValueError, match="context of 64"):
        policy.sample([[1] * 7], 58, TAU, stream(0))


# BOS


@samplers
def test_a_model_trained_behind_bos_gets_its_bos(kind, sampler, monkeypatch, float32):
    """In sampling, scoring and the loss of reviews, and not in texts. Guards: a Llama or a Gemma
    that reads the first word where it has only ever read BOS; stored results of one without it.
    """
    policy = policy_of(kind, sampler, monkeypatch)
    assert policy.bos_ids == []
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w9 $A", special_tokens=[("w9", 9)]
    )
    behind = Policy(policy.model, tokenizer)
    assert behind.bos_ids == [9] and behind.identity != policy.identity
    seen = spy_on_draw(monkeypatch)
    y = behind.sample(PROMPTS, NEW, TAU, stream("s"))
    assert [s[:-NEW] for s in sequences(y)] == [[9, *prompt] for prompt in PROMPTS]
    with torch.no_grad():
        expected = torch.stack([plain_log_probs(behind, s, NEW, TAU) for s in sequences(y)])
    drawn = torch.stack(seen, 1).log_softmax(-1).gather(-1, y.completions[..., None])[..., 0]
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(behind.log_probs(y, TAU), expected, atol=1e-5, rtol=0)
    assert [token_ids(text) for text in behind.texts(y)] == [s[1:] for s in sequences(y)]
    loss, _ = language_loss(behind, ["w5 w2 w7", "w1 w1 w4"], 3)
    expected = [
        -plain_logits(behind, [9, *row], 2).log_softmax(-1)[range(2), row[1:]].mean()
        for row in ([5, 2, 7], [1, 1, 4])
    ]
    assert loss == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


# Prompts, text, weights


def test_prompts_are_the_first_5_to_15_tokens():
    """Guards: one fixed length, lengths out of range, another stretch of the review than its
    beginning.
    """
    policy = tiny_policy()
    reviews = [" ".join(f"w{(k * n) % 12}" for k in range(20)) for n in range(1, 400)]
    opened = policy.prompts(reviews, "train")
    prompts = list(opened.values())
    assert list(opened) == list(range(399))
    assert [p == token_ids(r)[: len(p)] for p, r in zip(prompts, reviews, strict=True)] == [
        True
    ] * len(reviews)
    assert PROMPT_TOKENS == (5, 15) and fits(
        torch.tensor([len(p) for p in prompts]).bincount()[5:], [1 / 11] * 11
    )
    assert {len(p) for p in prompts} == set(range(5, 16))
    assert policy.prompts(reviews, "train") == opened != policy.prompts(reviews, "test")


def test_reviews_shorter_than_their_prompt_are_left_out():
    """Guards: prompts of fewer tokens than drawn, which would bias the lengths."""
    policy = tiny_policy()
    reviews = ["w1 w2 w3 w4", "w5 " * 9, "w6 " * 20] * 50
    opened = policy.prompts(reviews, "train")
    lengths = {v: {len(p) for p in opened.values() if p[0] == v} for v in (1, 5, 6)}
    assert all(p == token_ids(reviews[k])[: len(p)] for k, p in opened.items())
    assert lengths == {1: set(), 5: set(range(5, 10)), 6: set(range(5, 16))}


def test_texts_hold_prompt_and_completion_and_no_padding():
    """Guards: a reward that reads padding, or the completion alone."""
    policy = tiny_policy()
    assert policy.texts(padded([[5], [4, 2, 6]], [[7, 8], [9, 10]], wider=2)) == [
        "w5 w7 w8",
        "w4 w2 w6 w9 w10",
    ]


def test_clone_and_weights_share_no_memory():
    """Guards: an anchor or a θ_init that moves with the policy."""
    policy = tiny_policy()
    clone, copy = policy.clone(), policy.weights()
    before = {name: t.clone() for name, t in copy.items()}
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(1)
    assert all(
        torch.equal(clone.weights()[name], t) and torch.equal(copy[name], t)
        for name, t in before.items()
    )
    assert all(torch.equal(t, before[name]) for name, t in policy.load(before).weights().items())
    assert (
        clone.model.training is False
        and clone.identity == policy.identity != tiny_policy("llama").identity
    )


def test_a_clone_masks_the_same_eos_tokens():
    """Guards: SFT or the anchor on another distribution than the policy, if config and generation
    config name different EOS.
    """
    policy = tiny_policy(ends=[7, 5])
    clone, y = policy.clone(), padded(PROMPTS, [[1] * NEW] * 4)
    assert clone.eos_ids == policy.eos_ids and torch.equal(
        clone.log_probs(y, TAU), policy.log_probs(y, TAU)
    )


def test_split_keeps_every_rollout_in_order():
    """Guards: rollouts lost or reordered between chunks."""
    y = padded([[n, n, n][: 1 + n % 3] for n in range(7)], [[n, n + 1] for n in range(7)])
    parts = y.split(3)
    assert [len(part.tokens) for part in parts] == [3, 3, 1] and {part.new for part in parts} == {2}
    assert torch.equal(torch.cat([p.tokens for p in parts]), y.tokens) and torch.equal(
        torch.cat([p.mask for p in parts]), y.mask
    )


# Precision


@pytest.fixture(scope="module")
def trained() -> tuple[Policy, Policy]:
    """The bundled policy half way to where WARP took it, by the committed task vector; and SFT."""
    sft = Policy.from_name("reviews-gpt2")
    theta = sft.weights()
    delta = committed(theta)["WARP"]
    return sft.clone().load({name: t + 0.5 * delta[name] for name, t in theta.items()}), sft


@pytest.mark.parametrize("precision", ["split", "bfloat16"])
def test_a_step_passes_the_policy_of_its_float32_weights(trained, precision, monkeypatch):
    """KL of a training step's pass to the float32 policy: below 0.02 nats a completion in two
    parts, for policy and SFT. Guards: weights rounded on the way (bfloat16 shows what that
    does)."""
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    prompts = [[k, k + 9, 300, 4000 + k] for k in range(500, 504)]
    # SFT's weights are bfloat16 numbers already
    for policy in trained if precision == "split" else trained[:1]:
        y = policy.sample(prompts, 53, 0.7, stream("s"))
        kl = kl_of_pass(policy, y, 0.7, precision).mean()
        assert kl < 0.02 if precision == "split" else kl > 0.05
        drawn = []
        # the sampler's own pass, on the same tokens
        with monkeypatch.context() as patch, machine.passes(precision):
            following = iter(y.completions.T[..., None])

            def sample_token(logits, _, drawn=drawn, following=following):
                drawn.append(logits.log_softmax(-1))
                return next(following)

            patch.setattr("warp_lib.policy.sample_token", sample_token)
            policy.sample(prompts, 53, 0.7, stream("unused"))
        exact = policy.log_distribution(policy.logits(y), 0.7)
        kl = exact_kl(exact.exp(), exact, torch.stack(drawn, 1)).sum(1).mean()
        assert kl < 0.02 if precision == "split" else kl > 0.05
