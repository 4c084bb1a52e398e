"""The classes of samples, by name or number: "cat,dog" or "3,7"."""

from collections.abc import Sequence
from difflib import get_close_matches
from unicodedata import normalize

import torch
from torch import Tensor

from soflow.errors import InputError


def labels_in_turn(text: str, num: int, names: Sequence[str]) -> Tensor:
    """Labels of `num` samples, (num,): the classes that a text lists, in turn.

    Names match as they are spelled, or else in any case; other words may be numbers. Names may
    contain commas: the longest name at each place counts.

    Args:
        text: Names or numbers of classes, separated by commas.
        num: The number of samples.
        names: The names of all classes.

    Raises:
        InputError: If there are no classes, or a name is unknown or belongs to several classes.
    """
    if not names:
        raise InputError(f"the classes {text} were given, but this run was trained without classes")
    labels = torch.tensor(class_numbers(text, names))
    return labels.repeat(-(-num // len(labels)))[:num]


def class_numbers(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes in a list. Unicode's spellings of a letter are the same."""
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
                raise InputError(f"the class '{head}' may be {several}: give its number")
            if found:
                break
        else:
            raise InputError(f"unknown class '{parts[0]}': {known(names)}{near(parts[0], names)}")
        chosen += found
        parts = parts[count:]
    return chosen


def numbers_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """The classes that have each name."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(tidy(name), []).append(number)
    return numbers


def tidy(text: str) -> str:
    """The text with one space after each comma."""
    return ", ".join(part.strip() for part in text.split(","))


def near(text: str, names: Sequence[str]) -> str:
    """A question that offers the classes with similar names."""
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
