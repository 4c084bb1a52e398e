"""Networks and objectives that are passed from Python, not named in a recipe.

A registered class is recorded by its name and settings, as in a recipe. Any other object is
recorded as "python", and must be passed again to resume the run. A network must also be passed
again to load the run.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from soflow.assemble import make_network, trains_null
from soflow.config import Config
from soflow.config.own import OWN
from soflow.config.reading import explain, validate
from soflow.config.sections import SUPPLIED, section_of
from soflow.data.dataset import checksum
from soflow.errors import InputError, in_short
from soflow.guidance import draws_scales
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.objectives.base import Objective
from soflow.sampling import SAMPLERS
from soflow.system.registry import Registry

#: The custom networks of runs that this process has trained or loaded, by run folder.
_known: dict[Path, nn.Module] = {}


def remember(folder: Path, network: nn.Module) -> None:
    """Keeps a custom network, so that this process can load the run without passing it again."""
    _known[folder.resolve()] = network


def remembered(folder: Path) -> nn.Module | None:
    """The custom network of a run, if this process has trained or loaded the run."""
    return _known.get(folder.resolve())


def own_network_of(config: Config, folder: Path, given: nn.Module | None) -> nn.Module | None:
    """The custom network of a run, passed or remembered; None if the settings define it.

    Raises:
        InputError: If the run needs a network and none is passed or remembered.
    """
    if config.network.name != OWN:
        return given
    network = remembered(folder) if given is None else given
    if network is None:
        raise InputError(
            f"the network of {folder}, {config.network.kind}, was passed from Python: pass it "
            "again, with soflow.load(run, network=...) or soflow.train(..., network=...); the "
            "command line needs a registered network"
        )
    require_module(network)
    return network


def require_module(network: object) -> None:
    """Raises InputError unless the network is a module with initialized weights."""
    if not isinstance(network, nn.Module):
        raise InputError(f"network is {in_short(network)}: pass an nn.Module, net(x, t, s, labels)")
    if any(weight.is_meta for weight in network.parameters()):
        raise InputError(f"{kind_of(network)} has weights on the device meta: initialize them")


def with_network(config: Config, network: nn.Module) -> Config:
    """The configuration with a custom network.

    Raises:
        InputError: If the network is not a module.
    """
    require_module(network)
    record = {"name": OWN, "kind": kind_of(network)}
    return validate({**config.model_dump(), "network": record})


def with_its_name(config: Config, network: nn.Module) -> Config:
    """The configuration with the network's name and settings, if they rebuild the network."""
    name = next((name for name in NETWORKS if NETWORKS[name] is type(network)), None)
    settings = getattr(network, "settings", None)
    if name is None or not isinstance(settings, dict):
        return config
    found = validate({**config.model_dump(), "network": {"name": name, **settings}})
    with torch.device("meta"):
        built = make_network(found).state_dict()
    same = shapes_of(built) == shapes_of(network.state_dict())
    return found if same else config


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each weight, by name."""
    return {name: tuple(weight.shape) for name, weight in state.items()}


def without_objective(config: Config) -> Config:
    """The configuration with default settings of the objective, which restrict no other section."""
    return validate({**config.model_dump(), "objective": {"name": "soflow"}})


def with_objective(config: Config, objective: Objective) -> Config:
    """The configuration with a custom objective.

    Raises:
        InputError: If `objective` is a class, or does not implement `Objective`.
    """
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise InputError(
            f"objective is {in_short(objective)}: pass an object such as soflow.SoFlow(), with "
            "samplers, whole_network, draw(shape, generator) and "
            "__call__(model, batch, draws, progress)"
        )
    require_samplers(objective)
    guidance = getattr(objective, "guidance", None)
    record = by_name(OBJECTIVES, objective) or {
        "name": OWN,
        "kind": kind_of(objective),
        "settings": settings_of(objective) if is_dataclass(objective) else {},
        "samplers": objective.samplers,
        "whole_network": objective.whole_network,
        "forward_derivative": getattr(objective, "forward_derivative", False),
        "trains_null": trains_null(objective),
        "parameterization": getattr(objective, "parameterization", None),
        "guidance_scale": getattr(guidance, "scale", 1.0),
        "guidance": plain(guidance) if draws_scales(guidance) else None,
    }
    return validate({**config.model_dump(), "objective": record})


def require_samplers(objective: Objective) -> None:
    """Raises InputError if an objective names no samplers, or unknown samplers."""
    names, kind = objective.samplers, kind_of(objective)
    if not names or isinstance(names, str) or not set(names) <= set(SAMPLERS):
        raise InputError(f"{kind}.samplers is {names!r}: choose from {', '.join(SAMPLERS)}")


def by_name(registry: Registry[Any], part: Any) -> dict[str, Any] | None:
    """The registered name and settings of an object; None if they do not rebuild it."""
    name = next((name for name in registry if registry[name] is type(part)), None)
    if name is None or not is_dataclass(part) or isinstance(part, type):
        return None
    section, settings = section_of(registry[name], name), arguments_of(part)
    record = {key: settings[key] for key in section.model_fields if key != "name"}
    record["name"] = name
    try:
        return record if section.model_validate(record).build() == part else None
    except ValidationError as error:
        raise InputError(explain(error, {registry.kind: record}, (registry.kind,))) from None


def arguments_of(part: Any) -> dict[str, Any]:
    """The arguments of a dataclass's constructor, with nested dataclasses as dictionaries."""
    values = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    return {name: arguments_of(x) if is_dataclass(x) else x for name, x in values.items()}


def kind_of(part: object) -> str:
    """The full name of an object's class, with its module."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def settings_of(objective: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain values for a file."""
    return {name: x for name, x in plain(objective).items() if name not in SUPPLIED}


def plain(value: Any) -> Any:
    """Settings as plain values for a file: tensors as checksums, other objects as type names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor | np.ndarray):
        numbers = torch.as_tensor(value).detach().cpu().double()
        return f"{type(value).__name__} {list(numbers.shape)}, checksum {checksum(numbers)}"
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else getattr(value, "__qualname__", type(value).__qualname__)


def require_unchanged(section: str, given: tuple[str, ...]) -> None:
    """Raises InputError if settings are set in addition to an object."""
    for key in given:
        if key.startswith(f"{section}."):
            raise InputError(
                f"{key} changes the {section} of a recipe, but {section}= is passed: leave "
                "out one of them"
            )
