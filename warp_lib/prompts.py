"""Prompts: the first tokens of a review. No torch here, for readers of the study's tables show them
too.
"""

from collections.abc import Callable, Sequence

from .runs.seeds import numpy_stream

PROMPT_TOKENS = (5, 15)  # the shortest and the longest
CHARACTERS = 200  # of a review, that its prompt is cut from


def prompts(
    reviews: Sequence[str], tokenize: Callable[[list[str]], list[list[int]]], *role: str | int
) -> dict[int, list[int]]:
    """The place of each review in the sequence → its first 5 to 15 tokens, their number drawn from
    the stream `role`.

    Reviews that are shorter are left out, and those that have fewer tokens in their first 200
    characters.

    Args:
        tokenize: texts → their token ids, without special tokens.
    """
    shortest, longest = PROMPT_TOKENS
    lengths = numpy_stream("prompt lengths", *role).integers(shortest, longest + 1, len(reviews))
    openings = tokenize([review[:CHARACTERS] for review in reviews])
    return {
        k: ids[:n]
        for k, (ids, n) in enumerate(zip(openings, lengths.tolist(), strict=True))
        if len(ids) >= n
    }
