"""Stopping a run from outside: the step in progress is finished and saved first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(Exception):
    """A signal asked the run to stop, and it did, with a checkpoint written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@dataclass
class StopRequest:
    """Which signal came, if any."""

    signum: int | None = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once.

    SIGTERM may come more than once: a cluster sends it to every process, and launchers pass on their own.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread alone
        return

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        if signum == signal.SIGINT:
            signal.signal(signum, before[signum])

    before = {int(signum): signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
