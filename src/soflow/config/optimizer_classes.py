"""The optimizers of torch.optim by name, and the settings that each of them has."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import isclass, signature
from typing import Any

import torch

from soflow.errors import InputError

Optimizers = type[torch.optim.Optimizer]

#: Every class of torch.optim, by its name in lower case.
CLASSES: dict[str, Optimizers] = {
    name.lower(): one
    for name, one in vars(torch.optim).items()
    if isclass(one) and issubclass(one, torch.optim.Optimizer) and one is not torch.optim.Optimizer
}
#: Names that are written in lower case, since they are more than the class.
OURS = ("adamw", "radam", "muon")
#: Classes that this training loop cannot drive.
REFUSED = {
    "lbfgs": "evaluates the loss several times per step",
    "sparseadam": "needs sparse gradients",
}
#: Constructor parameters that have a key of their own in the section `optimizer`.
OWN_KEYS = ("lr", "betas", "weight_decay")


def canonical(name: str) -> str:
    """The name of an optimizer as a configuration keeps it, such as adamw, muon or SGD.

    Raises:
        ValueError: If there is no such optimizer, or training cannot use it.
    """
    lower = name.lower()
    if lower in OURS:
        return lower
    names = {key: one.__name__ for key, one in CLASSES.items() if key not in {*REFUSED, *OURS}}
    choices = [*OURS, *names.values()]
    if lower in REFUSED and lower in CLASSES:
        why = REFUSED[lower]
        raise ValueError(
            f"optimizer.name={name} cannot be used: it {why}; known are {', '.join(choices)}"
        )
    if lower not in names:
        near = get_close_matches(lower, [choice.lower() for choice in choices], 1)
        found = [choice for choice in choices if choice.lower() in near]
        advice = f"did you mean {found[0]}?" if found else f"known are {', '.join(choices)}"
        raise ValueError(f"optimizer.name={name:.60} is unknown: {advice}")
    return names[lower]


def torch_class(name: str) -> Optimizers:
    """The class of an optimizer.

    Raises:
        InputError: If this torch has none of this name.
    """
    found = CLASSES.get(name.lower())
    if found is None:
        needed = "torch 2.9 or newer" if name == "muon" else "a newer torch"
        raise InputError(
            f"optimizer.name={name} needs {needed}, this is {torch.__version__}: update torch, or "
            "set optimizer.name=adamw"
        )
    return found


def parameters_of(name: str) -> tuple[str, ...]:
    """The constructor parameters of an optimizer; none if this torch lacks it."""
    found = CLASSES.get(name.lower())
    return tuple(signature(found).parameters)[1:] if found else ()


def has_betas(name: str) -> bool:
    """Whether an optimizer takes betas; muon does for the parameters that AdamW updates."""
    return name.lower() == "muon" or "betas" in parameters_of(name)


def require_settings_apply(name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first setting that the optimizer would ignore.

    Args:
        name: Its canonical name.
        given: Keys of the section `optimizer` that differ from their defaults, with their values.
        options: Settings of the class.
    """
    known, chosen = parameters_of(name), f"optimizer.name={name}"
    if "betas" in given and not has_betas(name):
        raise ValueError(f"optimizer.betas does not apply to {chosen}: leave it out")
    if "weight_decay" in given and known and "weight_decay" not in known:
        raise ValueError(f"optimizer.weight_decay does not apply to {chosen}: set it to 0")
    if name == "Rprop":  # lr is only where its own step sizes begin
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
            raise ValueError(f"optimizer.options.{option} has its own key: set optimizer.{option}")
        if known and option not in available:
            near = get_close_matches(option, available, 1)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(available)}"
            raise ValueError(f"optimizer.options.{option:.60} is unknown to {chosen}: {advice}")
        if known and is_switch(name, option) and not isinstance(options[option], bool | None):
            raise ValueError(f"optimizer.options.{option} of {chosen} must be true or false")


def is_switch(name: str, option: str) -> bool:
    """Whether an option is on or off; torch would take any text as on."""
    return "bool" in str(signature(CLASSES[name.lower()]).parameters[option].annotation)
