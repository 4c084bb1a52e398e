"""Callbacks: code of one's own that a run calls as it goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path

from soflow.config import Config
from soflow.errors import InputError, in_short
from soflow.run.checkpoint import TrainState
from soflow.run.folder import RunFolder
from soflow.solution import FlowModel


@dataclass
class Training:
    """A run in progress, as callbacks see it.

    Attributes:
        config: Its settings.
        folder: Its folder.
        model: The network that is trained. `model.average` is F with averaged weights.
        state: Its counts: `state.step` steps are done, `state.samples` samples seen, and so on.
        read_loss: Reads the loss of the last step, as `loss` does.
        learning_rate: Set a number to override the schedule from the next step on, None to follow
            it again. It is not saved with the run.
        stopped: Why a callback stopped training; None while it goes on.

    Example:
        >>> import soflow
        >>> class ThreeSteps(soflow.Callback):
        ...     def on_step(self, training):
        ...         if training.step == 3:
        ...             training.stop("three steps are enough")
        >>> run = soflow.train(
        ...     "moons", "runs/three", callbacks=[ThreeSteps()], progress=soflow.silent
        ... )
        >>> soflow.load("runs/three").checkpoint.path.name
        'step-00000003'
    """

    config: Config
    folder: RunFolder
    model: FlowModel
    state: TrainState
    read_loss: Callable[[], float]
    learning_rate: float | None = None
    stopped: str | None = None

    @property
    def fixed_lr(self) -> float | None:
        """The learning rate that is set. Raises InputError if it is no number from 0."""
        if self.learning_rate is None:
            return None
        try:
            rate = float(self.learning_rate)
        except (TypeError, ValueError):
            rate = nan
        if not 0 <= rate < inf:
            given = in_short(self.learning_rate)
            raise InputError(f"training.learning_rate is {given}: set a number from 0, or None")
        return rate

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.state.step

    @property
    def loss(self) -> float:
        """The loss of the last step. On a GPU, reading it waits for the step to end."""
        return self.read_loss()

    def stop(self, why: str = "a callback asked for it") -> None:
        """Ends training after this step, with a checkpoint. Training again goes on from there."""
        self.stopped = why


class Callback:
    """What a run calls as it goes. Override what you need; each does nothing by default.

    With several processes all of them call it, except for `on_sample`, which the first one calls
    alone. What it does to the run must be the same in each. Errors that it raises end the run.

    Example:
        >>> import soflow
        >>> class PrintLoss(soflow.Callback):
        ...     def on_step(self, training):
        ...         print(training.step, training.loss)
        >>> run = soflow.train(
        ...     "moons", "runs/printed", ["train.steps=2"], soflow.silent, callbacks=[PrintLoss()]
        ... )
        1 ...
        2 ...
    """

    def on_start(self, training: Training) -> None:
        """Before the first step, of a resumed run as well."""

    def on_step(self, training: Training) -> None:
        """After every step of the optimizer."""

    def on_evaluation(self, training: Training, figures: dict[str, float]) -> None:
        """After an evaluation during training (evaluate.every), with its figures by name."""

    def on_sample(self, training: Training, model: FlowModel, picture: Path) -> None:
        """After a sample grid, with the averaged weights that drew it and its file."""

    def on_checkpoint(self, training: Training, checkpoint: Path) -> None:
        """After a checkpoint, with its folder."""

    def on_end(self, training: Training) -> None:
        """After the last step, or where a callback stopped training."""


def require_callbacks(callbacks: Sequence[object]) -> None:
    """Raises InputError unless each is an instance of a class derived from Callback."""
    for one in callbacks:
        if not isinstance(one, Callback):
            raise InputError(
                f"callbacks holds {in_short(one)}: give objects of classes derived from "
                "soflow.Callback"
            )


@dataclass(frozen=True)
class Callbacks(Callback):
    """Several callbacks, called in turn."""

    each: Sequence[Callback] = ()

    def on_start(self, training: Training) -> None:
        for one in self.each:
            one.on_start(training)

    def on_step(self, training: Training) -> None:
        for one in self.each:
            one.on_step(training)

    def on_evaluation(self, training: Training, figures: dict[str, float]) -> None:
        for one in self.each:
            one.on_evaluation(training, figures)

    def on_sample(self, training: Training, model: FlowModel, picture: Path) -> None:
        for one in self.each:
            one.on_sample(training, model, picture)

    def on_checkpoint(self, training: Training, checkpoint: Path) -> None:
        for one in self.each:
            one.on_checkpoint(training, checkpoint)

    def on_end(self, training: Training) -> None:
        for one in self.each:
            one.on_end(training)
