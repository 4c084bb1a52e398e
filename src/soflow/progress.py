"""Progress on stderr for anything that may take longer than two seconds: a bar on a terminal, a line now and then elsewhere.

Processes other than the first stay silent.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from soflow import processes

#: Seconds between two lines where there is no terminal.
PAUSE = 20.0


def silent() -> bool:
    """Whether this is one of several processes, and not the first."""
    return processes.index() > 0


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar up to `total`; call the result with how many are done."""
    if silent():
        yield lambda done: None
    elif not sys.stderr.isatty():
        yield lines(what, total)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=done)


def lines(what: str, total: int) -> Callable[[int], None]:
    """Prints a line with the time left, at most every PAUSE seconds."""
    start = last = time.monotonic()

    def on_done(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE and 0 < done < total:
            last = now
            left = (now - start) * (total - done) / done
            print(f"{what}: {done:,} of {total:,}, {left:,.0f} s left", file=sys.stderr, flush=True)

    return on_done


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A line that turns while something is done; call the result with what that is."""
    if silent() or not sys.stderr.isatty():
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda stage: status.update(stage)
