"""What a long computation says while it runs, and how it is asked to stop.

Library code takes a `Progress` and calls `track` around its loop, `log` and `show` inside it, and `check` where a step is long. This one is
silent; `live` holds the ones that print or draw.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The person asked to stop. Everything finished is kept, and the same call goes on from there."""


class Progress:
    """Says nothing, and stops when `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def track(self, steps: Iterable[T], title: str, done: int = 0, total: int | None = None) -> Iterator[T]:
        """Yield from `steps`, of which `done` of `total` were finished earlier. Raises Stopped between two steps once `stop` is set."""
        steps = list(steps) if total is None else steps
        total = done + len(steps) if total is None else total
        self.begin(title, done, total)
        for step in steps:
            self.check()
            yield step
            self.advance()
        self.end()

    def check(self) -> None:
        """Raises Stopped once `stop` is set. Cheap enough for every token; what the current step has not finished is lost."""
        if self.stop.is_set():
            raise Stopped("stopped")

    def begin(self, title: str, done: int, total: int) -> None:
        """A loop named `title` begins with `done` of `total` steps behind it."""

    def advance(self) -> None:
        """One more step of the current loop is done."""

    def end(self) -> None:
        """The current loop is done."""

    def log(self, **numbers: float) -> None:
        """Numbers of the current step, e.g. ``log(reward=0.3, kl=0.1)``."""

    def show(self, texts: Sequence[str], rewards: Sequence[float]) -> None:
        """Completions of the current step, prompts included, (n,), and their r̃, (n,): a model's text, to be escaped by whoever shows it."""
