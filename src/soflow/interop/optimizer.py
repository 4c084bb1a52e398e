"""The reference implementation's optimizer state, for our optimizer."""

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

#: Options of a parameter group that change what is learned.
OPTIONS = ("lr", "betas", "eps", "weight_decay")

FRESH = "training would start with fresh moments"

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
    """The state dict of a torch optimizer; `state` holds a mapping per number of a parameter."""

    state: dict[Any, Any]
    param_groups: list[Group] = Field(min_length=1)

    @property
    def name(self) -> str:
        """The name of our optimizer: AdamW has the option amsgrad, RAdam has not."""
        return "adamw" if "amsgrad" in self.param_groups[0].model_fields_set else "radam"


def read_optimizer(state: object) -> OptimizerState:
    """Raises InputError if this is no state of a torch optimizer."""
    try:
        return OptimizerState.model_validate(state)
    except ValidationError:
        raise InputError(
            "'optimizer' is no state of a torch optimizer: it must hold 'state' and 'param_groups'"
        ) from None


def our_optimizer_state(
    state: OptimizerState | None, names: list[str], network: nn.Module, config: OptimizerConfig
) -> tuple[dict[str, Any], list[str]]:
    """Translates a state into our order of parameters, with the options of `config`.

    Args:
        state: The reference's state; None gives a fresh one.
        names: The reference's parameters in the order of its state dict, in which its optimizer
            numbers them, with or without those that are not trained.
        network: Our network.
        config: Our settings.

    Returns:
        The state, which is fresh if the reference's cannot be continued, and notes on what changes.

    Raises:
        InputError: If the state is of another network.
    """
    fresh = make_optimizer(config, network).state_dict()
    if state is None:
        return fresh, []
    if len(state.param_groups) > 1:
        groups = len(state.param_groups)
        return fresh, [f"'optimizer' has {groups} groups of parameters in unknown order: {FRESH}"]
    if state.name != config.name:
        return fresh, [f"'optimizer' is {state.name}, and optimizer.name is {config.name}: {FRESH}"]

    if any(kept.keys() != {"step", *MOMENTS} for kept in kept_shapes(config, network)):
        return fresh, [f"'optimizer' has other options than optimizer.options: {FRESH}"]

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
    """The names of the parameters that the group numbers.

    Raises:
        InputError: If their number fits neither all parameters nor those that are trained.
    """
    everything = [name for name in names if name in parameters]
    trained = [name for name in everything if parameters[name].requires_grad]
    for order in (trained, everything):
        if len(order) == len(group.params):
            return order
    raise InputError(
        f"'optimizer' is of {len(group.params)} parameters, the network trains {len(trained)}"
    )


def moments(entry: Mapping[str, Any], name: str, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of one parameter. Raises InputError for other shapes."""
    for moment in MOMENTS:
        if not is_finite_tensor(entry[moment]) or entry[moment].shape != parameter.shape:
            raise InputError(
                f"{moment} of {name} in 'optimizer' is not {list(parameter.shape)} finite numbers"
            )
    step = plain(entry["step"])
    if not isinstance(step, int | float) or not 0 <= step < 2**53:
        raise InputError(f"step of {name} in 'optimizer' is not a number of steps")
    return {
        "step": torch.as_tensor(step, dtype=torch.float32),
        **{moment: entry[moment].float() for moment in MOMENTS},
    }


def changed_options(theirs: Group, ours: Mapping[str, Any]) -> list[str]:
    """A note on each option that training continues with another value of."""
    notes = [
        f"'optimizer' had {option} {value}; training continues with {plain(ours[option])}"
        for option in OPTIONS
        if (value := getattr(theirs, option)) is not None and value != plain(ours[option])
    ]
    if theirs.weight_decay and theirs.decoupled_weight_decay is False:
        notes.append("'optimizer' added weight decay to the gradient; ours is decoupled")
    return notes
