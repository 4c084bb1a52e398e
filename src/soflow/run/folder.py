"""The run folder: what lies where.

config.yaml  data.json  metrics.jsonl  checkpoints/step-NNNNNNNN/  samples/step-NNNNNNNN.png  evaluation.json  report.html
"""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soflow.config import Config, dump
from soflow.config.reading import parse_yaml, read_text, validate
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import VERSION, Checkpoint, newest_good, require_good
from soflow.system.atomic import require_writable, write_json, write_text
from soflow.system.records import is_like, natural, parse_json, read_json

#: Files that a trainer alone writes, as they are before they are whole; others may be others' at work.
LEFT_BY_TRAINERS = (
    ".config.yaml.*.partial",
    ".data.json.*.partial",
    ".metrics.jsonl.*.partial",
    "samples/.step-????????.png.*.partial",
    "checkpoints/step-*/.state.json.*.partial",
)


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def create(self) -> None:
        """Makes the folder, and removes what a trainer that was killed left half-written; nobody else may be training there.
        Raises InputError where it cannot be written.
        """
        for folder in (self.path, self.samples, self.checkpoints):
            require_writable(folder)
        for pattern in LEFT_BY_TRAINERS:
            for partial in self.path.glob(pattern):
                partial.unlink()

    def write_config(self, config: Config) -> None:
        write_text(
            self.config,
            f"# The whole configuration of this run.\nversion: {VERSION}\n{dump(config)}",
        )

    def write_data(self, described: dict[str, Any]) -> None:
        write_json(self.data, described)

    def read_data(self) -> dict[str, Any]:
        """What the run was trained on: classes' names, encoder, count; {} of a run that did not note it."""
        return read_json(self.data)

    def read_config(self) -> Config:
        """The run's configuration. Raises InputError for a folder that is no run, or a run of another version."""
        if self.path.is_file():
            raise InputError(
                f"{self.path} is a file, not a run folder; soflow import makes one of a reference checkpoint"
            )
        if not self.config.is_file():
            raise InputError(
                f"{self.path} is not a run folder: it has no config.yaml; make one with soflow train"
            )
        try:
            values = parse_yaml(read_text(self.config), str(self.config))
            version = values.pop("version")
        except (InputError, AttributeError, KeyError, TypeError):
            raise InputError(
                f"{self.config} is damaged: it is no longer the YAML that soflow train wrote"
            ) from None
        if version != VERSION:
            raise InputError(
                f"{self.path} is a run folder of version {version}; this soflow reads version {VERSION}: "
                "use the soflow that wrote it, or train anew"
            )
        try:
            return validate(values)
        except InputError as error:
            raise InputError(f"{self.config}: {error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; damaged ones, as a last one that a crash cut short, are left out."""
        if not self.metrics.is_file():
            return []
        lines = map(parse_json, self.metrics.read_text(errors="replace").splitlines())
        return [line for line in lines if line is not None and is_like(line, {"step": natural})]

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines that a resumed run will write again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def add_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to metrics.jsonl, all or none. Raises OSError where they cannot be written."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self.metrics.open("ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                if stream.write(text) < len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                stream.truncate(before)
                raise

    def flush_metrics(self) -> None:
        """Has metrics.jsonl on the disk, as a checkpoint after it will be."""
        with self.metrics.open("ab") as stream:
            os.fsync(stream.fileno())


def find_run(path: Path) -> tuple[RunFolder, Checkpoint, list[str]]:
    """The run, a good checkpoint of it and notes on damaged ones, from a run folder or one checkpoint inside it;
    RUN/checkpoints/best is the best one by the evaluations during training.

    Raises InputError where there is no such run, RunError where the checkpoint named, or every one, is damaged.
    """
    if path.resolve().name.startswith("step-") and path.resolve().parent.name == "checkpoints":
        if not path.is_dir():
            raise InputError(f"there is no checkpoint {path}")
        path = path if path.parent.name == "checkpoints" else path.resolve()
        run = RunFolder(path.parent.parent)
        run.read_config()
        return run, require_good(Checkpoint(path)), []
    best = path.name == "best" and path.parent.name == "checkpoints"
    run = RunFolder(path.parent.parent if best else path)
    run.read_config()
    checkpoint, problems = newest_good(run.checkpoints)
    if best and checkpoint is not None:
        step = checkpoint.train_state().best_step
        if not step:
            raise InputError(
                f"{run.path} has no best checkpoint: none of its evaluations gave a figure, or evaluate.every was 0"
            )
        return run, require_good(Checkpoint(run.checkpoints / f"step-{step:08d}")), []
    if checkpoint is None:
        if problems:
            raise RunError(
                f"{problems[0]}; there is no good checkpoint in {run.checkpoints}: train again"
            )
        raise InputError(f"{path} has no checkpoint yet: train it with soflow train")
    return run, checkpoint, [f"{problem}; using {checkpoint.path}" for problem in problems]
