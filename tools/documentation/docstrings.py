"""An extension of Griffe, with which mkdocstrings reads the sources.

- A setting is documented where it is declared: `width: Annotated[int, Setting("channels", gt=0)]`.
  It appears among the parameters, and its type appears as `int`.
- Examples (`Example:`) become blocks of code.
- Methods that pydantic calls to validate a configuration are left out.
"""

import re
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from typing import Any, get_args, get_type_hints

import griffe

from soflow.system.registry import Setting

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
EXAMPLE = re.compile(r"^Example:$", re.M)
ARGS = re.compile(r"^Args:\n((?: +.*\n?|\n(?= ))*)", re.M)


class Settings(griffe.Extension):
    """Documents settings, and shows examples as code."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **kwargs: Any) -> None:
        for thing in list(walk(pkg)):
            if thing.docstring is not None:
                thing.docstring.value = EXAMPLE.sub("Examples:", thing.docstring.value)
            if isinstance(thing, griffe.Class):
                describe_settings(thing)
                for name in [x for x, member in thing.members.items() if is_validator(member)]:
                    thing.del_member(name)
            if isinstance(thing, griffe.Function):
                for parameter in thing.parameters:
                    parameter.annotation = without_setting(parameter.annotation)
            elif isinstance(thing, griffe.Attribute):
                thing.annotation = without_setting(thing.annotation)


def walk(thing: griffe.Object) -> Iterator[griffe.Object]:
    """An object and everything in it that is defined there."""
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from walk(member)  # type: ignore[arg-type]


def is_validator(member: griffe.Object | griffe.Alias) -> bool:
    """Whether pydantic calls this method to check values."""
    if member.is_alias or not isinstance(member, griffe.Function):
        return False
    return any(one.callable_path.startswith("pydantic.") for one in member.decorators)


def without_setting(annotation: Any) -> Any:
    """`int` for `Annotated[int, Setting(...)]`."""
    if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_name == "Annotated":
        return annotation.slice.elements[0]  # type: ignore[union-attr]
    return annotation


def describe_settings(cls: griffe.Class) -> None:
    """Adds the settings of a public class to the parameters in its docstring."""
    entries = "".join(f"    {name}: {about}.\n" for name, about in settings(cls))
    if cls.docstring is None or not entries:
        return
    doc = cls.docstring.value
    if ARGS.search(doc):
        cls.docstring.value = ARGS.sub(lambda old: old[0].rstrip() + "\n" + entries + "\n", doc)
    else:
        text, heading, rest = doc.partition("\n\nExamples:\n")
        cls.docstring.value = f"{text}\n\nArgs:\n{entries}{heading}{rest}"


def settings(cls: griffe.Class) -> Iterator[tuple[str, str]]:
    """The names and meanings of a class's settings."""
    if cls.parent is None or not cls.parent.is_module or "Setting" not in cls.module.members:
        return
    component = getattr(import_module(cls.module.path), cls.name)
    hints = get_type_hints(component.__init__, include_extras=True)
    for name in signature(component).parameters:
        for setting in get_args(hints.get(name)):
            if isinstance(setting, Setting):
                bounds = [f"{sign} {getattr(setting, x):g}" for x, sign in SIGNS.items()
                          if getattr(setting, x) is not None]  # fmt: skip
                about = setting.about[0].upper() + setting.about[1:]
                yield name, f"{about} ({', '.join(bounds)})" if bounds else about
