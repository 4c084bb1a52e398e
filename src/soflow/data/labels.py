"""Converts stored labels to classes: numbers, text, one-hot rows, and missing labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, cast

import numpy as np

from soflow.errors import InputError, in_short

#: Usual names of a column of classes, in lower case.
USUAL_NAMES = (
    "label", "labels", "class", "classes", "class_name", "class_label", "category", "categories",
    "target", "targets", "species", "fine_label", "y",
)  # fmt: skip
#: Matches dates, times, percentages and amounts, but not integers.
MEASURE = re.compile(r"\W*\d+(?!\d|$)")
#: The label of an unlabelled sample.
UNLABELLED = -1
#: Labels of at least this number are times or IDs, not classes, unless there are more samples.
#: Subsets of datasets with many classes have smaller labels (ImageNet-21k has 21,841 classes).
MOST_CLASSES = 2**16


@dataclass(frozen=True)
class Classes:
    """The class of each sample, with -1 for unlabeled samples.

    Without classes, `labels` is None and `reason` says why. If classes were renumbered, `stored`
    has the stored label of each class.
    """

    labels: list[int] | None
    names: tuple[str, ...] = ()
    reason: str = ""
    stored: tuple[int, ...] = ()


def classes_of(values: Sequence[Any], names: Sequence[str], where: str) -> Classes:
    """Converts stored values to classes.

    Integers from 0, also as floats or text, are used as class indices. -1, None, NaN and "" mean
    unlabelled. Other text is a class name. Classes are then numbered in alphabetical order.

    Args:
        values: One value per sample: a number, text, None, or a one-hot row.
        names: The class names, if known. For text, these are the names of the split train.
        where: The name of the column in messages.
    """
    values = [plain(value) for value in one_hot(values)]
    given = [value for value in values if value is not None]
    if not given:
        return Classes(None, (), f"{where} is empty")
    numbers = [whole(value) for value in given]
    if all(number is not None for number in numbers) and not is_text_of(given, names):
        most = len(names) or max(len(values), MOST_CLASSES)
        low, high = min(numbers), max(numbers)  # type: ignore[type-var]
        if not UNLABELLED <= low <= high < most:  # type: ignore[operator]
            strange = in_short(high if high >= most else low)  # type: ignore[operator]
            why = f"has a label {strange}, but labels must be 0 to {most - 1}, or -1 for unlabelled"
            return Classes(None, (), f"{where} {why}")
        if high == UNLABELLED:
            return Classes(None, (), f"{where} has only labels -1, which means unlabeled")
        labels = [UNLABELLED if x is None else whole(x) for x in values]
        return Classes(cast(list[int], labels), tuple(names))
    if not all(isinstance(value, str) for value in given):
        return Classes(None, (), f"{where} has values that are not all integers and not all text")
    known = tuple(names) or tuple(sorted(set(given)))
    if unknown := sorted(set(given) - set(known)):
        return Classes(
            None, (), f"{where} has a class '{unknown[0]}' that is not in the split train"
        )
    number_of = {name: number for number, name in enumerate(known)}
    return Classes([UNLABELLED if x is None else number_of[x] for x in values], known)


def without_gaps(found: Classes, used: Sequence[int], stated: int, where: str) -> Classes:
    """Renumbers classes so that each one has samples: the labels 1, 2 and 3 are three classes.

    A class without training samples would generate noise.

    Args:
        found: The classes of one split.
        used: The stored labels of the training split.
        stated: `data.num_classes`. If it exceeds all labels, classes are not renumbered.
        where: The name of the column in messages.
    """
    numbers = sorted(set(used) - {UNLABELLED})
    complete = numbers == list(range(len(numbers)))
    if found.labels is None or found.names or complete or stated > numbers[-1]:
        return found
    if numbers == [1] and UNLABELLED in used:
        why = "has only the labels -1, which means unlabeled, and 1: store 0 and 1 instead"
        return Classes(None, (), f"{where} {why}")
    if unknown := sorted(set(found.labels) - {UNLABELLED, *numbers}):
        return Classes(
            None, (), f"{where} has a class {unknown[0]} that is not in the training split"
        )
    number_of = {label: number for number, label in enumerate(numbers)}
    labels = [number_of.get(label, UNLABELLED) for label in found.labels]
    return Classes(labels, tuple(map(str, numbers)), stored=tuple(numbers))


def is_text_of(given: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether all values are class names in text form, such as the names "3" and "7"."""
    return bool(names) and all(isinstance(value, str) and value in names for value in given)


def plain(value: Any) -> Any:
    """Converts numpy types to Python types; None for a missing label."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict | np.ndarray):
        return value
    missing = value is None or value == "" or (isinstance(value, float) and isnan(value))
    return None if missing else value


def whole(value: Any) -> int | None:
    """Converts 3, 3.0, "3" or "3.0" to an int; None for other values."""
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0")
        return int(digits) if digits.removeprefix("-").isdecimal() and len(digits) < 19 else None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if isinstance(value, bool | int | float) else None


def one_hot(values: Sequence[Any]) -> Sequence[Any]:
    """The position of the 1 in each one-hot row (N, C). Other values are unchanged."""
    given = [value for value in values if value is not None]
    if not given or not isinstance(given[0], list | tuple | np.ndarray):
        return values
    if len(given) < len(values):  # some are unlabelled
        numbers = iter(one_hot(given))
        return [None if value is None else next(numbers) for value in values]
    try:
        rows = np.asarray(values)
    except ValueError:  # rows of different lengths
        return values
    rows = rows[:, 0] if rows.ndim == 2 and rows.shape[1] == 1 else rows
    return rows.argmax(1).tolist() if is_one_hot(rows) else list(rows)


def is_one_hot(array: np.ndarray) -> bool:
    """Whether each row of an array (N, C) contains a single 1 and zeros."""
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "biuf":
        return False
    ones = array == 1
    return bool((ones | (array == 0)).all() and (ones.sum(1) == 1).all())


def are_few(numbers: np.ndarray) -> bool:
    """Whether numbers have so few different values that they are classes, not counts or IDs."""
    return len(np.unique(numbers)) <= max(2, len(numbers) ** 0.5)


def choose_labels(columns: Mapping[str, Sequence[Any]], where: str) -> str | None:
    """The column of classes, found by its name or else by its values; None without any.

    A column with another name counts as classes if it contains text with at most half as many
    different values as rows. Columns of numbers, dates and amounts do not count.

    Raises:
        InputError: If several columns may be classes.
    """
    named = [name for name in columns if name.lower() in USUAL_NAMES]
    found = named or [name for name, values in columns.items() if repeats(values)]
    if len(found) > 1:
        both = " and ".join(found)
        todo = f"set data.label_column={found[0]}, or data.num_classes=0 to train without classes"
        raise InputError(f"{where} has several columns that may be classes, {both}: {todo}")
    return next(iter(found), None)


def repeats(values: Sequence[Any]) -> bool:
    """Whether a column contains text with at most half as many different values as rows."""
    texts = [value for value in values if value is not None]
    if not texts or not all(isinstance(value, str) for value in texts):
        return False
    measures = all(MEASURE.match(value) for value in texts)
    return 1 < len(set(texts)) <= len(values) / 2 and not measures
