"""What a run leaves on the disk as it goes, its log and its checkpoints; and what happens where the disk takes no more."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from soflow.config.schema import CheckpointConfig
from soflow.errors import RunError
from soflow.run.checkpoint import TrainState, remove_old, save_checkpoint
from soflow.run.folder import RunFolder

log = logging.getLogger(__name__)


class CheckpointManager:
    """Keeps the log and the checkpoints of one run, in its first process."""

    def __init__(self, folder: RunFolder, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self.unwritten: list[dict[str, Any]] = []  # lines of the log for which there was no room
        self.place: tuple[int, int] | None = None  # of the folder, once something was written
        self.remember_best(TrainState())

    def remember_best(self, state: TrainState) -> None:
        """What the newest checkpoint holds to be the best."""
        self.best = state.best, state.best_of, state.best_step

    def require_place(self) -> None:
        """Raises RunError where the folder is another than before: one that was removed, and made anew by another run."""
        there = self.folder.path.stat()
        place = there.st_dev, there.st_ino
        if self.place not in (None, place):
            raise RunError(
                f"{self.folder.path} was removed while it was being trained, and is another folder now"
            )
        self.place = place

    def log(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl; where there is no room, with the next one, or the next checkpoint."""
        self.unwritten.append(line)
        try:
            self.write_log()
        except OSError as error:
            log.warning(
                f"cannot write {self.folder.metrics}: {error.strerror}; the next checkpoint needs it to be written"
            )

    def write_log(self) -> None:
        self.require_place()
        self.folder.add_metrics(self.unwritten)
        self.unwritten.clear()

    def save(
        self,
        state: TrainState,
        weights: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        last_chance: bool,
    ) -> None:
        """Writes a checkpoint, the log before it, and removes older ones. Raises RunError where it cannot be written, unless
        training is to continue and this is not the last chance; the best is then that of the last one that was.
        """
        try:
            self.write_log()
            self.folder.flush_metrics()
            save_checkpoint(self.folder.checkpoints, state, weights, ema, optimizer)
        except OSError as error:
            place = self.folder.checkpoints
            what = f"cannot write the checkpoint of step {state.step} to {place}: {error.strerror or error}"
            if last_chance or self.config.on_failure == "stop":
                raise RunError(
                    f"{what}; earlier ones are untouched; make room, then run the same command again"
                ) from None
            log.warning(f"{what}; earlier ones are untouched; going on without it")
            state.best, state.best_of, state.best_step = self.best
            return
        self.remember_best(state)
        try:
            remove_old(
                self.folder.checkpoints, state, self.config.keep_last, self.config.keep_every
            )
        except OSError as error:
            log.warning(
                f"cannot remove older checkpoints in {self.folder.checkpoints}: {error.strerror or error}"
            )
