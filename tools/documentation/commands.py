"""The page about the command line: every command with its arguments and options."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from documentation.text import code, plain, table
from soflow.cli.main import EPILOG, app
from soflow.cli.main import soflow as program

INTRODUCTION = """\
# Commands

`soflow --help` lists the commands, `soflow COMMAND --help` explains one. A command exits with 0 if
it succeeds, 1 if it fails, 2 after wrong usage, 130 after Ctrl-C, and 143 after SIGTERM. The
argument `KEY=VALUE` changes any key of the [configuration](configuration.md).
"""
#: A default that the help text gives in words.
IN_WORDS = re.compile(r"\s*\(default: (.+)\)\.$")
VALUES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command."""

    usage: str  # such as "--seeds INTEGER" or "[KEY=VALUE]..."
    default: str
    help: str
    is_option: bool


def parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """The arguments and options that a function of the command line declares."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint, *marks = get_args(hints[name])
        declared = next(mark for mark in marks if isinstance(mark, ArgumentInfo | OptionInfo))
        text = declared.help or ""
        in_words = IN_WORDS.search(text)
        default = plain(in_words[1]) if in_words else shown(parameter.default)
        option = isinstance(declared, OptionInfo)
        required = parameter.default is parameter.empty
        usage = (option_usage if option else argument_usage)(name, hint, declared, required)
        yield Parameter(usage, default, IN_WORDS.sub(".", text), option)


def argument_usage(name: str, hint: Any, declared: Any, required: bool) -> str:
    word = declared.metavar or name.upper()
    several = "..." if get_origin(without_none(hint)) is list else ""
    return f"{word if required else f'[{word}]'}{several}"


def option_usage(name: str, hint: Any, declared: Any, required: bool) -> str:
    """An option as it is typed: `--num, -n INTEGER`, `--heun`, `--baseline, --no-baseline`."""
    kind = without_none(hint)
    dashed = "--" + name.replace("_", "-")
    # In Annotated, typer takes the first name of an option for its default.
    names = [x for x in (declared.default, *(declared.param_decls or ())) if is_option(x)]
    if kind is bool:
        return ", ".join(names or [dashed, f"--no-{dashed.removeprefix('--')}"])
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else ""
    value = declared.metavar or choices or VALUES[kind]
    return f"{', '.join(names or [dashed])} {value}"


def is_option(value: Any) -> bool:
    """Whether this is the name of an option."""
    return isinstance(value, str) and value.startswith("-")


def without_none(hint: Any) -> Any:
    """`X` for the type `X | None`."""
    if get_origin(hint) in (Union, UnionType):
        return next(one for one in get_args(hint) if one is not NoneType)
    return hint


def shown(default: Any) -> str:
    """A default for the table; empty without a default."""
    nothing = default is inspect.Parameter.empty or default in (None, False, "")
    return "" if nothing else code(str(default))


def commands() -> dict[str, Callable[..., Any]]:
    """The functions behind the commands, by name, in the order of `soflow --help`."""
    found = [(one.name, one.callback) for one in app.registered_commands]
    return {name or callback.__name__: callback for name, callback in found if callback}


def usage(name: str, found: list[Parameter]) -> str:
    arguments = [one.usage for one in found if not one.is_option]
    return " ".join(["soflow", *([name] if name else []), "[OPTIONS]", *arguments])


def section(name: str, command: Callable[..., Any]) -> str:
    """One command: what it does, its usage, its arguments and options."""
    found = list(parameters(command))
    rows = [(code(one.usage), one.default, plain(one.help)) for one in found]
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join([
        f"## soflow {name}".rstrip(),
        *map(plain, paragraphs),
        f"```text\n{usage(name, found)}\n```",
        table(("argument or option", "default", "meaning"), rows),
    ])  # fmt: skip


def page() -> str:
    """The page commands.md."""
    everywhere = section("", program)
    rest = [section(name, command) for name, command in commands().items()]
    return "\n\n".join([INTRODUCTION.rstrip(), plain(EPILOG), *rest, everywhere]) + "\n"
