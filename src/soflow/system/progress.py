"""Progress of everything that may take longer than two seconds, on stderr.

One interface serves training, evaluation, comparison and data work:

    with track("evaluating", total=2000) as task:
        task.update(500)

On a terminal it is a bar, elsewhere a line now and then. Processes other than the first show nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from soflow.system import processes
from soflow.system.text import printable

#: Seconds between two lines where there is no terminal.
PAUSE = 20.0


class Task:
    """Work of countable parts. This one shows nothing."""

    def update(self, done: int, text: str = "") -> None:
        """Reports how many parts are done, with a short text beside them."""

    def log(self, text: str) -> None:
        """Reports a milestone, which becomes a line of its own where there is no bar."""


@runtime_checkable
class Progress(Protocol):
    """Shows work of `total` parts, of which `done` were done before."""

    def __call__(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Task]: ...


@contextmanager
def silent(title: str, total: int, done: int = 0) -> Iterator[Task]:
    """Shows nothing."""
    yield Task()


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Task]:
    """A bar on a terminal, lines elsewhere, nothing in processes other than the first."""
    if processes.index() > 0:
        yield Task()
    elif not sys.stderr.isatty():
        yield Lines(title, total, done)
    else:
        with bar(title, total, done) as task:
            yield task


class Lines(Task):
    """A line with the time left, at most every PAUSE seconds, and each milestone."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.begun = title, total, done
        self.started = self.last = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= PAUSE and self.begun < done < self.total:
            left = (now - self.started) * (self.total - done) / (done - self.begun)
            self.log(f"{self.title}: {done:,} of {self.total:,}  {text}  {left:,.0f} s left")

    def log(self, text: str) -> None:
        self.last = time.monotonic()
        print(printable(text), file=sys.stderr, flush=True)


class Bar(Task):
    """A bar of rich."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self.progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, text="")

    def update(self, done: int, text: str = "") -> None:
        self.progress.update(self.task, completed=done, text=text)


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Task]:
    task = Bar(title, total, done)
    with task.progress:
        yield task


@contextmanager
def stage(text: str) -> Iterator[None]:
    """A line that turns while something of unknown length is done."""
    if processes.index() > 0 or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with track(what, total) as task:
        yield task.update


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    yield lambda text: None
