"""Stops a run after a signal. The current step is completed and saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType


class Stopped(BaseException):
    """A signal stopped the run, after a checkpoint was written.

    The subclasses also derive from Python's own exception for the signal, so that a program ends
    as it would without soflow. They are not `Exception`s, so a hyperparameter sweep that catches
    every `Exception` still stops.
    """

    signum: int


class Interrupted(Stopped, KeyboardInterrupt):
    """Ctrl-C: a `KeyboardInterrupt`, after a checkpoint was written."""

    signum = signal.SIGINT


class Terminated(Stopped, SystemExit):
    """SIGTERM: a `SystemExit` with status 143, after a checkpoint was written."""

    signum = signal.SIGTERM

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message, self.code = message, 128 + self.signum

    def __str__(self) -> str:
        return self.message


def stopped_by(signum: int, where: str) -> Stopped:
    """The exception to raise after a signal. `where` is the run folder, for the message."""
    kind = Interrupted if signum == signal.SIGINT else Terminated
    name = signal.Signals(signum).name
    return kind(
        f"{name}: checkpoint written in {where}; to resume, call it again with the same arguments"
    )


class CutShort(BaseException):
    """A signal arrived during interruptible work."""


@dataclass
class StopRequest:
    """The signal that arrived, if any."""

    signum: int | None = None
    may_cut: bool = False

    def cut_short(self, work: Callable[[], None]) -> None:
        """Does `work` until a signal arrives. The work must be repeatable, without side effects."""
        with suppress(CutShort):
            try:
                self.may_cut = True
                if self.signum is None:
                    work()
            finally:
                self.may_cut = False


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C or SIGTERM into a request to stop. A second Ctrl-C interrupts immediately.

    SIGTERM can arrive more than once: a cluster sends it to every process, and launchers forward
    it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread receives signals
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
