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
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from soflow.config.schema import DataConfig
from soflow.data.cache import cached
from soflow.data.dataset import Dataset
from soflow.data.images import MODES, Images
from soflow.errors import InputError
from soflow.system.registry import Registry

SOURCES: Registry[Callable[..., Any]] = Registry(
    "data source",
    doc="""Data sources by the names that configurations give them.

    A source is a function (config, split) -> `Dataset`, where config is the section `data` of a
    configuration; or a class without arguments that also lists its splits, such as
    `soflow.data.registry.Source`.

    Example:
        >>> import soflow, torch
        >>> @soflow.SOURCES.register("ring")
        ... def ring(config, split):
        ...     angle = torch.linspace(0, 6.28, 1000)
        ...     points = torch.stack([angle.cos(), angle.sin()], dim=1)  # (N, 2)
        ...     return soflow.Dataset("ring", split, points, labels=None)
        >>> len(soflow.load_data("ring"))
        1000
    """,
)


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
        channels, height, width = image_shape(config.shape)
        images, margin = self.open(config, split), config.random_crop
        size = (height + margin, width + margin)
        dataset = cached(images, size, channels, config.range, config.max_unreadable)
        return replace(dataset, margin=margin)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """C, H and W of images that are decoded from files; -1 channels are three.

    Raises:
        InputError: If they cannot be decoded to this shape.
    """
    if len(shape) != 3 or shape[0] not in (-1, *MODES) or -1 in shape[1:]:
        kinds = "[1, H, W] (grey) or [3, H, W] (RGB); or set data.size=H"
        raise InputError(f"data.shape is {list(shape)}: images are {kinds}")
    return (3 if shape[0] == -1 else shape[0]), shape[1], shape[2]


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
