"""Checks of options that several commands share."""

import os
from pathlib import Path
from typing import Any

from soflow.errors import InputError


def require_asked_for(features: str, option: str, asked: bool) -> None:
    """Raises InputError for features in a file that only a configuration names.

    Such a file is a program, which only the user's own option may run.
    """
    from soflow.evaluation.features import NAMES

    if not asked and features not in NAMES:
        raise InputError(
            f"the configuration names features in a file, {features}, which is a program: "
            f"if you trust it, give {option}"
        )


def whole_numbers(text: str, option: str) -> list[int]:
    """'1,2,4' -> [1, 2, 4]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} is '{text}': it must be whole numbers separated by commas, such as 1,2,4"
        ) from None


def at_least(value: int, least: int, option: str) -> int:
    if value < least:
        raise InputError(f"{option} is {value}: it must be {least} or more")
    return value


def writable(file: Path, option: str) -> None:
    """Raises InputError, before any work, if a file could not be written."""
    if file.is_dir():
        raise InputError(f"{option} is {file}, which is a folder: name a file")
    if not file.parent.is_dir():
        raise InputError(f"{option} is {file}, but there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise InputError(
            f"{option} is {file}, but {file.parent} cannot be written: choose another place"
        )


def one_of(text: str, choices: tuple[str, ...], option: str) -> Any:
    """The text itself, if it is one of the choices."""
    if text not in choices:
        raise InputError(f"{option} is '{text}': choose {' or '.join(choices)}")
    return text


#: Most samples in one file.
MOST_SAMPLES = 10_000_000


def between(value: int, least: int, most: int, option: str) -> int:
    if value > most:
        raise InputError(f"{option} is {value}: it must be {most} or less")
    return at_least(value, least, option)
