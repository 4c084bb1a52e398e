"""Notes for users, through Python's `logging`, with one logger per module below "soflow".

Modules define `log = logging.getLogger(__name__)`. They call `log.info` for remarks and
`log.warning` for problems. The command line shows both. Public functions also show both while they
run, unless the caller passes a custom `progress` function.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from soflow.system import processes
from soflow.system.progress import in_notebook
from soflow.system.text import printable


class OneLine(logging.Handler):
    """Prints each note as one line on stderr, above any progress bar.

    A note that repeats the previous note is not printed again. In a notebook, remarks go to stdout,
    because output on stderr looks like an error.
    """

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        note = printable(record.getMessage())
        if note != self.last:
            # The streams are looked up each time, because a progress bar replaces them.
            remark = record.levelno < logging.WARNING and in_notebook()
            print(note, file=sys.stdout if remark else sys.stderr, flush=True)
        self.last = note


def show_notes() -> None:
    """Shows notes on stderr, in the first process only.

    Repeated calls install one handler. Existing handlers of the root logger also receive every
    note.
    """
    logger = logging.getLogger("soflow")
    if not any(isinstance(handler, OneLine) for handler in logger.handlers):
        logger.addHandler(OneLine())
        logger.propagate = bool(logging.getLogger().handlers)
    logger.setLevel(logging.CRITICAL if processes.index() > 0 else logging.INFO)


@contextmanager
def notes(shown: bool) -> Iterator[None]:
    """Shows all notes, or only warnings. Restores the logger afterwards."""
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
