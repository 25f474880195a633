"""What a long computation says while it runs, and how it is asked to stop.

Library code takes a `Progress` and calls `track` around its loop, `log` and `show` inside it, and
`check` where a step is long. This one is silent; `TerminalProgress` draws bars, and `live` holds
those of notebooks.
"""

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

LABELS = {"reward": "r̃", "kl_anchor": "KL to anchor", "kl_sft": "KL to SFT"}
LABELS |= {"checkpoint_reward": "r̃", "checkpoint_kl": "KL to SFT"}


class Stopped(Exception):
    """The person asked to stop. Everything finished is kept, and the same call goes on from
    there.
    """


class Progress:
    """Says nothing, and stops when `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def track(
        self, steps: Iterable[T], title: str, done: int = 0, total: int | None = None
    ) -> Iterator[T]:
        """Yield from `steps`, of which `done` of `total` were finished earlier. Raises Stopped
        between two steps once `stop` is set.
        """
        if total is None:
            steps = list(steps)
            total = done + len(steps)
        self.begin(title, done, total)
        for step in steps:
            self.check()
            yield step
            self.advance()
        self.end()

    def check(self) -> None:
        """Raises Stopped once `stop` is set. Cheap enough for every token; what the current step
        has not finished is lost.
        """
        if self.stop.is_set():
            raise Stopped("stopped")

    def beside(self) -> "Progress":
        """Another, for work that goes on at the same time: shown beside this one, and stopped with
        it.
        """
        other = type(self)()
        other.stop = self.stop
        return other

    def __reduce__(self) -> tuple:
        # Bars and threads stay here. Work that is sent elsewhere tells `NOTED` of that process.
        return _noted, ()

    def begin(self, title: str, done: int, total: int) -> None:
        """A loop named `title` begins with `done` of `total` steps behind it."""

    def advance(self) -> None:
        """One more step of the current loop is done."""

    def end(self) -> None:
        """The current loop is done."""

    def log(self, **numbers: float) -> None:
        """Numbers of the current step, e.g. ``log(reward=0.3, kl=0.1)``."""

    def show(self, texts: Sequence[str], rewards: Sequence[float]) -> None:
        """Completions of the current step, prompts included, (n,), and their r̃, (n,): a model's
        text, to be escaped by whoever shows it.
        """


class Noted(Progress):
    """Notes what is said until somebody asks from another process (see `runs.cluster`). As a file
    it notes what is printed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: deque[tuple[str, tuple, dict[str, float]]] = deque()

    def take(self) -> list[tuple[str, tuple, dict[str, float]]]:
        """What was said since the last time: the names of this class's methods, and their
        arguments.
        """
        return [self._said.popleft() for _ in range(len(self._said))]

    def begin(self, title: str, done: int, total: int) -> None:
        self._said.append(("begin", (title, done, total), {}))

    def advance(self) -> None:
        self._said.append(("advance", (), {}))

    def end(self) -> None:
        self._said.append(("end", (), {}))

    def log(self, **numbers: float) -> None:
        self._said.append(("log", (), numbers))

    def show(self, texts: Sequence[str], rewards: Sequence[float]) -> None:
        self._said.append(("show", (texts, rewards), {}))

    def write(self, text: str, /) -> int:
        self._said.append(("write", (text,), {}))
        return len(text)

    def flush(self) -> None:
        """Nothing waits: files are asked to flush."""


NOTED = Noted()


def _noted() -> Noted:
    return NOTED


class TerminalProgress(Progress):
    """Bars on the terminal, for command lines; in a log file a line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[Any] = []

    def begin(self, title: str, done: int, total: int) -> None:
        from tqdm import tqdm

        pace = 0.1 if sys.stderr.isatty() else 20.0
        self.bars.append(
            tqdm(total=total, initial=done, desc=title, dynamic_ncols=True, mininterval=pace)
        )

    def advance(self) -> None:
        self.bars[-1].update()

    def end(self) -> None:
        self.bars.pop().close()

    def log(self, **numbers: float) -> None:
        if self.bars:
            self.bars[-1].set_postfix(
                {label(name): f"{value:.3g}" for name, value in numbers.items()}, refresh=False
            )


def label(name: str) -> str:
    """A logged name as people read it."""
    return LABELS.get(name, name.replace("_", " "))


def a_step(seconds: float) -> str:
    """How long a step takes, to two digits."""
    return f"{float(f'{seconds:.2g}'):g} s a step"


def duration(seconds: float) -> str:
    """Seconds as people say them: "4 s", "3 min 20 s", "1 h 02 min"."""
    s = round(seconds)
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s" if s >= 60 else f"{s} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"
