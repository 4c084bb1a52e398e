"""Images from .npz and .npy files: bytes (N, H, W), (N, H, W, C) or (N, C, H, W), and whole numbers (N,) as labels.

Arrays are found by what they hold, or named. Of several splits each array is called by its own, as train_images or x_test.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.content import of_file
from soflow.data.dataset import MOST_CLASSES
from soflow.data.images import SPLITS, Images, Opener
from soflow.data.npz import UNREADABLE, Head, heads, is_zip, load_array
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError, first_line


class ArrayImages:
    """The images of one split of a file of arrays. They are read from the file when the first is opened."""

    def __init__(self, path: str, split: str, image_key: str = "", label_key: str = "") -> None:
        self.path, self.name, self.split = path, Path(path).stem, split
        arrays = of_split(read(path), split, path)
        told = f"its arrays are {', '.join(f'{key} {array.dtype}{list(array.shape)}' for key, array in arrays.items())}"
        key = choose(
            [key for key, array in arrays.items() if holds_images(array)],
            image_key,
            "images (uint8)",
            path,
            told,
        )
        if key is None:
            raise InputError(
                f"{path} has no images, uint8 of shape (N, H, W) or (N, H, W, C); {told}"
            )
        self.key, self.count = key, arrays[key].shape[0]
        labels = [key for key, array in arrays.items() if holds_labels(array, self.count)]
        chosen = choose(labels, label_key, "labels (whole numbers)", path, told)
        if chosen is None:
            self.labels, self.unlabelled = (
                None,
                f"{path} has no array of labels, whole numbers ({self.count},); {told}",
            )
        else:
            self.labels, self.unlabelled = classes(load_array(Path(path), chosen), path)
        self.class_names: tuple[str, ...] = ()
        self.fingerprint = f"{arrays[key].content}, {arrays[chosen].content if chosen else ''}"

    @cached_property
    def images(self) -> np.ndarray:
        """As Pillow reads them, (N, H, W) or (N, H, W, C); those of a .npy memory-mapped."""
        return channels_last(
            load_array(Path(self.path), self.key) if is_zip(self.path) else mapped(self.path)
        )

    def __len__(self) -> int:
        return self.count

    def where(self, row: int) -> str:
        return f"image {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(Image.fromarray, self.images[row]) for row in rows]


@SOURCES.register("arrays")
class Arrays(ImageSource):
    """A .npz or .npy file."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(by_split(read(config.path)))

    def open(self, config: DataConfig, split: str) -> Images:
        return ArrayImages(config.path, split, config.image_column, config.label_column)


def read(path: str) -> dict[str, Head]:
    """What the arrays of a file are; that of a .npy is called images."""
    if not path:
        raise InputError("data.source=arrays needs data.path: a .npz or .npy file")
    if is_zip(path):
        return heads(Path(path))
    array = mapped(path)
    return {"images": Head(array.shape, array.dtype, content=of_file(Path(path)))}


def mapped(path: str) -> np.ndarray:
    """The array of a .npy, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # which unpickles nothing
    except UNREADABLE as error:
        raise InputError(
            f"data.path={path} cannot be read as .npz or .npy: {first_line(error)}"
        ) from None


def of_split(arrays: dict[str, Head], split: str, path: str) -> dict[str, Head]:
    """The arrays that are called by the split; all of them, as the split train, where none is called by any."""
    there = by_split(arrays)
    if split not in there:
        raise InputError(f"{path} has no split '{split}': its splits are {' and '.join(there)}")
    return there[split]


def by_split(arrays: dict[str, Head]) -> dict[str, dict[str, Head]]:
    """Split -> its arrays."""
    called = {
        one: {key: array for key, array in arrays.items() if one in key.lower().split("_")}
        for one in SPLITS
    }
    return {one: found for one, found in called.items() if found} or {"train": arrays}


def choose(found: list[str], named: str, what: str, path: str, told: str) -> str | None:
    """The one that is named, or the only one; None where there is none."""
    if named and named not in found:
        raise InputError(f"{path}: '{named}' is no array of {what}; {told}")
    if not named and len(found) > 1:
        raise InputError(
            f"{path} has several arrays of {what}, {' and '.join(found)}: name one in data; {told}"
        )
    return named or (found[0] if found else None)


def holds_images(array: Head) -> bool:
    """Bytes, (N, H, W), or (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4; none of them 0."""
    shape = array.shape
    pictured = len(shape) == 3 or (len(shape) == 4 and bool({shape[1], shape[3]} & {1, 3, 4}))
    return array.dtype == np.uint8 and pictured and min(shape) > 0


def holds_labels(array: Head, count: int) -> bool:
    """Whole numbers, (N,) or (N, 1)."""
    return (
        bool(np.issubdtype(array.dtype, np.integer))
        and prod(array.shape) == count == (array.shape or (0,))[0]
    )


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C), as Pillow reads them."""
    if array.ndim == 3:
        return array
    if array.shape[3] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    return array[..., 0] if array.shape[3] == 1 else array


def classes(labels: np.ndarray, path: str) -> tuple[list[int] | None, str]:
    """The class of each image, and why there are none."""
    values = [int(label) for label in labels.ravel()]
    if min(values) < 0:
        return None, f"{path} has a label below 0: classes are counted from 0"
    if max(values) >= max(len(values), MOST_CLASSES):
        return (
            None,
            f"{path} has a label {max(values)} among {len(values):,} images: classes are counted from 0",
        )
    return values, ""
