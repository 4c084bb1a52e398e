"""Notes for people, through Python's `logging`: module loggers below "soflow".

`log = logging.getLogger(__name__)`, then `log.info` for remarks and `log.warning` for what needs
attention. The command line shows both. In a Python program without a logging configuration,
warnings reach stderr, as Python does by default.
"""

import logging
import sys

from soflow.system import processes
from soflow.system.text import printable


class OneLine(logging.Handler):
    """Prints each note as one line on stderr, above a progress bar if there is one.

    A note that repeats the one before it is not printed again.
    """

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        note = printable(record.getMessage())
        if note != self.last:
            # sys.stderr is looked up each time: a progress bar replaces it
            print(note, file=sys.stderr, flush=True)
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
