"""The page about the configuration: every key with its type, default, range and meaning."""

from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from documentation.text import code, plain, summary, table
from soflow import SOURCES, Config, __all__
from soflow.config.own import OWN
from soflow.config.sections import ChosenFrom, chosen_from
from soflow.data import sources  # registers the built-in sources

INTRODUCTION = """\
# Configuration

A recipe is a YAML file with the keys below. Keys that it omits have their defaults. On the command
line, `KEY=VALUE` changes a key by its dotted name:

```bash
soflow train digits train.steps=2000 optimizer.lr=3e-4 objective.name=mean_flow
```

In Python, the same changes are a list: `soflow.read_recipe("digits", ["train.steps=2000"])`.
`soflow recipes NAME` prints a recipe with the value and the meaning of every key. An unknown key or
a value outside its range is an error, which names the nearest key.
"""
HEADER = ("key", "type", "default", "range", "meaning")
NAMES = {int: "integer", float: "number", str: "text", bool: "boolean", NoneType: "null"}
#: The signs of bounds, by their names in annotated-types.
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "only": ""}
#: Bounds beyond this only keep numbers within 64 bits.
UNREADABLE = 2**31


def kind(hint: Any) -> str:
    """A type in words, such as 'list of integer' or 'number or null'."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kind(inner[0])
    if origin is Literal:
        return " or ".join(dict.fromkeys(NAMES[type(one)] for one in inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(kind, inner)))
    if origin is tuple:
        return (
            f"list of {kind(inner[0])}" if inner[-1] is ... else f"[{', '.join(map(kind, inner))}]"
        )
    if origin is dict:
        return "mapping"
    return NAMES[hint]


def limits(hint: Any, metadata: Sequence[Any] = ()) -> Iterator[str]:
    """The choices and the limits of a value, or of the elements of a list, such as '≥ 0'."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from limits(inner[0], [*inner[1:], *metadata])
        return
    if origin is Literal:
        yield ", ".join(code(str(one)) for one in inner)
    elif origin in (Union, UnionType):
        if bool in inner:
            yield "`true`, `false`"
        for one in inner:
            yield from limits(one)
    elif origin is tuple:
        for one in inner:
            yield from limits(one)
    yield from bounds([x for mark in metadata for x in getattr(mark, "metadata", [mark])], hint)


def bounds(marks: Sequence[Any], hint: Any) -> Iterator[str]:
    """The bounds that annotated-types and pydantic declare."""
    found = {name: getattr(mark, name) for mark in marks for name in BOUNDS if hasattr(mark, name)}
    found = {name: bound for name, bound in found.items() if abs(bound) < UNREADABLE}
    if hint is int and "gt" in found:
        found["ge"] = found.pop("gt") + 1
    if "ge" in found and found["ge"] == found.get("le"):
        found = {"only": found["ge"]}
    yield from (
        f"{sign} {found[name]:g}".lstrip() for name, sign in BOUNDS.items() if name in found
    )
    if any(getattr(mark, "min_length", None) for mark in marks):
        yield "not empty"


def value(default: Any) -> str:
    """A default as YAML writes it; 'required' without a default."""
    if default is PydanticUndefined:
        return "required"
    plain_value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(plain_value, default_flow_style=True, width=1000)
    return code(text.removesuffix("...\n").strip())


def row(key: str, field: FieldInfo) -> tuple[str, ...]:
    """The row of one key."""
    allowed = dict.fromkeys(limits(field.annotation, field.metadata))
    about = plain(field.description or "")
    return code(key), kind(field.annotation), value(field.default), ", ".join(allowed), about


def rows(section: type[BaseModel], prefix: str = "", skip: str = "") -> Iterator[tuple[str, ...]]:
    """The rows of a section and of the sections in it, keys with their dotted names."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from rows(field.annotation, f"{prefix}{name}.")
        elif not chosen_from(field.metadata) and name != skip:
            yield row(f"{prefix}{name}", field)


def class_doc(component: Any) -> str:
    """The first paragraph of a class's docstring, with a link to its reference if it is public."""
    name = component.__name__
    link = f" See [`soflow.{name}`][soflow.{name}]." if name in __all__ else ""
    return plain(summary(component)) + link


def component_section(section: str, name: str, chosen: ChosenFrom) -> str:
    """The settings of one network or objective."""
    model = chosen.section(name)
    component = model.component
    found = list(rows(model, f"{section}.", skip="name"))
    settings = table(HEADER, found) if found else "It has no settings."
    return f"### {section}.name={name}\n\n{class_doc(component)}\n\n{settings}"


def chosen_sections(section: str, field: FieldInfo, chosen: ChosenFrom) -> str:
    """A section whose keys depend on its name: the networks, or the objectives."""
    names = sorted((name for name in chosen.registry if name != OWN), key=reading_order(chosen))
    intro = f"`{section}.name` selects the {chosen.registry.kind} ({', '.join(map(code, names))})."
    default = f"The default is `{chosen.default}`. The other keys depend on it."
    parts = [component_section(section, name, chosen) for name in names]
    return "\n\n".join([f"## {section}", f"{intro} {default}", *parts])


def reading_order(chosen: ChosenFrom) -> Callable[[str], int]:
    """Sorts names in the order of their classes in soflow.__all__. Other names come last."""

    def place(name: str) -> int:
        component = chosen.registry[name].__name__
        return __all__.index(component) if component in __all__ else len(__all__)

    return place


def source_table() -> str:
    """The data sources."""
    assert sources.SOURCES is SOURCES
    found = [(code(name), plain(summary(SOURCES[name]))) for name in SOURCES if name != OWN]
    return "### Data sources\n\n" + table(("data.source", "what it reads"), found)


def sections() -> Iterator[str]:
    """All sections of the page."""
    yield "## General\n\n" + table(HEADER, general_rows())
    about = documented_attributes()
    for name, field in Config.model_fields.items():
        chosen = chosen_from(field.metadata)
        if chosen:
            yield chosen_sections(name, field, chosen)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found = table(HEADER, rows(field.annotation, f"{name}."))
            yield f"## {name}\n\n{plain(about.get(name, ''))}\n\n{found}"
            if name == "data":
                yield source_table()


def general_rows() -> Iterator[tuple[str, ...]]:
    """The keys outside all sections."""
    for name, field in Config.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if not section and not chosen_from(field.metadata):
            yield row(name, field)


def documented_attributes() -> dict[str, str]:
    """The sentences about the sections in the docstring of Config."""
    entries = (Config.__doc__ or "").partition("Attributes:")[2].splitlines()
    pairs = [line.strip().partition(": ") for line in entries]
    return {name: about for name, colon, about in pairs if colon and name in Config.model_fields}


def page() -> str:
    """The page configuration.md."""
    return "\n\n".join([INTRODUCTION.rstrip(), *sections()]) + "\n"
