"""Networks and objectives that are given in Python, in place of those that a recipe names.

What a registry knows is recorded by its name and its settings, like any recipe's. All else is
recorded as "python", and given again to train further; a network also to be loaded.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soflow.assemble import make_network, trains_null
from soflow.config import Config
from soflow.config.own import OWN
from soflow.config.reading import validate
from soflow.config.sections import section_of
from soflow.data.dataset import checksum
from soflow.errors import InputError, in_short
from soflow.guidance import draws_scales
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.objectives.base import Objective
from soflow.sampling import SAMPLERS
from soflow.system.registry import Registry

#: The networks of runs that this process has trained or loaded, by their folders.
_known: dict[Path, nn.Module] = {}


def remember(folder: Path, network: nn.Module) -> None:
    """Keeps a network of one's own at hand for this process's next look at the run."""
    _known[folder.resolve()] = network


def remembered(folder: Path) -> nn.Module | None:
    """The network of a run, if this process was given it."""
    return _known.get(folder.resolve())


def own_network_of(config: Config, folder: Path, given: nn.Module | None) -> nn.Module | None:
    """The network that a run is given or that is remembered; None if its settings say all.

    Raises:
        InputError: If the run needs one.
    """
    if config.network.name != OWN:
        return given
    network = remembered(folder) if given is None else given
    if network is None:
        raise InputError(
            f"the network of {folder}, {config.network.kind}, was given in Python: give it again, "
            "as in soflow.load(run, network=...) or soflow.train(..., network=...)"
        )
    require_module(network)
    return network


def require_module(network: object) -> None:
    """Raises InputError unless it is a module whose weights have values."""
    if not isinstance(network, nn.Module):
        raise InputError(f"network is {in_short(network)}: give an nn.Module, net(x, t, s, labels)")
    if any(weight.is_meta for weight in network.parameters()):
        raise InputError(f"{kind_of(network)} has weights on the device meta: give them values")


def with_network(config: Config, network: nn.Module) -> Config:
    """The configuration of runs with this network.

    Raises:
        InputError: If it is no module.
    """
    require_module(network)
    record = {"name": OWN, "kind": kind_of(network)}
    return validate({**config.model_dump(), "network": record})


def with_its_name(config: Config, network: nn.Module) -> Config:
    """The configuration with the network by its name, if a registry and its settings make it."""
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
    """The shapes of weights by name."""
    return {name: tuple(weight.shape) for name, weight in state.items()}


def with_objective(config: Config, objective: Objective) -> Config:
    """The configuration of runs with this objective.

    Raises:
        InputError: If it is no objective.
    """
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise InputError(
            f"objective is {in_short(objective)}: give an object such as soflow.SoFlow(), with "
            "samplers, whole_network, draw(shape, generator) and a call (model, batch, draws, k/K)"
        )
    require_samplers(objective)
    guidance = getattr(objective, "guidance", None)
    record = by_name(OBJECTIVES, objective) or {
        "name": OWN,
        "kind": kind_of(objective),
        "settings": plain(objective) if is_dataclass(objective) else {},
        "samplers": objective.samplers,
        "whole_network": objective.whole_network,
        "forward_derivative": getattr(objective, "forward_derivative", False),
        "trains_null": trains_null(objective),
        "guidance_scale": getattr(guidance, "scale", 1.0),
        "guidance": plain(guidance) if draws_scales(guidance) else None,
    }
    return validate({**config.model_dump(), "objective": record})


def require_samplers(objective: Objective) -> None:
    """Raises InputError if an objective names no samplers, or unknown ones."""
    names, kind = objective.samplers, kind_of(objective)
    if not names or isinstance(names, str) or not set(names) <= set(SAMPLERS):
        raise InputError(f"{kind}.samplers is {names!r}: name some of {', '.join(SAMPLERS)}")


def by_name(registry: Registry[Any], part: Any) -> dict[str, Any] | None:
    """The record of an object that its registered class and settings alone make."""
    name = next((name for name in registry if registry[name] is type(part)), None)
    if name is None or not is_dataclass(part) or isinstance(part, type):
        return None
    section, settings = section_of(registry[name], name), asdict(part)
    record = {key: settings[key] for key in section.model_fields if key != "name"}
    record["name"] = name
    return record if section.model_validate(record).build() == part else None


def kind_of(part: object) -> str:
    """The class of an object, as it is imported."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def plain(value: Any) -> Any:
    """Settings as a file can hold them: tensors by a checksum, other objects by their type."""
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
    """Raises InputError if settings are given beside the object that has its own."""
    for key in given:
        if key.startswith(f"{section}."):
            raise InputError(f"{key} is a setting of a recipe's {section}, and {section}= is given")
