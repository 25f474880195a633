"""Errors whose message is the whole story: one sentence that says what is wrong and what to do,
without a traceback.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


class Explained(ValueError):
    """The cause is the person's to mend and the message says how. Notebooks show the sentence
    alone.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Unwritable(OSError, Explained):
    """A file or folder could not be written."""


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Whatever keeps `file` from being written, said in one sentence. Raises Unwritable."""
    try:
        yield
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(
            f"{file} cannot be written: {reason(error)}. Mend that, and the same command goes on."
        ) from error


def reason(error: OSError) -> str:
    """Why the system refused, in its own words."""
    return (
        error.strerror
        or (os.strerror(error.errno) if error.errno else str(error))
        or type(error).__name__
    )


@cache
def say_once(sentence: str) -> None:
    """Tell the person about something that is passed over, the first time."""
    print(sentence, file=sys.stderr, flush=True)
