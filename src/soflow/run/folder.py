"""The run folder: where everything is.

config.yaml  data.json  metrics.jsonl  history.jsonl
checkpoints/step-NNNNNNNN/  samples/step-NNNNNNNN.png  evaluation.json  report.html
trackers.json, and what trackers write
"""

import logging
from pathlib import Path

from soflow.config import Config, dump
from soflow.config.reading import complete, parse_yaml, read_text, validate
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import VERSION, WEIGHTS, Checkpoint, newest_good, require_good
from soflow.run.metrics import read_metrics
from soflow.system.atomic import require_writable, write_text

log = logging.getLogger(__name__)

#: Unfinished files that only a trainer leaves; others may belong to a process at work.
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
    """The paths of a run."""

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
        """The newest sample grid, which a notebook shows."""
        newest = max(self.samples.glob("step-????????.png"), default=None)
        return newest.read_bytes() if newest else None

    def create(self) -> None:
        """Makes the folder, and removes unfinished files of a trainer that was killed.

        Raises:
            InputError: If it cannot be written.
        """
        for folder in (self.path, self.samples, self.checkpoints):
            require_writable(folder)
        for pattern in LEFT_BY_TRAINERS:
            for partial in self.path.glob(pattern):
                partial.unlink()

    def sample_grid(self, step: int) -> Path:
        """The picture of samples drawn after a step."""
        return self.samples / f"step-{step:08d}.png"

    def write_config(self, config: Config) -> None:
        head = f"# The whole configuration of this run.\nversion: {VERSION}\n"
        write_text(self.config, head + dump(config))

    def read_config(self) -> Config:
        """The configuration of the run.

        Raises:
            InputError: If the folder is not a run, or a run of another version.
        """
        if self.path.is_file():
            raise InputError(
                f"{self.path} is a file, not a run folder; soflow import turns checkpoints into one"
            )
        if not self.config.is_file():
            raise InputError(
                f"{self.path} is not a run folder: it has no config.yaml; soflow train makes one"
            )
        try:
            values = parse_yaml(read_text(self.config), str(self.config))
            version = values.pop("version")
            complete(values)
        except (InputError, AttributeError, KeyError, TypeError):
            raise InputError(
                f"{self.config} is damaged: it is not the YAML that soflow train wrote"
            ) from None
        if version != VERSION:
            raise InputError(
                f"{self.path} is a run folder of version {version}, and this soflow reads version "
                f"{VERSION}: use the soflow that wrote it, or train again"
            )
        try:
            return validate(values)
        except InputError as error:
            raise InputError(f"{self.config}: {error}") from None

    def read_metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl: "step" and figures by name; damaged lines are skipped."""
        return read_metrics(self.metrics)


def evaluation_file(folder: RunFolder, checkpoint: str) -> Path:
    """Where the evaluation of a checkpoint goes: evaluation.json, if the checkpoint is the newest.

    That of another checkpoint gets a file named after it.
    """
    newest, _ = newest_good(folder.checkpoints, needed=())
    if newest is None or newest.path.name == checkpoint:
        return folder.evaluation
    return folder.path / f"evaluation-{checkpoint}.json"


def find_run(path: Path, weights: str = "ema") -> tuple[RunFolder, Checkpoint]:
    """The run and a good checkpoint of it: its newest, or the one that `path` names.

    Args:
        path: A run folder, one checkpoint inside it, or RUN/checkpoints/best for the best one by
            the evaluations during training.
        weights: Those that the checkpoint must have, "ema" or "raw". Its other files may be
            missing.

    Raises:
        InputError: If there is no such run or checkpoint.
        RunError: If the named checkpoint, or every one, is damaged.
    """
    path = path.expanduser()
    real = path.resolve()
    one = real.name.startswith("step-") and real.parent.name == "checkpoints"
    if one and not path.is_dir():
        raise InputError(f"there is no checkpoint {path}")
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
            raise RunError(f"{what}: restore that file, use other weights, or train again")
        raise InputError(f"{run.path} has no checkpoint yet: train it with soflow train")
    if best:
        step = checkpoint.train_state().best_step
        if not step:
            why = "evaluate.every was 0, or no evaluation gave a finite figure"
            raise InputError(f"{run.path} has no best checkpoint: {why}")
        return run, require_good(Checkpoint(run.checkpoints / f"step-{step:08d}"), needed)
    for problem in problems:
        log.warning(f"{problem}; using {checkpoint.path}")
    return run, checkpoint
