"""The checkpoint manager: writes, rotates and selects checkpoints, and writes the log."""

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
from soflow.system.atomic import remedy

log = logging.getLogger(__name__)


class CheckpointManager:
    """Writes the log and the checkpoints of a run, in the first process."""

    def __init__(self, folder: RunFolder, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config
        self.unwritten: list[MetricsLine] = []  # log lines that could not be written yet
        self.place: tuple[int, int] | None = None  # device and inode of the folder
        self.problems: list[str] = []  # problems of damaged checkpoints
        self.remember_best(TrainState())

    def remember_best(self, state: TrainState) -> None:
        """Remembers the best value recorded in the newest checkpoint."""
        self.best = state.best, state.best_of, state.best_step

    def newest_good(self) -> Checkpoint | None:
        """Returns the newest undamaged checkpoint, or None. Logs a warning for each damaged one."""
        checkpoint, self.problems = newest_good(self.folder.checkpoints)
        for problem in self.problems:
            log.warning(f"{problem}; skipping this checkpoint")
        return checkpoint

    def require_nothing_lost(self) -> None:
        """Raises RunError if all checkpoints are damaged. Such a run must not start again."""
        if self.problems:
            what = f"{self.problems[0]}; no checkpoint in {self.folder.checkpoints} is good"
            raise RunError(f"{what}: restore a checkpoint, or move them all to start a new run")

    def diverged(self, what: str, advice: str = "") -> RunError:
        """The error that ends a run with non-finite values."""
        good, _ = newest_good(self.folder.checkpoints)
        last = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        return RunError(
            f"{what}; {last}; try {advice}a new run with a smaller optimizer.lr, a longer "
            "optimizer.warmup, optimizer.clip=1, or precision=fp32"
        )

    def log(self, line: MetricsLine) -> None:
        """Appends a line to metrics.jsonl. If that fails, keeps the line for the next attempt."""
        self.unwritten.append(line)
        try:
            self.write_log()
        except OSError as error:
            what = f"cannot write {self.folder.metrics}: {error.strerror}"
            log.warning(f"{what}; trying again at the next log line or checkpoint")

    def write_log(self) -> None:
        self.require_place()
        add_metrics(self.folder.metrics, self.unwritten)
        self.unwritten.clear()

    def require_place(self) -> None:
        """Raises RunError if the run folder was removed and created again, by another run."""
        there = self.folder.path.stat()
        place = there.st_dev, there.st_ino
        if self.place not in (None, place):
            raise RunError(
                f"{self.folder.path} was removed and created again during training: train in "
                "another folder"
            )
        self.place = place

    def save(
        self,
        state: TrainState,
        weights: Mapping[str, Tensor],
        ema: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        last_chance: bool,
    ) -> None:
        """Writes the log and a checkpoint, then removes old checkpoints.

        Args:
            state: The state of the run.
            weights: The weights of the network.
            ema: The EMA weights.
            optimizer: The state of the optimizer.
            last_chance: Whether training ends here. checkpoint.on_failure=continue then does not
                apply.

        Raises:
            RunError: If the checkpoint cannot be written and training must not continue.
        """
        try:
            self.write_log()
            flush_metrics(self.folder.metrics)
            save_checkpoint(self.folder.checkpoints, state, weights, ema, optimizer)
        except OSError as error:
            place, why = self.folder.checkpoints, error.strerror or error
            what = f"cannot write the checkpoint of step {state.step} to {place}: {why}"
            what += "; earlier checkpoints are unchanged"
            if last_chance or self.config.on_failure == "stop":
                raise RunError(
                    f"{what}; {remedy(error)}, then run the same command again"
                ) from None
            log.warning(f"{what}; continuing without this checkpoint")
            state.best, state.best_of, state.best_step = self.best
            return
        self.remember_best(state)
        folder, config = self.folder.checkpoints, self.config
        try:
            remove_old(folder, state, config.keep_last, config.keep_every)
        except OSError as error:
            why = error.strerror or error
            log.warning(f"cannot remove old checkpoints in {folder}: {why}")
