"""Configuration sections that are built from registered classes.

The keys of `objective` and `network` are the constructor parameters of the class that `name`
selects. Their annotations contain their ranges and descriptions (system/registry.py).
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from inspect import Parameter, signature
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model
from pydantic_core import core_schema

from soflow.config.own import OWN
from soflow.system.registry import Registry, Setting

#: Constructor parameters that the library passes. All others are settings.
SUPPLIED = ("shape", "num_classes", "augment_labels", "cond_shape", "takes_guidance", "compile")


class Section(BaseModel):
    """A section of the configuration. Unknown keys are errors, and values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def key(default: Any, about: str, **limits: Any) -> Any:
    """Declares a key with its default, its description and its limits for pydantic's `Field`."""
    return Field(default, description=about, **limits)


class ComponentSection(Section):
    """A registered class with its settings."""

    component: ClassVar[Callable[..., Any]]

    def build(self, **supplied: Any) -> Any:
        """Builds the object from its settings and from the `supplied` arguments it takes."""
        parameters = signature(self.component).parameters
        settings = {
            name: value.build() if isinstance(value, ComponentSection) else value
            for name, value in self
            if name in parameters
        }
        taken = {name: value for name, value in supplied.items() if name in parameters}
        return self.component(**taken, **settings)


@cache
def section_of(
    component: Callable[..., Any], name: str = "", like: Any = None
) -> type[ComponentSection]:
    """Creates the section with the settings of a class.

    Args:
        component: The class.
        name: The name of the class in its registry.
        like: An object of the class whose values replace the defaults of the class.
    """
    constructor = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    hints = get_type_hints(constructor, include_extras=True)
    keys: dict[str, Any] = {}
    if name:
        keys["name"] = (Literal[name], Field(name, description="name of the registered class"))
    for parameter in signature(component).parameters.values():
        if parameter.name not in SUPPLIED and parameter.kind is not Parameter.VAR_KEYWORD:
            hint, default = hints.get(parameter.name, Any), default_of(component, parameter)
            if like is not None:
                default = getattr(like, parameter.name)
            keys[parameter.name] = field_of(hint, default)
    base = type("Settings", (ComponentSection,), {"component": component, "__module__": __name__})
    return create_model(getattr(component, "__name__", "Section"), __base__=base, **keys)


def default_of(component: Callable[..., Any], parameter: Parameter) -> Any:
    """The default of a constructor parameter; `...` if it has none."""
    for field in fields(component) if is_dataclass(component) else ():
        if field.name == parameter.name and field.default_factory is not MISSING:
            return field.default_factory()
    return ... if parameter.default is Parameter.empty else parameter.default


def field_of(hint: Any, default: Any) -> tuple[Any, Any]:
    """The type and the pydantic field of a setting."""
    setting = next((x for x in get_args(hint)[1:] if isinstance(x, Setting)), Setting(""))
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    limits = {name: getattr(setting, name) for name in ("ge", "gt", "le", "lt")}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    if is_dataclass(kind):
        kind = section_of(kind, like=None if default is ... else default)  # type: ignore[arg-type]
        default = default if default is ... else kind()
    elif get_origin(kind) is tuple and limits:  # the limits apply to each element
        kind, limits = tuple[Annotated[get_args(kind)[0], Field(**limits)], ...], {}  # type: ignore[misc]
    return kind, Field(default, description=setting.about or None, **limits)


@dataclass(frozen=True)
class ChosenFrom:
    """Marks a section whose key `name` selects a class from a registry."""

    registry: Registry[Any]
    default: str
    own: Callable[..., Any]  # placeholder for a component passed from Python

    def name(self, value: Any) -> Any:
        """The class name in the plain values of the section."""
        return value.get("name", self.default) if isinstance(value, dict) else self.default

    def section(self, name: Any) -> type[ComponentSection]:
        """The section of a registered class.

        Raises:
            InputError: If no class is registered by this name.
        """
        return section_of(self.own if name == OWN else self.registry[name], name)

    def validate(self, value: Any) -> ComponentSection:
        """Builds the section from plain values."""
        if isinstance(value, ComponentSection):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"{self.registry.kind} is {value!r:.60}: it must be a mapping")
        name = self.name(value)
        return self.section(name).model_validate({**value, "name": name})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda section: section.model_dump(mode="json")
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)


def chosen_from(metadata: list[Any]) -> ChosenFrom | None:
    """The `ChosenFrom` mark in the metadata of a field, if any."""
    return next((mark for mark in metadata if isinstance(mark, ChosenFrom)), None)
