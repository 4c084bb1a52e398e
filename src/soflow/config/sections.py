"""Sections of the configuration that are built from what a registry holds.

The keys of `objective` and `network` are the settings of the class that `name` selects: its
constructor parameters, with the ranges and sentences of their annotations (system/registry.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from inspect import Parameter, signature
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import core_schema

from soflow.errors import InputError
from soflow.system.registry import Registry, Setting

#: Constructor parameters that the library fills in; all others are settings.
SUPPLIED = ("shape", "num_classes", "augment_labels")


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class ComponentSection(Section):
    """The settings of a registered class, and the class itself."""

    component: ClassVar[Callable[..., Any]]

    def build(self, **supplied: Any) -> Any:
        """The object with these settings, and those of `supplied` that its constructor takes."""
        parameters = signature(self.component).parameters
        settings = {
            name: value.build() if isinstance(value, ComponentSection) else value
            for name, value in self
            if name != "name"
        }
        taken = {name: value for name, value in supplied.items() if name in parameters}
        return self.component(**taken, **settings)


@lru_cache(maxsize=256)
def section_of(component: Callable[..., Any], name: str = "") -> type[ComponentSection]:
    """The section with the settings of a class; `name` is its name in a registry."""
    initializer = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    hints = get_type_hints(initializer, include_extras=True)
    fields: dict[str, Any] = {}
    if name:
        fields["name"] = (Literal[name], Field(name, description="which one"))
    for parameter in signature(component).parameters.values():
        if parameter.name not in SUPPLIED:
            fields[parameter.name] = field_of(parameter, hints.get(parameter.name, Any))
    base = type("Settings", (ComponentSection,), {"component": component, "__module__": __name__})
    return create_model(getattr(component, "__name__", "Section"), __base__=base, **fields)


def field_of(parameter: Parameter, hint: Any) -> tuple[Any, Any]:
    """A constructor parameter as a field of pydantic's."""
    setting = next((x for x in get_args(hint)[1:] if isinstance(x, Setting)), None)
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    ranges = {}
    if setting is not None:
        limits = {name: getattr(setting, name) for name in ("ge", "gt", "le", "lt")}
        ranges = {name: limit for name, limit in limits.items() if limit is not None}
    default: Any = ... if parameter.default is Parameter.empty else parameter.default
    if is_dataclass(kind):
        nested = section_of(kind)  # type: ignore[arg-type]
        kind = nested
        default = default if default is ... else nested.model_validate(asdict(default))
    elif get_origin(kind) is tuple and ranges:
        kind = tuple[Annotated[get_args(kind)[0], Field(**ranges)], ...]  # type: ignore[misc]
        ranges = {}
    return kind, Field(default, description=setting.about if setting else None, **ranges)


@dataclass(frozen=True)
class ChosenFrom:
    """Marks a section whose key `name` selects a class of the registry."""

    registry: Registry[Any]
    default: str

    def validate(self, value: Any) -> ComponentSection:
        if isinstance(value, ComponentSection):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"{self.registry.kind} is {value!r:.60}: it must be a mapping")
        name = value.get("name", self.default)
        if not isinstance(name, str) or name not in self.registry:
            raise ValueError(unknown(self.registry, name))
        return section_of(self.registry[name], name).model_validate({**value, "name": name})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda section: section.model_dump(mode="json")
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)


def unknown(registry: Registry[Any], name: Any) -> str:
    """The message for a name that the registry does not hold."""
    try:
        registry[str(name)[:60]]
    except InputError as error:
        return str(error)
    raise AssertionError(name)


def sections_in(registry: Registry[Any]) -> Iterator[type[ComponentSection]]:
    """The section of every class that is registered now."""
    for name in registry:
        yield section_of(registry[name], name)
