"""Images, signals and vectors from .npz and .npy files.

    images     (N, H, W), (N, H, W, C) or (N, C, H, W)    data.shape [C, H, W]
    signals    (N, L) or (N, C, L)                        data.shape [C, L]
    vectors    (N,) or (N, D)                             data.shape [D]

Labels are integers (N,), text (N,) or one-hot rows (N, classes). Arrays are found by name and
shape, or named in the configuration. The array `cond` contains conditions (N, ...). If a file has
several splits, the name of each array contains the name of its split, as in train_images or x_test.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.array_labels import labels_of
from soflow.data.array_names import axes_of, by_split, cond_array, of_split, sample_array
from soflow.data.conditions import with_conditions
from soflow.data.dataset import Dataset, as_labels
from soflow.data.file_fingerprints import fingerprint_of_file
from soflow.data.images import Images, Opener
from soflow.data.npz import UNREADABLE, Head, heads, is_zip, load_array
from soflow.data.own_items import as_tensor
from soflow.data.registry import SOURCES, ImageSource
from soflow.data.rows import scaled_rows
from soflow.data.splits import named_split
from soflow.errors import InputError, first_line


@SOURCES.register("arrays")
class Arrays(ImageSource):
    """A .npz or .npy file."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return tuple(by_split(read(config.path)))

    def open(self, config: DataConfig, split: str) -> Images:
        return ArrayImages(
            config.path, split, config.image_column, config.label_column, config.num_classes
        )

    def load(self, config: DataConfig, split: str) -> Dataset:
        """Loads a split. Grayscale or RGB images in bytes are cropped; other arrays are not."""
        chosen = Chosen(config, split)
        channels = chosen.channels if len(config.shape) == 3 else 0
        as_files = chosen.head.dtype == np.uint8 and channels in (1, 3)
        if as_files and config.range != "standardize":
            height, width = chosen.sizes
            asked = (channels, height, width)
            filled = [a if b == -1 else b for a, b in zip(asked, config.shape, strict=True)]
            dataset = super().load(config.model_copy(update={"shape": tuple(filled)}), split)
            if chosen.cond_key and (height, width) != dataset.shape[1:]:
                raise InputError(
                    f"{config.path} has images of {height} x {width} with conditions, which cannot "
                    f"be cropped to data.shape={list(dataset.shape)}: leave out data.size"
                )
            return chosen.with_conditions(dataset)
        if config.random_crop:
            raise InputError(
                f"data.random_crop needs uint8 images with 1 or 3 channels, but {config.path} has "
                f"{chosen.head.dtype}{list(chosen.head.shape)}: set data.random_crop=0"
            )
        return chosen.dataset()


class Chosen:
    """The arrays of samples, labels and conditions of one split."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.path = config, config.path
        splits = by_split(read(config.path))
        self.split = named_split(split, tuple(splits), config.path)
        training = splits[named_split(config.split, tuple(splits), config.path)]
        self.key = sample_array(splits[self.split], config)
        self.training_key = of_split(self.key, training) or sample_array(training, config)
        self.head = splits[self.split][self.key]
        self.axes = axes_of(self.head, config.shape, config.path)
        self.cond_key = cond_array(splits[self.split], config)
        labels, train_labels = (
            {key: head for key, head in arrays.items() if key != cond_array(arrays, config)}
            if config.num_classes
            else {}
            for arrays in (splits[self.split], splits.get("train", training))
        )
        self.classes, self.notes = labels_of(
            self.path, labels, self.key, self.head, config, train_labels
        )

    @property
    def channels(self) -> int:
        """The number of channels."""
        if len(self.head.shape) == 3:
            return 1
        return self.head.shape[self.axes[1]]

    @property
    def sizes(self) -> tuple[int, int]:
        """Height and width of images."""
        if len(self.head.shape) == 3:
            return self.head.shape[1], self.head.shape[2]
        return self.head.shape[self.axes[2]], self.head.shape[self.axes[3]]

    def with_conditions(self, dataset: Dataset) -> Dataset:
        """The dataset with the conditions of its split, if the file has them."""
        if self.cond_key is None:
            return dataset
        where = f"{self.path}, array {self.cond_key}"
        given = as_tensor(values_of(self.path, self.cond_key))
        return with_conditions(dataset, given, True, where)

    def dataset(self) -> Dataset:
        """The array as a dataset, scaled or standardized but not cropped."""
        where = f"{self.path}, array {self.key}"
        own, training = values_of(self.path, self.key), values_of(self.path, self.training_key)
        own, training = (with_channels(array, len(self.config.shape)) for array in (own, training))
        axes = self.axes if own.ndim == len(self.axes) else (0, 1, *range(2, own.ndim))
        rows, scaling, note = scaled_rows(
            own, axes, self.config.range, training, self.head.content, where
        )
        classes = self.classes
        labels = None
        if classes.labels is not None:
            labels = as_labels(classes.labels, classes.names, self.path)
        picture = own.ndim == 4 and rows.shape[1] in (1, 3) and self.config.range != "standardize"
        dataset = Dataset(
            Path(self.path).stem, self.split, rows, labels, classes.names,
            unlabelled=classes.reason, scaling=None if picture else scaling,
            notes=(note, *self.notes),
        )  # fmt: skip
        return self.with_conditions(dataset)


class ArrayImages:
    """The images of one split of a .npz or .npy file, read when the first one is opened."""

    def __init__(
        self, path: str, split: str, image_key: str = "", label_key: str = "", num_classes: int = -1
    ) -> None:
        config = DataConfig(
            path=path, shape=(-1, -1, -1), image_column=image_key, label_column=label_key,
            num_classes=num_classes,
        )  # fmt: skip
        chosen = Chosen(config, split)
        if chosen.head.dtype != np.uint8 or chosen.channels not in (1, 3):
            found = f"{chosen.head.dtype}{list(chosen.head.shape)}"
            raise InputError(
                f"{path} has no uint8 images (N, H, W) or (N, H, W, 3): its samples are {found}"
            )
        self.path, self.name, self.split = path, Path(path).stem, chosen.split
        self.key, self.count, self.axes = chosen.key, chosen.head.shape[0], chosen.axes
        self.labels, self.class_names = chosen.classes.labels, chosen.classes.names
        self.unlabelled, self.notes = chosen.classes.reason, list(chosen.notes)
        self.fingerprint = f"{chosen.head.content} {self.labels}"

    @cached_property
    def images(self) -> np.ndarray:
        """The images as Pillow takes them, (N, H, W) or (N, H, W, 3); memory-mapped from a .npy."""
        array = values_of(self.path, self.key)
        if array.ndim == 3:
            return array
        array = array.transpose(0, *self.axes[2:], self.axes[1])
        return array[..., 0] if array.shape[3] == 1 else array

    def __len__(self) -> int:
        return self.count

    def where(self, row: int) -> str:
        return f"image {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(Image.fromarray, np.ascontiguousarray(self.images[row])) for row in rows]


def read(path: str) -> dict[str, Head]:
    """The headers of the arrays in a file. The array of a .npy is called images."""
    if not path:
        raise InputError("data.source=arrays needs data.path: a .npz or .npy file")
    if is_zip(path):
        return heads(Path(path))
    array = mapped(path)
    return {"images": Head(array.shape, array.dtype, content=fingerprint_of_file(Path(path)))}


def values_of(path: str, key: str) -> np.ndarray:
    """The values of an array, memory-mapped from a .npy."""
    return load_array(Path(path), key) if is_zip(path) else mapped(path)


def conditions_in(path: Path, name: str) -> np.ndarray:
    """The conditions in a file: the array of a .npy, or the named (or only) array of a .npz.

    Raises:
        InputError: If the file or the array does not exist.
    """
    file = path.expanduser()
    if not file.is_file():
        raise InputError(f"the file of conditions {path} does not exist: check the path")
    arrays = read(str(file))
    key = of_split(name, arrays) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if key is None:
        raise InputError(f"{path} has no array '{name}': its arrays are {', '.join(arrays)}")
    return values_of(str(file), key)


def mapped(path: str) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except UNREADABLE as error:
        what = f"data.path={path} cannot be read as .npz or .npy"
        raise InputError(f"{what}: {first_line(error)}") from None


def with_channels(array: np.ndarray, dimensions: int) -> np.ndarray:
    """Adds a missing channel axis: (N, H, W) -> (N, 1, H, W), (N,) -> (N, 1)."""
    return array[:, None] if array.ndim == dimensions else array
