"""Registries of objectives, networks and data sources, and declarations of their settings.

A setting is a constructor parameter. Its annotation contains its meaning and its range:

    @OBJECTIVES.register("my_objective")
    @dataclass(frozen=True)
    class MyObjective:
        p: Annotated[float, Setting("power of the adaptive weight", ge=0)] = 1.0

The configuration is built from these parameters (config/sections.py), so each setting is declared
once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from soflow.errors import InputError, in_short

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """A description and bounds of a setting, in the annotation of a constructor parameter.

    The configuration checks the bounds. The constructor itself does not.

    Attributes:
        about: The description, shown by `soflow recipes NAME` and in the documentation.
        ge: Lower bound: the setting must be at least this number.
        gt: Lower bound: the setting must be greater than this number.
        le: Upper bound: the setting must be at most this number.
        lt: Upper bound: the setting must be less than this number.

    Example:
        >>> import soflow
        >>> from typing import Annotated
        >>> @soflow.NETWORKS.register("my_network")
        ... class MyNetwork(soflow.MLP):
        ...     def __init__(
        ...         self,
        ...         shape,
        ...         num_classes,
        ...         width: Annotated[int, soflow.Setting("channels of a layer", gt=0)] = 64,
        ...     ):
        ...         super().__init__(shape, num_classes, width)
        >>> config = soflow.read_recipe("moons", ["network.name=my_network", "network.width=32"])
        >>> config.network.width
        32
    """

    about: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


class Registry(Generic[T]):
    """Classes or functions by their names in a configuration."""

    def __init__(self, kind: str, attributes: Sequence[str] = (), doc: str | None = None) -> None:
        self.kind = kind
        self.attributes = attributes  # class attributes that every entry must have
        self.__doc__ = doc or type(self).__doc__
        self.entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function under a name.

        Args:
            name: The name in a configuration.

        Returns:
            The decorator.

        Raises:
            InputError: If another class or function already has this name, or if the class lacks a
                required attribute.
        """

        def add(entry: T) -> T:
            for attribute in self.attributes:
                if not hasattr(entry, attribute):
                    raise InputError(
                        f"{self.kind} '{name}' has no class attribute '{attribute}': add it"
                    )
            known = self.entries.setdefault(name, entry)
            if (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise InputError(
                    f"{self.kind} '{name}' of {entry.__module__} has the same name as one of "
                    f"{known.__module__}: choose another name"
                )
            self.entries[name] = entry  # replaces the entry if a module is reloaded
            return entry

        return add

    def __getitem__(self, name: object) -> T:
        if name not in self:
            raise InputError(
                f"unknown {self.kind} {in_short(name)}: choose one of {', '.join(self)}, or import "
                "the module that registers it (on the command line, --import MODULE)"
            )
        return self.entries[str(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def modules(self) -> list[str]:
        """The modules outside soflow that have registered an entry."""
        found = {entry.__module__ for entry in self.entries.values()}
        return sorted(name for name in found if not name.startswith("soflow."))
