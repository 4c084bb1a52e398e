"""`--import MODULE`: imports Python modules of the user before a command runs.

Such a module registers objectives, networks or data sources. A configuration can then name them.
Only this option imports code. A configuration or a run folder never does.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from traceback import extract_tb

from soflow.errors import InputError, first_line

OPTION = "--import"


def split_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the command line into the modules of `--import` and the other arguments.

    Raises:
        InputError: If the option has no value.
    """
    modules: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return modules, [*others, argument, *rest]
        if argument == OPTION or argument.startswith(f"{OPTION}="):
            module = argument.removeprefix(OPTION).removeprefix("=") or next(rest, "")
            if not module or module.startswith("-"):
                raise InputError(f"{OPTION} needs the name of a module, such as my_module")
            modules.append(module)
        else:
            others.append(argument)
    return modules, others


def import_modules(names: Sequence[str]) -> None:
    """Imports modules that are installed or in the current folder.

    Raises:
        InputError: If a module is not found, or its import fails.
    """
    if names and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    for name in names:
        if name.endswith(".py") or os.sep in name:
            raise InputError(
                f"{OPTION} {name} is a file: use the module's name, such as my_module for "
                "my_module.py in the current folder"
            )
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{OPTION} {name} failed{place_of(error)}: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from None


def place_of(error: BaseException) -> str:
    """The file and line that raised the error; empty if the import system raised it."""
    frame = extract_tb(error.__traceback__)[-1]
    inside = frame.filename in (__file__, importlib.__file__) or frame.filename.startswith("<")
    return "" if inside else f" in {frame.filename}, line {frame.lineno}"
