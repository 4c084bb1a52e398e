"""The reference implementation's optimizer state, for our optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soflow.config.schema import OptimizerConfig
from soflow.errors import InputError
from soflow.interop.files import is_plain, plain
from soflow.system.records import is_like, natural, number
from soflow.training.optimizers import make_optimizer

#: What AdamW and RAdam keep of a parameter: the number of its updates, and averages of its gradient and of the square.
MOMENTS = ("exp_avg", "exp_avg_sq")

#: Options of a parameter group that change what is learned.
OPTIONS = ("lr", "betas", "eps", "weight_decay")

ANEW = "training would go on with its averages of gradients empty"


def parameter_groups(state: object) -> list[dict[str, Any]]:
    """The parameter groups of an optimizer's state. Raises InputError for what is none."""
    if isinstance(state, Mapping) and isinstance(state.get("state"), Mapping):
        groups = state.get("param_groups")
        if isinstance(groups, list) and groups and all(is_group(group) for group in groups):
            return groups
    raise InputError(
        "'optimizer' is no state of a torch optimizer: it should hold 'state' and 'param_groups'"
    )


def is_group(group: object) -> bool:
    if not isinstance(group, dict) or not is_like(group.get("params"), [natural]):
        return False
    return all(
        is_like(plain(group[option]), (number, [number])) for option in OPTIONS if option in group
    )


def optimizer_name(groups: list[dict[str, Any]]) -> str:
    """Which of our optimizers the groups are of: AdamW has the option amsgrad, RAdam has not."""
    return "adamw" if "amsgrad" in groups[0] else "radam"


def our_optimizer_state(
    state: Mapping[str, Any] | None, names: list[str], network: nn.Module, config: OptimizerConfig
) -> tuple[dict[str, Any], list[str]]:
    """The state in our order of parameters and with the options of `config`, and notes on what that changes.

    names: the reference's parameters in the order of its state dict, in which its optimizer numbers them, with or without
    those that are not trained. A state that cannot go on here gives a fresh one and a note; so does None, without.
    Raises InputError for a state that is of another network, or of none.
    """
    fresh = make_optimizer(config, network.parameters()).state_dict()
    if state is None:
        return fresh, []
    groups = parameter_groups(state)
    if len(groups) > 1:
        return fresh, [
            f"'optimizer' has {len(groups)} groups of parameters, in an order that nothing tells: {ANEW}"
        ]
    if optimizer_name(groups) != config.name:
        return fresh, [
            f"'optimizer' is of {optimizer_name(groups)}, and optimizer.name is {config.name}: {ANEW}"
        ]

    parameters = dict(network.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    numbers = groups[0]["params"]
    orders = (
        [name for name in names if name in trained],
        [name for name in names if name in parameters],
    )
    order = next((order for order in orders if len(order) == len(numbers)), None)
    if order is None:
        raise InputError(
            f"'optimizer' is of {len(numbers)} parameters, the network has {len(trained)} that are trained"
        )
    entries = {
        name: state["state"].get(number) for name, number in zip(order, numbers, strict=True)
    }
    kept = {name: entry for name in trained if (entry := entries[name]) is not None}
    other = [
        name
        for name, entry in kept.items()
        if not isinstance(entry, Mapping) or entry.keys() != {"step", *MOMENTS}
    ]
    if other:
        return fresh, [
            f"'optimizer' is not AdamW or RAdam as torch has them by default (see {other[0]}): {ANEW}"
        ]

    ours = {
        **fresh,
        "state": {
            trained.index(name): moments(kept[name], name, parameters[name]) for name in kept
        },
    }
    notes = changed_options(groups[0], fresh["param_groups"][0])
    if len(kept) < len(trained):
        missing = next(name for name in trained if name not in kept)
        notes.append(
            f"'optimizer' keeps nothing of {len(trained) - len(kept)} parameters, such as {missing}: they start anew"
        )
    return ours, notes


def moments(entry: Mapping[str, Any], name: str, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of one parameter. Raises InputError where it cannot be of this one."""
    for moment in MOMENTS:
        if not is_plain(entry[moment]) or entry[moment].shape != parameter.shape:
            raise InputError(
                f"{moment} in 'optimizer' is not {list(parameter.shape)} finite numbers, the shape of {name}"
            )
    step = plain(entry["step"])
    if not isinstance(step, int | float) or not 0 <= step < 2**53:
        raise InputError(f"step in 'optimizer' is not a number for {name}")
    return {
        "step": torch.as_tensor(step, dtype=torch.float32),
        **{moment: entry[moment].float() for moment in MOMENTS},
    }


def changed_options(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """A note on each option with which training goes on otherwise than it went so far."""
    notes = [
        f"'optimizer' went by {option} {plain(theirs[option])}; training goes on with {plain(ours[option])}"
        for option in OPTIONS
        if option in theirs and plain(theirs[option]) != plain(ours[option])
    ]
    if theirs.get("weight_decay") and theirs.get("decoupled_weight_decay") is False:
        notes.append(
            "'optimizer' added its weight decay to the gradient; training goes on with decoupled weight decay"
        )
    return notes
