"""Notes for people, through Python's `logging`: module loggers below "soflow".

`log = logging.getLogger(__name__)`, then `log.info` for remarks and `log.warning` for what needs
attention. The command line shows both, and so do public functions while they run, unless they are
given a `progress` of the caller's own.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from soflow.system import processes
from soflow.system.progress import in_notebook
from soflow.system.text import printable


class OneLine(logging.Handler):
    """Prints each note as one line on stderr, above a progress bar if there is one.

    A note that repeats the one before it is not printed again. In a notebook, where stderr looks
    like an error, remarks go to stdout.
    """

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        note = printable(record.getMessage())
        if note != self.last:
            # Both are looked up each time: a progress bar replaces them.
            remark = record.levelno < logging.WARNING and in_notebook()
            print(note, file=sys.stdout if remark else sys.stderr, flush=True)
        self.last = note


def show_notes() -> None:
    """Shows notes on stderr. Processes other than the first show none.

    Repeated calls install one handler. Handlers of the root logger that exist already get every
    note, too.
    """
    logger = logging.getLogger("soflow")
    if not any(isinstance(handler, OneLine) for handler in logger.handlers):
        logger.addHandler(OneLine())
        logger.propagate = bool(logging.getLogger().handlers)
    logger.setLevel(logging.CRITICAL if processes.index() > 0 else logging.INFO)


@contextmanager
def notes(shown: bool) -> Iterator[None]:
    """Shows all notes, or warnings alone. Afterwards the logger is as before."""
    logger = logging.getLogger("soflow")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    if shown:
        show_notes()
    else:
        logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)
