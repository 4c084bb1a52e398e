"""Images from .npz and .npy files: bytes (N, H, W), (N, H, W, C) or (N, C, H, W), and whole numbers (N,) as labels.

Arrays are found by what they hold, or named. Of several splits each array is called by its own, as train_images or x_test.
"""

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from soflow.data.images import SPLITS, Opener
from soflow.errors import InputError, first_line


class ArrayImages:
    """The images of one split of a file of arrays."""

    def __init__(self, path: str, split: str, image_key: str = "", label_key: str = "") -> None:
        self.name, self.split = Path(path).stem, split
        arrays = of_split(read(path), split, path)
        told = f"its arrays are {', '.join(f'{key} {array.dtype}{list(array.shape)}' for key, array in arrays.items())}"
        key = choose([key for key, array in arrays.items() if holds_images(array)], image_key, "images (uint8)", path, told)
        if key is None:
            raise InputError(f"{path} has no images, uint8 of shape (N, H, W) or (N, H, W, C); {told}")
        self.images = channels_last(arrays[key])
        labels = [key for key, array in arrays.items() if holds_labels(array, len(self.images))]
        chosen = choose(labels, label_key, "labels (whole numbers)", path, told)
        self.labels, self.class_names, self.unlabelled = classes(None if chosen is None else arrays[chosen], path)
        stat = Path(path).stat()
        self.fingerprint = f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns} {key} {chosen} {split}"

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        return f"image {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(Image.fromarray, self.images[row]) for row in rows]


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file; those of a .npy memory-mapped. Nothing that could run code is read."""
    if not path:
        raise InputError("data.source=arrays needs data.path: a .npz or .npy file")
    try:
        loaded: Any = np.load(path, mmap_mode="r" if path.endswith(".npy") else None, allow_pickle=False)
        return {"images": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"data.path={path} cannot be read as .npz or .npy: {first_line(error)}") from None


def of_split(arrays: dict[str, np.ndarray], split: str, path: str) -> dict[str, np.ndarray]:
    """The arrays that are called by the split; all of them, as the split train, where none is called by any."""
    there = by_split(arrays)
    if split not in there:
        raise InputError(f"{path} has no split '{split}': its splits are {' and '.join(there)}")
    return there[split]


def by_split(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Split -> its arrays."""
    called = {one: {key: array for key, array in arrays.items() if one in key.lower().split("_")} for one in SPLITS}
    return {one: found for one, found in called.items() if found} or {"train": arrays}


def splits_of_file(path: str) -> tuple[str, ...]:
    return tuple(by_split(read(path)))


def choose(found: list[str], named: str, what: str, path: str, told: str) -> str | None:
    """The one that is named, or the only one; None where there is none."""
    if named and named not in found:
        raise InputError(f"{path}: '{named}' is no array of {what}; {told}")
    if not named and len(found) > 1:
        raise InputError(f"{path} has several arrays of {what}, {' and '.join(found)}: name one in data; {told}")
    return named or (found[0] if found else None)


def holds_images(array: np.ndarray) -> bool:
    """Bytes, (N, H, W), or (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4."""
    pictured = array.ndim == 3 or (array.ndim == 4 and bool({array.shape[1], array.shape[3]} & {1, 3, 4}))
    return array.dtype == np.uint8 and pictured


def holds_labels(array: np.ndarray, count: int) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer)) and array.size == count == (array.shape or (0,))[0]


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, H, W) or (N, H, W, C), as Pillow reads them."""
    if array.ndim == 3:
        return array
    if array.shape[3] not in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    return array[..., 0] if array.shape[3] == 1 else array


def classes(labels: np.ndarray | None, path: str) -> tuple[list[int] | None, tuple[str, ...], str]:
    """The class of each image, the names, and why there are none."""
    if labels is None:
        return None, (), f"{path} has no array of labels, whole numbers (N,)"
    values = [int(label) for label in labels.ravel()]
    if min(values, default=0) < 0:
        return None, (), f"{path} has a label below 0: classes are counted from 0"
    return values, (), ""
