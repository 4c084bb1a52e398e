"""Callbacks: custom code that runs during training."""

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
    """The state of a run in progress, for callbacks.

    Attributes:
        config: The settings of the run.
        folder: The run folder.
        model: The model that is trained. `model.average` evaluates the network F with EMA weights:
            (x, t, s, labels) -> (B, ...), for x (B, ...) and t, s and labels (B,).
        state: The counters of the run, such as `state.step`, the number of completed steps, and
            `state.samples`, the number of samples seen.
        read_loss: Returns the loss of the last step. The property `loss` calls it.
        learning_rate: Set a number to override the learning-rate schedule from the next step on;
            set None to follow the schedule again. The value is not saved with the run.
        stopped: The reason why a callback stopped training; None otherwise.

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
        """The learning rate set by a callback. Raises InputError if it is negative or invalid."""
        if self.learning_rate is None:
            return None
        try:
            rate = float(self.learning_rate)
        except (TypeError, ValueError):
            rate = nan
        if not 0 <= rate < inf:
            given = in_short(self.learning_rate)
            raise InputError(
                f"training.learning_rate is {given}: set a number of at least 0, or None"
            )
        return rate

    @property
    def step(self) -> int:
        """The number of completed steps."""
        return self.state.step

    @property
    def loss(self) -> float:
        """The loss of the last step. On a GPU, reading it waits until the step is complete.

        With several processes, all processes must read it at the same step.
        """
        return self.read_loss()

    def stop(self, why: str = "requested by a callback") -> None:
        """Ends training after this step and writes a checkpoint.

        To resume, call `soflow.train` again.

        Args:
            why: The reason, for the log.
        """
        self.stopped = why


class Callback:
    """Base class for callbacks. Override the methods you need; by default, they do nothing.

    With several processes, every process calls each method. Only `on_sample` is called by the first
    process alone. Changes to the run must be the same in all processes. An exception in a callback
    ends the run.

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
        """Called before the first step, and before the first step after a resume.

        Args:
            training: The state of the run.
        """

    def on_step(self, training: Training) -> None:
        """Called after every optimizer step.

        Args:
            training: The state of the run.
        """

    def on_evaluation(self, training: Training, metrics: dict[str, float]) -> None:
        """Called after an evaluation during training (evaluate.every).

        Args:
            training: The state of the run.
            metrics: The results of the evaluation by name, such as {"FID": 12.3}.
        """

    def on_sample(self, training: Training, model: FlowModel, picture: Path) -> None:
        """Called after a sample grid is drawn (train.sample_every), in the first process only.

        Args:
            training: The state of the run.
            model: The model with EMA weights that drew the samples.
            picture: The PNG file of the sample grid.
        """

    def on_checkpoint(self, training: Training, checkpoint: Path) -> None:
        """Called after a checkpoint is written.

        Args:
            training: The state of the run.
            checkpoint: The folder of the checkpoint.
        """

    def on_end(self, training: Training) -> None:
        """Called after the last step, or after a callback stopped training.

        Args:
            training: The state of the run.
        """


def require_callbacks(callbacks: Sequence[object]) -> None:
    """Raises InputError unless every callback is an instance of a subclass of Callback."""
    for one in callbacks:
        if not isinstance(one, Callback):
            raise InputError(
                f"callbacks contains {in_short(one)}: pass instances of subclasses of "
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

    def on_evaluation(self, training: Training, metrics: dict[str, float]) -> None:
        for one in self.each:
            one.on_evaluation(training, metrics)

    def on_sample(self, training: Training, model: FlowModel, picture: Path) -> None:
        for one in self.each:
            one.on_sample(training, model, picture)

    def on_checkpoint(self, training: Training, checkpoint: Path) -> None:
        for one in self.each:
            one.on_checkpoint(training, checkpoint)

    def on_end(self, training: Training) -> None:
        for one in self.each:
            one.on_end(training)
