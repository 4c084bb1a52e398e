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
from soflow.data.sources import SOURCES
from soflow.errors import InputError
from soflow.interop.files import named_tensors, read_file, require_fit
from soflow.interop.optimizer import our_optimizer_state, parameter_groups
from soflow.interop.settings import Translation, model_type, read_settings, translate
from soflow.interop.sizes import Sizes, read_sizes
from soflow.networks.dit import SIZES
from soflow.training.checkpoint import TrainState, save_checkpoint
from soflow.training.run_folder import RunFolder

KNOWN = ("model", "ema_model", "optimizer", "finished_steps", "finished_epochs")


@dataclass(frozen=True)
class Imported:
    """A run folder made from a checkpoint of the reference implementation, and what a person should know of it."""

    folder: RunFolder
    config: Config
    sizes: Sizes
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
    checkpoint, settings, out = Path(checkpoint), Path(settings), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is there already: choose another run folder with --out")
    flat = read_settings(settings)
    on_stage(f"reading {checkpoint}")
    parts = read_parts(checkpoint)
    sizes = read_sizes(parts.weights, str(checkpoint))
    try:
        translation = translate(flat, sizes, heads)
    except InputError as error:
        raise InputError(f"{settings}: {error}") from None
    values = translation.config.model_dump(mode="json")
    override(values, [*facts(parts), *overrides])
    config = validate(values)

    with torch.device("meta"):
        network = make_network(config)
    for name, tensors in (("model", parts.weights), ("ema_model", parts.average)):
        require_fit(tensors, network.state_dict(), f"'{name}' in {checkpoint}")
    network.load_state_dict({name: tensor.float() for name, tensor in parts.weights.items()}, assign=True)
    optimizer, remarks = our_optimizer_state(parts.optimizer, list(parts.weights), network, config.optimizer)
    on_stage(f"writing {out}")
    write_run(out, config, network, parts, optimizer, settings)
    notes = [*parts.notes, *doubts(flat, sizes, heads), *remarks]
    if config.data.source not in SOURCES:
        notes.append(
            f"this version does not read {config.data.source}: to train on or evaluate, import with data.source=NAME"
        )
    return Imported(RunFolder(out), config, sizes, parts.step, translation, notes)


def read_parts(checkpoint: Path) -> Parts:
    """A checkpoint's parts. Raises InputError for a file that is none, or lacks what nothing can stand in for."""
    content = read_file(checkpoint)
    if not isinstance(content, Mapping) or not {"model", "ema_model"} & content.keys():
        raise InputError(
            f"{checkpoint} is no checkpoint of the reference implementation, a dict of {', '.join(KNOWN)}; "
            "weights alone can start a run: soflow train RECIPE init_from=FILE"
        )
    if "finished_steps" not in content:
        raise InputError(
            f"{checkpoint} has no 'finished_steps', so it is no checkpoint of the reference implementation; "
            "its weights can start a run: soflow train RECIPE init_from=FILE"
        )
    step = content["finished_steps"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise InputError(f"'finished_steps' in {checkpoint} is {step}: it must be the number of steps done")
    found = [name for name in ("model", "ema_model") if name in content]
    weights, average = (
        named_tensors(content[name], f"'{name}' in {checkpoint}")
        for name in (found[0], found[-1])  # one stands in for both
    )
    notes = [f"{checkpoint} holds only '{found[0]}': it stands for the averaged weights and the raw ones"] * (
        len(found) == 1
    )
    if "optimizer" not in content:
        notes.append(f"{checkpoint} has no 'optimizer': training would go on with its averages of gradients empty")
    notes += [f"{checkpoint} also holds '{name}', which is left out" for name in content if name not in KNOWN]
    return Parts(weights, average, content.get("optimizer"), step, notes)


def facts(parts: Parts) -> list[str]:
    """Settings that the checkpoint tells and no YAML needs to."""
    float64 = any(tensor.dtype == torch.float64 for tensor in parts.average.values())
    told = [f"ema.float64={str(float64).lower()}"]
    if parts.optimizer is not None:  # AdamW has the option amsgrad, RAdam has not
        told.append(f"optimizer.name={'adamw' if 'amsgrad' in parameter_groups(parts.optimizer)[0] else 'radam'}")
    return told


def doubts(settings: Mapping[str, Any], sizes: Sizes, heads: int | None) -> list[str]:
    """What the weights make doubtful about the number of heads, which only the settings tell."""
    size, _ = model_type(settings)
    if not size or heads is not None or sizes.network["name"] != "dit":
        return []
    depth, width, count = SIZES[size]
    found = sizes.network["depth"], sizes.network["width"]
    if found == (depth, width):
        return []
    return [
        f"model_type {settings['model_type']} has {depth} blocks of width {width}, the weights have {found[0]} of "
        f"{found[1]}; its number of heads, {count}, was taken all the same: give --heads N if it is another"
    ]


def write_run(
    out: Path, config: Config, network: nn.Module, parts: Parts, optimizer: Mapping[str, Any], settings: Path
) -> None:
    """Writes the run folder beside its place and renames it. Raises InputError where it cannot be written."""
    precision = torch.float64 if config.ema.float64 else torch.float32
    average = {name: tensor.to(precision) for name, tensor in parts.average.items()}
    partial = RunFolder(out.with_name(f".{out.name}.partial"))
    shutil.rmtree(partial.path, ignore_errors=True)
    try:
        partial.create()
        save_checkpoint(partial.checkpoints, TrainState(parts.step), network.state_dict(), average, optimizer, keep_last=1)
        partial.write_config(config)
        shutil.copyfile(settings, partial.path / "reference.yaml")
        os.replace(partial.path, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; choose another run folder with --out") from None
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
