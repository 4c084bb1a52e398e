"""Registries of objectives, networks and data sources, and the settings that each of them declares.

A setting is a constructor parameter. Its range and one sentence stand in its annotation:

    @OBJECTIVES.register("my_objective")
    @dataclass(frozen=True)
    class MyObjective:
        p: Annotated[float, Setting("power of the adaptive weight", ge=0)] = 1.0

The configuration is built from these parameters (config/sections.py), so nothing is declared twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from soflow.errors import InputError, in_short

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """The meaning and the range of a setting, in the annotation of a constructor parameter.

    Attributes:
        about: What it means, as `soflow recipes NAME` shows it.
        ge: The setting must be at least this.
        gt: The setting must be greater than this.
        le: The setting must be at most this.
        lt: The setting must be less than this.

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
    """Classes or functions by the name that a configuration gives them."""

    def __init__(self, kind: str, attributes: Sequence[str] = (), doc: str | None = None) -> None:
        self.kind = kind
        self.attributes = attributes  # of a class, that every entry must have
        self.__doc__ = doc or type(self).__doc__
        self.entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class or function under `name`.

        Raises:
            InputError: If another class or function already has this name, or if an attribute that
                the registry asks for is missing.
        """

        def add(entry: T) -> T:
            for attribute in self.attributes:
                if not hasattr(entry, attribute):
                    raise InputError(f"{self.kind} '{name}' has no class attribute '{attribute}'")
            known = self.entries.setdefault(name, entry)
            if (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise InputError(
                    f"{self.kind} '{name}' of {entry.__module__} has a name that "
                    f"{known.__module__} has registered already: choose another"
                )
            self.entries[name] = entry  # a module that is reloaded, as notebooks do
            return entry

        return add

    def __getitem__(self, name: object) -> T:
        if name not in self:
            raise InputError(
                f"unknown {self.kind} {in_short(name)}: known are {', '.join(self)}; "
                "import a module of your own that registers it first (--import MODULE)"
            )
        return self.entries[str(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def modules(self) -> list[str]:
        """Modules outside this package that have registered something."""
        found = {entry.__module__ for entry in self.entries.values()}
        return sorted(name for name in found if not name.startswith("soflow."))
