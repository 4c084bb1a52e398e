"""The cache of decoded images, so that the next run starts in seconds.

A cache is a store (store.py) in the cache folder. Its name depends on the content of the source and
on the settings. One process writes it while the others wait. A killed process leaves complete
shards, and the next process continues with the first missing shard.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from PIL import UnidentifiedImageError

from soflow.config.schema import AskedRange
from soflow.data.dataset import Dataset, as_labels
from soflow.data.images import USUAL_SCALE, Images, Opener, Scale, decode, find_scale
from soflow.data.shards import Index, open_store
from soflow.data.store import (
    MAX_UNREADABLE,
    OtherWork,
    Piece,
    Plan,
    items_of_a_shard,
    make_store,
    require_few_bad,
)
from soflow.errors import InputError, RunError, first_line
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import fingerprint_of
from soflow.system.progress import Progress, track
from soflow.system.text import printable

log = logging.getLogger(__name__)

#: Increase this number when images are decoded differently.
VERSION = 3
#: Images that are opened and decoded in parallel.
CHUNK = 256


class ImagesPlan(Plan):
    """The plan of a cache. Everything else that rows depend on is part of the folder name."""

    kind: Literal["images"] = "images"
    name: str
    size: tuple[int, int]
    channels: int
    values: str  # the range of the values in the source files


def cached(
    images: Images,
    size: tuple[int, int],
    channels: int,
    asked: AskedRange = "auto",
    max_unreadable: float = MAX_UNREADABLE,
    progress: Progress = track,
) -> Dataset:
    """Decodes images, or reads them from the cache if they were decoded before.

    Unreadable images are left out and listed in a file.

    Args:
        images: The images.
        size: The height H and width W that images are resized and cropped to.
        channels: The number of channels C: 1 (grayscale) or 3 (RGB).
        asked: The range of values, `data.range`.
        max_unreadable: The maximum fraction of unreadable images.
        progress: Shows the number of decoded images.

    Returns:
        A dataset whose rows are bytes (N, H, W, C).

    Raises:
        InputError: If too many images are unreadable, or the range of values is not a usual one.
        RunError: If the cache folder cannot be written.
    """
    settings = f"{VERSION} {size} {channels} {asked}"
    key = fingerprint_of(f"{settings} {images.fingerprint} {images.class_names}")
    name = "".join(one if one.isalnum() or one in "-_" else "-" for one in images.name)[:40]
    folder = cache_folder() / "data" / f"{name}-{images.split}-{key}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with acquired(folder.with_suffix(".lock")):
            try:
                rows, index = open_store(folder)
                require_few_bad(folder, index.skipped, len(images), max_unreadable)
            except RunError as error:
                if (folder / "index.json").is_file():
                    log.info(f"{error}; reading the images again now")
                    (folder / "index.json").unlink()
                scale = find_scale(images, asked)
                decode_all(images, size, channels, scale, folder, max_unreadable, progress)
                rows, index = open_store(folder)
        plan = ImagesPlan.read(folder / "plan.json")
    except OSError as error:
        raise RunError(
            f"the cache folder {cache_folder()} cannot be written ({error.strerror}): set "
            "XDG_CACHE_HOME to a writable folder"
        ) from None
    for remark in remarks(images, size, index, folder):
        log.info(f"{images.name}: {remark}")
    notes = [f"values {plan.values} are scaled to -1 to 1"] if plan else []
    notes += images.notes
    labels = as_labels(index.labels, images.class_names, images.name)
    names, why = images.class_names, images.unlabelled
    return Dataset(
        images.name, images.split, rows, labels, names, unlabelled=why, notes=tuple(notes)
    )


def acquired(file: Path) -> AcquireReturnProxy:
    """Acquires a lock, waiting for other processes. The lock of a killed process is released."""
    lock = FileLock(file)
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        log.info("waiting for another process that is reading the same images")
        return lock.acquire()


def decode_all(
    images: Images,
    size: tuple[int, int],
    channels: int,
    scale: Scale,
    folder: Path,
    max_unreadable: float,
    progress: Progress,
) -> None:
    name, count = printable(images.name), len(images)
    per_shard = items_of_a_shard(count, size[0] * size[1] * channels)
    plan = ImagesPlan(
        name=name, size=size, channels=channels, values=str(scale), count=count,
        per_shard=per_shard,
    )  # fmt: skip
    with progress(f"reading {images.name}", count) as task, ThreadPoolExecutor() as pool:

        def make(rows: range) -> Piece:
            return decode_rows(images, rows, size, channels, pool, scale)

        try:
            make_store(folder, plan, make, task=task, max_unreadable=max_unreadable)
        except OtherWork:  # the plan is damaged or has another version
            shutil.rmtree(folder)
            make_store(folder, plan, make, task=task, max_unreadable=max_unreadable)


def decode_rows(
    images: Images,
    rows: range,
    size: tuple[int, int],
    channels: int,
    pool: Executor,
    scale: Scale = USUAL_SCALE,
) -> Piece:
    """Decodes a range of images to bytes. Unreadable images are left out and listed."""
    kept: dict[int, np.ndarray] = {}
    skipped: list[str] = []
    done: Counter[str] = Counter()

    def attempt(row: int, opener: Opener) -> tuple[np.ndarray, set[str]] | str:
        try:
            return decode(opener, size, channels, scale)
        except InputError as error:  # the range of values, which the user can set
            raise InputError(f"{printable(images.where(row))}: {error}") from None
        except UnidentifiedImageError:
            return "not an image"
        except Exception as error:  # decoders raise any exception
            return first_line(error)

    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        for row, result in zip(chunk, pool.map(attempt, chunk, images.openers(chunk)), strict=True):
            if isinstance(result, str):
                skipped.append(printable(f"{images.where(row)}: {result}"))
            else:
                kept[row], changes = result
                done.update(changes)
    pixels = np.array(list(kept.values()), np.uint8).reshape(-1, *size, channels)
    labels = None if images.labels is None else [images.labels[row] for row in kept]
    return Piece(pixels, labels, skipped, dict(done))


def remarks(images: Images, size: tuple[int, int], index: Index, folder: Path) -> Iterator[str]:
    """Log lines on how the images were read."""
    count = f"of {len(images):,} images"
    for what, times in sorted(index.done.items()):
        resized = f" to {size[0]}x{size[1]}" if what.endswith(("enlarged", "cropped")) else ""
        yield f"{times:,} {count} {what}{resized}"
    if index.skipped:
        what = f"{index.skipped:,} {count} cannot be read and are left out"
        yield f"{what}: they are listed in {folder / 'skipped.txt'}"
