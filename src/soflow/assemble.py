"""Builds the network, objective, model and augmentation of a configuration."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from soflow.config import Config
from soflow.config.own import OWN
from soflow.data.augment import AugmentPipe
from soflow.data.dataset import DataRecord
from soflow.errors import InputError, first_line
from soflow.guidance import Guidance
from soflow.networks import NETWORKS
from soflow.noising import LinearNoising, Noising, TrigNoising
from soflow.objectives.base import Objective
from soflow.parameterization import EulerParameterization, Parameterization, TrigParameterization
from soflow.solution import FlowModel, unchanged

NOISINGS: dict[str, type[Noising]] = {"linear": LinearNoising, "trig": TrigNoising}
PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "euler": EulerParameterization,
    "trig": TrigParameterization,
}


def make_network(config: Config, own: nn.Module | None = None) -> nn.Module:
    """Builds the network with torch's current seed on torch's current default device.

    Args:
        config: The configuration.
        own: A network passed from Python. The result is a float32 copy of it.

    Raises:
        InputError: If sizes do not fit together, or the network cannot be built or copied.
    """
    if own is not None:
        try:
            return copy.deepcopy(own).float()
        except (RuntimeError, TypeError) as error:
            what = f"{type(own).__name__} cannot be copied with copy.deepcopy and .float()"
            raise InputError(f"{what}: {first_line(error)}") from error
    data = config.data
    if config.network.name == OWN:
        raise InputError(
            f"this run's network, {config.network.kind}, was defined in Python: use the run from "
            "Python and pass the network again"
        )
    augment_labels = AugmentPipe.num_labels if data.augment else 0
    try:
        return config.network.build(
            shape=data.shape,
            num_classes=data.num_classes,
            augment_labels=augment_labels,
            cond_shape=data.cond_shape,
            takes_guidance=config.drawn_guidance is not None,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def is_built_in(config: Config) -> bool:
    """Whether the network is one of soflow's, not registered or passed by the user."""
    name = config.network.name
    return name != OWN and NETWORKS[name].__module__.startswith("soflow.networks.")


def make_objective(config: Config, compile: Callable[[Any], Any] | None = None) -> Objective:
    """Builds the objective. `compile` compiles its derivatives, if it takes any.

    Raises:
        InputError: If the objective was passed from Python.
    """
    if config.objective.name == OWN:
        raise InputError(
            f"this run's objective, {config.objective.kind}, was defined in Python: pass it again, "
            "as in soflow.train(..., objective=...)"
        )
    return config.objective.build(**{} if compile is None else {"compile": compile})


def null_trained(config: Config, data: DataRecord | None) -> bool:
    """Whether unlabeled samples or dropped labels train the null label."""
    if not config.data.num_classes or getattr(data, "unlabelled", False):
        return True
    return trains_null(config.objective.build())


def trains_null(objective: Any) -> bool:
    """Whether an objective trains the null label."""
    if isinstance(guidance := getattr(objective, "guidance", None), Guidance):
        return guidance.drops_labels
    return getattr(objective, "trains_null", True)


def make_model(
    config: Config,
    network: nn.Module,
    decode: Callable[[Tensor], Tensor] = unchanged,
    data: DataRecord | None = None,
) -> FlowModel:
    """Combines a network with its noising process and its parameterization.

    Args:
        config: The configuration.
        network: The network.
        decode: Decodes samples into images or points.
        data: The run's record of its dataset, if any. It says whether some samples are unlabelled.
    """
    return FlowModel(
        net=network,
        noising=NOISINGS[config.noising.name](),
        parameterization=PARAMETERIZATIONS[config.noising.parameterization](),
        shape=config.data.shape,
        num_classes=config.data.num_classes,
        cond_shape=config.data.cond_shape,
        decode=decode,
        null_trained=null_trained(config, data),
        guidance=config.drawn_guidance,
    )


def make_augment(config: Config) -> AugmentPipe | None:
    """Builds the augmentation pipe; None if the configuration has none.

    Raises:
        InputError: If the images are too small to be augmented.
    """
    if not config.data.augment:
        return None
    least, shape = AugmentPipe.least_side, config.data.shape
    if min(shape[1:]) < least:
        needed = f"data.augment needs images of at least {least} x {least} pixels"
        raise InputError(f"{needed}, but data.shape is {list(shape)}: set data.augment=0")
    return AugmentPipe(config.data.augment)
