"""Trackers: TensorBoard, Weights & Biases and MLflow, based on Accelerate's classes.

Everything that a tracker receives is also in metrics.jsonl and the folder samples.
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
from soflow.training.metrics import metrics_of

log = logging.getLogger(__name__)

#: For each tracker, the extra that installs its package.
EXTRAS = {"tensorboard": "track", "wandb": "wandb", "mlflow": "mlflow"}
#: The project in W&B and the experiment in MLflow. WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME
#: override it.
PROJECT = "soflow"
#: The name under which sample grids are logged.
SAMPLES = "samples"


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError with an install command if the package of a tracker is missing."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: only a folder of this name
            advice = install(EXTRAS.get(name, "track"))
            raise InputError(f"train.trackers needs {name}, which is not installed: {advice}")


class TrackerIds(Record):
    """trackers.json: the ids of the W&B and MLflow runs, so that a resumed run continues them."""

    wandb: str = ""
    mlflow: str = ""


class TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """Writes to the run folder. A resumed run discards later events."""

    def __init__(self, folder: RunFolder, step: int, continued: str) -> None:
        super().__init__("", str(folder.path), purge_step=step + 1)

    @property
    def id(self) -> str:
        return ""

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Adds hyperparameters to the writer's file. `add_hparams` would create another file."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {}):
            self.writer.file_writer.add_summary(summary)

    def log_picture(self, file: Path, step: int) -> None:
        self.log_images({SAMPLES: pixels(file)[None]}, step, dataformats="NHWC")
        self.writer.flush()


class WandB(WandBTracker):  # type: ignore[misc]
    """Writes to the folder `wandb` in the run folder, and to the server unless offline."""

    def __init__(self, folder: RunFolder, step: int, continued: str) -> None:
        name = os.environ.get("WANDB_NAME", folder.path.resolve().name)
        options = {
            "name": name,
            "dir": os.environ.get("WANDB_DIR", str(folder.path)),
            "reinit": "create_new",  # does not end a W&B run of the caller
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
    """Writes to a database in the folder `mlflow` of the run folder, unless a tracking URI is set.

    It is a database because MLflow 3 no longer writes plain folders.
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
        """Stores the parameters of a new run. MLflow cannot change the parameters of a run."""
        if not self.continues:
            super().store_init_configuration(dict(values))

    def log_picture(self, file: Path, step: int) -> None:
        self.log_artifact(str(file), SAMPLES)  # the file name contains the step

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.leave_uri()

    def leave_uri(self) -> None:
        """Restores the tracking URI of the process."""
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
    """The trackers of a run, in the first process.

    If a tracker cannot write, training continues without it.
    """

    def __init__(self, accelerator: Accelerator, config: Config, folder: RunFolder) -> None:
        self.accelerator, self.config, self.folder = accelerator, config, folder
        self.open: dict[str, Tracker] = {}

    def start(self, step: int) -> None:
        """Opens the trackers. If the run resumes (`step` > 0), they continue their earlier runs."""
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
                log.warning(f"train.trackers: a resume will start new tracker runs: {error}")

    def read_ids(self) -> TrackerIds:
        try:
            return TrackerIds.read(self.folder.trackers) or TrackerIds()
        except RunError as error:
            log.warning(f"train.trackers: starting new tracker runs: {error}")
            return TrackerIds()

    def start_one(self, name: str, step: int, ids: TrackerIds) -> None:
        """Opens a tracker in its earlier run, or in a new run if the earlier run is lost."""
        continued = getattr(ids, name, "")
        try:
            tracker = CLASSES[name](self.folder, step, continued)
            tracker.start()
        except Exception as error:
            if not continued:
                raise
            log.warning(
                f"train.trackers: {name} cannot continue its run {continued} and starts a new run: "
                f"{first_line(error)}"
            )
            tracker = CLASSES[name](self.folder, step, "")
            tracker.start()
        self.open[name] = tracker
        tracker.store_init_configuration(dict(hyperparameters(self.config)))

    def log(self, line: MetricsLine) -> None:
        self.each(lambda tracker: tracker.log(metrics_of(line), step=line.step))

    def log_samples(self, step: int) -> None:
        """Logs the sample grid of a step, if it was drawn."""
        file = self.folder.sample_grid(step)
        if file.is_file():
            self.each(lambda tracker: tracker.log_picture(file, step))

    def close(self) -> None:
        """Closes the trackers and ends the process group."""
        self.each(lambda tracker: tracker.finish())
        self.open.clear()
        self.accelerator.end_training()

    def each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            self.attempt(name, partial(work, tracker))

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Calls a tracker. If it raises an error, training continues without the tracker."""
        try:
            work()
        except Exception as error:  # each package has its own exceptions
            log.warning(f"train.trackers: continuing without {name}: {first_line(error)}")
            if (tracker := self.open.pop(name, None)) is not None:
                with suppress(Exception):
                    tracker.finish()


def hyperparameters(config: Config) -> Iterator[tuple[str, bool | int | float | str]]:
    """The configuration as dotted keys and values. Lists and null become strings."""

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
