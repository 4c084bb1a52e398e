"""Resuming a run: which settings change, the effect of each change, and the record of changes."""

import logging
import os
from collections.abc import Sequence
from datetime import datetime, timezone

from soflow.config import Config
from soflow.errors import InputError
from soflow.objectives.base import Objective
from soflow.run.checkpoint import ALL, OPTIMIZER, WEIGHTS, checkpoints
from soflow.run.folder import RunFolder
from soflow.run.history import Change, first_value, read_history, write_history
from soflow.run.resume import Difference, plain
from soflow.training.trainer import Trainer

log = logging.getLogger(__name__)


def require_resumable(folder: RunFolder) -> None:
    """Raises InputError for a model that was saved for sampling, which cannot be trained further.

    A saved model has neither a log nor the state of the optimizer.
    """
    for checkpoint in reversed(checkpoints(folder.checkpoints)):
        there = [name for name in ALL if os.path.isfile(checkpoint.path / name)]
        if folder.metrics.is_file() or not there or OPTIMIZER in there:
            return
        ema = WEIGHTS["ema"] in there
        source = folder.path if ema else checkpoint.path / WEIGHTS["raw"]
        raise InputError(
            f"{folder.path} is a saved model, without {OPTIMIZER}: start a new run in another "
            f"folder with init_from={source}"
        )


def settings_of(folder: RunFolder) -> Config | None:
    """The settings of the run in a folder; None if there is no checkpoint to resume from.

    Raises:
        InputError: If the folder has checkpoints, but no config.yaml.
    """
    if not checkpoints(folder.checkpoints):
        return None
    if not folder.config.is_file():
        raise InputError(
            f"{folder.path} has checkpoints but no config.yaml: restore config.yaml or choose "
            "another folder"
        )
    return folder.read_config()


def resume_run(
    trainer: Trainer,
    started: Config,
    changed: Sequence[Difference],
    write: bool,
) -> None:
    """Restores the position in the data, and logs and records the changed settings.

    Args:
        trainer: The trainer, with the state of a checkpoint.
        started: The settings of the run so far.
        changed: The settings that change now.
        write: Whether this process writes the record.

    Raises:
        InputError: If settings change, but no step is left to train.
        RunError: If the record is damaged.
    """
    folder, step, steps = trainer.folder, trainer.state.step, trainer.config.train.steps
    history = read_history(folder.history)
    trainer.resume_data(first_value(history, "train.batch_size", started.train.batch_size))
    if changed and steps <= step:
        raise InputError(
            f"{folder.path} has already done {step} of {steps} steps, so {changed[0].key}="
            f"{plain(changed[0].new)} has no effect: to train further, set train.steps=N above "
            f"{step}"
        )
    if write:
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        changes = [Change(step=step, when=when, **change._asdict()) for change in changed]
        write_history(folder.history, changes, step)
        for change in changed:
            old, new = plain(change.old), plain(change.new)
            text = f"after step {step}, {change.key} is {new} instead of {old}"
            if change.key == "train.steps":
                text += schedules_at(trainer.train_step.objective, step, change)
            log.info(text)


def schedules_at(objective: Objective, step: int, change: Difference) -> str:
    """How a changed number of steps K shifts the schedules of an objective, such as r(k, K)."""
    scheduled = getattr(objective, "scheduled", None)
    if scheduled is None:
        return ""
    old, new = (scheduled(min(1.0, step / steps)) for steps in (change.old, change.new))
    moves = [
        f"{name}({step}, {change.old})={old[name]:.4g} becomes "
        f"{name}({step}, {change.new})={new[name]:.4g}"
        for name in old
        if old[name] != new[name]
    ]
    return f"; schedules follow k/K, so {' and '.join(moves)}" if moves else ""
