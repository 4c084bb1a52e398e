"""The registry of data sources.

The simplest source is a function:

    @SOURCES.register("my_source")
    def my_source(config: DataConfig, split: str) -> Dataset:
        return Dataset("my_source", split, rows, labels)

A class (see `Source`) also declares its splits, so that evaluation finds held-out data. A subclass
of `ImageSource` only opens image files, which are then decoded, cropped and cached.
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
    doc="""The registry of data sources by name, as used in `data.source`.

    A source is a function (config, split) -> `Dataset`, where `config` is the section `data` of a
    configuration. Or it is a class without constructor arguments that also lists its splits: see
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
    """The interface of a data source that lists its splits."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        """The names of the available splits."""

    def load(self, config: DataConfig, split: str) -> Dataset:
        """Loads one split.

        Raises:
            InputError: If the data do not exist or cannot be used.
        """


class ImageSource(ABC):
    """A source of image files. They are decoded once and kept in the cache folder."""

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
    """The shape (C, H, W) of images that are decoded from files. -1 channels become 3.

    Raises:
        InputError: If images cannot be decoded to this shape.
    """
    if len(shape) != 3 or shape[0] not in (-1, *MODES) or -1 in shape[1:]:
        kinds = "set it to [1, H, W] (grayscale) or [3, H, W] (RGB), or set data.size=H"
        raise InputError(f"data.shape is {list(shape)}, which does not fit images: {kinds}")
    return (3 if shape[0] == -1 else shape[0]), shape[1], shape[2]


def source_of(name: str) -> Source | None:
    """The source registered under this name; None if a plain function is registered.

    Raises:
        InputError: If no source has this name.
    """
    if name not in SOURCES:
        hint = "encode ImageNet to latents first (soflow encode), or " if "imagenet" in name else ""
        hint += (
            "import the module that registers your source (on the command line, --import MODULE)"
        )
        known = ", ".join(SOURCES)
        raise InputError(f"data.source is '{name}': choose one of {known}; {hint}")
    entry = SOURCES[name]
    return entry() if isinstance(entry, type) else None
