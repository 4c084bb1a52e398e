"""Trackers: TensorBoard, Weights & Biases and MLflow, by Accelerate's classes.

metrics.jsonl and the folder samples have everything that they get.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from soflow.config import Config
from soflow.errors import InputError, RunError, first_line
from soflow.run.folder import RunFolder
from soflow.run.metrics import MetricsLine
from soflow.system.packages import install
from soflow.system.records import Record
from soflow.training.metrics import figures_of

log = logging.getLogger(__name__)

#: The extra that installs the package of each tracker.
EXTRAS = {"tensorboard": "track", "wandb": "wandb", "mlflow": "mlflow"}
#: Where W&B and MLflow put runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise.
PROJECT = "soflow"
#: The name of the sample grids.
SAMPLES = "samples"


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError with the install line if the package of a tracker is missing."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name is no package
            advice = install(EXTRAS.get(name, "track"))
            raise InputError(f"train.trackers names {name}, which is not installed: {advice}")


class TrackerIds(Record):
    """trackers.json: the runs of W&B and MLflow that a resumed run continues."""

    wandb: str = ""
    mlflow: str = ""


class TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """Writes into the run folder. A resumed run replaces what is there after its step."""

    def __init__(self, folder: RunFolder, step: int, continued: str) -> None:
        super().__init__("", str(folder.path), purge_step=step + 1)

    @property
    def id(self) -> str:
        return ""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Adds hyperparameters to the writer's own file; `add_hparams` would begin another one."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {}):
            self.writer.file_writer.add_summary(summary)

    def log_picture(self, file: Path, step: int) -> None:
        self.log_images({SAMPLES: pixels(file)[None]}, step, dataformats="NHWC")
        self.writer.flush()


class WandB(WandBTracker):  # type: ignore[misc]
    """Writes into the folder `wandb` of the run folder, and to the server unless offline."""

    def __init__(self, folder: RunFolder, step: int, continued: str) -> None:
        name = os.environ.get("WANDB_NAME", folder.path.resolve().name)
        options = {
            "name": name,
            "dir": os.environ.get("WANDB_DIR", str(folder.path)),
            "reinit": "create_new",  # leaves a run of the caller alone
        }
        if continued:
            options |= {"id": continued, "resume": "allow"}
        super().__init__(os.environ.get("WANDB_PROJECT", PROJECT), **options)

    @property
    def id(self) -> str:
        return self.run.id

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def log_picture(self, file: Path, step: int) -> None:
        self.log_images({SAMPLES: [pixels(file)]}, step)


class MLflow(MLflowTracker):  # type: ignore[misc]
    """Writes into the folder `mlflow` of the run folder, unless a tracking URI is set.

    A database, since MLflow 3 does not write plain folders any more.
    """

    def __init__(self, folder: RunFolder, step: int, continued: str) -> None:
        path = folder.path.resolve()
        super().__init__(PROJECT, run_id=continued or None, run_name=path.name)
        self.folder = path / "mlflow"
        self.continues = bool(continued)
        self.sets_uri = False

    def start(self) -> None:
        import mlflow

        self.sets_uri = not mlflow.is_tracking_uri_set()
        if self.sets_uri:
            self.folder.mkdir(exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}")
            self.logging_dir = (self.folder / "artifacts").as_uri()
        try:
            super().start()
        except BaseException:
            self.leave_uri()
            raise

    @property
    def id(self) -> str:
        return self.active_run.info.run_id

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Stores parameters once: MLflow never changes those of a run."""
        if not self.continues:
            super().store_init_configuration(dict(values))

    def log_picture(self, file: Path, step: int) -> None:
        self.log_artifact(str(file), SAMPLES)  # its name has the step

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.leave_uri()

    def leave_uri(self) -> None:
        """Leaves the process's tracking URI as it was."""
        import mlflow

        if self.sets_uri:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


Tracker = TensorBoard | WandB | MLflow
CLASSES: dict[str, Callable[[RunFolder, int, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Trackers:
    """The trackers of a run, in its first process.

    If one of them cannot write, training continues without it.
    """

    def __init__(self, accelerator: Accelerator, config: Config, folder: RunFolder) -> None:
        self.accelerator, self.config, self.folder = accelerator, config, folder
        self.open: dict[str, Tracker] = {}

    def start(self, step: int) -> None:
        """Opens them after `step`; above 0 they continue what they have."""
        names = self.config.train.trackers
        if not names or not self.accelerator.is_main_process:
            return
        ids = self.read_ids() if step else TrackerIds()
        for name in names:
            self.attempt(name, partial(self.start_one, name, step, ids))
        if found := {name: tracker.id for name, tracker in self.open.items() if tracker.id}:
            try:
                ids.model_copy(update=found).write(self.folder.trackers)
            except RunError as error:
                log.warning(f"train.trackers begin new runs when this one is resumed: {error}")

    def read_ids(self) -> TrackerIds:
        try:
            return TrackerIds.read(self.folder.trackers) or TrackerIds()
        except RunError as error:
            log.warning(f"train.trackers begin new runs: {error}")
            return TrackerIds()

    def start_one(self, name: str, step: int, ids: TrackerIds) -> None:
        """Opens a tracker in the run that it has, or in a new one if that is lost."""
        continued = getattr(ids, name, "")
        try:
            tracker = CLASSES[name](self.folder, step, continued)
            tracker.start()
        except Exception as error:
            if not continued:
                raise
            log.warning(
                f"train.trackers: {name} cannot continue its run {continued} and begins a new "
                f"one: {first_line(error)}"
            )
            tracker = CLASSES[name](self.folder, step, "")
            tracker.start()
        self.open[name] = tracker
        tracker.store_init_configuration(dict(hyperparameters(self.config)))

    def log(self, line: MetricsLine) -> None:
        self.each(lambda tracker: tracker.log(figures_of(line), step=line.step))

    def log_samples(self, step: int) -> None:
        """Logs the sample grid of a step, if it was drawn."""
        file = self.folder.sample_grid(step)
        if file.is_file():
            self.each(lambda tracker: tracker.log_picture(file, step))

    def close(self) -> None:
        """Closes them, and ends the process group."""
        self.each(lambda tracker: tracker.finish())
        self.open.clear()
        self.accelerator.end_training()

    def each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            self.attempt(name, partial(work, tracker))

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Calls a tracker. If it raises an error, training continues without this tracker."""
        try:
            work()
        except Exception as error:  # each package has its own errors
            log.warning(f"continuing without {name} of train.trackers: {first_line(error)}")
            if (tracker := self.open.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.finish()


def hyperparameters(config: Config) -> Iterator[tuple[str, bool | int | float | str]]:
    """The configuration by dotted keys; lists and null become texts."""

    def flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{name}.")
            elif isinstance(value, bool | int | float | str):
                yield prefix + name, value
            else:
                yield prefix + name, json.dumps(value)

    return flat(config.model_dump(mode="json"), "")


def pixels(file: Path) -> np.ndarray:
    """A picture as bytes (height, width, 3)."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))
