"""Images, decoded once and kept: the next run reads them in seconds.

The cache is a store (data/store.py) in the cache folder, under a name that stands for the source's content and the
settings. One process makes it while others wait; one that is killed leaves whole shards, which the next goes on from.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import UnidentifiedImageError

from soflow.data.dataset import Dataset, as_labels
from soflow.data.images import Images, Opener, decode
from soflow.data.shards import open_store
from soflow.data.store import OtherWork, Piece, items_of_a_shard, make_store
from soflow.errors import InputError, RunError, first_line
from soflow.system.atomic import cannot_write
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import fingerprint_of
from soflow.system.progress import counting
from soflow.system.text import printable

log = logging.getLogger(__name__)

#: Changes whenever images are decoded differently.
VERSION = 1
#: Images opened at a time, and decoded side by side.
CHUNK = 256


def cached(images: Images, size: int, channels: int) -> Dataset:
    """The images as bytes (N, size, size, channels), from the cache or decoded now and put there.

    Those that cannot be read are left out, counted and named in a file. Raises InputError where they are more than 1 %.
    """
    key = fingerprint_of(f"{VERSION} {images.fingerprint} {images.class_names} {size} {channels}")
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in images.name)[
        :40
    ]
    folder = cache_folder() / "data" / f"{name}-{images.split}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_suffix(".lock")):
            if not (folder / "index.json").is_file():
                decode_all(images, size, channels, folder)
            rows, index = whole(folder, lambda: decode_all(images, size, channels, folder))
    except OSError as error:
        raise cannot_write(folder, error) from None
    for text in remarks(index, folder):
        log.info(text)
    labels = as_labels(index.get("labels"), images.class_names, images.name)
    return Dataset(
        images.name, images.split, rows, labels, images.class_names, unlabelled=images.unlabelled
    )


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Keeps other processes out, or waits for the one that is in; the lock of a killed process is free."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("another process is reading the same images: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def whole(folder: Path, again: Callable[[], None]) -> tuple[Any, dict[str, Any]]:
    """The cache's rows and index; made again, with a remark, where they are damaged."""
    try:
        return open_store(folder)
    except RunError as error:
        log.info(f"{error}; reading the images again")
        (folder / "index.json").unlink(missing_ok=True)
        again()
        return open_store(folder)


def decode_all(images: Images, size: int, channels: int, folder: Path) -> None:
    plan = {"kind": "images", "name": images.name, "size": size, "channels": channels}
    try:
        with (
            counting(f"reading {images.name}", len(images)) as on_done,
            ThreadPoolExecutor() as pool,
        ):

            def make(rows: range) -> Piece:
                return decode_rows(images, rows, size, channels, pool)

            per_shard = items_of_a_shard(len(images), size * size * channels)
            try:
                make_store(folder, plan, len(images), per_shard, make, on_done=on_done)
            except OtherWork:  # a damaged plan, or one of another version: the folder is the cache's own, so it begins anew
                shutil.rmtree(folder)
                make_store(folder, plan, len(images), per_shard, make, on_done=on_done)
    except InputError:
        shutil.rmtree(
            folder
        )  # once the images are mended they are another source, with a cache of its own
        raise


def decode_rows(
    images: Images, rows: range, size: int, channels: int, pool: ThreadPoolExecutor
) -> Piece:
    """Some images as bytes; those that cannot be decoded are left out and named."""
    pixels: list[np.ndarray] = []
    labels: list[int] | None = None if images.labels is None else []
    skipped: list[str] = []
    done: Counter[str] = Counter()

    def attempt(opener: Opener) -> tuple[np.ndarray, set[str]] | str:
        try:
            return decode(opener, size, channels)
        except UnidentifiedImageError:
            return "it is no image"
        except Exception as error:  # whatever decoders raise
            return first_line(error)

    for first in range(rows.start, rows.stop, CHUNK):
        chunk = range(first, min(first + CHUNK, rows.stop))
        for row, result in zip(chunk, pool.map(attempt, images.openers(chunk)), strict=True):
            if isinstance(result, str):
                skipped.append(printable(f"{images.where(row)}: {result}"))
                continue
            pixels.append(result[0])
            done.update(result[1])
            if labels is not None and images.labels is not None:
                labels.append(images.labels[row])
    shape = (len(pixels), size, size, channels)
    return Piece(
        np.stack(pixels) if pixels else np.empty(shape, np.uint8), labels, skipped, dict(done)
    )


def remarks(index: dict[str, Any], folder: Path) -> list[str]:
    """What people should know about how the images were read."""
    count, size = index["count"], index["size"]
    told = [
        f"{index['name']}: {times:,} of {count:,} images {what}"
        for what, times in sorted(index["done"].items())
    ]
    told = [
        f"{text} to {size}x{size}" if text.endswith(("enlarged", "cropped")) else text
        for text in told
    ]
    if index["skipped"]:
        left_out = f"{index['skipped']:,} of {count:,} images cannot be read and are left out"
        told.append(f"{index['name']}: {left_out}; they are named in {folder / 'skipped.txt'}")
    return told
