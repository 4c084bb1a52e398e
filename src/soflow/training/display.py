"""What a training run shows: a progress bar on a terminal, one line a logging step elsewhere. Everything on stderr."""

import sys
import time
from math import isfinite
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from soflow.system import processes
from soflow.system.progress import PAUSE
from soflow.system.text import printable


class Display(Protocol):
    """What the trainer tells. `note` is for single remarks, `log` for a line of metrics, `step` comes every step."""

    def start(self, done: int, steps: int) -> None: ...
    def step(self, done: int, loss: float, samples_per_second: float) -> None: ...
    def log(self, metrics: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


class BarDisplay:
    """A bar with steps, loss, samples a second and the time left."""

    def __init__(self, title: str = "training") -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self.task: TaskID | None = None
        self.loss = self.speed = 0.0

    def start(self, done: int, steps: int) -> None:
        self.task = self.bar.add_task("training", total=steps, completed=done, text="")
        self.bar.start()

    def step(self, done: int, loss: float, samples_per_second: float) -> None:
        assert self.task is not None
        weight = 0.1 if self.speed else 1.0  # running means, so that both can be read
        if isfinite(loss):
            self.loss += weight * (loss - self.loss)
        self.speed += weight * (samples_per_second - self.speed)
        self.bar.update(
            self.task, completed=done, text=f"loss {self.loss:.4f}  {self.speed:,.0f} samples/s"
        )

    def log(self, metrics: dict[str, Any]) -> None:
        del metrics  # the bar already shows them

    def note(self, text: str) -> None:
        self.bar.console.print(
            printable(text), highlight=False, markup=False
        )  # names in files are no markup

    def stop(self) -> None:
        self.bar.stop()


class LineDisplay:
    """One summary line a logging step, for logs and pipes; where steps are slow, one now and then before it."""

    def start(self, done: int, steps: int) -> None:
        self.steps = steps
        self.begun = done
        self.started = self.told = time.monotonic()

    def step(self, done: int, loss: float, samples_per_second: float) -> None:
        now = time.monotonic()
        if now - self.told >= PAUSE:
            left = (now - self.started) / (done - self.begun) * (self.steps - done)
            self.note(
                f"step {done}/{self.steps}  loss {loss:.4f}  {samples_per_second:,.1f} samples/s  {left:,.0f} s left"
            )

    def log(self, metrics: dict[str, Any]) -> None:
        left = (self.steps - metrics["step"]) / metrics["steps_per_second"]
        losses = "  ".join(
            f"{name} {value:.4f}"
            for name, value in metrics.items()
            if name.endswith(("loss", "mse"))
        )
        self.note(
            f"step {metrics['step']}/{self.steps}  {losses}  {metrics['samples_per_second']:,.0f} samples/s  "
            f"{left:.0f} s left"
        )

    def note(self, text: str) -> None:
        self.told = time.monotonic()
        print(printable(text), file=sys.stderr, flush=True)

    def stop(self) -> None:
        sys.stderr.flush()


class SilentDisplay:
    """Shows nothing: for processes other than the first, and for tests."""

    def start(self, done: int, steps: int) -> None: ...
    def step(self, done: int, loss: float, samples_per_second: float) -> None: ...
    def log(self, metrics: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


def make_display() -> Display:
    """A bar on a terminal, lines elsewhere, nothing for processes other than the first."""
    if processes.index() > 0:
        return SilentDisplay()
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()
