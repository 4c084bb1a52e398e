"""Images from Hugging Face datasets: by name from the Hub, or from a local folder of parquet files.

Columns are found by their types: the image column, and the class column if there is one.
"""

import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.data.sources import Dataset
from soflow.errors import InputError

#: Rows decoded at once.
ROWS = 1000
#: Pillow's names of what is read.
MODES = ("1", "L", "P", "RGB")


@lru_cache(maxsize=2)
def load_images(path: str, split: str, channels: int) -> Dataset:
    """The images of a split with their classes, as grey (1 channel) or RGB (3) in [-1, 1].

    Raises InputError where there is no such dataset or split, where it has no images or images of several sizes, and where
    the package `datasets` is missing.
    """
    table = open_split(path, split)
    image, label = columns(table, path)
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"data.shape asks for {channels} channels: images have 1 (grey) or 3 (RGB)")
    name = Path(path).name
    names = () if label is None else tuple(str(one) for one in table.features[label].names)
    labels = None if label is None else classes(table[label][:], len(names), name)
    return Dataset(name, split, decode(table, image, mode, name), labels, names)


def open_split(path: str, split: str) -> Any:
    """The split as `datasets` holds it, memory-mapped and not yet decoded."""
    try:
        import datasets
    except ImportError:
        raise InputError("data.source=huggingface needs the package datasets: pip install 'soflow[data]'") from None
    if not path:
        raise InputError("data.source=huggingface needs data.path: a name on the Hub, or a folder of parquet files")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(path)
    except Exception as error:  # whatever its readers, the file system and the network raise
        raise InputError(f"data.path={path} cannot be read: {str(error).splitlines()[0]}") from None
    if split not in splits:
        raise InputError(f"{path} has no split '{split}': its splits are {' and '.join(splits)}")
    return splits[split]


def columns(table: Any, path: str) -> tuple[str, str | None]:
    """The names of the image column and of the class column. Raises InputError where there is not one image column."""
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        told = f"one column of images and at most one of classes; its columns are {', '.join(table.features)}"
        raise InputError(f"{path} must have {told}")
    return images[0], labels[0] if labels else None


def classes(labels: list[int | None], count: int, name: str) -> Tensor:
    """The labels, (N,). Raises InputError for one that is no class, as in splits that are not labelled."""
    for i, label in enumerate(labels):
        if label is None or not 0 <= label < count:
            raise InputError(f"{name} is not labelled throughout: row {i} has {label}, its classes are 0 to {count - 1}")
    return torch.tensor(labels, dtype=torch.int64)


def pixels(table: Any, rows: slice, column: str, mode: str, name: str) -> list[np.ndarray]:
    """Some images as bytes. Raises InputError for one that cannot be decoded or that would lose something."""
    try:
        images = table[rows][column]
        unread = next((image.mode for image in images if image.mode not in MODES), None)
        if unread is None:
            return [np.asarray(image.convert(mode)) for image in images]
    except Exception as error:  # whatever decoders raise
        where = f"rows {rows.start} to {rows.stop - 1}"
        raise InputError(f"{name} has an image in {where} that cannot be decoded: {str(error).splitlines()[0]}") from None
    raise InputError(f"{name} has images of mode {unread}: grey and RGB of 8 bits are read ({', '.join(MODES)})")


def decode(table: Any, column: str, mode: str, name: str) -> Tensor:
    """All images of a column, (N, C, H, W) in [-1, 1]."""
    from tqdm import tqdm

    parts: list[Tensor] = []
    bar = tqdm(total=len(table), desc=f"reading {name}", unit=" images", leave=False, disable=not sys.stderr.isatty())
    with bar:
        for first in range(0, len(table), ROWS):
            images = pixels(table, slice(first, min(first + ROWS, len(table))), column, mode, name)
            sizes = {image.shape[1::-1] for image in images} | {tuple(part.shape[:1:-1]) for part in parts[:1]}
            if len(sizes) > 1:
                told = " and ".join(f"{width}x{height}" for width, height in sorted(sizes)[:2])
                raise InputError(f"{name} has images of several sizes, such as {told}: they must be of one")
            stack = np.stack(images)
            parts.append(torch.from_numpy(stack).view(*stack.shape[:3], -1).permute(0, 3, 1, 2))
            bar.update(len(images))
    return torch.cat(parts).float() / 127.5 - 1
