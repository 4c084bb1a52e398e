"""Data passed from Python: tensors, arrays, torch datasets and Hugging Face datasets.

    soflow.train("images", "runs/mine", data=data)

Small datasets are read once. For large datasets, and for datasets with random transforms, each
batch reads its own items.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from soflow.config import Config
from soflow.config.schema import DataConfig
from soflow.data.batches import RESIDENT
from soflow.data.cache import cached
from soflow.data.conditions import require_images, stored_conditions, with_conditions
from soflow.data.dataset import Dataset, Rows, as_labels
from soflow.data.huggingface import image_column_of, label_column_of, names_of
from soflow.data.images import Opener
from soflow.data.labels import Classes, classes_of, without_gaps
from soflow.data.own_items import (
    ItemConditions,
    ItemRows,
    Items,
    Layout,
    as_tensor,
    layout_of,
    parts_of,
)
from soflow.data.registry import SOURCES, image_shape
from soflow.errors import InputError, in_short
from soflow.system.progress import Progress, track

log = logging.getLogger(__name__)

#: The value of `data.source` and the name in messages for such data.
NAME = "python"
#: The error for a run whose data were not passed again.
MISSING = (
    "the data of this run were passed from Python (data.source=python): pass them again, as in "
    "soflow.train(..., data=...) or soflow.evaluate(..., data=...); on the command line, evaluate "
    "against a file with --reference FILE"
)
#: Items that are read to inspect a dataset, and items that are read twice to detect random changes.
LOOKED_AT, READ_TWICE = 256, 16

#: Types that are not datasets with samples by index, with advice.
FRAMES = {
    "DataFrame": "pass its values, data=frame[[...]].to_numpy(), or save it and set data.path",
    "IterableDataset": "pass a dataset with __len__ and __getitem__",
    "DatasetDict": "pass one of its splits, data['train']",
}

_given: ContextVar[Dataset | None] = ContextVar("data passed from Python", default=None)


@SOURCES.register(NAME)
class Given:
    """The data passed to the current call."""

    def splits(self, config: DataConfig) -> tuple[str, ...]:
        return (config.split,)

    def load(self, config: DataConfig, split: str) -> Dataset:
        dataset = _given.get()
        if dataset is None:
            raise InputError(MISSING)
        return dataset


def require_unnamed(keys: Sequence[str]) -> None:
    """Raises InputError if settings select other data than the data passed from Python."""
    for key in keys:
        if key in ("data.path", "data.source", "data.split"):
            raise InputError(f"{key} and data= cannot be used together: leave one of them out")


@contextmanager
def given(data: Any, config: Config) -> Iterator[Config]:
    """Makes data available as `data.source=python`.

    Args:
        data: The data: see `own_dataset`.
        config: The configuration of the training run.

    Yields:
        The configuration with the source and the shape of the data. Labels are used unless
        `data.num_classes` is 0.
    """
    dataset = own_dataset(data, config.data)
    changes: dict[str, Any] = {"source": NAME, "path": "", "shape": dataset.shape}
    if config.data.num_classes:
        changes["num_classes"] = -1
    token = _given.set(dataset)
    try:
        yield config.model_copy(update={"data": config.data.model_copy(update=changes)})
    finally:
        _given.reset(token)


def own_dataset(data: Any, config: DataConfig, progress: Progress = track) -> Dataset:
    """Converts data passed from Python to a dataset.

    Args:
        data: A tensor or an array (N, ...); a tuple (samples, labels); a dictionary of arrays
            `image` or `data`, `label` and `cond`; a dataset with `__len__` and `__getitem__` whose
            items are samples, tuples (sample, label) or such dictionaries; or a Hugging Face
            `datasets.Dataset`. Samples are floats, or uint8 for images.
        config: The settings: range of values, names of columns, whether to use labels.
        progress: Shows the number of items read.

    Raises:
        InputError: If the data cannot be used.
    """
    if isinstance(data, Dataset):
        return data
    if config.random_crop:
        raise InputError(
            "data.random_crop does not apply to data passed from Python: crop them yourself, and "
            "leave it out"
        )
    if type(data).__name__ in FRAMES:
        raise InputError(f"data is {type(data).__name__}: {FRAMES[type(data).__name__]}")
    if isinstance(data, Mapping):
        return dataset_of_mapping(data, config)
    if is_table_of_images(data) and config.cond_column not in data.column_names:
        return images_of_table(data, config)
    if isinstance(data, Tensor | np.ndarray):
        return dataset_of_arrays(data, None, config)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        return dataset_of_arrays(*data, config)
    return dataset_of_items(data, config, progress)


def dataset_of_mapping(data: Mapping[str, Any], config: DataConfig) -> Dataset:
    """The dataset of a dictionary of arrays: samples, labels and conditions."""
    samples, labels, cond = parts_of(data, config)
    if not isinstance(samples, Tensor | np.ndarray):
        raise InputError(
            f"data contains {in_short(samples)}: pass a dictionary of arrays or tensors"
        )
    dataset = dataset_of_arrays(samples, labels, config)
    if cond is None:
        return dataset
    return with_conditions(dataset, as_tensor(cond), not isinstance(cond, Tensor), "cond")


def dataset_of_arrays(samples: Tensor | np.ndarray, labels: Any, config: DataConfig) -> Dataset:
    """The dataset of a tensor or an array (N, ...) with labels (N,) or None."""
    if samples.ndim == 0 or not len(samples):
        raise InputError("data has no samples: pass a tensor or an array (N, ...)")
    if labels is not None and (not hasattr(labels, "__len__") or len(labels) != len(samples)):
        found = f"{len(labels)} labels" if hasattr(labels, "__len__") else in_short(labels)
        raise InputError(f"data has {len(samples)} samples and {found}: pass one label per sample")
    given, listed = as_tensor(samples), None if labels is None else list(labels)
    layout = layout_of(given, config, isinstance(samples, np.ndarray))
    return dataset_of(layout.store(given), layout, listed, (), config)


def dataset_of_items(data: Any, config: DataConfig, progress: Progress) -> Dataset:
    """The dataset of items by index."""
    by_index = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, str | bytes) or not by_index:
        raise InputError(
            f"data is {type(data).__name__}: pass a tensor, an array, (samples, labels), a "
            "dictionary of arrays, or a dataset with __len__ and __getitem__; for a path, set "
            "data.path"
        )
    if not len(data):
        raise InputError("data has no samples: its length is 0")
    items, count = Items(data, config), len(data)
    places = np.linspace(0, count - 1, min(count, LOOKED_AT)).round().astype(int).tolist()
    looked, labels_seen, cond = items.some(places)
    again, _, cond_again = items.some(places[:READ_TWICE])
    changing = not torch.equal(again, looked[:READ_TWICE])
    if cond is not None and cond_again is not None:
        changing = changing or not torch.equal(cond_again, cond[:READ_TWICE])
    item_bytes = looked[0].nbytes + (0 if cond is None else cond[0].nbytes)
    classes = getattr(data, "classes", None)
    names = tuple(classes) if isinstance(classes, list | tuple) and is_names(classes) else ()
    if not changing and item_bytes * count <= RESIDENT:
        samples, given_labels, cond = items.some(range(count), progress)
        layout = layout_of(samples, config, items.numpy)
        labels = None if all(one is None for one in given_labels) else given_labels
        dataset = dataset_of(layout.store(samples), layout, labels, names, config)
        return dataset if cond is None else with_conditions(dataset, cond, items.cond_numpy, "cond")
    if changing:
        log.info(
            "data: items are transformed at random, so a resumed run repeats the order of samples, "
            "but not their transforms"
        )
    layout = layout_of(looked, config, items.numpy, changing)
    rows = ItemRows(items, layout, layout.store(looked), changing)
    seen = dict(zip(places, labels_seen, strict=True)) if config.num_classes else {}
    dataset = dataset_of(rows, layout, items.labels(seen, progress), names, config)
    if cond is None:
        return dataset
    store = partial(stored_conditions, shape=dataset.shape, numpy=items.cond_numpy, where="cond")
    like = store(cond)
    require_images(like, "cond")
    return replace(dataset, cond=ItemConditions(rows, store, like))


def is_names(classes: Sequence[Any]) -> bool:
    return all(isinstance(name, str) for name in classes)


def dataset_of(
    rows: Rows,
    layout: Layout,
    labels: Sequence[Any] | None,
    names: Sequence[str],
    config: DataConfig,
) -> Dataset:
    """The dataset of stored samples and labels."""
    found = Classes(None, (), "there are no labels")
    if config.num_classes == 0:
        found = Classes(None, (), "data.num_classes is 0")
    elif labels is not None:
        values = [one.tolist() if hasattr(one, "tolist") else one for one in labels]
        found = numbered(values, names, "the labels of data", config)
        if found.labels is None:
            todo = "set data.num_classes=0 to train without classes"
            raise InputError(f"{found.reason}: {todo}")
    numbers = as_labels(found.labels, found.names, NAME)
    notes = (layout.note,) if layout.note else ()
    return Dataset(
        NAME,
        config.split,
        rows,
        numbers,
        found.names,
        unlabelled=found.reason,
        scaling=layout.scaling,
        notes=notes,
    )


def numbered(values: list[Any], names: Sequence[str], where: str, config: DataConfig) -> Classes:
    """Converts labels to classes."""
    found = classes_of(values, names, where)
    return without_gaps(found, found.labels or (), config.num_classes, where)


def is_table_of_images(data: Any) -> bool:
    """Whether data is a `datasets.Dataset` with images and without transforms."""
    if not type(data).__module__.startswith("datasets.") or not hasattr(data, "features"):
        return False
    images = any(type(kind).__name__ == "Image" for kind in data.features.values())
    return images and data.format["type"] is None


class TableImages:
    """The images of a `datasets.Dataset`, decoded like files."""

    def __init__(self, table: Any, config: DataConfig) -> None:
        self.name, self.split, self.table = NAME, config.split, table
        self.column = image_column_of(table, NAME, config.image_column)
        found, label = Classes(None, (), "data.num_classes is 0"), None
        if config.num_classes:
            label = label_column_of(table, NAME, config.label_column, self.column)
            found = Classes(None, (), "data has no column of classes")
        if label is not None:
            names, where = names_of(table, label), f"the column '{label}'"
            found = numbered(list(table[label]), names, where, config)
            if found.labels is None:
                todo = "set data.num_classes=0 to train without classes"
                raise InputError(f"{found.reason}: {todo}")
        self.labels, self.class_names, self.unlabelled = found.labels, found.names, found.reason
        self.notes = [] if label is None else [f"labels: the column '{label}'"]
        self.fingerprint = f"{table._fingerprint} {self.column} {label}"

    def __len__(self) -> int:
        return len(self.table)

    def where(self, row: int) -> str:
        return f"row {row}"

    def openers(self, rows: range) -> Sequence[Opener]:
        return [partial(self.image, row) for row in rows]

    def image(self, row: int) -> Image.Image:
        found: Image.Image = self.table[row][self.column]
        return found


def images_of_table(table: Any, config: DataConfig) -> Dataset:
    """The dataset of images in a `datasets.Dataset`, resized and cropped to data.shape."""
    channels, height, width = image_shape(config.shape)
    images = TableImages(table, config)
    return cached(images, (height, width), channels, config.range, config.max_unreadable)
