"""Checks a custom network before training, with one call on noise."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from soflow.config import Config
from soflow.data.augment import AugmentPipe
from soflow.errors import InputError, first_line
from soflow.networks.pretrained import LABEL_ARGUMENTS
from soflow.objectives.passes import Inputs, with_derivative
from soflow.workflows.own_parts import kind_of


@torch.no_grad()
def require_contract(network: nn.Module, config: Config, null: bool) -> None:
    """Checks that a network can be trained as configured. Does not modify the network.

    Args:
        network: The network.
        config: The configuration, with the shape and the classes of the data.
        null: Whether the null label is used. Its number is the number of classes.

    Raises:
        InputError: If the network does not accept the arguments, returns another shape, or cannot
            be trained.
    """
    require_arguments(network, config)
    name, inputs = kind_of(network), trial(network, config, null)
    jacobian = config.of_objective("forward_derivative")
    if jacobian and any(map(keeps_statistics, network.modules())):
        raise InputError(
            f"{name} has batch normalization, but this objective needs Jacobian-vector products, "
            "which do not work with running statistics: use another normalization"
        )
    with in_evaluation(network):  # so that running statistics do not include the noise
        out = called(network, inputs, null)
        found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if found != (wanted := list(inputs.x.shape)):
            raise InputError(
                f"{name} returns {found} for samples {wanted}: it must return the same shape"
            )
        if jacobian:
            try:
                with_derivative(network, inputs, inputs.x)
            except RuntimeError as error:
                raise InputError(
                    f"{name} has no forward-mode derivative, but the objective "
                    f"{config.objective.name} needs one: {first_line(error)}"
                ) from error
    require_weights(network)


def require_weights(network: nn.Module) -> None:
    """Raises InputError if the network has no trainable weights, or complex weights."""
    name = kind_of(network)
    for weight, tensor in network.named_parameters():
        if tensor.is_complex():
            raise InputError(
                f"{name} has complex weights, {weight}: store them as real weights, with "
                "torch.view_as_real"
            )
    if not any(weight.requires_grad for weight in network.parameters()):
        raise InputError(f"{name} has no trainable weights: set requires_grad for some of them")


def require_arguments(network: nn.Module, config: Config) -> None:
    """Raises InputError if the network takes no labels, or labels instead of s."""
    name = kind_of(network)
    if config.data.num_classes and not getattr(network, "takes_labels", True):
        raise InputError(f"{name} takes no labels: set data.num_classes=0")
    third = [*inspect.signature(network.forward).parameters][2:3]
    if third and third[0] in LABEL_ARGUMENTS:
        raise InputError(
            f"{name} takes one time, t, but must take t and s: use soflow.WithSecondTime(network)"
        )


def trial(network: nn.Module, config: Config, null: bool) -> Inputs:
    """Test inputs for two samples: noise, two pairs of times, the first and the last label."""
    data = config.data
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *data.shape, generator=generator)
    labels = torch.tensor([0, data.num_classes - (not null)]) if data.num_classes else None
    augment = torch.zeros(2, AugmentPipe.num_labels) if data.augment else None
    cond = torch.zeros(2, *data.cond_shape) if data.cond_shape else None
    drawn = config.drawn_guidance
    guidance = None if drawn is None else drawn.draw(2, generator)
    t, s = torch.tensor([0.8, 0.6]), torch.tensor([0.3, 0.6])
    columns = (x, t, s, labels, augment, cond, guidance)
    placed = (None if column is None else column.to(device) for column in columns)
    return Inputs(*placed)  # type: ignore[arg-type]


def called(network: nn.Module, inputs: Inputs, null: bool) -> object:
    """Calls the network. Raises InputError if it does not accept the arguments."""
    name, labels = kind_of(network), inputs.labels
    try:
        return inputs.through(network)
    except IndexError as error:
        if labels is None:
            raise
        needed = f"labels 0 to {int(labels.max())}"
        needed += " (the last means no class)" if null else ""
        raise InputError(f"{name} must accept {needed}: {error}") from error
    except TypeError as error:
        needed = ", ".join(["x, t, s, labels", *(f"{key}={key}" for key in inputs.more)])
        raise InputError(f"{name} must accept ({needed}): {error}") from error


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode. Restores the mode of each module afterwards."""
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module updates running statistics in training mode."""
    return isinstance(module, _NormBase) and module.track_running_stats
