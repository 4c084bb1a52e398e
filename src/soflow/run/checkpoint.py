"""Checkpoints: the complete state of a run, for resuming.

    checkpoints/step-00002000/
        model.safetensors       weights of the network
        ema.safetensors         EMA weights
        optimizer.pt            state of the optimizer, loadable with weights_only=True
        state.json              step, seconds, running means of the log; checksums of all files

A checkpoint is written under a temporary name, flushed to disk, read back and renamed. It is
therefore complete or absent. No checkpoint is removed before a newer one is complete.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from soflow.errors import RunError, first_line
from soflow.run.tensor_file import write_tensors
from soflow.system.archives import is_compressed
from soflow.system.atomic import flush_folder, new_file, replace_file
from soflow.system.fingerprints import checksum
from soflow.system.records import Count, Record

#: Version of the run folder format.
VERSION = 3
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
#: The files of a checkpoint in addition to state.json. Resuming needs all of them.
ALL = (*WEIGHTS.values(), OPTIMIZER)
#: A number of samples. The limit leaves room for adding the samples of more steps.
Samples = Annotated[int, Field(strict=True, ge=0, lt=2**53)]


@dataclass
class RunningMean:
    """The mean of `count` values with the sum `total`."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float, count: float) -> None:
        self.total += total
        self.count += count

    @property
    def value(self) -> float:
        return self.total / self.count


@dataclass
class TrainState:
    """The state of a run, without its tensors.

    Attributes:
        step: The number of completed steps.
        seconds: The time spent in these steps.
        means: Running means of the logged values since the last line of the log.
        best: The best value of the first metric during training; None without evaluations.
        best_of: The name of this metric, with its number of samples, such as "FID of 1000".
        best_step: The step of this value; 0 without evaluations.
        skipped: The number of updates skipped because a value was not finite.
        due: Whether the periodic work after this step, such as its log line or evaluation, is
            still due.
        samples: The number of samples seen, which is the position in the data. It is 0 in
            checkpoints that do not record it.
    """

    step: Count = 0
    seconds: float = 0.0
    means: dict[str, RunningMean] = field(default_factory=dict)
    best: float | None = None
    best_of: str = ""
    best_step: Count = 0
    skipped: Count = 0
    due: bool = False
    samples: Samples = 0


class CheckpointRecord(Record):
    """The content of state.json. The file also contains a checksum of these fields."""

    version: int
    state: TrainState
    checksums: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> "CheckpointRecord":
        """Reads the file. Raises Damaged if it is damaged, RunError if the version differs."""
        try:
            values = json.loads(file.read_bytes())
            intact = values.pop("checksum") == checksum_of(values)
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            intact = False
        if not intact:
            raise Damaged(f"{file} is damaged (its checksum differs from the recorded checksum)")
        if values.get("version") != VERSION:
            found = values.get("version")
            raise RunError(
                f"{file.parent} has version {found}, but this soflow reads version {VERSION}: use "
                "the soflow that wrote it, or train again"
            )
        try:
            return cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError:
            raise Damaged(f"{file} is damaged (soflow did not write it)") from None

    def save(self, file: Path) -> None:
        """Writes or replaces state.json."""
        values = self.model_dump(mode="json")
        values["checksum"] = checksum_of(values)
        replace_file(file, json.dumps(values, indent=1).encode())


def checksum_of(values: object) -> str:
    """The checksum of JSON values, independent of spaces and the order of keys."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


class Damaged(RunError):
    """A file is damaged: its content differs from the written content."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder. Reading a damaged file raises RunError."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    def problem(self, needed: Sequence[str] = ALL) -> str | None:
        """Describes the first missing or damaged file; None if the checkpoint is good.

        Args:
            needed: The required files, in addition to state.json. Other files may be missing, as
                in a run that is shared for sampling. All existing files must be good.

        Raises:
            RunError: If a file cannot be read now, or was written by another version.
        """
        try:
            checksums = self.record().checksums
            for name in ALL:
                if name not in needed and not (self.path / name).exists():
                    continue
                if checksum(self.path / name) != checksums.get(name):
                    why = "its checksum differs from the recorded checksum"
                    return f"{self.path / name} is damaged ({why})"
        except Damaged as error:
            return str(error)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{error.filename} is missing"
        except OSError as error:
            what = f"{error.filename or self.path} cannot be read ({error.strerror})"
            advice = f"make it readable, or remove {self.path} to use an earlier checkpoint"
            raise RunError(f"{what}: {advice}") from None
        return None

    def record(self) -> CheckpointRecord:
        """The content of state.json."""
        record = CheckpointRecord.load(self.path / STATE)
        if record.state.step != self.step:
            raise Damaged(f"{self.path / STATE} is damaged (it records step {record.state.step})")
        return record

    def checksum_of(self, which: str) -> str:
        """The recorded checksum of the weights, "raw" or "ema"."""
        return self.record().checksums[WEIGHTS[which]]

    def files_of(self, which: str) -> list[Path]:
        """The files needed to load the weights "raw" or "ema". The last file is state.json."""
        return [self.path / WEIGHTS[which], self.path / STATE]

    def train_state(self) -> TrainState:
        return self.record().state

    def weights(self, which: str) -> dict[str, Tensor]:
        """The weights of the network, "raw" or "ema", by name."""
        file = self.path / WEIGHTS[which]
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"{file} is not a safetensors file: {first_line(error)}") from None

    def optimizer_state(self) -> dict[str, Any]:
        """The state of the optimizer. Loading runs no code and unpacks no compressed data."""
        file = self.path / OPTIMIZER
        try:
            if is_compressed(file):
                raise ValueError("it is compressed, but torch.save never compresses")
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types of errors for damaged files
            raise RunError(f"{file} is not an optimizer state: {first_line(error)}") from None
        if not isinstance(state, dict) or not state.keys() >= {"state", "param_groups"}:
            raise RunError(f"{file} is not an optimizer state")
        return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a `checkpoints` folder, good or damaged, oldest first."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    found = [Checkpoint(folder / f"step-{name}") for name in names if name.isdecimal()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_good(folder: Path, needed: Sequence[str] = ALL) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint with the files `needed`, and the problems of newer ones."""
    problems: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = checkpoint.problem(needed)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def require_good(checkpoint: Checkpoint, needed: Sequence[str] = ALL) -> Checkpoint:
    """Returns the checkpoint.

    Raises:
        RunError: If it is damaged. The message names the last good checkpoint.
    """
    problem = checkpoint.problem(needed)
    if problem is None:
        return checkpoint
    good, _ = newest_good(checkpoint.path.parent, needed)
    advice = "no other checkpoint is good: restore the file, or use other weights (ema or raw)"
    raise RunError(f"{problem}; {f'the last good checkpoint is {good.path}' if good else advice}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
) -> Checkpoint:
    """Writes `folder`/step-NNNNNNNN. Copies GPU tensors one at a time.

    Raises:
        OSError: If the checkpoint cannot be written. Other checkpoints are then unchanged.
    """
    final = Checkpoint(folder / f"step-{state.step:08d}")
    partial = folder / f".{final.path.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    if final.path.exists() and final.problem() is None:
        # It was saved before the periodic work of its step was complete. Only the state is new.
        write_record(final.path, state, final.record().checksums)
        return final
    with suppress(OSError):
        sweep(folder)
    try:
        partial.mkdir()
        checksums = {}
        for name, tensors in (WEIGHTS["raw"], weights), (WEIGHTS["ema"], ema):
            with new_file(partial / name) as stream:
                write_tensors(stream, tensors)
            checksums[name] = stream.checksum
        with new_file(partial / OPTIMIZER) as stream:
            torch.save(optimizer, stream)  # type: ignore[arg-type]  # torch.save only writes
        checksums[OPTIMIZER] = stream.checksum
        write_record(partial, state, checksums)
        if final.path.exists():  # it is damaged: the run was resumed from an earlier checkpoint
            remove(final.path)
        os.replace(partial, final.path)
        flush_folder(folder)
    finally:
        with suppress(OSError):
            sweep(folder)
    return final


def write_record(place: Path, state: TrainState, checksums: dict[str, str]) -> None:
    CheckpointRecord(version=VERSION, state=state, checksums=checksums).save(place / STATE)


def remove_old(folder: Path, state: TrainState, keep_last: int, keep_every: int = 0) -> None:
    """Removes old checkpoints. The checkpoint of `state.step` must be good.

    Keeps the last `keep_last` checkpoints, every checkpoint whose step is a multiple of
    `keep_every` (0: none), and the best one. Also removes checkpoints of later steps: the run was
    resumed from an earlier one because they are damaged.
    """
    steps = [checkpoint.step for checkpoint in checkpoints(folder) if checkpoint.step <= state.step]
    kept = {*steps[-keep_last:], state.best_step}
    kept |= {step for step in steps if keep_every and step % keep_every == 0}
    for checkpoint in checkpoints(folder):
        if checkpoint.step not in kept:
            remove(checkpoint.path)
    flush_folder(folder)


def remove(path: Path) -> None:
    """Removes a checkpoint. Renames it first, because a half-removed one would look damaged."""
    aside = path.with_name(f".{path.name}.removed")
    os.replace(path, aside)
    delete(aside)


def sweep(folder: Path) -> None:
    """Removes half-written and half-removed checkpoints. No other process may use the folder."""
    for path in folder.glob(".step-*"):
        if path.suffix in (".partial", ".removed"):
            delete(path)


def delete(path: Path) -> None:
    """Deletes a folder with its content, or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
