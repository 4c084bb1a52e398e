"""The optimizers of torch.optim by name, and the settings of each optimizer."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import isclass, signature
from typing import Any

import torch

from soflow.errors import InputError

Optimizers = type[torch.optim.Optimizer]

#: The optimizer classes of torch.optim by lower-case name.
CLASSES: dict[str, Optimizers] = {
    name.lower(): one
    for name, one in vars(torch.optim).items()
    if isclass(one) and issubclass(one, torch.optim.Optimizer) and one is not torch.optim.Optimizer
}
#: Optimizers with their own implementation in soflow. Their names are lower case.
OURS = ("adamw", "radam", "muon")
#: Classes that the training loop does not support, with the reason.
REFUSED = {
    "lbfgs": "evaluates the loss several times per step",
    "sparseadam": "needs sparse gradients",
}
#: Constructor parameters that are separate keys of the section `optimizer`.
OWN_KEYS = ("lr", "betas", "weight_decay")


def canonical(name: str) -> str:
    """The canonical name of an optimizer, such as adamw, muon or SGD.

    Raises:
        ValueError: If the optimizer is unknown or not supported.
    """
    lower = name.lower()
    if lower in OURS:
        return lower
    names = {key: one.__name__ for key, one in CLASSES.items() if key not in {*REFUSED, *OURS}}
    choices = [*OURS, *names.values()]
    if lower in REFUSED and lower in CLASSES:
        why = REFUSED[lower]
        raise ValueError(
            f"optimizer.name={name} is not supported, since it {why}: choose one of "
            f"{', '.join(choices)}"
        )
    if lower not in names:
        near = get_close_matches(lower, [choice.lower() for choice in choices], 1)
        found = [choice for choice in choices if choice.lower() in near]
        advice = f"did you mean {found[0]}?" if found else f"choose one of {', '.join(choices)}"
        raise ValueError(f"optimizer.name={name:.60} is unknown: {advice}")
    return names[lower]


def torch_class(name: str) -> Optimizers:
    """The class of an optimizer.

    Raises:
        InputError: If the installed version of torch does not have this optimizer.
    """
    found = CLASSES.get(name.lower())
    if found is None:
        needed = "torch 2.9 or newer" if name == "muon" else "a newer torch"
        raise InputError(
            f"optimizer.name={name} needs {needed}, but torch {torch.__version__} is installed: "
            "update torch, or set optimizer.name=adamw"
        )
    return found


def parameters_of(name: str) -> tuple[str, ...]:
    """The constructor parameters of an optimizer; () if the installed torch does not have it."""
    found = CLASSES.get(name.lower())
    return tuple(signature(found).parameters)[1:] if found else ()


def has_betas(name: str) -> bool:
    """Whether an optimizer takes betas. Muon takes them for the parameters that AdamW updates."""
    return name.lower() == "muon" or "betas" in parameters_of(name)


def require_settings_apply(name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first setting that the optimizer would ignore.

    Args:
        name: The canonical name of the optimizer.
        given: The keys of the section `optimizer` with values other than their defaults.
        options: Further arguments of the optimizer class.
    """
    known, chosen = parameters_of(name), f"optimizer.name={name}"
    if "betas" in given and not has_betas(name):
        raise ValueError(f"optimizer.betas does not apply to {chosen}: leave it out")
    if "weight_decay" in given and known and "weight_decay" not in known:
        raise ValueError(f"optimizer.weight_decay does not apply to {chosen}: set it to 0")
    if name == "Rprop":  # lr is only the initial step size; Rprop adapts it
        for key, value in (("warmup", 0), ("lr_schedule", "constant")):
            if key in given:
                raise ValueError(
                    f"optimizer.{key} does not apply to {chosen}, which adapts its own step "
                    f"sizes: set it to {value}"
                )
    if "lr_end" in given and given.get("lr_schedule", "constant") == "constant":
        raise ValueError(
            "optimizer.lr_end needs optimizer.lr_schedule=cosine or linear: set it to 0"
        )
    available = [parameter for parameter in known if parameter not in OWN_KEYS]
    for option in options:
        if option in OWN_KEYS:
            raise ValueError(
                f"optimizer.options.{option} is a separate key: set optimizer.{option} instead"
            )
        if known and option not in available:
            near = get_close_matches(option, available, 1)
            known_options = f"choose one of {', '.join(available)}"
            advice = f"did you mean {near[0]}?" if near else known_options
            raise ValueError(f"optimizer.options.{option:.60} is unknown for {chosen}: {advice}")
        if known and is_switch(name, option) and not isinstance(options[option], bool | None):
            raise ValueError(f"optimizer.options.{option} of {chosen} must be true or false")


def is_switch(name: str, option: str) -> bool:
    """Whether an option is a bool. torch would take any non-empty text as true."""
    return "bool" in str(signature(CLASSES[name.lower()]).parameters[option].annotation)
