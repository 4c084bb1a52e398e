"""From a configuration to the objects that it names. Nothing else knows them all."""

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
from soflow.noising import LinearNoising, Noising, TrigNoising
from soflow.objectives.base import Objective
from soflow.solution import (
    EulerParameterization,
    FlowModel,
    Parameterization,
    TrigParameterization,
    unchanged,
)

NOISINGS: dict[str, type[Noising]] = {"linear": LinearNoising, "trig": TrigNoising}
PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "euler": EulerParameterization,
    "trig": TrigParameterization,
}


def make_network(config: Config, own: nn.Module | None = None) -> nn.Module:
    """The network, initialized from torch's current seed, on torch's current default device.

    Args:
        config: The configuration.
        own: A network that was given in Python: the result is a copy of it, in float32.

    Raises:
        InputError: For sizes that do not fit together.
    """
    if own is not None:
        try:
            return copy.deepcopy(own).float()
        except (RuntimeError, TypeError) as error:
            what = f"{type(own).__name__} cannot be copied, by copy.deepcopy and .float()"
            raise InputError(f"{what}: {first_line(error)}") from error
    data = config.data
    if config.network.name == OWN:
        raise InputError(
            f"the network of this run, {config.network.kind}, was given in Python: only Python, "
            "given it again, can use it"
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


def make_objective(config: Config, compile: Callable[[Any], Any] | None = None) -> Objective:
    """The objective. `compile` compiles its own derivatives, if it has any.

    Raises:
        InputError: For an objective that was given in Python.
    """
    if config.objective.name == OWN:
        raise InputError(
            f"the objective of this run, {config.objective.kind}, was given in Python: give it "
            "again, as in soflow.train(..., objective=...)"
        )
    return config.objective.build(**{} if compile is None else {"compile": compile})


def null_trained(config: Config, data: DataRecord | None) -> bool:
    """Whether training reaches the null label: by unlabelled samples, or by dropped labels."""
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
    """The network with its noising process and its parameterization.

    Args:
        config: The configuration.
        network: The network.
        decode: From samples to images or points.
        data: What a run keeps of its data, which may train the null label.
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
    """The augmentation pipe, if the configuration has one.

    Raises:
        InputError: For images that are too small for it.
    """
    if not config.data.augment:
        return None
    least, shape = AugmentPipe.least_side, config.data.shape
    if min(shape[1:]) < least:
        needed = f"data.augment needs images of {least} x {least} pixels or more"
        raise InputError(f"{needed}, data.shape is {list(shape)}: set data.augment=0")
    return AugmentPipe(config.data.augment)
