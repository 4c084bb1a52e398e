"""Parses the cells of tables: numbers, missing values, thousands separators, column names."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Cells that mean a missing value, in lower case.
MISSING = ("", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "null", "none", "?", "-", "--")
TRUTH = {"true": 1.0, "false": 0.0}
NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII
)
#: Such as 1,234,567.8 and 1.234.567,8. Both also match numbers without separators.
THOUSANDS = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d*)(,\d+)?(e[+-]?\d+)?", re.I | re.ASCII)
#: A column with a larger fraction of numbers is numeric; its other cells are mistakes.
MOSTLY = 0.9


def as_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """A column as numbers (N,), with NaN for missing values; None if it has any other cell."""
    try:
        return np.array([number(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def number(value: Any) -> float:
    """A cell as a number. Raises ValueError or TypeError if it is not a number."""
    if not isinstance(value, str):
        return np.nan if value is None else float(value)
    text = value.strip().lower()
    if text in TRUTH:
        return TRUTH[text]
    if not NUMBER.fullmatch(text) and not is_missing(value):
        raise ValueError(value)
    return np.nan if is_missing(value) else float(text)


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def mistake(values: Sequence[Any]) -> int | None:
    """The row of the first cell that is not a number in a mostly numeric column, if any."""
    given = [row for row, value in enumerate(values) if not is_missing(value)]
    wrong = [row for row in given if as_numbers([values[row]]) is None]
    return wrong[0] if wrong and len(wrong) < (1 - MOSTLY) * len(given) else None


def without_commas(values: list[str], separator: str) -> tuple[list[str], str]:
    """Converts numbers such as 1,5 or 1,234.5 to plain ones, and returns the meaning of commas.

    If a comma can be either, it is a decimal comma in files separated by semicolons, and a
    thousands separator in other files.
    """
    commas = [value.strip() for value in values if "," in value]
    given = [value.strip() for value in values if not is_missing(value)]
    meanings = {"thousands separators": THOUSANDS, "decimal commas": DECIMAL_COMMA}
    order = sorted(meanings, reverse=separator != ";")
    fitting = [x for x in order if commas and all(meanings[x].fullmatch(one) for one in given)]
    if not fitting:
        return values, ""
    if fitting[0] == "thousands separators":
        return [value.replace(",", "") for value in values], fitting[0]
    return [value.replace(".", "").replace(",", ".") for value in values], fitting[0]


def are_names(row: Sequence[str]) -> bool:
    """Whether the first row of a file contains column names: text, or increasing integers."""
    texts = [cell.strip() for cell in row]
    numbers = [cell for cell in texts if not is_missing(cell) and as_numbers([cell]) is not None]
    if not numbers:
        return True
    if not all(cell.isdecimal() for cell in numbers):
        return False
    values = [int(cell) for cell in numbers]
    if len(numbers) == len(texts):  # pandas names columns 0, 1, 2, ...
        return len(values) > 1 and values == list(range(len(values)))
    return values == sorted(set(values))  # such as years next to text
