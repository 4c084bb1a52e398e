"""Converts checkpoints of the paper's reference implementation to run folders.

Such a checkpoint is a dict of 'model', 'ema_model', 'optimizer', 'finished_steps' and
'finished_epochs'. Its parameters are named `network.NAME`. A flat YAML file has the settings.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
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
from soflow.interop.optimizer import FRESH, OptimizerState, our_optimizer_state, read_optimizer
from soflow.interop.settings import Translation, model_type, read_settings, translate
from soflow.interop.sizes import Sizes, read_sizes
from soflow.interop.weights import named_tensors, plain, read_file, require_fit
from soflow.networks.dit import SIZES
from soflow.run.checkpoint import TrainState, save_checkpoint
from soflow.run.folder import RunFolder
from soflow.system.isolation import isolated
from soflow.system.progress import stage

KNOWN = ("model", "ema_model", "optimizer", "finished_steps", "finished_epochs")


@dataclass(frozen=True)
class Imported:
    """The result of `import_checkpoint`.

    Attributes:
        folder: The new run folder.
        config: Configuration of the run.
        sizes: Sizes of the network, read from the weights.
        facts: Other settings read from the checkpoint, as `key=value`.
        step: Number of finished training steps.
        translation: How each setting of the YAML file was translated.
        notes: Remarks for the user.
    """

    folder: RunFolder
    config: Config
    sizes: Sizes
    facts: list[str]
    step: int
    translation: Translation
    notes: list[str]


@dataclass(frozen=True)
class Parts:
    """The parts of a checkpoint, and notes on missing and ignored parts."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: OptimizerState | None
    step: int
    notes: list[str]


@isolated
def import_checkpoint(
    checkpoint: str | Path,
    settings: str | Path,
    out: str | Path,
    heads: int | None = None,
    overrides: Sequence[str] = (),
) -> Imported:
    """Converts a checkpoint of the paper's reference implementation to a run folder.

    The run folder is written completely or not at all. It contains a copy of the YAML file,
    reference.yaml.

    Args:
        checkpoint: Checkpoint file.
        settings: YAML file that the checkpoint was trained with.
        out: Run folder to create.
        heads: Number of attention heads of a DiT. By default, derived from the setting
            `model_type`.
        overrides: Settings of the run as `key=value`, such as `data.source=digits`.

    Returns:
        The run folder with its configuration, and how each setting was translated.

    Raises:
        InputError: If a file or a setting is invalid, or `out` already exists or cannot be created.

    Example:
        >>> import soflow
        >>> found = soflow.import_checkpoint(
        ...     "reference.pt", "reference.yaml", "runs/theirs", heads=4
        ... )
        >>> soflow.load("runs/theirs").sample(5, progress=soflow.silent).shape
        torch.Size([5, 1, 8, 8])
    """
    checkpoint, settings = Path(checkpoint).expanduser(), Path(settings).expanduser()
    out = Path(out).expanduser().absolute()
    require_new(out)
    flat = read_settings(settings)
    with stage(f"reading {checkpoint}"):
        parts = read_parts(checkpoint)
    sizes = read_sizes(parts.weights, str(checkpoint))
    try:
        translation = translate(flat, sizes, heads)
    except InputError as error:
        raise InputError(f"{settings}: {error}") from None
    values, facts = translation.config.model_dump(mode="json"), facts_in(parts)
    override(values, [*facts, *overrides])
    config = validate(values)

    with torch.device("meta"):
        network = make_network(config)
    for name, tensors in (("model", parts.weights), ("ema_model", parts.average)):
        require_fit(tensors, network.state_dict(), f"'{name}' in {checkpoint}")
    weights = {name: tensor.float() for name, tensor in parts.weights.items()}
    network.load_state_dict(weights, assign=True)
    try:
        optimizer, changes = our_optimizer_state(
            parts.optimizer, list(weights), network, config.optimizer
        )
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    with stage(f"writing {out}"):
        write_run(out, config, network, parts, optimizer, settings)
    notes = [*parts.notes, *contradictions(flat, sizes, heads), *changes, *data_notes(config)]
    return Imported(RunFolder(out), config, sizes, facts, parts.step, translation, notes)


def require_new(out: Path) -> None:
    """Raises InputError unless the path does not exist or is an empty folder."""
    try:
        taken = out.exists() and not (out.is_dir() and not any(out.iterdir()) and out != Path.cwd())
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror}; choose another run folder, out (--out)"
        ) from None
    if taken:
        raise InputError(f"{out} already exists: choose another run folder, out (--out)")


def read_parts(checkpoint: Path) -> Parts:
    """Reads a checkpoint. Raises InputError if it is invalid or incomplete."""
    content = read_file(checkpoint)
    parts = content.items() if isinstance(content, Mapping) else ()
    content = {name: part for name, part in parts if part is not None}
    found = [name for name in ("model", "ema_model") if name in content]
    if not found or "finished_steps" not in content:
        raise InputError(
            f"{checkpoint} is not a checkpoint of the reference implementation (a dict with "
            f"{', '.join(KNOWN)}): to start from weights only, use soflow train RECIPE "
            "init_from=FILE"
        )
    weights, average = (
        named_tensors(content[name], f"'{name}' in {checkpoint}") for name in (found[0], found[-1])
    )
    notes = []
    if len(found) == 1:
        notes.append(f"{checkpoint} has only '{found[0]}': used as both raw and EMA weights")
    if "optimizer" not in content:
        notes.append(f"{checkpoint} has no 'optimizer': {FRESH}")
    others = [in_short(name) for name in content if name not in KNOWN]
    notes += [f"{checkpoint} also has {other}, which is ignored" for other in others]
    try:
        optimizer = read_optimizer(content["optimizer"]) if "optimizer" in content else None
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    step: Any = plain(content["finished_steps"])  # also 3.0 or tensor(3)
    if type(step) not in (int, float) or not 0 <= step < 10**9 or step != int(step):
        what = f"'finished_steps' in {checkpoint} is {in_short(step)}"
        raise InputError(f"{what}: it must be the number of finished steps")
    return Parts(weights, average, optimizer, int(step), notes)


def facts_in(parts: Parts) -> list[str]:
    """Settings that follow from the checkpoint itself, as `key=value`."""
    float64 = any(tensor.dtype == torch.float64 for tensor in parts.average.values())
    facts = [f"ema.float64={str(float64).lower()}"]
    return facts + ([f"optimizer.name={parts.optimizer.name}"] if parts.optimizer else [])


def contradictions(settings: Mapping[str, Any], sizes: Sizes, heads: int | None) -> list[str]:
    """Notes on settings that the weights contradict."""
    notes = []
    size, patch = model_type(settings)
    found = [str(sizes.network.get(key)) for key in ("depth", "width", "patch")]
    if size and found != [str(SIZES[size][0]), str(SIZES[size][1]), patch]:
        weights = "depth {}, width {}, patch {}".format(*found)
        taken = f"; its {SIZES[size][2]} attention heads are used: change this with --heads N"
        note = f"model_type is {settings['model_type']}, but the weights have {weights}"
        notes.append(note if heads else note + taken)
    side, data_size = sizes.shape[-1], settings.get("data_size")
    # data_size is in pixels. Latents have 1/8 of the side length.
    if isinstance(data_size, int) and data_size not in (side, 8 * side):
        sides = " x ".join(map(str, sizes.shape[1:]))
        notes.append(f"data_size is {data_size}, but the weights are for samples of {sides}")
    return notes


def data_notes(config: Config) -> list[str]:
    """A note on the data that training and evaluation will read."""
    source, path = config.data.source, config.data.path
    if source not in SOURCES:
        return [
            f"{source} is not a known data source: to train or evaluate, import again with "
            "data.source=NAME"
        ]
    if source in LOOKS_LIKE:
        return [f"data will be read from {path}: to change this, import again with data.path=PATH"]
    return []


def write_run(
    out: Path,
    config: Config,
    network: nn.Module,
    parts: Parts,
    optimizer: Mapping[str, Any],
    settings: Path,
) -> None:
    """Writes to a temporary folder, then renames it. Raises InputError if writing fails."""
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
            f"cannot write {out}: {error.strerror}; choose another run folder, out (--out)"
        ) from None
    finally:
        shutil.rmtree(partial.path, ignore_errors=True)
