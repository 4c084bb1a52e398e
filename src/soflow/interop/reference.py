"""Checkpoints of the paper's reference implementation become run folders.

Such a checkpoint is a dict of 'model', 'ema_model', 'optimizer', 'finished_steps' and 'finished_epochs', its parameters
named `network.NAME`; beside it lies a flat YAML, which interop/settings.py reads.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow.assemble import make_network
from soflow.config import Config
from soflow.config.reading import override, validate
from soflow.data.sources import LOOKS_LIKE, SOURCES
from soflow.errors import InputError, in_short
from soflow.interop.files import named_tensors, plain, read_file, require_fit
from soflow.interop.optimizer import ANEW, optimizer_name, our_optimizer_state, parameter_groups
from soflow.interop.settings import Translation, model_type, read_settings, translate
from soflow.interop.sizes import Sizes, read_sizes
from soflow.networks.dit import SIZES
from soflow.run.checkpoint import TrainState, save_checkpoint
from soflow.run.folder import RunFolder

KNOWN = ("model", "ema_model", "optimizer", "finished_steps", "finished_epochs")


@dataclass(frozen=True)
class Imported:
    """A run folder made from a checkpoint of the reference implementation, and what a person should know of it."""

    folder: RunFolder
    config: Config
    sizes: Sizes
    told: list[str]  # settings that the checkpoint tells, beside the sizes
    step: int
    translation: Translation
    notes: list[str]


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds, under our names."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: Mapping[str, Any] | None
    step: int
    notes: list[str]  # on what was not found, or left out


def import_checkpoint(
    checkpoint: str | Path,
    settings: str | Path,
    out: str | Path,
    heads: int | None = None,
    overrides: Sequence[str] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Imported:
    """Makes the run folder `out` from a checkpoint of the reference implementation and its YAML file `settings`.

    heads: attention heads of a DiT; by default those of the setting model_type. overrides: `key=value` in our keys, e.g.
    data.source=digits. `on_stage` hears what is being done. The folder is there whole or not at all; the YAML lies in it as
    reference.yaml. Raises InputError for files that cannot be used, and for a folder that is there already.
    """
    checkpoint, settings, out = Path(checkpoint), Path(settings), Path(out).absolute()
    require_new(out)
    flat = read_settings(settings)
    on_stage(f"reading {checkpoint}")
    parts = read_parts(checkpoint)
    sizes = read_sizes(parts.weights, str(checkpoint))
    try:
        translation = translate(flat, sizes, heads)
    except InputError as error:
        raise InputError(f"{settings}: {error}") from None
    values, told = translation.config.model_dump(mode="json"), facts(parts)
    override(values, [*told, *overrides])
    config = validate(values)

    with torch.device("meta"):
        network = make_network(config)
    for name, tensors in (("model", parts.weights), ("ema_model", parts.average)):
        require_fit(tensors, network.state_dict(), f"'{name}' in {checkpoint}")
    network.load_state_dict(
        {name: tensor.float() for name, tensor in parts.weights.items()}, assign=True
    )
    optimizer, remarks = our_optimizer_state(
        parts.optimizer, list(parts.weights), network, config.optimizer
    )
    on_stage(f"writing {out}")
    write_run(out, config, network, parts, optimizer, settings)
    notes = [*parts.notes, *doubts(flat, sizes, heads), *remarks]
    if config.data.source not in SOURCES:
        notes.append(
            f"{config.data.source} is no known source: to train on or evaluate, import with data.source=NAME"
        )
    elif config.data.source in LOOKS_LIKE:
        notes.append(
            f"its data are looked for at {config.data.path}: to train on others, import with data.path=PLACE"
        )
    return Imported(RunFolder(out), config, sizes, told, parts.step, translation, notes)


def require_new(out: Path) -> None:
    """Raises InputError unless a run folder can be made at `out`: nothing is there, or an empty folder."""
    try:
        taken = out.exists() and not (out.is_dir() and not any(out.iterdir()) and out != Path.cwd())
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror}; choose another run folder with --out"
        ) from None
    if taken:
        raise InputError(f"{out} is there already: choose another run folder with --out")


def read_parts(checkpoint: Path) -> Parts:
    """A checkpoint's parts. Raises InputError for a file that is none, or lacks what nothing can stand in for."""
    content = read_file(checkpoint)
    content = (
        {name: part for name, part in content.items() if part is not None}
        if isinstance(content, Mapping)
        else {}
    )
    found = [name for name in ("model", "ema_model") if name in content]
    if not found or "finished_steps" not in content:
        raise InputError(
            f"{checkpoint} is no checkpoint of the reference implementation, a dict of {', '.join(KNOWN)}; "
            "weights alone can start a run: soflow train RECIPE init_from=FILE"
        )
    weights, average = (
        named_tensors(content[name], f"'{name}' in {checkpoint}") for name in (found[0], found[-1])
    )
    notes = []
    if len(found) == 1:
        notes.append(
            f"{checkpoint} holds only '{found[0]}': it stands for the averaged weights and the raw ones"
        )
    if "optimizer" not in content:
        notes.append(f"{checkpoint} has no 'optimizer': {ANEW}")
    notes += [
        f"{checkpoint} also holds {in_short(name)}, which is left out"
        for name in content
        if name not in KNOWN
    ]
    return Parts(
        weights,
        average,
        content.get("optimizer"),
        whole_number(content["finished_steps"], checkpoint),
        notes,
    )


def whole_number(step: object, checkpoint: Path) -> int:
    """The number of steps done, also from 3.0 or tensor(3). Raises InputError for anything else."""
    step = plain(step)
    if (
        isinstance(step, bool)
        or not isinstance(step, int | float)
        or not 0 <= step < 10**9
        or step != int(step)
    ):
        raise InputError(
            f"'finished_steps' in {checkpoint} is {in_short(step)}: it must be the number of steps done"
        )
    return int(step)


def facts(parts: Parts) -> list[str]:
    """Settings that the checkpoint tells and no YAML needs to, as `key=value`."""
    float64 = any(tensor.dtype == torch.float64 for tensor in parts.average.values())
    told = [f"ema.float64={str(float64).lower()}"]
    if parts.optimizer is not None:
        told.append(f"optimizer.name={optimizer_name(parameter_groups(parts.optimizer))}")
    return told


def doubts(settings: Mapping[str, Any], sizes: Sizes, heads: int | None) -> list[str]:
    """What in the settings the weights contradict."""
    notes = []
    size, patch = model_type(settings)
    found = [str(sizes.network.get(key)) for key in ("depth", "width", "patch")]
    if size and found != [str(SIZES[size][0]), str(SIZES[size][1]), patch]:
        notes.append(
            f"model_type is {settings['model_type']}, but the weights have depth {found[0]}, width {found[1]}, "
            f"patch {found[2]}"
            + (
                ""
                if heads
                else f"; its number of heads, {SIZES[size][2]}, was taken: give --heads N if it is another"
            )
        )
    side, data_size = sizes.shape[-1], settings.get("data_size")
    if isinstance(data_size, int) and data_size not in (
        side,
        8 * side,
    ):  # pixels, eight of them to a latent one
        notes.append(f"data_size is {data_size}, the weights are for samples of {side} x {side}")
    return notes


def write_run(
    out: Path,
    config: Config,
    network: nn.Module,
    parts: Parts,
    optimizer: Mapping[str, Any],
    settings: Path,
) -> None:
    """Writes the run folder beside its place and renames it. Raises InputError where it cannot be written."""
    precision = torch.float64 if config.ema.float64 else torch.float32
    average = {name: tensor.to(precision) for name, tensor in parts.average.items()}
    partial = RunFolder(out.with_name(f".{out.name}.partial"))
    shutil.rmtree(partial.path, ignore_errors=True)
    try:
        partial.samples.mkdir(parents=True)
        save_checkpoint(
            partial.checkpoints, TrainState(parts.step), network.state_dict(), average, optimizer
        )
        partial.write_config(config)
        shutil.copyfile(settings, partial.path / "reference.yaml")
        os.replace(partial.path, out)
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror}; choose another run folder with --out"
        ) from None
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
