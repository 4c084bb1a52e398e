"""Checkpoints: everything that a run needs to be resumed.

    checkpoints/step-00002000/
        model.safetensors       the network's weights
        ema.safetensors         their average
        optimizer.pt            the optimizer's state, loadable with weights_only=True
        state.json              step, seconds, running means of the log; checksums of all this

The folder is written beside its place, flushed to the disk, read back and renamed: a checkpoint is
complete or absent. No checkpoint is removed before a newer one is complete.
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

#: Version of run folders.
VERSION = 3
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
OPTIMIZER = "optimizer.pt"
STATE = "state.json"
#: The files of a checkpoint beside state.json: all of them are needed to resume.
ALL = (*WEIGHTS.values(), OPTIMIZER)
#: A number of samples that still has room for those of another step.
Samples = Annotated[int, Field(strict=True, ge=0, lt=2**53)]


@dataclass
class RunningMean:
    """The mean of `count` values."""

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
    """The state of a run beside its tensors.

    step: Steps done.
    seconds: Time spent in them.
    means: Running means of the logged values since the last line of the log.
    best, best_of, best_step: The best figure of the evaluations during training, what it is, and
        the step that it is of (0 if there is none).
    skipped: Updates that were skipped because numbers were not finite.
    due: Whether what follows this step, such as its log line or evaluation, is still to be done.
    samples: Samples that the steps were trained on: the position in the data. 0 after some steps
        is that of a checkpoint that does not count them.
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
    """state.json, which also holds the checksum of these fields."""

    version: int
    state: TrainState
    checksums: dict[str, str]

    @classmethod
    def load(cls, file: Path) -> "CheckpointRecord":
        """Raises Damaged for a file that soflow did not write, RunError for another version."""
        try:
            values = json.loads(file.read_bytes())
            intact = values.pop("checksum") == checksum_of(values)
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
            intact = False
        if not intact:
            raise Damaged(f"{file} is damaged (its checksum is not the one recorded)")
        if values.get("version") != VERSION:
            found = values.get("version")
            raise RunError(f"{file.parent} has version {found}, this soflow reads {VERSION}")
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
    """The checksum of JSON values, independent of how they are spaced and ordered."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


class Damaged(RunError):
    """A file is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder. Reading a damaged file raises RunError."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    def problem(self, needed: Sequence[str] = ALL) -> str | None:
        """The first file that is missing or not what was written, and why; None if all are good.

        Args:
            needed: The files that must be there, beside state.json. Others may be missing, as in a
                run that is shared for sampling; those that are there must be good.

        Raises:
            RunError: If a file may be good, but cannot be read now or by this version.
        """
        try:
            checksums = self.record().checksums
            for name in ALL:
                if name not in needed and not (self.path / name).exists():
                    continue
                if checksum(self.path / name) != checksums.get(name):
                    return f"{self.path / name} is damaged (its checksum is not the one recorded)"
        except Damaged as error:
            return str(error)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{error.filename} is missing"
        except OSError as error:
            what = f"{error.filename or self.path} cannot be read ({error.strerror})"
            advice = f"repair that, or remove {self.path} to resume from an earlier checkpoint"
            raise RunError(f"{what}: {advice}") from None
        return None

    def record(self) -> CheckpointRecord:
        """The content of state.json."""
        record = CheckpointRecord.load(self.path / STATE)
        if record.state.step != self.step:
            raise Damaged(f"{self.path / STATE} is damaged (it is of step {record.state.step})")
        return record

    def checksum_of(self, which: str) -> str:
        """The recorded checksum of the weights, "raw" or "ema"."""
        return self.record().checksums[WEIGHTS[which]]

    def files_of(self, which: str) -> list[Path]:
        """The files that hold the weights "raw" or "ema", and what describes them, last."""
        return [self.path / WEIGHTS[which], self.path / STATE]

    def train_state(self) -> TrainState:
        return self.record().state

    def weights(self, which: str) -> dict[str, Tensor]:
        """The state of the network: "raw" or "ema"."""
        file = self.path / WEIGHTS[which]
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"{file} is not a safetensors file: {first_line(error)}") from None

    def optimizer_state(self) -> dict[str, Any]:
        """The state of the optimizer. The file cannot run code, nor unpack beyond its size."""
        file = self.path / OPTIMIZER
        try:
            if is_compressed(file):
                raise ValueError("it is compressed, which torch.save never does")
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for foreign bytes
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
    """The newest good checkpoint that has the files `needed`, and what is wrong with newer ones."""
    problems: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = checkpoint.problem(needed)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def require_good(checkpoint: Checkpoint, needed: Sequence[str] = ALL) -> Checkpoint:
    """The checkpoint itself; RunError naming its damaged file and the last good checkpoint."""
    problem = checkpoint.problem(needed)
    if problem is None:
        return checkpoint
    good, _ = newest_good(checkpoint.path.parent, needed)
    advice = "no other checkpoint is good: restore that file, or use other weights if it has them"
    raise RunError(f"{problem}; {f'the last good checkpoint is {good.path}' if good else advice}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
) -> Checkpoint:
    """Writes `folder`/step-NNNNNNNN. Tensors of a GPU are copied one at a time.

    Raises:
        OSError: If it cannot be written; other checkpoints are then unchanged.
    """
    final = Checkpoint(folder / f"step-{state.step:08d}")
    partial = folder / f".{final.path.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    if final.path.exists() and final.problem() is None:
        # Saved before what follows its step was done: only the state is new.
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
            torch.save(optimizer, stream)  # type: ignore[arg-type]  # it only writes
        checksums[OPTIMIZER] = stream.checksum
        write_record(partial, state, checksums)
        if final.path.exists():  # damaged, so the run was resumed from an earlier one
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
    """Removes checkpoints that the good one of `state.step` makes superfluous.

    Kept are the last `keep_last`, those of every `keep_every` steps (0: none) and the best one.
    Those of later steps, which are damaged, are removed.
    """
    steps = [checkpoint.step for checkpoint in checkpoints(folder) if checkpoint.step <= state.step]
    kept = {*steps[-keep_last:], state.best_step}
    kept |= {step for step in steps if keep_every and step % keep_every == 0}
    for checkpoint in checkpoints(folder):
        if checkpoint.step not in kept:
            remove(checkpoint.path)
    flush_folder(folder)


def remove(path: Path) -> None:
    """Removes a checkpoint at once: a half-removed one would look damaged."""
    aside = path.with_name(f".{path.name}.removed")
    os.replace(path, aside)
    delete(aside)


def sweep(folder: Path) -> None:
    """Removes what was left half-written or half-removed. No other process may work there."""
    for path in folder.glob(".step-*"):
        if path.suffix in (".partial", ".removed"):
            delete(path)


def delete(path: Path) -> None:
    """Removes a folder with its content, or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
