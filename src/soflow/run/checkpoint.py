"""Checkpoints: everything a run needs to go on, and nothing else, in one place.

    checkpoints/step-00002000/
        model.safetensors       the network's weights
        ema.safetensors         their average
        optimizer.pt            the optimizer's state, loadable with weights_only=True
        state.json              the step, the seconds of training, the running means of the log; checksums of all this

The folder is written beside its place, flushed to the disk, read again, and renamed: a checkpoint either is there whole or
is not there. None is removed before a newer one is there.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from soflow.errors import RunError, first_line
from soflow.system.archives import is_compressed
from soflow.system.atomic import flush_folder, new_file, replace_file
from soflow.system.fingerprints import checksum
from soflow.system.records import parse_json

VERSION = 2
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
OPTIMIZER = "optimizer.pt"
RECORD = "state.json"

Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass
class TrainState:
    """Where a run stands.

    step: steps done. seconds: spent training. sums: [sum, count] of each value since the last log line. best, best_of,
    best_step: the best figure of the evaluations on the way, with what it is and the step that it is of (0: there is none).
    skipped: updates left out because their numbers went wrong. due: whether what comes after this step, such as its log line
    or its evaluation, has yet to be done.
    """

    step: Count = 0
    seconds: float = 0.0
    sums: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = field(
        default_factory=dict
    )
    best: float | None = None
    best_of: str = ""
    best_step: Count = 0
    skipped: Count = 0
    due: bool = False


@dataclass
class Record:
    """What state.json holds beside its own checksum."""

    version: int
    state: TrainState
    checksums: dict[str, str]


def checksum_of(values: dict[str, Any]) -> str:
    """Of what a record holds, however it is written."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


class Damaged(RunError):
    """A file is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder. Reading what is damaged raises RunError."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    def problem(self) -> str | None:
        """The first file that is missing or is not what was written, with what is wrong; None if all are good. Raises
        RunError for what may be good, but cannot be read now, or not by this version.
        """
        try:
            checksums = self.record().checksums
            for name in (*WEIGHTS.values(), OPTIMIZER):
                if checksum(self.path / name) != checksums.get(name):
                    return f"{self.path / name} is damaged (its checksum is not the one recorded)"
        except Damaged as error:
            return str(error)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{error.filename} is missing"
        except OSError as error:
            what = f"{error.filename or self.path} cannot be read ({error.strerror})"
            raise RunError(
                f"{what}: mend that, or remove {self.path} to go on from an earlier one"
            ) from None
        return None

    def record(self) -> Record:
        """What state.json says."""
        file = self.path / RECORD
        values = parse_json(file.read_bytes()) or {}
        if values.pop("checksum", None) != checksum_of(values):
            raise Damaged(f"{file} is damaged (its checksum is not the one recorded)")
        if values.get("version") != VERSION:
            raise RunError(
                f"{self.path} is of run-folder version {values.get('version')}, this soflow reads {VERSION}"
            )
        try:
            record = TypeAdapter(Record).validate_json(json.dumps(values), strict=True)
        except ValueError:
            record = None
        if record is None or record.state.step != self.step:
            raise Damaged(f"{file} is damaged (it is none that soflow wrote)")
        return record

    def checksum_of(self, which: str) -> str:
        """The recorded checksum of its weights, "raw" or "ema"."""
        return self.record().checksums[WEIGHTS[which]]

    def train_state(self) -> TrainState:
        return self.record().state

    def weights(self, which: str) -> dict[str, Tensor]:
        """The network's state: "raw" or "ema"."""
        file = self.path / WEIGHTS[which]
        try:
            return load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"{file} is no safetensors file: {first_line(error)}") from None

    def optimizer_state(self) -> dict[str, Any]:
        """What the optimizer had. Nothing in the file can run code, or unfold into more than the file holds."""
        file = self.path / OPTIMIZER
        try:
            if is_compressed(file):
                raise ValueError("it is compressed, which torch never does")
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch makes of bytes that are not its own
            raise RunError(f"{file} is no optimizer's state: {first_line(error)}") from None
        if not isinstance(state, dict) or not state.keys() >= {"state", "param_groups"}:
            raise RunError(f"{file} is no optimizer's state")
        return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a `checkpoints` folder, oldest first; whether they are good is not looked at."""
    found = [
        Checkpoint(path)
        for path in folder.glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_good(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with each newer one."""
    problems: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = checkpoint.problem()
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def require_good(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or RunError that names the damaged file and the last good checkpoint."""
    problem = checkpoint.problem()
    if problem is None:
        return checkpoint
    good, _ = newest_good(checkpoint.path.parent)
    advice = (
        f"the last good checkpoint is {good.path}"
        if good
        else "there is no good checkpoint beside it"
    )
    raise RunError(f"{problem}; {advice}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
) -> Checkpoint:
    """Writes `folder`/step-NNNNNNNN. Raises OSError where it cannot be written; others are then as they were."""
    final = Checkpoint(folder / f"step-{state.step:08d}")
    partial = folder / f".{final.path.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    if (
        final.path.exists() and final.problem() is None
    ):  # saved before what comes after its step, which is all that is new
        write_record(final.path, Record(VERSION, state, final.record().checksums))
        return final
    with suppress(OSError):
        sweep(folder)
    try:
        partial.mkdir()
        checksums = {}
        for name, tensors in (WEIGHTS["raw"], weights), (WEIGHTS["ema"], ema):
            with new_file(partial / name) as stream:
                stream.write(save({key: tensor.contiguous() for key, tensor in tensors.items()}))
            checksums[name] = stream.checksum
        with new_file(partial / OPTIMIZER) as stream:
            torch.save(optimizer, stream)  # type: ignore[arg-type]  # it needs no more of a stream
        checksums[OPTIMIZER] = stream.checksum
        write_record(partial, Record(VERSION, state, checksums))
        if final.path.exists():  # a damaged one, from before the run went back to an earlier one
            remove(final.path)
        os.replace(partial, final.path)
        flush_folder(folder)
    finally:
        with suppress(OSError):
            sweep(folder)
    return final


def write_record(place: Path, record: Record) -> None:
    """Writes state.json, or writes it anew."""
    values = asdict(record)
    replace_file(
        place / RECORD, json.dumps({**values, "checksum": checksum_of(values)}, indent=1).encode()
    )


def remove_old(folder: Path, state: TrainState, keep_last: int, keep_every: int = 0) -> None:
    """Removes what the checkpoint of `state.step`, which must be good, makes superfluous: all but the last `keep_last`,
    those of every `keep_every` steps (0: none) and the best; and those of later steps, damaged as they are.
    """
    steps = [checkpoint.step for checkpoint in checkpoints(folder) if checkpoint.step <= state.step]
    kept = {
        *steps[-keep_last:],
        state.best_step,
        *(step for step in steps if keep_every and step % keep_every == 0),
    }
    for checkpoint in checkpoints(folder):
        if checkpoint.step not in kept:
            remove(checkpoint.path)
    flush_folder(folder)


def remove(path: Path) -> None:
    """Removes a checkpoint, at once: one that is half gone would look like a damaged one."""
    aside = path.with_name(f".{path.name}.removed")
    os.replace(path, aside)
    delete(aside)


def sweep(folder: Path) -> None:
    """Removes what was left half-written or half-removed. Nobody else may be at work in the folder."""
    for path in folder.glob(".step-*"):
        if path.suffix in (".partial", ".removed"):
            delete(path)


def delete(path: Path) -> None:
    """A folder with all that is in it; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
