"""The checkpoint manager writes, rotates and selects the checkpoints of a run, and its log."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from soflow.config.schema import CheckpointConfig
from soflow.errors import RunError
from soflow.run.checkpoint import (
    Checkpoint,
    TrainState,
    newest_good,
    remove_old,
    save_checkpoint,
)
from soflow.run.folder import RunFolder
from soflow.run.metrics import MetricsLine, add_metrics, flush_metrics

log = logging.getLogger(__name__)


class CheckpointManager:
    """Writes the log and the checkpoints of one run, in its first process."""

    def __init__(self, folder: RunFolder, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self.unwritten: list[MetricsLine] = []  # lines for which the disk had no room
        self.place: tuple[int, int] | None = None  # of the folder, once something was written
        self.problems: list[str] = []  # of the checkpoints that were passed over
        self.remember_best(TrainState())

    def remember_best(self, state: TrainState) -> None:
        """Remembers the best figure as the newest checkpoint has it."""
        self.best = state.best, state.best_of, state.best_step

    def newest_good(self) -> Checkpoint | None:
        """Returns the newest undamaged checkpoint, or None. Logs a warning for each damaged one."""
        checkpoint, self.problems = newest_good(self.folder.checkpoints)
        for problem in self.problems:
            log.warning(f"{problem}; passing over it")
        return checkpoint

    def require_nothing_lost(self) -> None:
        """Raises RunError if checkpoints were passed over: such a run is not begun again."""
        if self.problems:
            what = f"{self.problems[0]}; no checkpoint in {self.folder.checkpoints} is good"
            raise RunError(f"{what}: restore one, or move them to begin a new run")

    def diverged(self, what: str, advice: str = "") -> RunError:
        """The error that ends a run whose numbers are not finite."""
        good, _ = newest_good(self.folder.checkpoints)
        last = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        return RunError(
            f"{what}; {last}; try {advice}in a new folder a smaller optimizer.lr, a longer "
            "optimizer.warmup, optimizer.clip=1, or precision=fp32"
        )

    def log(self, line: MetricsLine) -> None:
        """Appends a line to metrics.jsonl; if there is no room, together with the next one."""
        self.unwritten.append(line)
        try:
            self.write_log()
        except OSError as error:
            what = f"cannot write {self.folder.metrics}: {error.strerror}"
            log.warning(f"{what}; the next checkpoint needs it to be written")

    def write_log(self) -> None:
        self.require_place()
        add_metrics(self.folder.metrics, self.unwritten)
        self.unwritten.clear()

    def require_place(self) -> None:
        """Raises RunError if the folder was removed, and another run made it again."""
        there = self.folder.path.stat()
        place = there.st_dev, there.st_ino
        if self.place not in (None, place):
            raise RunError(f"{self.folder.path} was removed during training, and made again")
        self.place = place

    def save(
        self,
        state: TrainState,
        weights: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        last_chance: bool,
    ) -> None:
        """Writes the log and then a checkpoint, and removes older ones.

        Args:
            last_chance: Whether training ends here, so that checkpoint.on_failure=continue does
                not apply.

        Raises:
            RunError: If the checkpoint cannot be written and training is not to continue.
        """
        try:
            self.write_log()
            flush_metrics(self.folder.metrics)
            save_checkpoint(self.folder.checkpoints, state, weights, ema, optimizer)
        except OSError as error:
            place, why = self.folder.checkpoints, error.strerror or error
            what = f"cannot write the checkpoint of step {state.step} to {place}: {why}"
            what += "; earlier ones are untouched"
            if last_chance or self.config.on_failure == "stop":
                raise RunError(f"{what}; make room, then run the same command again") from None
            log.warning(f"{what}; continuing without it")
            state.best, state.best_of, state.best_step = self.best
            return
        self.remember_best(state)
        folder, config = self.folder.checkpoints, self.config
        try:
            remove_old(folder, state, config.keep_last, config.keep_every)
        except OSError as error:
            why = error.strerror or error
            log.warning(f"cannot remove older checkpoints in {folder}: {why}")
