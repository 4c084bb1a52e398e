"""From stored labels to classes: numbers, texts, one-hot rows, and what is not labelled."""

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
#: Dates, times, shares and amounts, but not whole numbers.
MEASURE = re.compile(r"\W*\d+(?!\d|$)")
#: The label of a sample without one.
UNLABELLED = -1
#: Labels from here on are times or identities, not classes, unless there are as many samples.
#: Excerpts of sets with many classes have smaller ones (ImageNet-21k has 21,841).
MOST_CLASSES = 2**16


@dataclass(frozen=True)
class Classes:
    """The class of each sample, -1 for unlabelled ones; None, and why, if there are no classes.

    `stored` holds the stored label of each class, if classes were numbered anew.
    """

    labels: list[int] | None
    names: tuple[str, ...] = ()
    reason: str = ""
    stored: tuple[int, ...] = ()


def classes_of(values: Sequence[Any], names: Sequence[str], where: str) -> Classes:
    """The classes that stored values mean.

    Whole numbers from 0, also as floats or text, are classes as they are; -1, None, NaN and "" are
    unlabelled. Other texts are names, in alphabetical order.

    Args:
        values: One value per sample: a number, a text, None, or a one-hot row.
        names: The names of the classes, if they are known; of texts, those of the split train.
        where: What messages call the column.
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
            why = f"has a label {strange}: classes are 0 to {most - 1}, and -1 for unlabelled"
            return Classes(None, (), f"{where} {why}")
        if high == UNLABELLED:
            return Classes(None, (), f"{where} has no label but -1")
        labels = [UNLABELLED if x is None else whole(x) for x in values]
        return Classes(cast(list[int], labels), tuple(names))
    if not all(isinstance(value, str) for value in given):
        return Classes(None, (), f"{where} holds neither whole numbers nor names throughout")
    known = tuple(names) or tuple(sorted(set(given)))
    if unknown := sorted(set(given) - set(known)):
        return Classes(None, (), f"{where} has a class '{unknown[0]}' that the split train lacks")
    number_of = {name: number for number, name in enumerate(known)}
    return Classes([UNLABELLED if x is None else number_of[x] for x in values], known)


def without_gaps(found: Classes, used: Sequence[int], stated: int, where: str) -> Classes:
    """Numbered classes without those that no sample has: the labels 1, 2 and 3 are three classes.

    A class without samples would be drawn as noise.

    Args:
        found: The classes of one split.
        used: The stored labels of the split that is trained on.
        stated: data.num_classes. Classes keep their numbers if it covers all labels.
        where: What messages call the column.
    """
    numbers = sorted(set(used) - {UNLABELLED})
    whole = numbers == list(range(len(numbers)))
    if found.labels is None or found.names or whole or stated > numbers[-1]:
        return found
    if numbers == [1] and UNLABELLED in used:
        why = "has only the labels -1, which means unlabelled, and 1: make them 0 and 1"
        return Classes(None, (), f"{where} {why}")
    if unknown := sorted(set(found.labels) - {UNLABELLED, *numbers}):
        return Classes(None, (), f"{where} has a class {unknown[0]} that the training split lacks")
    number_of = {label: number for number, label in enumerate(numbers)}
    labels = [number_of.get(label, UNLABELLED) for label in found.labels]
    return Classes(labels, tuple(map(str, numbers)), stored=tuple(numbers))


def is_text_of(given: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether values are texts that are all names, such as the names "3" and "7"."""
    return bool(names) and all(isinstance(value, str) and value in names for value in given)


def plain(value: Any) -> Any:
    """A value without numpy's types; None for what means unlabelled."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict | np.ndarray):
        return value
    missing = value is None or value == "" or (isinstance(value, float) and isnan(value))
    return None if missing else value


def whole(value: Any) -> int | None:
    """The whole number that a value is, also as 3.0, "3" or "3.0"; None for other values."""
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0")
        return int(digits) if digits.removeprefix("-").isdecimal() and len(digits) < 19 else None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if isinstance(value, bool | int | float) else None


def one_hot(values: Sequence[Any]) -> Sequence[Any]:
    """The place of the 1 in each one-hot row (N, C); other values are unchanged."""
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
    """Whether an array (N, C) has one 1 in each row, and zeros."""
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "biuf":
        return False
    ones = array == 1
    return bool((ones | (array == 0)).all() and (ones.sum(1) == 1).all())


def are_few(numbers: np.ndarray) -> bool:
    """Whether numbers take so few values that they are classes, not counts or identities."""
    return len(np.unique(numbers)) <= max(2, len(numbers) ** 0.5)


def choose_labels(columns: Mapping[str, Sequence[Any]], where: str) -> str | None:
    """The column that holds classes, by its name or else by what it holds; None without any.

    A column of another name holds classes if its values repeat: half as many different ones as
    rows, or fewer. They must be text; numbers, dates and measures may be anything.

    Raises:
        InputError: If several columns may hold classes.
    """
    named = [name for name in columns if name.lower() in USUAL_NAMES]
    found = named or [name for name, values in columns.items() if repeats(values)]
    if len(found) > 1:
        both = " and ".join(found)
        todo = f"set data.label_column={found[0]}, or data.num_classes=0 to train without"
        raise InputError(f"{where} has several columns that may be classes, {both}: {todo}")
    return next(iter(found), None)


def repeats(values: Sequence[Any]) -> bool:
    """Whether a column holds texts, and at most half as many different ones as rows."""
    texts = [value for value in values if value is not None]
    if not texts or not all(isinstance(value, str) for value in texts):
        return False
    measures = all(MEASURE.match(value) for value in texts)
    return 1 < len(set(texts)) <= len(values) / 2 and not measures
