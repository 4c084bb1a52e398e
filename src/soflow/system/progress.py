"""Progress of all work that can take longer than two seconds, on stderr.

Training, evaluation, comparison and data preparation use one interface:

    with track("evaluating", total=2000) as task:
        task.update(500)

A terminal and a notebook show a bar. Elsewhere, a line appears every 20 seconds. With several
processes, only the first shows progress.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Optional, Protocol, runtime_checkable

from soflow.system import processes
from soflow.system.text import clock, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

#: Seconds between two lines, and between two updates of a bar.
PAUSE, BAR_PAUSE = 20.0, 0.1


class Task:
    """Work that consists of a number of parts. This base class shows nothing."""

    def update(self, done: int, text: str = "") -> None:
        """Reports the number of completed parts, and a short text such as the loss."""

    def log(self, text: str) -> None:
        """Reports a milestone. It is printed as a line, unless a bar is shown."""


@runtime_checkable
class Progress(Protocol):
    """Shows the progress of work with `total` parts, of which `done` were completed before."""

    def __call__(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Task]: ...


@contextmanager
def silent(title: str, total: int, done: int = 0) -> Iterator[Task]:
    """Shows no progress. As the `progress` of a public function, it also hides notes.

    Warnings are still shown.

    Args:
        title: Ignored.
        total: Ignored.
        done: Ignored.

    Yields:
        A task. Its method `update(done, text)` does nothing.

    Example:
        >>> import soflow
        >>> samples = soflow.load("runs/digits").sample(10, progress=soflow.silent)
    """
    yield Task()


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Task]:
    """Shows a progress bar in a terminal or a notebook, and lines elsewhere.

    This is the default `progress` of all public functions. A custom function with the same
    signature can replace it.

    Args:
        title: The name of the work, such as "sampling".
        total: The number of parts of the work.
        done: The number of parts that were completed before.

    Yields:
        A task. Its method `update(done, text)` reports the number of completed parts and a short
        text.

    Example:
        >>> import soflow
        >>> with soflow.track("drawing", total=3) as task:
        ...     for i in range(3):
        ...         task.update(i + 1)
    """
    if is_hidden():
        yield Task()
    elif not shows_bars():
        yield Lines(title, total, done)
    else:
        with bar(title, total, done, f"{done:,} of {total:,}") as (shown, id):
            task = Bar(shown, id, title, total, done)
            try:
                yield task
            finally:
                task.show()


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Shows a bar for work of unknown length, in a terminal or a notebook."""
    if is_hidden() or not shows_bars():
        yield
    else:
        with bar(text, None):
            yield


_is_quiet: ContextVar[bool] = ContextVar("nothing is shown", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides all progress."""
    token = _is_quiet.set(True)
    try:
        yield
    finally:
        _is_quiet.reset(token)


def is_hidden() -> bool:
    """Whether this call or this process shows no progress."""
    return _is_quiet.get() or processes.index() > 0


def in_notebook() -> bool:
    """Whether the program runs in Jupyter or another notebook with an IPython kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def shows_bars() -> bool:
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


class Timed(Task):
    """Work with a measured speed. The speed is shown if no other text is given."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.begun = printable(title), total, done
        self.started = self.shown = time.monotonic()

    def describe(self, done: int, text: str) -> str:
        """The number of completed parts, with a text."""
        seconds = time.monotonic() - self.started
        if not text and done > self.begun and seconds > 1:
            speed = (done - self.begun) / seconds
            text = f"{speed:,.0f} per second" if speed >= 10 else f"{speed:.2g} per second"
        return f"{done:,} of {self.total:,}  {printable(text)}"


class Lines(Timed):
    """Prints a line with the remaining time, at most every 20 seconds, and each milestone."""

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self.shown >= PAUSE and self.begun < done < self.total:
            left = (now - self.started) * (self.total - done) / (done - self.begun)
            self.log(f"{self.title}: {self.describe(done, text)}  {clock(left)} left")

    def log(self, text: str) -> None:
        self.shown = time.monotonic()
        print(printable(text), file=sys.stderr, flush=True)


class Bar(Timed):
    """One of the bars that are shown."""

    def __init__(self, bars: "Bars", id: "TaskID", title: str, total: int, done: int) -> None:
        super().__init__(title, total, done)
        self.bars, self.id = bars, id
        self.last = (done, "")

    def update(self, done: int, text: str = "") -> None:
        self.last = (done, text)
        if time.monotonic() - self.shown >= BAR_PAUSE or done >= self.total:
            self.show()

    def show(self) -> None:
        """Shows the last update."""
        self.shown = time.monotonic()
        done, text = self.last
        self.bars.update(self.id, completed=done, text=self.describe(done, text))


#: The bars that are shown. Nested work adds a bar below.
_bars: ContextVar[Optional["Bars"]] = ContextVar("bars", default=None)


@contextmanager
def bars() -> Iterator["Bars"]:
    """The display of all bars. In a terminal, lines printed to stderr appear above it."""
    shown = _bars.get()
    if shown is not None:
        yield shown
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeRemainingColumn(),
    )
    if in_notebook():
        from soflow.system.notebook import NotebookBars

        shown = NotebookBars(columns)
    else:
        shown = Progress(*columns, console=Console(stderr=True), transient=True)
    token = _bars.set(shown)
    try:
        with shown:
            yield shown
    finally:
        _bars.reset(token)


@contextmanager
def bar(
    title: str, total: int | None, done: int = 0, text: str = ""
) -> Iterator[tuple["Bars", "TaskID"]]:
    """Adds a bar and removes it at the end. Without a total, the length is unknown."""
    with bars() as shown:
        id = shown.add_task(printable(title), total=total, completed=done, text=text)
        try:
            yield shown, id
        finally:
            shown.remove_task(id)
