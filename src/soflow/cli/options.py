"""Help texts, checks of options, and tables that several commands use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soflow.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from soflow.config import Config

RECIPE = "The name of an included recipe, a YAML file, or a run folder."
VAE = (
    "Autoencoder that decodes latents, in diffusers format: a name on the Hugging Face Hub, or a "
    "folder (default: the autoencoder that encoded the training data)."
)
GUIDANCE = (
    "Guidance scale of the samples, for runs trained with random guidance scales "
    "(objective.guidance.max_scale); by default, objective.guidance.scale of the run."
)
INTERVAL = (
    "Interval of times in which guidance acts, for runs trained with random guidance scales "
    "(objective.guidance.max_scale); 0 is data, 1 is noise (default: 0,1)."
)
TIMES = (
    "Times of the samplers renoise and ode, from 1 (noise) to 0 (data), such as 1,0.9,0 for two "
    "evaluations (default: evenly spaced)."
)
#: Largest number of samples in one file.
MOST_SAMPLES = 10_000_000
#: Width in characters of a table that is written to a file or a pipe.
WIDTH = 150


def require_asked_for(config: Config, overrides: Sequence[str]) -> None:
    """Raises InputError if the configuration, and not the user, names a TorchScript file.

    Such a file is a program. It must not run unless the user names it on the command line.
    """
    from soflow.evaluation.features import NAMES

    features = config.evaluate.features
    option = f"evaluate.features={features}"
    if option not in overrides and features not in NAMES:
        raise InputError(
            f"the configuration computes features with {features}, which is a program: "
            f"if you trust it, add {option}"
        )


def at_least(least: int, **values: int | None) -> None:
    """Raises InputError for an option's value below `least`. Keywords are names of options."""
    for name, value in values.items():
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}: it must be at least {least}")


def positive_numbers(text: str, option: str) -> tuple[int, ...]:
    """'1,2,4' -> (1, 2, 4), without duplicates."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise InputError(
            f"{option} is '{text}': it must be positive integers, separated by commas, "
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
            f"--guidance-interval is '{text}': use two times, such as 0.1,0.9"
        ) from None
    return start, end


def times_of(text: str | None) -> tuple[float, ...] | None:
    """'1,0.9,0' -> (1.0, 0.9, 0.0)."""
    if text is None:
        return None
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise InputError(f"--times is '{text}': use times from 1 to 0, such as 1,0.9,0") from None


def one_of(choices: Sequence[str], name: str, option: str) -> Any:
    """Returns the name. Raises InputError if it is not among the choices."""
    if name not in choices:
        raise InputError(f"{option} is '{name}': choose {' or '.join(choices)}")
    return name


def several_of(choices: Sequence[str], text: str, option: str) -> tuple[Any, ...]:
    """'ode,renoise' -> ('ode', 'renoise'), without duplicates. All must be among the choices."""
    return tuple(dict.fromkeys(one_of(choices, name, option) for name in text.split(",")))


def require_writable_file(file: Path, suffix: str = "") -> None:
    """Raises InputError if the file of --out cannot be written."""
    if not file.name.endswith(suffix):
        raise InputError(f"--out is {file}: the name must end in {suffix}")
    if file.is_dir():
        raise InputError(f"--out is {file}, which is a folder: choose the name of a file")
    if not file.parent.is_dir():
        raise InputError(f"--out is {file}, but the folder {file.parent} does not exist: create it")
    if not os.access(file.parent, os.W_OK):
        raise InputError(
            f"--out is {file}, but {file.parent} is not writable: choose another folder"
        )


def print_table(title: str, rows: Sequence[Sequence[str]], left: int, **style: Any) -> Console:
    """Prints a table, header first. The first `left` columns are text, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    from soflow.system.text import printable

    table = Table(title=printable(title), **style)
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i < left else "right")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(markup=False)  # names from files may contain brackets
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(table)
    return console
