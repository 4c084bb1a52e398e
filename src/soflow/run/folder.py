"""The run folder: the files of a run.

config.yaml  data.json  metrics.jsonl  history.jsonl
checkpoints/step-NNNNNNNN/  samples/step-NNNNNNNN.png  evaluation.json  report.html
trackers.json, and the files of trackers
"""

import logging
from pathlib import Path

from soflow.config import Config, dump
from soflow.config.reading import COMPARISON, complete, parse_yaml, read_text, validate
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import VERSION, WEIGHTS, Checkpoint, newest_good, require_good
from soflow.run.metrics import read_metrics
from soflow.system.atomic import require_writable, write_text

log = logging.getLogger(__name__)

#: Unfinished files that only a trainer leaves. Other unfinished files may be in use.
LEFT_BY_TRAINERS = (
    ".config.yaml.*.partial",
    ".data.json.*.partial",
    ".metrics.jsonl.*.partial",
    ".history.jsonl.*.partial",
    ".trackers.json.*.partial",
    "samples/.step-????????.png.*.partial",
    "checkpoints/step-*/.state.json.*.partial",
)


class RunFolder:
    """The paths of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.history = path / "history.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.data = path / "data.json"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"
        self.trackers = path / "trackers.json"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({self.path})"

    def _repr_png_(self) -> bytes | None:
        """The newest sample grid, for display in a notebook."""
        newest = max(self.samples.glob("step-????????.png"), default=None)
        return newest.read_bytes() if newest else None

    def create(self) -> None:
        """Creates the folder, and removes unfinished files of a killed trainer.

        Raises:
            InputError: If the folder is not writable.
        """
        for folder in (self.path, self.samples, self.checkpoints):
            require_writable(folder)
        for pattern in LEFT_BY_TRAINERS:
            for partial in self.path.glob(pattern):
                partial.unlink()

    def sample_grid(self, step: int) -> Path:
        """The file of the sample grid of a step."""
        return self.samples / f"step-{step:08d}.png"

    def write_config(self, config: Config) -> None:
        head = f"# The complete configuration of this run.\nversion: {VERSION}\n"
        write_text(self.config, head + dump(config))

    def read_config(self) -> Config:
        """The configuration of the run.

        Raises:
            InputError: If the folder is not a run folder, or has another version.
        """
        if self.path.is_file():
            raise InputError(
                f"{self.path} is a file, not a run folder: soflow import turns checkpoints of the "
                "reference implementation into run folders"
            )
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist: choose a folder created by soflow train")
        self.require_no_comparison()
        if not self.config.is_file():
            raise InputError(
                f"{self.path} is not a run folder, because it has no config.yaml: choose a folder "
                "created by soflow train"
            )
        try:
            values = parse_yaml(read_text(self.config), str(self.config))
            version = values.pop("version")
            complete(values)
        except (InputError, AttributeError, KeyError, TypeError):
            raise InputError(
                f"{self.config} is damaged or incomplete: restore the file that soflow train wrote"
            ) from None
        if version != VERSION:
            raise InputError(
                f"{self.path} is a run folder of version {version}, but this soflow reads version "
                f"{VERSION}: use the soflow that wrote it, or train again"
            )
        try:
            return validate(values)
        except InputError as error:
            raise InputError(f"{self.config}: {error}") from None

    def require_no_comparison(self) -> None:
        """Raises InputError if the folder holds a comparison."""
        if (self.path / COMPARISON).is_file() and not self.config.is_file():
            page = f"; its page is {self.report}" if self.report.is_file() else ""
            raise InputError(
                f"{self.path} is a comparison: choose one of its runs, or another folder{page}"
            )

    def read_metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl: "step" and values by name. Skips damaged lines."""
        return read_metrics(self.metrics)


def evaluation_file(folder: RunFolder, checkpoint: str) -> Path:
    """The file for the evaluation of a checkpoint.

    It is evaluation.json for the newest checkpoint, and evaluation-step-NNNNNNNN.json for others.
    """
    newest, _ = newest_good(folder.checkpoints, needed=())
    if newest is None or newest.path.name == checkpoint:
        return folder.evaluation
    return folder.path / f"evaluation-{checkpoint}.json"


def find_run(path: Path, weights: str = "ema") -> tuple[RunFolder, Checkpoint]:
    """Finds a run and a good checkpoint: the checkpoint at `path`, or the newest.

    Args:
        path: A run folder, a checkpoint in it, or RUN/checkpoints/best for the best checkpoint
            according to the evaluations during training.
        weights: The weights that the checkpoint must contain, "ema" or "raw". Other files may be
            missing.

    Raises:
        InputError: If the run or the checkpoint does not exist.
        RunError: If the given checkpoint, or every checkpoint, is damaged.
    """
    path = path.expanduser()
    real = path.resolve()
    one = real.name.startswith("step-") and real.parent.name == "checkpoints"
    if one and not path.is_dir():
        raise InputError(f"the checkpoint {path} does not exist")
    if one and path.parent.name != "checkpoints":
        path = real
    best = path.name == "best" and path.parent.name == "checkpoints"
    run = RunFolder(path.parent.parent if one or best else path)
    run.read_config()
    needed = (WEIGHTS[weights],)
    if one:
        return run, require_good(Checkpoint(path), needed)
    checkpoint, problems = newest_good(run.checkpoints, needed)
    if checkpoint is None:
        if problems:
            what = f"{problems[0]}; no checkpoint in {run.checkpoints} has good {weights} weights"
            raise RunError(f"{what}: restore the file, use other weights, or train again")
        raise InputError(f"{run.path} has no checkpoint yet: train it with soflow train")
    if best:
        step = checkpoint.train_state().best_step
        if not step:
            why = "evaluate.every was 0, or no evaluation gave a finite value"
            raise InputError(f"{run.path} has no best checkpoint, because {why}")
        return run, require_good(Checkpoint(run.checkpoints / f"step-{step:08d}"), needed)
    for problem in problems:
        log.warning(f"{problem}; using {checkpoint.path}")
    return run, checkpoint
