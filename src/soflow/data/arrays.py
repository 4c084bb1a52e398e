"""Images, signals and vectors from .npz and .npy files.

    images     (N, H, W), (N, H, W, C) or (N, C, H, W)    data.shape [C, H, W]
    signals    (N, L) or (N, C, L)                        data.shape [C, L]
    vectors    (N,) or (N, D)                             data.shape [D]

Labels are whole numbers (N,), texts (N,) or one-hot rows (N, classes). Arrays are found by their
names and shapes, or named. If there are several splits, the names of arrays contain theirs, as in
train_images or x_test.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data.dataset import Dataset, as_labels
from soflow.data.file_fingerprints import fingerprint_of_file
from soflow.data.images import Images, Opener
from soflow.data.labels import USUAL_NAMES, Classes, are_few, classes_of, is_one_hot, without_gaps
from soflow.data.npz import UNREADABLE, Head, heads, is_zip, load_array
from soflow.data.registry import SOURCES, ImageSource
from soflow.data.rows import scaled_rows
from soflow.data.splits import named_split, split_of
from soflow.errors import InputError, first_line

#: What samples are, by the length of data.shape; the dimensions of their arrays; their recipe.
KINDS = {1: ("vectors", (1, 2)), 2: ("signals", (2, 3)), 3: ("images", (3, 4))}
#: Usual names of an array of samples, in lower case.
SAMPLES = ("images", "image", "x", "data", "samples", "features", "signals", "vectors", "latents",
           "arr_0", "arr")  # fmt: skip
#: What numpy calls the second array of a .npz, which holds labels by ADM's convention.
LABELS = "arr_1"


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
        """Bytes of grey or RGB images are cropped like image files; other arrays must fit."""
        chosen = Chosen(config, split)
        channels = chosen.channels if len(config.shape) == 3 else 0
        as_files = chosen.head.dtype == np.uint8 and channels in (1, 3)
        if as_files and config.range != "standardize":
            height, width = chosen.sizes
            asked = (channels, height, width)
            filled = [a if b == -1 else b for a, b in zip(asked, config.shape, strict=True)]
            return super().load(config.model_copy(update={"shape": tuple(filled)}), split)
        if config.random_crop:
            raise InputError(
                f"data.random_crop is for images of 1 or 3 channels in bytes, and {config.path} "
                f"has {chosen.head.dtype}{list(chosen.head.shape)}: set it to 0"
            )
        return chosen.dataset()


class Chosen:
    """The array of one split that holds its samples, and their labels."""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config, self.path = config, config.path
        splits = by_split(read(config.path))
        self.split = named_split(split, tuple(splits), config.path)
        training = splits[named_split(config.split, tuple(splits), config.path)]
        self.key = sample_array(splits[self.split], config)
        self.training_key = of_split(self.key, training) or sample_array(training, config)
        self.head = splits[self.split][self.key]
        self.axes = axes_of(self.head, config.shape, config.path)
        labels = splits[self.split] if config.num_classes else {}
        train_labels = splits.get("train", training) if config.num_classes else {}
        self.classes, self.notes = labels_of(
            self.path, labels, self.key, self.head, config, train_labels
        )

    @property
    def channels(self) -> int:
        """C of images; 0 for other arrays."""
        if len(self.head.shape) == 3:
            return 1
        return self.head.shape[self.axes[1]]

    @property
    def sizes(self) -> tuple[int, int]:
        """Height and width of images."""
        if len(self.head.shape) == 3:
            return self.head.shape[1], self.head.shape[2]
        return self.head.shape[self.axes[2]], self.head.shape[self.axes[3]]

    def dataset(self) -> Dataset:
        """The array as it is, scaled or standardized."""
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
        return Dataset(
            Path(self.path).stem, self.split, rows, labels, classes.names,
            unlabelled=classes.reason, scaling=None if picture else scaling,
            notes=(note, *self.notes),
        )  # fmt: skip


class ArrayImages:
    """The images of one split of a file of arrays, read when the first one is opened."""

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
                f"{path} has no images in bytes, uint8 (N, H, W) or (N, H, W, 3): {found}"
            )
        self.path, self.name, self.split = path, Path(path).stem, chosen.split
        self.key, self.count, self.axes = chosen.key, chosen.head.shape[0], chosen.axes
        self.labels, self.class_names = chosen.classes.labels, chosen.classes.names
        self.unlabelled, self.notes = chosen.classes.reason, list(chosen.notes)
        self.fingerprint = f"{chosen.head.content} {self.labels}"

    @cached_property
    def images(self) -> np.ndarray:
        """As Pillow reads them, (N, H, W) or (N, H, W, 3); memory-mapped from a .npy."""
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
    """The heads of the arrays of a file; the array of a .npy is called images."""
    if not path:
        raise InputError("data.source=arrays needs data.path: a .npz or .npy file")
    if is_zip(path):
        return heads(Path(path))
    array = mapped(path)
    return {"images": Head(array.shape, array.dtype, content=fingerprint_of_file(Path(path)))}


def values_of(path: str, key: str) -> np.ndarray:
    """The values of an array, memory-mapped from a .npy."""
    return load_array(Path(path), key) if is_zip(path) else mapped(path)


def mapped(path: str) -> np.ndarray:
    """The array of a .npy, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")  # unpickles nothing
    except UNREADABLE as error:
        what = f"data.path={path} cannot be read as .npz or .npy"
        raise InputError(f"{what}: {first_line(error)}") from None


def by_split(arrays: Mapping[str, Head]) -> dict[str, dict[str, Head]]:
    """The arrays of each split; all of them are the split train if no name contains a split."""
    named: dict[str, dict[str, Head]] = {}
    for key, array in arrays.items():
        found = [split for word in key.split("_") if (split := split_of(word))]
        if found:
            named.setdefault(found[0], {})[key] = array
    # Of x and x_test, x is trained on.
    held_out = {key for split in named.values() for key in split}
    same = {bare(key) for key in held_out}
    rest = {key: x for key, x in arrays.items() if key not in held_out and bare(key) in same}
    if rest and "train" not in named:
        named["train"] = rest
    return named or {"train": dict(arrays)}


def bare(key: str) -> str:
    """The name of an array without the name of its split, in lower case."""
    words = [word for word in key.lower().split("_") if not split_of(word)]
    return "_".join(words)


def of_split(key: str, arrays: Mapping[str, Head]) -> str | None:
    """The array of one split that another split, or the same one, calls `key`."""
    same = [one for one in arrays if bare(one) == bare(key)]
    return key if key in arrays else next(iter(same), None)


def sample_array(arrays: Mapping[str, Head], config: DataConfig) -> str:
    """The array that holds the samples: named, or found by its name and shape.

    Raises:
        InputError: If there is none, or more than one.
    """
    kind, dimensions = KINDS[len(config.shape)]
    path, named = config.path, config.image_column
    named = of_split(named, arrays) or named if named else ""
    listed = ", ".join(f"{key} {array.dtype}{list(array.shape)}" for key, array in arrays.items())
    if named and named not in arrays:
        raise InputError(
            f"{path} has no array '{named}', set by data.image_column; its arrays are {listed}"
        )
    numbers = {
        key: array for key, array in arrays.items()
        if array.dtype.kind in "biuf" and min(array.shape, default=0) > 0
    }  # fmt: skip
    fitting = [key for key, array in numbers.items() if len(array.shape) in dimensions]
    if named:
        if named not in fitting:
            raise InputError(f"the array '{named}' of {path} holds no {kind}; {listed}")
        return named
    found = [key for key in fitting if bare(key) not in USUAL_NAMES]
    narrower = (
        [key for key in found if bare(key) in SAMPLES or split_of(key)],
        [key for key in found if numbers[key].dtype == np.uint8 and kind == "images"],
        [key for key in found if len(numbers[key].shape) == dimensions[1]],
    )
    for fewer in narrower:
        found = fewer if len(found) > 1 and len(fewer) == 1 else found
    if len(found) > 1:
        several = " and ".join(found)
        raise InputError(
            f"{path} has several arrays of {kind}, {several}: set data.image_column={found[0]}; "
            f"its arrays are {listed}"
        )
    if found:
        return found[0]
    others = {
        name for name, sizes in KINDS.values() for x in numbers.values() if len(x.shape) in sizes
    }
    hint = "".join(
        f"; for {one}, use the recipe {one}" for one in sorted(others - {kind, "images"})
    )
    raise InputError(f"{path} has no {kind}, its arrays are {listed or 'none'}{hint}")


def axes_of(head: Head, wanted: tuple[int, ...], path: str) -> tuple[int, ...]:
    """The order of an array's axes as samples have them, (N, C, ...).

    Channels come second or last: as data.shape says, or else the smaller of the two. Where both are
    the same, bytes have them last and other types second.
    """
    shape = head.shape
    if len(shape) < 3 or (len(wanted) == 3 and len(shape) == 3):
        return (0, *range(1, len(shape)))
    last = (0, len(shape) - 1, *range(1, len(shape) - 1))
    second = tuple(range(len(shape)))
    fits = [
        axes for axes in (second, last)
        if all(b in (-1, shape[a]) for a, b in zip(axes[1:], wanted, strict=True))
    ]  # fmt: skip
    if len(fits) == 1:
        return fits[0]
    if shape[1] != shape[-1]:
        return second if shape[1] < shape[-1] else last
    return last if head.dtype == np.uint8 else second


def with_channels(array: np.ndarray, dimensions: int) -> np.ndarray:
    """An array with an axis of channels: (N, H, W) as (N, 1, H, W), (N,) as (N, 1)."""
    return array[:, None] if array.ndim == dimensions else array


def labels_of(
    path: str,
    arrays: Mapping[str, Head],
    samples: str,
    head: Head,
    config: DataConfig,
    training: Mapping[str, Head],
) -> tuple[Classes, tuple[str, ...]]:
    """The class of each sample, from the array of labels, and a note that names it.

    Raises:
        InputError: If it is not clear which array holds the labels, or it holds none.
    """
    if not arrays:
        return Classes(None, (), "data.num_classes is 0"), ()
    key, named = label_array(path, arrays, samples, head.shape[0], config.label_column)
    listed = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
    if key is None:
        return Classes(None, (), f"{path} has no array of labels; its arrays are {listed}"), ()
    where, same = f"{path}, array {key},", of_split(key, training)
    values = load_labels(path, key)
    train_values = values if same in (None, key) else load_labels(path, str(same))
    trained = classes_of(list(train_values), (), where)
    found = trained if same in (None, key) else classes_of(list(values), trained.names, where)
    found = without_gaps(found, trained.labels or (), config.num_classes, where)
    if found.labels is None and named and key in training:
        raise InputError(f"{found.reason}: set data.num_classes=0 to train without classes")
    return found, () if found.labels is None else (f"labels: the array {key}",)


def load_labels(path: str, key: str) -> np.ndarray:
    """An array of labels. Raises InputError if it cannot be read."""
    try:
        return load_array(Path(path), key)
    except InputError:
        if heads(Path(path))[key].dtype.hasobject:
            what = f"the array of labels '{key}' of {path} holds Python objects"
            raise InputError(f"{what}: store it as text, .astype(str), or as numbers") from None
        raise


def label_array(
    path: str, arrays: Mapping[str, Head], samples: str, count: int, named: str
) -> tuple[str | None, bool]:
    """The array of labels, if there is one, and whether its name or a setting says that it is."""
    fitting = {
        key: array for key, array in arrays.items()
        if key != samples and array.shape[:1] == (count,) and len(array.shape) <= 2
    }  # fmt: skip
    if named:
        named = of_split(named, arrays) or named
        if named not in fitting:
            raise InputError(f"{path} has no array of labels '{named}', set by data.label_column")
        return named, True
    usual = [key for key in fitting if bare(key) in USUAL_NAMES]
    for key, array in arrays.items():
        if bare(key) in USUAL_NAMES and key not in (*fitting, samples) and array.shape:
            shape = list(array.shape)
            raise InputError(
                f"{path} has {count:,} samples, but its array of labels '{key}' has "
                f"shape {shape}: give each a label, or set data.num_classes=0"
            )
    whole = [
        key for key, array in fitting.items()
        if array.dtype.kind in "iu" and array.shape in ((count,), (count, 1))
        and key not in usual and (key == LABELS or are_few(load_array(Path(path), key)))
    ]  # fmt: skip
    hot = [
        key for key, array in fitting.items()
        if key not in (*usual, *whole) and len(array.shape) == 2
        and is_one_hot(load_array(Path(path), key))
    ]  # fmt: skip
    found = usual or whole or hot
    if len(found) > 1:
        raise InputError(
            f"{path} has more than one array of labels, {' and '.join(found)}: "
            f"set data.label_column={found[0]}, or data.num_classes=0 to train without"
        )
    return next(iter(found), None), bool(usual)
