"""Saves a model from a custom training loop as a folder that can be used like a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soflow import __version__
from soflow.assemble import NOISINGS, PARAMETERIZATIONS
from soflow.config import Config
from soflow.config.own import OWN
from soflow.config.reading import validate
from soflow.data import own
from soflow.data.bundled import Bundled
from soflow.data.dataset import Dataset
from soflow.data.registry import SOURCES, source_of
from soflow.errors import InputError, RunError, in_short
from soflow.objectives.base import Objective
from soflow.run.checkpoint import WEIGHTS, TrainState, write_record
from soflow.run.folder import RunFolder
from soflow.run.tensor_file import write_tensors
from soflow.solution import FlowModel, unchanged
from soflow.system.atomic import cannot_write, new_file, require_writable
from soflow.training.ema import Ema
from soflow.workflows.own_parts import (
    remember,
    shapes_of,
    with_its_name,
    with_network,
    with_objective,
)


def save_model(
    model: FlowModel,
    out: str | Path,
    objective: Objective,
    *,
    steps: int,
    ema: Ema | None = None,
    data: Dataset | None = None,
) -> Path:
    """Saves a model from a custom training loop.

    `soflow.load` and the commands sample, evaluate and report accept the folder as a run. The run
    cannot be resumed, but another run can start from its weights (init_from). If the network is not
    registered, or has no attribute `settings`, loading needs the network again:
    `soflow.load(out, network=net)`.

    Args:
        model: The model, with the weights of the last step.
        out: A new or empty folder.
        objective: The objective that the model was trained with. It determines which samplers work
            with the model.
        steps: The number of steps that the model was trained for.
        ema: The EMA weights. `soflow.load` loads them by default. Without them, load the model
            with `soflow.load(out, "raw")`.
        data: The training data. Its class names and its scaling are saved, but not its samples.

    Returns:
        The folder.

    Raises:
        InputError: If the folder is not empty, if the noising process or the parameterization is
            not one of soflow's classes, or if the model has a `decode` function but `data` is
            missing.
        RunError: If a weight is NaN or infinite, or the folder cannot be written.

    Example:
        >>> import soflow
        >>> network = soflow.MLP(shape=(2,))  # after training
        >>> model = soflow.FlowModel(network, shape=(2,))
        >>> folder = soflow.save_model(model, "models/mine", soflow.SoFlow(), steps=1000)
        >>> soflow.load("models/mine", "raw").sample(5, progress=soflow.silent).shape
        torch.Size([5, 2])
    """
    if not isinstance(model, FlowModel) or not isinstance(model.net, nn.Module):
        raise InputError(f"model is {in_short(model)}: pass a FlowModel whose net is an nn.Module")
    if data is not None and not isinstance(data, Dataset):
        raise InputError(f"data is {type(data).__name__}: pass soflow.load_data(data)")
    if ema is not None and not isinstance(ema, Ema):
        raise InputError(f"ema is {type(ema).__name__}: pass a soflow.Ema")
    if ema is not None and shapes_of(ema.state_dict()) != shapes_of(model.net.state_dict()):
        raise InputError("ema does not fit the weights of model.net: pass the Ema of model.net")
    config = config_of(model, objective, steps, ema, data)
    kinds = {"raw": model.net.state_dict()} | ({} if ema is None else {"ema": ema.state_dict()})
    for weights in kinds.values():
        require_finite(weights)
    folder = RunFolder(Path(out).expanduser())
    if folder.path.exists() and any(folder.path.iterdir()):
        raise InputError(f"{folder.path} is not empty: choose a new folder")
    place = folder.checkpoints / f"step-{steps:08d}"
    require_writable(place)
    checksums = {}
    try:
        for kind, weights in kinds.items():
            with new_file(place / WEIGHTS[kind]) as stream:
                write_tensors(stream, weights)
            checksums[WEIGHTS[kind]] = stream.checksum
        write_record(place, TrainState(step=steps), checksums)
    except OSError as error:
        raise cannot_write(place, error) from None
    if data is not None:
        data.describe().write(folder.data)
    folder.write_config(config)
    if config.network.name == OWN:
        remember(folder.path, model.net)
    return folder.path


def config_of(
    model: FlowModel, objective: Objective, steps: int, ema: Ema | None, data: Dataset | None
) -> Config:
    """The configuration of a model. Unknown settings of its training get their default values."""
    if model.decode is not unchanged and data is None:
        raise InputError("model.decode cannot be saved without the training data: also pass data=")
    values: dict[str, Any] = {
        "description": f"trained in a custom loop, with soflow {__version__}",
        "data": {
            "source": source_named(data),
            "split": "train" if data is None else data.split,
            "shape": model.shape,
            "num_classes": model.num_classes,
            "cond_shape": model.cond_shape,
        },
        "noising": {
            "name": name_in(NOISINGS, model.noising),
            "parameterization": name_in(PARAMETERIZATIONS, model.parameterization),
        },
        "train": {"steps": steps},
    }
    if ema is not None:
        values["ema"] = {name: getattr(ema, name) for name in ("decay", "every", "rampup")}
        values["ema"]["float64"] = ema.dtype == torch.float64
    assert isinstance(model.net, nn.Module)
    # The network comes first, because validation checks that the other settings fit it.
    config = with_network(Config(), model.net)
    config = validate({**config.model_dump(), **values})
    config = with_objective(config, objective)
    if model.guidance not in (None, config.drawn_guidance):
        raise InputError(
            "model.guidance differs from objective.guidance: create the model with "
            "guidance=objective.guidance"
        )
    return with_its_name(config, model.net)


def source_named(data: Dataset | None) -> str:
    """The source name of bundled data. Other data are recorded as passed from Python."""
    if data is None or data.name not in SOURCES:
        return own.NAME
    return data.name if isinstance(source_of(data.name), Bundled) else own.NAME


def name_in(known: Mapping[str, Any], thing: object) -> str:
    """The registered name of an object's class. Raises InputError if it is not registered."""
    name = next((name for name in known if known[name] is type(thing)), None)
    if name is None:
        raise InputError(
            f"{type(thing).__name__} is not one of soflow's classes ({', '.join(known)}), so the "
            "model cannot be rebuilt: save the weights with torch.save instead"
        )
    return name


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises RunError for the first weight that is not finite."""
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise RunError(
                f"{name} contains NaN or infinity, because training diverged: nothing was saved"
            )
