"""What several commands share: checks of options, and tables on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soflow.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from soflow.config import Config

RECIPE = "A shipped recipe's name, a YAML file, or a run folder."
VAE = "The autoencoder that decodes latents (default: the one that made them)."
GUIDANCE = (
    "The guidance scale, for runs that draw it in training (default: objective.guidance.scale)."
)
INTERVAL = "The times at which guidance acts, 0 at data and 1 at noise (default: 0,1)."
#: Most samples in one file.
MOST_SAMPLES = 10_000_000
#: Columns of a table that goes to a file or a pipe.
WIDTH = 150


def require_asked_for(config: Config, overrides: Sequence[str]) -> None:
    """Raises InputError for features in a file that only a configuration names.

    Such a file is a program, which only the user's own option may run.
    """
    from soflow.evaluation.features import NAMES

    features = config.evaluate.features
    option = f"evaluate.features={features}"
    if option not in overrides and features not in NAMES:
        raise InputError(
            f"the configuration names features in a file, {features}, which is a program: "
            f"if you trust it, give {option}"
        )


def at_least(least: int, **values: int | None) -> None:
    """Raises InputError for a value below `least`; each is named like its option."""
    for name, value in values.items():
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}: it must be {least} or more")


def positive_numbers(text: str, option: str) -> tuple[int, ...]:
    """'1,2,4' -> (1, 2, 4), each once."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InputError(
            f"{option} is '{text}': it must be whole numbers from 1, separated by commas, "
            "such as 1,2,4"
        )
    return tuple(dict.fromkeys(numbers))


def interval_of(text: str | None) -> tuple[float, float] | None:
    """'0.1,0.9' -> (0.1, 0.9)."""
    if text is None:
        return None
    try:
        start, end = map(float, text.split(","))
    except ValueError:
        raise InputError(
            f"--guidance-interval is '{text}': give two times, such as 0.1,0.9"
        ) from None
    return start, end


def one_of(choices: Sequence[str], name: str, option: str) -> Any:
    """The name itself, if it is among the choices."""
    if name not in choices:
        raise InputError(f"{option} is '{name}': choose {' or '.join(choices)}")
    return name


def several_of(choices: Sequence[str], text: str, option: str) -> tuple[Any, ...]:
    """'ode,renoise' -> ('ode', 'renoise'), each once, if all are among the choices."""
    return tuple(dict.fromkeys(one_of(choices, name, option) for name in text.split(",")))


def require_writable_file(file: Path, suffix: str = "") -> None:
    """Raises InputError, before any work, if --out cannot be written."""
    if not file.name.endswith(suffix):
        raise InputError(f"--out is {file}: it must end in {suffix}")
    if file.is_dir():
        raise InputError(f"--out is {file}, which is a folder: name a file")
    if not file.parent.is_dir():
        raise InputError(f"--out is {file}, but there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise InputError(
            f"--out is {file}, but {file.parent} cannot be written: choose another place"
        )


def print_table(title: str, rows: Sequence[Sequence[str]], left: int, **style: Any) -> Console:
    """Prints a table, header first; its first `left` columns are text, all others numbers."""
    from rich.console import Console
    from rich.table import Table

    from soflow.system.text import printable

    table = Table(title=printable(title), **style)
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i < left else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(markup=False)  # names in files are no markup
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(table)
    return console
