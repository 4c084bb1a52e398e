"""Images from .npz and .npy files.

Images are bytes (N, H, W), (N, H, W, C) or (N, C, H, W), labels are integers (N,). Arrays are
found by their type and shape, or named. If there are several splits, the names of arrays contain
theirs, as in train_images or x_test.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.dataset import MOST_CLASSES
from soflow.data.file_fingerprints import fingerprint_of_file
from soflow.data.images import SPLITS, Images, Opener, choose, require_split
from soflow.data.npz import UNREADABLE, Head, heads, is_zip, load_array
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError, first_line


@SOURCES.register("arrays")
class Arrays(ImageSource):
    """A .npz or .npy file."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(by_split(read(config.path)))

    def open(self, config: DataConfig, split: str) -> Images:
        return ArrayImages(config.path, split, config.image_column, config.label_column)


class ArrayImages:
    """The images of one split of a file of arrays, read when the first one is opened."""

    def __init__(self, path: str, split: str, image_key: str = "", label_key: str = "") -> None:
        self.path, self.name, self.split = path, Path(path).stem, split
        splits = by_split(read(path))
        require_split(split, tuple(splits), path)
        arrays = splits[split]
        listed = [f"{key} {array.dtype}{list(array.shape)}" for key, array in arrays.items()]
        known = f"its arrays are {', '.join(listed)}"
        images = [key for key, array in arrays.items() if holds_images(array)]
        key = choose(path, "array of images (uint8)", "image_column", image_key, images, known, [])
        if key is None:
            raise InputError(f"{path} has no images, uint8 (N, H, W) or (N, H, W, C); {known}")
        self.key, self.count = key, arrays[key].shape[0]
        labels = [key for key, array in arrays.items() if holds_labels(array, self.count)]
        chosen = choose(path, "array of labels", "label_column", label_key, labels, known, [])
        self.labels: list[int] | None = None
        self.unlabelled = f"{path} has no array of labels, integers ({self.count},); {known}"
        if chosen is not None:
            self.labels, self.unlabelled = classes(load_array(Path(path), chosen), path)
        self.class_names: tuple[str, ...] = ()
        self.fingerprint = f"{arrays[key].content}, {arrays[chosen].content if chosen else ''}"

    @cached_property
    def images(self) -> np.ndarray:
        """As Pillow reads them, (N, H, W) or (N, H, W, C); memory-mapped from a .npy."""
        path = Path(self.path)
        return channels_last(load_array(path, self.key) if is_zip(path) else mapped(self.path))

    def __len__(self) -> int:
        return self.count

    def where(self, row: int) -> str:
        return f"image {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(Image.fromarray, self.images[row]) for row in rows]


def read(path: str) -> dict[str, Head]:
    """The heads of the arrays of a file; the array of a .npy is called images."""
    if not path:
        raise InputError("data.source=arrays needs data.path: a .npz or .npy file")
    if is_zip(path):
        return heads(Path(path))
    array = mapped(path)
    return {"images": Head(array.shape, array.dtype, content=fingerprint_of_file(Path(path)))}


def mapped(path: str) -> np.ndarray:
    """The array of a .npy, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # unpickles nothing
    except UNREADABLE as error:
        what = f"data.path={path} cannot be read as .npz or .npy"
        raise InputError(f"{what}: {first_line(error)}") from None


def by_split(arrays: dict[str, Head]) -> dict[str, dict[str, Head]]:
    """The arrays of each split; all of them are the split train if no name contains a split."""
    named: dict[str, dict[str, Head]] = {}
    for split, (key, array) in product(SPLITS, arrays.items()):
        if split in key.lower().split("_"):
            named.setdefault(split, {})[key] = array
    return named or {"train": arrays}


def holds_images(array: Head) -> bool:
    """Bytes (N, H, W), or (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4; no size is 0."""
    shape = array.shape
    images = len(shape) == 3 or (len(shape) == 4 and not {1, 3, 4}.isdisjoint(shape[1::2]))
    return array.dtype == np.uint8 and images and min(shape) > 0


def holds_labels(array: Head, count: int) -> bool:
    """Integers, (N,) or (N, 1)."""
    integers = array.dtype.kind in "iu"
    return integers and prod(array.shape) == count == (array.shape or (0,))[0]


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C), as Pillow reads them."""
    if array.ndim == 3:
        return array
    if array.shape[3] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    return array[..., 0] if array.shape[3] == 1 else array


def classes(labels: np.ndarray, path: str) -> tuple[list[int] | None, str]:
    """The class of each image, or None and the reason."""
    values: list[int] = labels.ravel().tolist()
    if 0 <= min(values) <= max(values) < max(len(values), MOST_CLASSES):
        return values, ""
    wrong = min(values) if min(values) < 0 else max(values)
    why = f"has a label {wrong} among {len(values):,} images: classes are counted from 0"
    return None, f"{path} {why}"
