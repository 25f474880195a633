"""Keys of the store: tokenizers and functions that do different things have different identities,
and the same ones the same.
"""

from functools import partial

import pytest
import torch
from conftest import tiny_policy
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast

from warp_lib.dpo import best_against_worst, every_pair, hinge_loss, ipo_loss, sigmoid_loss
from warp_lib.policy import Policy
from warp_lib.runs.identities import function_identity, tokenizer_identity

MARGIN = 1.0


def test_a_tokenizers_normaliser_is_part_of_it(tmp_path):
    """Guards: runs of two policies whose tokenizers have one vocabulary and read texts differently,
    under one key.
    """
    policy = tiny_policy()
    before = policy.identity
    # which its backend remembers
    policy.tokenizer(["w1 w2 w4", "w1"], padding=False, truncation=True, max_length=2)
    assert Policy(policy.model, policy.tokenizer).identity == before
    policy.tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Policy(policy.model, again).identity == before
    again.backend_tokenizer.normalizer = Lowercase()
    assert Policy(policy.model, again).identity != before
    assert tokenizer_identity(again) != tokenizer_identity(policy.tokenizer)


def test_our_own_losses_have_their_names():
    """What is in the store stays there."""
    for function in (sigmoid_loss, hinge_loss, ipo_loss, best_against_worst, every_pair):
        assert function_identity(function) == function.__name__


def scaled(scale: float):
    return lambda h, beta: scale * h


def named(h, beta, scale=2.0):
    return h * scale


def with_a_global(h, beta):
    return h * MARGIN


def with_a_helper(h, beta):
    return named(h, beta)


def test_functions_that_compute_otherwise_differ():
    """Guards: two lambdas under one key; the same code around another value."""
    losses = [
        lambda h, beta: h,
        lambda h, beta: -h,
        lambda h, beta: 2 * h,
        lambda h, beta: 3 * h,
        lambda h, beta: [k for k in (h, 1)],
        lambda h, beta: [k for k in (h, 2)],
        scaled(1.0),
        scaled(2.0),
        scaled(torch.ones(1)),
        scaled(torch.zeros(1)),
        lambda h, beta, k=1: h,
        lambda h, beta, k=2: h,
        named,
        partial(named, scale=1.0),
        partial(named, scale=3.0),
        with_a_global,
        with_a_helper,
    ]
    assert len({function_identity(loss) for loss in losses}) == len(losses)


def test_the_same_function_is_the_same(monkeypatch):
    assert function_identity(scaled(2.0)) == function_identity(scaled(2.0))
    assert function_identity(partial(named, scale=1.0)) == function_identity(
        partial(named, scale=1.0)
    )
    before = function_identity(with_a_global)
    monkeypatch.setitem(globals(), "MARGIN", 2.0)
    assert function_identity(with_a_global) != before


class Loss:
    def __call__(self, h, beta):
        return h


def test_what_cannot_be_told_says_so():
    """One sentence, and an attribute helps."""
    for loss, says in ((Loss(), "Loss objects"), (scaled(Loss()), "uses a Loss")):
        with pytest.raises(ValueError, match=f"{says}.*`identity`.*\\.$"):
            function_identity(loss)
    loss = Loss()
    loss.identity = "mine"
    assert function_identity(loss) == "mine"
