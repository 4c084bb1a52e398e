"""The cache of decoded images, which the next run reads in seconds.

It is a store (store.py) in the cache folder, named after the content of the source and the
settings. One process makes it while others wait. A killed process leaves whole shards, and the
next one continues from there.
"""

import logging
import shutil
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from PIL import UnidentifiedImageError

from soflow.data.dataset import Dataset, as_labels
from soflow.data.images import Images, Opener, decode
from soflow.data.shards import Index, open_store
from soflow.data.store import OtherWork, Piece, Plan, items_of_a_shard, make_store
from soflow.errors import InputError, RunError, first_line
from soflow.system.atomic import cannot_write
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import fingerprint_of
from soflow.system.progress import Progress, track
from soflow.system.text import printable

log = logging.getLogger(__name__)

#: Changes whenever images are decoded differently.
VERSION = 1
#: Images opened and decoded in parallel.
CHUNK = 256


class ImagesPlan(Plan):
    """The plan of a cache; its folder is named after everything else that matters."""

    kind: Literal["images"] = "images"
    name: str
    size: int
    channels: int


def cached(images: Images, size: int, channels: int, progress: Progress = track) -> Dataset:
    """Decodes images, or reads them from the cache if they were decoded before.

    Images that cannot be read are left out, counted and named in a file.

    Args:
        size: The side H to which they are cropped.
        channels: C, 1 (grey) or 3 (RGB).

    Returns:
        A data set whose rows are bytes (N, H, H, C).

    Raises:
        InputError: If more than 1 % of the images cannot be read.
    """
    key = fingerprint_of(f"{VERSION} {images.fingerprint} {images.class_names} {size} {channels}")
    name = "".join(one if one.isalnum() or one in "-_" else "-" for one in images.name)[:40]
    folder = cache_folder() / "data" / f"{name}-{images.split}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with acquired(folder.with_suffix(".lock")):
            try:
                rows, index = open_store(folder)
            except RunError as error:
                if (folder / "index.json").is_file():
                    log.info(f"{error}; reading the images again")
                    (folder / "index.json").unlink()
                decode_all(images, size, channels, folder, progress)
                rows, index = open_store(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    log_remarks(images, size, index, folder)
    labels = as_labels(index.labels, images.class_names, images.name)
    names, why = images.class_names, images.unlabelled
    return Dataset(images.name, images.split, rows, labels, names, unlabelled=why)


def acquired(file: Path) -> AcquireReturnProxy:
    """A lock that no other process holds. The lock of a killed process is free."""
    lock = FileLock(file)
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        log.info("another process is reading the same images: waiting for it")
        return lock.acquire()


def decode_all(images: Images, size: int, channels: int, folder: Path, progress: Progress) -> None:
    name, count = printable(images.name), len(images)
    per_shard = items_of_a_shard(count, size * size * channels)
    plan = ImagesPlan(name=name, size=size, channels=channels, count=count, per_shard=per_shard)
    with progress(f"reading {images.name}", count) as task, ThreadPoolExecutor() as pool:
        make = partial(decode_rows, images, size=size, channels=channels, pool=pool)
        try:
            make_store(folder, plan, make, task=task)
        except OtherWork:  # a damaged plan or one of another version
            shutil.rmtree(folder)
            make_store(folder, plan, make, task=task)
        except InputError:
            shutil.rmtree(folder)  # repaired images get a cache of their own
            raise


def decode_rows(images: Images, rows: range, size: int, channels: int, pool: Executor) -> Piece:
    """Some images as bytes. Images that cannot be decoded are left out and named."""
    kept: dict[int, np.ndarray] = {}
    skipped: list[str] = []
    done: Counter[str] = Counter()

    def attempt(opener: Opener) -> tuple[np.ndarray, set[str]] | str:
        try:
            return decode(opener, size, channels)
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # decoders raise anything
            return first_line(error)

    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        for row, result in zip(chunk, pool.map(attempt, images.openers(chunk)), strict=True):
            if isinstance(result, str):
                skipped.append(printable(f"{images.where(row)}: {result}"))
            else:
                kept[row], changes = result
                done.update(changes)
    pixels = np.array(list(kept.values()), np.uint8).reshape(-1, size, size, channels)
    labels = None if images.labels is None else [images.labels[row] for row in kept]
    return Piece(pixels, labels, skipped, dict(done))


def log_remarks(images: Images, size: int, index: Index, folder: Path) -> None:
    """Says how the images were read."""
    count = f"of {len(images):,} images"
    for what, times in sorted(index.done.items()):
        resized = f" to {size}x{size}" if what.endswith(("enlarged", "cropped")) else ""
        log.info(f"{images.name}: {times:,} {count} {what}{resized}")
    if index.skipped:
        what = f"{images.name}: {index.skipped:,} {count} cannot be read and are left out"
        log.info(f"{what}; they are named in {folder / 'skipped.txt'}")
