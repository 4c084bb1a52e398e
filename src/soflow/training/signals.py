"""Stopping a run by a signal: the step in progress is finished and saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType


class Stopped(BaseException):
    """A signal stopped the run, with a checkpoint written.

    It is raised as what Python has for the signal, so that a program ends as it would without
    soflow. A sweep that continues after every `Exception` ends, too.
    """

    signum: int


class Interrupted(Stopped, KeyboardInterrupt):
    """Ctrl-C: a `KeyboardInterrupt`, with a checkpoint written."""

    signum = signal.SIGINT


class Terminated(Stopped, SystemExit):
    """SIGTERM: a `SystemExit` with status 143, with a checkpoint written."""

    signum = signal.SIGTERM

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message, self.code = message, 128 + self.signum

    def __str__(self) -> str:
        return self.message


def stopped_by(signum: int, where: str) -> Stopped:
    """What to raise after a signal. where: the run folder, for the message."""
    kind = Interrupted if signum == signal.SIGINT else Terminated
    name = signal.Signals(signum).name
    return kind(f"{name}: a checkpoint is written in {where}; the same call resumes from it")


class CutShort(BaseException):
    """A signal came during work that may be cut short."""


@dataclass
class StopRequest:
    """Which signal came, if any."""

    signum: int | None = None
    may_cut: bool = False

    def cut_short(self, work: Callable[[], None]) -> None:
        """Does `work` until a signal comes. The work must change nothing, and be repeatable."""
        with suppress(CutShort):
            try:
                self.may_cut = True
                if self.signum is None:
                    work()
            finally:
                self.may_cut = False


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once.

    SIGTERM may come more than once: a cluster sends it to every process, and launchers forward it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals reach the main thread alone
        return

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        if signum == signal.SIGINT:
            signal.signal(signum, before[signal.SIGINT])
        if request.may_cut:
            request.may_cut = False
            raise CutShort

    before = {
        signum: handler
        for signum in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(signum)) not in (None, signal.SIG_IGN)
    }
    for signum in before:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
