"""Checkpoints: everything a run needs to go on, and nothing else, in one place.

    checkpoints/step-00002000/
        model.safetensors       the network's weights
        ema.safetensors         their average
        optimizer.pt            the optimizer's state, loadable with weights_only=True
        state.json              the step, the seconds of training, the running means of the log; checksums of the files above

The folder is written beside its place and renamed, so a checkpoint either is there whole or is not there.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from soflow.errors import RunError
from soflow.files import checksum

VERSION = 1
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
OPTIMIZER = "optimizer.pt"


@dataclass
class TrainState:
    """Where a run stands: steps done, seconds spent training, [sum, count] of each value since the last log line, and the
    best figure of the evaluations on the way, with what it is and the step that it is of (0: there is none).
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    best: float | None = None
    best_of: str = ""
    best_step: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder."""

    path: Path

    @property
    def step(self) -> int:
        return int(self.path.name.removeprefix("step-"))

    def problem(self) -> str | None:
        """The first file that is missing or is not what was written, with what is wrong; None if all are good."""
        try:
            recorded = json.loads((self.path / "state.json").read_text())
            checksums = dict(recorded["checksums"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            return f"{self.path / 'state.json'} is damaged ({type(error).__name__})"
        if recorded.get("version") != VERSION:
            return f"{self.path} is of run-folder version {recorded.get('version')}, this soflow reads {VERSION}"
        for name in (*WEIGHTS.values(), OPTIMIZER):
            file = self.path / name
            if not file.is_file():
                return f"{file} is missing"
            if checksum(file) != checksums.get(name):
                return f"{file} is damaged (its checksum is not the one recorded)"
        return None

    def checksum_of(self, which: str) -> str:
        """The recorded checksum of its weights, "raw" or "ema"."""
        return str(json.loads((self.path / "state.json").read_text())["checksums"][WEIGHTS[which]])

    def weights(self, which: str) -> dict[str, Tensor]:
        """The network's state: "raw" or "ema"."""
        return load_file(self.path / WEIGHTS[which])

    def optimizer_state(self) -> dict[str, Any]:
        return torch.load(self.path / OPTIMIZER, map_location="cpu", weights_only=True)

    def train_state(self) -> TrainState:
        recorded = json.loads((self.path / "state.json").read_text())
        return TrainState(**recorded["state"])


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a `checkpoints` folder, oldest first; whether they are good is not looked at."""
    found = [Checkpoint(path) for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
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
    advice = f"the last good checkpoint is {good.path}" if good else "there is no good checkpoint beside it"
    raise RunError(f"{problem}; {advice}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    keep_last: int,
) -> Checkpoint:
    """Writes `folder`/step-NNNNNNNN, keeps the last `keep_last` and the best, and removes older ones and any of later steps:
    those are from before the run went back to an earlier checkpoint. Raises OSError where it cannot be written.
    """
    final = folder / f"step-{state.step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial / WEIGHTS["raw"])
        save_file({name: tensor.contiguous() for name, tensor in ema.items()}, partial / WEIGHTS["ema"])
        torch.save(optimizer, partial / OPTIMIZER)
    except (SafetensorError, RuntimeError) as error:  # how both libraries report a disk that takes no more
        raise OSError(errno.EIO, " ".join(str(error).split())) from None
    sums = {name: checksum(partial / name) for name in (*WEIGHTS.values(), OPTIMIZER)}
    record = {"version": VERSION, "state": asdict(state), "checksums": sums}
    (partial / "state.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same step
    os.replace(partial, final)
    earlier = [checkpoint for checkpoint in checkpoints(folder) if checkpoint.step < state.step]
    later = [checkpoint for checkpoint in checkpoints(folder) if checkpoint.step > state.step]  # damaged, or passed over
    for old in earlier[: len(earlier) + 1 - keep_last] + later:
        if old.step != state.best_step:
            shutil.rmtree(old.path)
    return Checkpoint(final)
