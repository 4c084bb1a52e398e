"""Reads a store of rows: a folder of memory-mapped shards, written by store.py."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from soflow.data.npz import UNREADABLE
from soflow.errors import RunError, first_line
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import checksum, fingerprint_of
from soflow.system.records import Count, Label, Record


class Index(Record):
    """index.json of a complete store: rows and CRC-32 per shard, and the label of each row.

    `skipped` is the number of items of the source that were left out. `done` counts the items that
    were changed, by description of the change.
    """

    version: Literal[1] = 1
    rows: list[Count]
    checksums: list[str]
    labels: list[Label] | None = None
    skipped: Count = 0
    done: dict[str, Count] = Field(default_factory=dict)

    @model_validator(mode="after")
    def lengths_agree(self) -> "Index":
        if len(self.rows) != len(self.checksums):
            raise ValueError("the numbers of shards and checksums differ")
        if self.labels is not None and len(self.labels) != sum(self.rows):
            raise ValueError("the numbers of rows and labels differ")
        return self


class Stamp(Record):
    """The checksum, size and modification time of a shard when it was verified."""

    checksum: str
    size: int
    modified: int


class Seen(Record):
    """The verified shards by name. They are verified again only after a change."""

    shards: dict[str, Stamp] = Field(default_factory=dict)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


class Shards:
    """The rows of a store (N, ...), memory-mapped. File names are never taken from the index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.parts: list[np.ndarray] = []
        for number, rows in enumerate(index.rows):
            if rows:
                file = shard_file(folder, number)
                self.parts.append(part := mapped(file))
                first = self.parts[0]
                same = part.shape == (rows, *first.shape[1:]) and part.dtype == first.dtype
                if not same or part.dtype.kind not in "fu":
                    held = (
                        f"{part.dtype}{list(part.shape)} instead of {rows:,} rows like the others"
                    )
                    raise RunError(f"{file} is damaged: it has {held}")
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])
        self.dtype = torch.from_numpy(np.empty(0, self.parts[0].dtype)).dtype
        self.checksums = tuple(index.checksums)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), as (n, ...) in memory."""
        indices = which.numpy()
        numbers = np.searchsorted(self.ends, indices, side="right")
        rows = np.empty((len(indices), *self.shape[1:]), self.parts[0].dtype)
        for number in np.unique(numbers):
            here = numbers == number
            first = self.ends[number] - len(self.parts[number])
            rows[here] = self.parts[number][indices[here] - first]
        return torch.from_numpy(rows)


def open_store(folder: Path) -> tuple[Shards, Index]:
    """Opens a complete store. Verifies the checksums of files that are new or have changed.

    Raises:
        RunError: If the store is incomplete, or a file is missing or damaged.
    """
    index = Index.read(folder / "index.json")
    if index is None:
        raise RunError(f"{folder} is incomplete: run the same command again")
    verify(folder, index.checksums)
    if not any(index.rows):
        raise RunError(
            f"{folder} has no rows: delete it, and run the command that created it again"
        )
    return Shards(folder, index), index


def mapped(file: Path) -> np.ndarray:
    """The memory-mapped rows of a shard. Raises RunError if they cannot be read."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except UNREADABLE as error:
        raise RunError(f"{file} is damaged: {first_line(error)}") from None


def verify(folder: Path, checksums: list[str]) -> None:
    """Raises RunError for the first shard that is missing or damaged."""
    seen_file = cache_folder() / "seen" / f"{fingerprint_of(str(folder.resolve()))}.json"
    seen = None
    with suppress(RunError, OSError):
        seen = Seen.read(seen_file)
    stamps: dict[str, Stamp] = {}
    for number, expected in enumerate(checksums):
        file = shard_file(folder, number)
        if not file.is_file():
            raise RunError(f"{file} is missing: run the command that made {folder} again")
        stat = file.stat()
        stamps[file.name] = Stamp(checksum=expected, size=stat.st_size, modified=stat.st_mtime_ns)
    new = [name for name, one in stamps.items() if seen is None or seen.shards.get(name) != one]
    with ThreadPoolExecutor() as pool:
        found = pool.map(checksum, (folder / name for name in new))
        for name, value in zip(new, found, strict=True):
            if value != stamps[name].checksum:
                what = f"{folder / name} is damaged (its checksum differs from the recorded one)"
                raise RunError(f"{what}: run the command that made {folder} again to repair it")
    if new:
        with suppress(RunError, OSError):  # without the cache, the next start only takes longer
            seen_file.parent.mkdir(parents=True, exist_ok=True)
            Seen(shards=stamps).write(seen_file)
