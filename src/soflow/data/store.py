"""Stored rows: a folder of memory-mapped shards, made piece by piece, that is either whole or says what it lacks.

    plan.json                what is being made; work of another plan is never mixed in
    shard-00000.npy          rows (n, ...)
    shard-00000.json         how many rows, their checksum and labels, which items of the source were skipped and why
    index.json               written when all shards are there
    skipped.txt              what was left out and why, a line each

Every file is written beside its place and renamed. Shards do not depend on one another, so several processes, each with its
share of them, need not know of each other: whichever finds all shards there and good writes the index. One that finds a
shard of another missing or damaged leaves it to that one, which makes it and then looks at all of them. Interrupted work
goes on with the first shard that is missing.
"""

import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soflow.data.npz import UNREADABLE
from soflow.errors import InputError, RunError, first_line
from soflow.files import (
    beside,
    cache_folder,
    cannot_write,
    checksum,
    damaged,
    digest,
    is_partial,
    natural,
    read_json,
    remove_old_partials,
    write_json,
    write_text,
)

VERSION = 1
#: Bytes of a shard, at most; and shards of a store, at least, so that several processes have something to share.
SHARD_BYTES, LEAST_SHARDS = 2**26, 16
#: The share of a source's items that may be unreadable.
MAY_BE_BAD = 0.01


class OtherWork(InputError):
    """The folder of a store holds something else than what is to be made there."""


@dataclass
class Piece:
    """What a range of a source's items became: rows (n, ...), the label of each row, reasons for the items left out, and
    how often what was done to items beyond reading them.
    """

    rows: np.ndarray
    labels: list[int] | None
    skipped: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)


#: shard-NNNNN.json.
RECORD = {"rows": natural, "checksum": str, "labels": ([natural], None), "skipped": [str], "done": {...: natural}}
#: What index.json has beside the plan: of each shard its rows and their checksum, of each row its label.
INDEX = {"version": natural, "rows": [natural], "checksums": [str], "labels": ([natural], None), "done": {...: natural}}


def make_store(
    folder: Path,
    plan: dict[str, Any],
    count: int,
    per_shard: int,
    make: Callable[[range], Piece],
    process: int = 0,
    processes: int = 1,
    on_done: Callable[[int], None] = lambda done: None,
) -> bool:
    """Makes this process's share of a store of a source's `count` items, `per_shard` in each; True once it is whole.

    `make` turns a range of items into rows. `on_done` hears how many items this process is through with. Raises OtherWork
    where the folder holds something else, InputError where more than 1 % of the items cannot be read, RunError where the
    source cannot be read or the folder cannot be written.
    """
    plan = {"version": VERSION, **plan, "count": count, "per_shard": per_shard}
    ranges = [range(first, min(first + per_shard, count)) for first in range(0, count, per_shard)]
    if process >= len(ranges):
        return False  # nothing is left for this one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old_partials(folder)
        keep_to_plan(folder, plan)
        bad = done = 0
        mine: dict[int, dict[str, Any]] = {}
        for number in range(process, len(ranges), processes):
            record = good_shard(folder, number)
            if record is None:
                # until it is made again, nobody takes the store for whole
                record_file(folder, number).unlink(missing_ok=True)
                record = write_shard(folder, number, made(make, ranges[number]))
            mine[number] = record
            bad += len(record["skipped"])
            if bad > MAY_BE_BAD * count:
                raise too_many_bad(record["skipped"], bad, count)
            done += len(ranges[number])
            on_done(done)
        return finish(folder, plan, len(ranges), mine)
    except OSError as error:
        if not folder.is_dir():
            return False  # another process saw it whole first, and has taken it
        raise cannot_write(folder, error) from None


def made(make: Callable[[range], Piece], items: range) -> Piece:
    """What `make` makes of some items. Raises RunError where the source cannot be read."""
    try:
        return make(items)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        told = f"cannot read{where or ' the source'}: {error.strerror or first_line(error)}"
        raise RunError(f"{told}; when it can be read again, the same command goes on") from None


def items_of_a_shard(count: int, item_bytes: int) -> int:
    """How many of `count` items to put into a shard: neither large files nor so few that there is nothing to share."""
    return max(1, min(SHARD_BYTES // item_bytes, -(-count // LEAST_SHARDS)))


def keep_to_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Notes the plan, or raises OtherWork where the folder was begun with another."""
    file = folder / "plan.json"
    if not file.is_file():
        strange = any(not is_partial(entry) for entry in folder.iterdir())
        if strange and not file.is_file():  # else another process has just written it
            raise OtherWork(f"{folder} holds something else already: choose a new folder with --out")
        write_json(file, plan)
    try:
        begun = read_json(file)
    except RunError:
        raise OtherWork(f"{file} is damaged: delete {folder} and run the same command again") from None
    for key, before, now in differences(begun, plan):
        told = f"with {key}={before}, this is {now}"
        if key == "source":  # digests, which say nothing to people
            told = "with images that are others now, or were changed (names, sizes or times)"
        raise OtherWork(f"{folder} was begun {told}: choose another folder with --out")


def differences(begun: dict[str, Any], plan: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each key whose value is another now, with both values; those of inner mappings one by one."""
    for key, now in plan.items():
        before = begun.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now)
        elif before != now:
            yield key, before, now


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"


def record_file(folder: Path, number: int) -> Path:
    return shard_file(folder, number).with_suffix(".json")


def good_shard(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that was written before, if its rows are still those."""
    try:
        record = read_json(record_file(folder, number), RECORD)
        return record if record and checksum(shard_file(folder, number)) == record["checksum"] else None
    except (OSError, RunError):
        return None


def write_shard(folder: Path, number: int, piece: Piece) -> dict[str, Any]:
    """Writes rows, then the record that makes them count."""
    file = shard_file(folder, number)
    partial = beside(file)
    try:
        content = io.BytesIO()
        np.save(content, piece.rows)  # not into the file: numpy does not notice a disk that takes no more
        with partial.open("wb") as stream:
            stream.write(content.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    record = {
        "rows": len(piece.rows),
        "checksum": f"{zlib.crc32(content.getbuffer()):08x}",
        "labels": piece.labels,
        "skipped": piece.skipped,
        "done": piece.done,
    }
    write_json(record_file(folder, number), record)
    return record


def too_many_bad(skipped: Sequence[str], bad: int, count: int) -> InputError:
    return InputError(
        f"{bad:,} or more of {count:,} images cannot be read, such as {skipped[-1]}: more than {MAY_BE_BAD:.0%} is not "
        f"training data; mend or remove them"
    )


def finish(folder: Path, plan: dict[str, Any], shards: int, mine: dict[int, dict[str, Any]]) -> bool:
    """Writes the index if every shard is there and good; says whether it is. mine: the records of the shards that this
    process has made or looked at itself.

    Each process ends with this, so the last of them finds all shards good; where two do, they write the same index.
    """
    others = [number for number in range(shards) if number not in mine]
    if not all(record_file(folder, number).is_file() for number in others):
        return False
    with ThreadPoolExecutor() as pool:
        found = dict(zip(others, pool.map(partial(good_shard, folder), others), strict=True))
    read = [record for number in range(shards) if (record := mine.get(number) or found[number]) is not None]
    if len(read) < shards:
        return False
    skipped = [reason for one in read for reason in one["skipped"]]
    if len(skipped) > MAY_BE_BAD * plan["count"]:
        raise too_many_bad(skipped, len(skipped), plan["count"])
    if skipped:
        write_text(folder / "skipped.txt", "".join(f"{reason}\n" for reason in skipped))
    labels = None if any(one.get("labels") is None for one in read) else [label for one in read for label in one["labels"]]
    done: dict[str, int] = {}
    for one in read:
        for what, times in one["done"].items():
            done[what] = done.get(what, 0) + times
    index = {
        **plan,
        "rows": [one["rows"] for one in read],
        "checksums": [one["checksum"] for one in read],
        "labels": labels,
        "skipped": len(skipped),
        "done": done,
    }
    write_json(folder / "index.json", index)
    return True


class Shards:
    """The rows of a store, (N, ...), memory-mapped: what is not looked at costs no memory. Its files have the names that
    they are made with; none is taken from the index.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        counts = {shard_file(folder, number): rows for number, rows in enumerate(index["rows"]) if rows}
        self.parts = [mapped(file) for file in counts]
        for part, (file, rows) in zip(self.parts, counts.items(), strict=True):
            first = self.parts[0]
            if part.shape != (rows, *first.shape[1:]) or part.dtype != first.dtype or part.dtype.kind not in "fu":
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
        raise RunError(f"{folder} is not whole, or of another version of soflow: make it again with the same command")
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
    seen_file = cache_folder() / "seen" / f"{digest(str(folder.resolve()))}.json"
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
                raise RunError(f"{file} is damaged ({told}): run the command that made it again, which mends it")
    if new:
        with suppress(RunError, OSError):  # a cache that cannot be written only costs time
            seen_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(seen_file, stamps)
