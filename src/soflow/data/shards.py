"""Stored rows: a folder of memory-mapped shards, as store.py makes it. What is damaged or missing in it is named."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.data.npz import UNREADABLE
from soflow.errors import RunError, first_line
from soflow.system.atomic import write_json
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import checksum, fingerprint_of
from soflow.system.records import damaged, natural, read_json

VERSION = 1
#: What index.json has beside the plan: of each shard its rows and their checksum, of each row its label.
INDEX = {
    "version": natural,
    "rows": [natural],
    "checksums": [str],
    "labels": ([natural], None),
    "done": {...: natural},
}


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


class Shards:
    """The rows of a store, (N, ...), memory-mapped: what is not looked at costs no memory. Its files have the names that
    they are made with; none is taken from the index.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        counts = {
            shard_file(folder, number): rows for number, rows in enumerate(index["rows"]) if rows
        }
        self.parts = [mapped(file) for file in counts]
        for part, (file, rows) in zip(self.parts, counts.items(), strict=True):
            first = self.parts[0]
            if (
                part.shape != (rows, *first.shape[1:])
                or part.dtype != first.dtype
                or part.dtype.kind not in "fu"
            ):
                raise RunError(
                    f"{file} is damaged: it holds {part.dtype}{list(part.shape)}, not {rows:,} rows as the others"
                )
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])
        self.dtype = torch.from_numpy(np.empty(0, self.parts[0].dtype)).dtype
        self.checksums = tuple(index["checksums"])

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


def open_store(folder: Path) -> tuple[Shards, dict[str, Any]]:
    """The rows and the index of a whole store. Raises RunError that names what is missing or damaged.

    Checksums are compared when a file is first seen, or seen changed.
    """
    index = read_json(folder / "index.json", INDEX)
    if index.get("version") != VERSION:
        raise RunError(
            f"{folder} is not whole, or of another version of soflow: make it again with the same command"
        )
    rows, labels = index["rows"], index.get("labels")
    if len(rows) != len(index["checksums"]) or (labels is not None and len(labels) != sum(rows)):
        raise damaged(folder / "index.json")
    verify(folder, index["checksums"])
    if not any(index["rows"]):
        raise RunError(f"{folder} has no rows")
    return Shards(folder, index), index


def mapped(file: Path) -> np.ndarray:
    """The rows of a shard. Raises RunError where they cannot be read."""
    try:
        rows: np.ndarray = np.lib.format.open_memmap(file, mode="r")
        return rows
    except UNREADABLE as error:
        raise RunError(f"{file} is damaged: {first_line(error)}") from None


def verify(folder: Path, checksums: Sequence[str]) -> None:
    """Raises RunError naming the first shard that is missing or damaged."""
    seen_file = cache_folder() / "seen" / f"{fingerprint_of(str(folder.resolve()))}.json"
    try:
        seen = read_json(seen_file)
    except RunError:
        seen = {}  # only spares time
    files = [shard_file(folder, number) for number in range(len(checksums))]
    stamps: dict[str, Any] = {}
    for file, expected in zip(files, checksums, strict=True):
        if not file.is_file():
            raise RunError(f"{file} is missing: make it again with the command that made {folder}")
        stat = file.stat()
        stamps[file.name] = [expected, stat.st_size, stat.st_mtime_ns]
    new = [file for file in files if seen.get(file.name) != stamps[file.name]]
    with ThreadPoolExecutor() as pool:
        for file, found in zip(new, pool.map(checksum, new), strict=True):
            if found != stamps[file.name][0]:
                told = "its checksum is not the one recorded"
                raise RunError(
                    f"{file} is damaged ({told}): run the command that made it again, which mends it"
                )
    if new:
        with suppress(RunError, OSError):  # a cache that cannot be written only costs time
            seen_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(seen_file, stamps)
