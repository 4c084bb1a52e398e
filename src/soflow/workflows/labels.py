"""Parses classes of samples, given by name or number: "cat,dog", "3,7", ["cat", 7]."""

from collections.abc import Sequence
from difflib import get_close_matches
from operator import index
from typing import Any, TypeAlias
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from soflow.errors import InputError, in_short

#: A comma-separated string of names or numbers, or a collection of them.
Classes: TypeAlias = str | int | Sequence[str | int | None] | np.ndarray | Tensor


def labels_in_turn(classes: Classes, num: int, names: Sequence[str]) -> Tensor:
    """Labels of `num` samples, (num,): repeats the given classes in turn.

    Names are matched exactly, then without regard to case. Text that matches no name is read as a
    number. Names can contain commas: in a string, the longest matching name is used.

    Args:
        classes: Names or numbers of classes: a comma-separated string, or a list, an array or a
            tensor. In a list, None and -1 mean no class.
        num: The number of samples.
        names: The names of all classes.

    Raises:
        InputError: If the run has no classes, or a name is unknown or belongs to several classes.
    """
    if not names:
        given = classes if isinstance(classes, str) else in_short(classes)
        raise InputError(
            f"the classes {given} were passed, but this run was trained without classes: "
            "leave them out"
        )
    if isinstance(classes, str):
        numbers = class_numbers(classes, names)
    else:
        numbers = [class_number(one, names) for one in listed(classes)]
    labels = torch.tensor(numbers)
    return labels.repeat(-(-num // len(labels)))[:num]


def listed(classes: Any) -> list[Any]:
    """The elements of a list, an array or a tensor. Raises InputError if it is empty."""
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    members = list(classes) if isinstance(classes, list | tuple | range) else [classes]
    if not members:
        raise InputError("labels is an empty list: pass classes, or leave out labels")
    return members


def class_number(one: Any, names: Sequence[str]) -> int:
    """The number of a class, given by name or number. None and -1 give the null label."""
    if one is None:
        return len(names)
    if isinstance(one, str):
        spelled = numbers_by_name(names)
        found = spelled.get(tidy(one), [])
        return found[0] if len(found) == 1 else one_of(class_numbers(one, names), one)
    try:
        number = index(one)  # an integer of any library
    except TypeError:
        raise InputError(f"{in_short(one)} is not a class: use names or numbers") from None
    if not -1 <= number < len(names):
        raise InputError(f"class {in_short(number)} does not exist: {known(names)}; -1: no class")
    return len(names) if number == -1 else number


def one_of(numbers: list[int], name: str) -> int:
    """Returns the single number. Raises InputError if a name in a list matches several classes."""
    if len(numbers) > 1:
        raise InputError(
            f"'{name}' names {len(numbers)} classes: pass each as its own element of the list"
        )
    return numbers[0]


def class_numbers(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes in a comma-separated string, compared in Unicode form NFC."""
    text, names = normalize("NFC", text), [normalize("NFC", name) for name in names]
    spelled, folded = numbers_by_name(names), numbers_by_name([name.casefold() for name in names])
    longest = max(name.count(",") for name in names) + 1
    parts, chosen = tidy(text).split(", "), []
    while parts:
        for count in range(min(longest, len(parts)), 0, -1):
            head = ", ".join(parts[:count])
            found = spelled.get(head) or folded.get(head.casefold(), [])
            if not found and head.isdecimal() and int(head) < len(names):
                found = [int(head)]
            if len(found) > 1:
                several = " and ".join(f"{names[number]} ({number})" for number in found)
                raise InputError(f"the class '{head}' is ambiguous, {several}: use its number")
            if found:
                break
        else:
            raise InputError(f"unknown class '{parts[0]}': {known(names)}{near(parts[0], names)}")
        chosen += found
        parts = parts[count:]
    return chosen


def numbers_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the classes with each name."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(tidy(name), []).append(number)
    return numbers


def tidy(text: str) -> str:
    """Normalizes the spaces after commas."""
    return ", ".join(part.strip() for part in text.split(","))


def near(text: str, names: Sequence[str]) -> str:
    """A question that suggests classes with similar names."""
    folded = [name.casefold() for name in names]
    close = get_close_matches(text.casefold(), folded, n=3)
    offered = " or ".join(names[folded.index(one)] for one in close)
    return f"; did you mean {offered}?" if close else ""


def known(names: Sequence[str]) -> str:
    """The first classes by number and name."""
    numbers = f"the classes are 0 to {len(names) - 1}"
    if all(name == str(number) for number, name in enumerate(names)):
        return numbers
    return f"{numbers}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
