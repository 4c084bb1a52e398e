"""Translates the optimizer state of the reference implementation."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from torch import Tensor, nn

from soflow.config.optimizer import OptimizerConfig
from soflow.errors import InputError
from soflow.interop.weights import is_finite_tensor, plain
from soflow.system.records import Count
from soflow.training.optimizers import MOMENTS, kept_shapes, make_optimizer

#: Options of a parameter group that affect training.
OPTIONS = ("lr", "betas", "eps", "weight_decay")

FRESH = "training starts with fresh optimizer moments"

Number = Annotated[float, BeforeValidator(plain), Field(strict=True)]


class Group(BaseModel):
    """One parameter group of a torch optimizer."""

    params: list[Count]
    lr: Number | None = None
    betas: Annotated[list[Number], BeforeValidator(plain)] | None = None
    eps: Number | None = None
    weight_decay: Number | None = None
    amsgrad: Any = None
    decoupled_weight_decay: Any = None


class OptimizerState(BaseModel):
    """The state dict of a torch optimizer. `state` has one mapping per parameter number."""

    state: dict[Any, Any]
    param_groups: list[Group] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The name of the optimizer. AdamW has the option amsgrad, RAdam does not."""
        return "adamw" if "amsgrad" in self.param_groups[0].model_fields_set else "radam"


def read_optimizer(state: object) -> OptimizerState:
    """Parses a state dict. Raises InputError if it does not belong to a torch optimizer."""
    try:
        return OptimizerState.model_validate(state)
    except ValidationError:
        raise InputError(
            "'optimizer' is not the state dict of a torch optimizer: it must have 'state' and "
            "'param_groups'"
        ) from None


def our_optimizer_state(
    state: OptimizerState | None, names: list[str], network: nn.Module, config: OptimizerConfig
) -> tuple[dict[str, Any], list[str]]:
    """Translates an optimizer state to the parameter order of a network.

    Args:
        state: State of the reference implementation, or None for a fresh state.
        names: Parameter names of the reference, in the order of its state dict. Its optimizer
            numbers them in this order, and may skip parameters that are not trained.
        network: The network to train.
        config: Options of the optimizer.

    Returns:
        The optimizer state, which is fresh if training cannot continue with the given one, and
        notes on the changes.

    Raises:
        InputError: If the state belongs to another network.
    """
    fresh = make_optimizer(config, network).state_dict()
    if state is None:
        return fresh, []
    if len(state.param_groups) > 1:
        groups = len(state.param_groups)
        return fresh, [f"'optimizer' has {groups} parameter groups in unknown order: {FRESH}"]
    if state.name != config.name:
        return fresh, [f"'optimizer' is {state.name}, but optimizer.name is {config.name}: {FRESH}"]

    if any(kept.keys() != {"step", *MOMENTS} for kept in kept_shapes(config, network)):
        return fresh, [f"'optimizer' does not fit optimizer.options: {FRESH}"]

    (group,) = state.param_groups
    parameters = dict(network.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    numbers = dict(zip(order_of(group, names, parameters), group.params, strict=True))
    entries = {name: state.state.get(numbers[name]) for name in trained}
    kept = {name: entry for name, entry in entries.items() if entry is not None}
    for name, entry in kept.items():
        if not isinstance(entry, Mapping) or entry.keys() != {"step", *MOMENTS}:
            return fresh, [f"'optimizer' is not torch's AdamW or RAdam (see {name}): {FRESH}"]

    ours = {trained.index(name): moments(kept[name], name, parameters[name]) for name in kept}
    notes = changed_options(group, fresh["param_groups"][0])
    if len(kept) < len(trained):
        lacking = [name for name in trained if name not in kept]
        what = f"{len(lacking)} parameters, such as {lacking[0]}"
        notes.append(f"'optimizer' lacks {what}: they start with fresh moments")
    return {**fresh, "state": ours}, notes


def order_of(group: Group, names: list[str], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameter names in the order of the group's numbers.

    Raises:
        InputError: If the group matches neither all parameters nor only the trained ones.
    """
    everything = [name for name in names if name in parameters]
    trained = [name for name in everything if parameters[name].requires_grad]
    for order in (trained, everything):
        if len(order) == len(group.params):
            return order
    raise InputError(
        f"'optimizer' has {len(group.params)} parameters, but the network trains {len(trained)}"
    )


def moments(entry: Mapping[str, Any], name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Checks and converts the state of one parameter. Raises InputError if it is invalid."""
    for moment in MOMENTS:
        if not is_finite_tensor(entry[moment]) or entry[moment].shape != parameter.shape:
            raise InputError(
                f"{moment} of {name} in 'optimizer' must be a finite tensor of shape "
                f"{list(parameter.shape)}"
            )
    step = plain(entry["step"])
    if not isinstance(step, int | float) or not 0 <= step < 2**53:
        raise InputError(f"step of {name} in 'optimizer' is not a valid number of steps")
    return {
        "step": torch.as_tensor(step, dtype=torch.float32),
        **{moment: entry[moment].float() for moment in MOMENTS},
    }


def changed_options(theirs: Group, ours: Mapping[str, Any]) -> list[str]:
    """A note on each option whose value changes."""
    notes = [
        f"'optimizer' had {option}={value}; training continues with {plain(ours[option])}"
        for option in OPTIONS
        if (value := getattr(theirs, option)) is not None and value != plain(ours[option])
    ]
    if theirs.weight_decay and theirs.decoupled_weight_decay is False:
        notes.append("'optimizer' added weight decay to the gradient; here it is decoupled")
    return notes
