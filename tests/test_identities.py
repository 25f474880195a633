"""Keys of the store: tokenizers and functions that do different things have different identities,
and the same ones the same.
"""

from functools import partial

import pytest
from conftest import tiny_policy
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast

from warp_lib.dpo import best_against_worst, every_pair, hinge_loss, ipo_loss, sigmoid_loss
from warp_lib.policy import Policy
from warp_lib.runs.identities import function_identity, tokenizer_identity


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


class Loss:
    def __call__(self, h, beta):
        return h


def named(h, beta):
    return h


def test_a_function_of_ones_own_needs_an_identity():
    """Guards: two lambdas under one key; a name that stays when the function changes."""
    for loss in (Loss(), named, lambda h, beta: h, partial(sigmoid_loss), dict.fromkeys):
        with pytest.raises(ValueError, match=r"needs an attribute `identity`.*\.$"):
            function_identity(loss)
    named.identity = "mine"
    assert function_identity(named) == "mine"
