"""Trackers such as TensorBoard. metrics.jsonl has everything that they get."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

from accelerate import Accelerator

from soflow.errors import InputError
from soflow.run.metrics import MetricsLine
from soflow.system.packages import install
from soflow.training.metrics import figures_of

log = logging.getLogger(__name__)


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError with the install line if the package of a tracker is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"train.trackers names {name}, which is not installed: {install('track')}"
            )


class Trackers:
    """The trackers of a run. If one cannot write, training continues without them."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def start(self, step: int) -> None:
        """Opens them, and removes what they have after `step`."""
        options = {"tensorboard": {"purge_step": step + 1}}
        self.attempt(lambda: self.accelerator.init_trackers("", init_kwargs=options))

    def log(self, line: MetricsLine) -> None:
        self.attempt(lambda: self.accelerator.log(figures_of(line), step=line.step))

    def close(self) -> None:
        """Closes them, and ends the process group."""
        self.attempt(self.accelerator.end_training)

    def attempt(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except OSError as error:
            self.accelerator.trackers = []
            log.warning(f"continuing without train.trackers, which cannot write: {error}")
