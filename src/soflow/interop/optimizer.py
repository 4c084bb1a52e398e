"""The reference implementation's optimizer state, for our optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soflow.config.schema import OptimizerConfig
from soflow.errors import InputError
from soflow.training.optimizers import make_optimizer

#: What AdamW and RAdam keep of a parameter: the number of its updates, and averages of its gradient and of the square.
MOMENTS = ("exp_avg", "exp_avg_sq")

#: Options of a parameter group that change what is learned; the learning rate is a function of the step here.
OPTIONS = ("lr", "betas", "eps", "weight_decay")


def parameter_groups(state: object) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer's state. Raises InputError for what is none."""
    if isinstance(state, Mapping) and isinstance(state.get("state"), Mapping):
        groups = state.get("param_groups")
        if isinstance(groups, list) and groups and all(isinstance(group, dict) and "params" in group for group in groups):
            return groups
    raise InputError("'optimizer' is no state of a torch optimizer: it should hold 'state' and 'param_groups'")


def our_optimizer_state(
    state: Mapping[str, Any] | None, names: list[str], network: nn.Module, config: OptimizerConfig
) -> tuple[dict[str, Any], list[str]]:
    """The state in our order of parameters and with the options of `config`, and notes on what that changes.

    names: the reference's parameters in the order of its state dict, in which its optimizer numbers them, with or without
    those that are not trained. None for `state` gives a fresh one. Raises InputError for moments of another network.
    """
    ours = make_optimizer(config, network.parameters()).state_dict()
    if state is None:
        return ours, []
    groups = parameter_groups(state)
    parameters = dict(network.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    numbers = [number for group in groups for number in group["params"]]
    orders = [name for name in names if name in trained], [name for name in names if name in parameters]
    order = next((order for order in orders if len(order) == len(numbers)), None)
    if order is None:
        raise InputError(f"'optimizer' is of {len(numbers)} parameters, the network has {len(trained)} that are trained")
    number_of = dict(zip(order, numbers, strict=True))

    fresh = []
    for index, name in enumerate(trained):
        entry = state["state"].get(number_of[name]) if isinstance(number_of[name], int) else None
        if entry is None:
            fresh.append(name)
        else:
            ours["state"][index] = moments(entry, name, parameters[name])
    notes = [f"'optimizer' keeps nothing of {len(fresh)} parameters, such as {fresh[0]}: they start anew"] if fresh else []
    for option in OPTIONS:
        value = plain(ours["param_groups"][0][option])
        others = [plain(group[option]) for group in groups if plain(group.get(option, value)) != value]
        notes += [f"'optimizer' went by {option} {other}; training goes on with {value}" for other in others[:1]]
    return ours, notes


def moments(entry: object, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of one parameter. Raises InputError unless it is what AdamW or RAdam would."""
    if not isinstance(entry, Mapping) or entry.keys() != {"step", *MOMENTS}:
        raise InputError(
            f"'optimizer' does not hold step, exp_avg and exp_avg_sq of {name}: only AdamW and RAdam go on here"
        )
    for moment in MOMENTS:
        if not isinstance(entry[moment], Tensor) or entry[moment].shape != parameter.shape:
            raise InputError(f"{moment} in 'optimizer' does not have the shape of {name}, {list(parameter.shape)}")
    step = torch.as_tensor(entry["step"], dtype=torch.float32)
    if step.shape != ():
        raise InputError(f"step in 'optimizer' is not one number for {name}")
    return {"step": step, **{moment: entry[moment].float() for moment in MOMENTS}}


def plain(value: object) -> object:
    """A list for a tuple: to an optimizer they are the same."""
    return list(value) if isinstance(value, tuple) else value
