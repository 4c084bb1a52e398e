"""The registry of data sources: a new source is one file and one registration.

A function is enough:

    @SOURCES.register("my_source")
    def my_source(config: DataConfig, split: str) -> Dataset:
        return Dataset("my_source", split, rows, labels)

A class also declares its splits, so that evaluation finds held-out data (see `Source`). Image
files are decoded, cropped and cached for a subclass of `ImageSource`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from soflow.config.schema import DataConfig
from soflow.data.cache import cached
from soflow.data.dataset import Dataset
from soflow.data.images import MODES, Images
from soflow.errors import InputError
from soflow.system.registry import Registry

#: Functions (config, split) -> Dataset, and classes like `Source` without arguments, by name.
SOURCES: Registry[Callable[..., Any]] = Registry("data source")


@runtime_checkable
class Source(Protocol):
    """A data source that knows its splits."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        """The names of the splits that exist."""

    def load(self, config: DataConfig, split: str) -> Dataset:
        """Loads one split.

        Raises:
            InputError: If the data do not exist or cannot be used.
        """


class ImageSource(ABC):
    """A source of image files, which are decoded once and kept in the cache folder."""

    @abstractmethod
    def splits(self, config: DataConfig) -> tuple[str, ...]: ...

    @abstractmethod
    def open(self, config: DataConfig, split: str) -> Images:
        """The images of one split, not decoded yet."""

    def load(self, config: DataConfig, split: str) -> Dataset:
        shape = config.shape
        if len(shape) != 3 or shape[0] not in MODES or shape[1] != shape[2]:
            kinds = "[1, H, H] (grey) or [3, H, H] (RGB); or set data.size=H"
            raise InputError(f"data.shape is {list(shape)}: images are {kinds}")
        return cached(self.open(config, split), size=shape[1], channels=shape[0])


def source_of(name: str) -> Source | None:
    """The source registered under this name; None if a plain function is registered.

    Raises:
        InputError: If there is no such source.
    """
    if name not in SOURCES:
        hint = "encode ImageNet to latents first (soflow encode); " if "imagenet" in name else ""
        hint += "import a module of your own that registers it first (--import MODULE)"
        known = ", ".join(SOURCES)
        raise InputError(f"data.source is '{name}': it must be one of {known}; {hint}")
    entry = SOURCES[name]
    return entry() if isinstance(entry, type) else None
