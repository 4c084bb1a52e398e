"""Optimizers, the shapes of their state, and the learning-rate schedule."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from soflow.config import Config
from soflow.config.optimizer import OptimizerConfig
from soflow.config.optimizer_classes import parameters_of, torch_class
from soflow.errors import InputError, first_line
from soflow.training.muon import Together, hidden_matrices

log = logging.getLogger(__name__)

#: State of AdamW and RAdam per parameter, in addition to the number of updates, `step`.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: Settings that differ from torch's defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"fused": True},
    "radam": {"decoupled_weight_decay": True, "foreach": True},
    # Scales updates to the size of AdamW's, so that both use the same learning rate and decay.
    "muon": {"adjust_lr_fn": "match_rms_adamw"},
}

#: Optimizers that cannot update shards. Muon and Adafactor need whole matrices. Rprop needs an
#: operation that torch does not implement for shards.
WHOLE = ("muon", "Adafactor", "Rprop")

#: Shapes of the tensors that an optimizer keeps for a parameter, by name.
Shapes = dict[str, tuple[int, ...]]


def make_optimizer(config: OptimizerConfig, network: nn.Module) -> Optimizer:
    """The optimizer of a network's trained parameters.

    Raises:
        InputError: If this version of torch does not have the optimizer, if the optimizer rejects
            its options, or if it has no parameters to update.
    """
    made = [make(parameters) for make, parameters in parts_of(config, network)]
    return made[0] if len(made) == 1 else Together(made)


def parts_of(
    config: OptimizerConfig, network: nn.Module
) -> list[tuple[Callable[[list[nn.Parameter]], Optimizer], list[nn.Parameter]]]:
    """The optimizers to create, each with its parameters: one, or Muon and AdamW."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.name != "muon":
        return [(partial(make_part, config), trained)]
    matrices = hidden_matrices(network)
    if not matrices:
        raise InputError(
            f"optimizer.name=muon updates weight matrices of hidden layers, but "
            f"{type(network).__name__} has none: set optimizer.name=adamw"
        )
    hidden = set(matrices)
    others = [parameter for parameter in trained if parameter not in hidden]
    adamw = config.model_copy(update={"name": "adamw", "options": {}})
    return [(partial(make_part, config), matrices), (partial(make_part, adamw), others)]


def small_muon_share(config: OptimizerConfig, network: nn.Module) -> str:
    """A warning if Muon updates less than a quarter of the trained parameters; '' if not."""
    if config.name != "muon":
        return ""
    trained = sum(one.numel() for one in network.parameters() if one.requires_grad)
    share = sum(one.numel() for one in hidden_matrices(network)) / trained
    if share >= 0.25:
        return ""
    return (
        f"optimizer.name=muon updates only {share:.0%} of the parameters of "
        f"{type(network).__name__}, AdamW all others: Muon is for networks of linear layers"
    )


def make_part(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer of torch.optim, with the configured settings that its class accepts."""
    own = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    known = parameters_of(config.name)
    settings = {name: value for name, value in own.items() if name in known}
    settings |= SETTINGS.get(config.name, {}) | config.options
    one: Callable[..., Optimizer] = torch_class(config.name)
    try:
        return one(list(parameters), **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise rejected(config, error) from None


def rejected(config: OptimizerConfig, error: Exception) -> InputError:
    """The error for settings that torch does not accept."""
    return InputError(
        f"optimizer.name={config.name} rejects its settings, with optimizer.options="
        f"{config.options}: {first_line(error)}"
    )


def kept_shapes(config: OptimizerConfig, network: nn.Module) -> list[Shapes]:
    """The shapes of the optimizer's state for each parameter, in the order of its state.

    For each parameter, an optimizer keeps tensors of the same shape, single numbers, or (Adafactor)
    a row or a column. A step on a small tensor therefore gives the shapes for all parameters with
    the same number of dimensions.
    """
    shapes: list[Shapes] = []
    for make, parameters in parts_of(config, network):
        small = {count: nn.Parameter(torch.zeros([*range(2, 2 + count)], device="cpu"))
                 for count in {parameter.ndim for parameter in parameters}}  # fmt: skip
        kept = {count: kept_after_step(config, make([one]), one) for count, one in small.items()}
        for parameter in parameters:
            sides = dict(zip(small[parameter.ndim].shape, parameter.shape, strict=True))
            shapes.append(
                {
                    name: tuple(sides.get(side, side) for side in value.shape)
                    for name, value in kept[parameter.ndim].items()
                }
            )
    return shapes


def kept_after_step(
    config: OptimizerConfig, optimizer: Optimizer, parameter: nn.Parameter
) -> dict[str, Tensor]:
    """The state of a parameter after one step."""
    parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise rejected(config, error) from None
    return dict(optimizer.state[parameter])


def require_optimizer(config: Config) -> None:
    """Raises InputError before training if the optimizer rejects the settings."""
    optimizer = config.optimizer
    layers: Sequence[nn.Module] = [nn.Linear(2, 2, device="cpu") for _ in range(3)]
    kept_shapes(optimizer, nn.Sequential(*layers))
    if config.parallel == "fsdp" and optimizer.name in WHOLE:
        raise InputError(
            f"parallel=fsdp does not work with optimizer.name={optimizer.name}, which cannot "
            "update shards: set parallel=ddp or optimizer.name=adamw"
        )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate at `step`, counted from 0, in a run of `steps` steps.

    It rises linearly during the first `warmup` steps. Then it is constant, or decays:

        lr (lr_end + (1 - lr_end) g(u)),  g = 1 - u (linear) or (1 + cos(pi u)) / 2 (cosine),
        with u from 0 at the end of the warm-up to 1 at the last step
    """
    if step < config.warmup:
        return config.lr * ((step + 1) / config.warmup)
    u = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    falls = {"constant": 1.0, "linear": 1 - u, "cosine": (1 + cos(pi * u)) / 2}
    g, end = falls[config.lr_schedule], config.lr_end
    return config.lr if g == 1 else config.lr * (end + (1 - end) * g)
