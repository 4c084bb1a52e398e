"""Writes a store of rows, shard by shard. shards.py reads it.

    plan.json                the settings of the store; rows of different plans are never mixed
    shard-00000.npy          rows (n, ...)
    shard-00000.json         number of rows, checksum, labels, and the items left out
    index.json               written when all shards are complete
    skipped.txt              the items left out and the reasons, one per line

Every file is written under a temporary name and then renamed. Shards are independent, so several
processes can each write some of them. The process that finds all shards complete writes the index.
A process never writes the shards of another process. Interrupted work resumes with the first
missing shard.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict

from soflow.data.shards import Index, shard_file
from soflow.errors import InputError, RunError, first_line
from soflow.system.atomic import (
    cannot_write,
    is_partial,
    remove_old_partials,
    replace_file,
    write_text,
)
from soflow.system.fingerprints import checksum
from soflow.system.progress import Task
from soflow.system.records import Count, Label, Record

#: The maximum bytes of a shard, and the minimum number of shards, so that processes can share them.
SHARD_BYTES, LEAST_SHARDS = 2**26, 16
#: The default maximum fraction of unreadable items.
MAX_UNREADABLE = 0.01


class OtherWork(InputError):
    """The folder contains a different store or other files."""


class Plan(Record):
    """plan.json: the settings of a store. Subclasses add the settings that its rows depend on."""

    version: Literal[1] = 1
    kind: str  # the kind of rows
    count: Count  # items of the source
    per_shard: Count  # items per shard

    def ranges(self) -> list[range]:
        """The items of each shard."""
        firsts = range(0, self.count, self.per_shard)
        return [range(first, min(first + self.per_shard, self.count)) for first in firsts]


class AnyPlan(Record):
    """A plan of any kind and version."""

    model_config = ConfigDict(extra="allow")

    kind: Any = None


@dataclass
class Piece:
    """The rows (n, ...) and labels made from a range of items.

    `skipped` has one reason per item left out. `done` counts the items that were changed, by
    description of the change.
    """

    rows: np.ndarray
    labels: list[int] | None
    skipped: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)


class ShardRecord(Record):
    """shard-NNNNN.json: the record of a complete shard. See `Piece` and `Index`."""

    rows: Count
    checksum: str
    labels: list[Label] | None = None
    skipped: list[str]
    done: dict[str, Count]


def make_store(
    folder: Path,
    plan: Plan,
    make: Callable[[range], Piece],
    process: int = 0,
    processes: int = 1,
    task: Task | None = None,
    max_unreadable: float = MAX_UNREADABLE,
) -> bool:
    """Writes the shards of this process.

    Args:
        folder: The folder of the store.
        plan: The settings of the store.
        make: Converts a range of items into rows.
        process: The index of this process.
        processes: The number of processes.
        task: Updated with the number of items done by this process.
        max_unreadable: The maximum fraction of unreadable items.

    Returns:
        Whether the store is complete. If not, other processes are still writing.

    Raises:
        OtherWork: If the folder contains a different store or other files.
        InputError: If too many items are unreadable.
        RunError: If the source cannot be read or the folder cannot be written.
    """
    ranges = plan.ranges()
    if process >= len(ranges):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old_partials(folder)
        keep_to_plan(folder, plan)
        done = 0
        mine: dict[int, ShardRecord] = {}
        for number in range(process, len(ranges), processes):
            shard = good_shard(folder, number)
            if shard is None:
                # Until this shard is written again, no process may consider the store complete.
                record_file(folder, number).unlink(missing_ok=True)
                shard = write_shard(folder, number, made(make, ranges[number]))
            mine[number] = shard
            done += len(ranges[number])
            if task is not None:
                task.update(done)
        return finish(folder, plan, mine, max_unreadable)
    except OSError as error:
        if not folder.is_dir():
            return False  # another process found the store complete and moved it
        raise cannot_write(folder, error) from None


def made(make: Callable[[range], Piece], items: range) -> Piece:
    """Calls `make`. Raises RunError if the source cannot be read."""
    try:
        return make(items)
    except OSError as error:
        why = error.strerror or first_line(error)
        what = f"cannot read {error.filename or 'the source'}: {why}"
        raise RunError(f"{what}: make it readable, and run the same command again") from None


def items_of_a_shard(count: int, item_bytes: int) -> int:
    """The number of items per shard, so that shards are small and processes can share them."""
    return max(1, min(SHARD_BYTES // item_bytes, -(-count // LEAST_SHARDS)))


def combined(
    parts: Sequence[Piece | ShardRecord],
) -> tuple[list[int] | None, list[str], dict[str, int]]:
    """Labels, skipped items and changes of several parts of a store, in order."""
    labelled = all(part.labels is not None for part in parts)
    labels = [label for part in parts for label in part.labels or ()] if labelled else None
    skipped = [reason for part in parts for reason in part.skipped]
    done: Counter[str] = sum((Counter(part.done) for part in parts), Counter())
    return labels, skipped, dict(done)


def keep_to_plan(folder: Path, plan: Plan) -> None:
    """Writes the plan. Raises OtherWork if the folder was started with another plan."""
    file = folder / "plan.json"
    if not file.is_file():
        strange = any(not is_partial(entry) for entry in folder.iterdir())
        if strange and not file.is_file():  # another process may have just written the plan
            raise OtherWork(f"{folder} is not empty: choose a new folder with --out")
        plan.write(file)
    try:
        started = AnyPlan.read(file)
    except RunError:
        raise OtherWork(f"{file} is damaged: delete {folder} and run the command again") from None
    before = {} if started is None else started.model_dump()
    for key, old, new in differences(before, plan.model_dump(mode="json")):
        what = f"with {key}={old}, not {new}"
        if key == "source":  # a fingerprint
            what = "with other images or another data.range"
        raise OtherWork(f"{folder} was started {what}: choose another folder with --out")


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    """Yields keys whose values differ, with both values. Inner mappings are compared by key."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new)
        elif old != new:
            yield key, old, new


def record_file(folder: Path, number: int) -> Path:
    return shard_file(folder, number).with_suffix(".json")


def good_shard(folder: Path, number: int) -> ShardRecord | None:
    """The record of a shard if it exists and its checksum is correct; otherwise None."""
    try:
        shard = ShardRecord.read(record_file(folder, number))
        good = shard is not None and checksum(shard_file(folder, number)) == shard.checksum
        return shard if good else None
    except (OSError, RunError):
        return None


def write_shard(folder: Path, number: int, piece: Piece) -> ShardRecord:
    """Writes the rows, then the record that marks the shard as complete."""
    content = io.BytesIO()
    np.save(content, piece.rows)  # in memory first, since np.save does not detect a full disk
    checksum = replace_file(shard_file(folder, number), content.getbuffer())
    counts = {"labels": piece.labels, "skipped": piece.skipped, "done": piece.done}
    shard = ShardRecord(rows=len(piece.rows), checksum=checksum, **counts)
    shard.write(record_file(folder, number))
    return shard


def require_few_bad(
    folder: Path, bad: int, count: int, max_unreadable: float, such: str = ""
) -> None:
    """Raises InputError if too many items are unreadable. `such` is an example for the message."""
    if bad > max_unreadable * count:
        what = f"{bad:,} of {count:,} images cannot be read, more than data.max_unreadable="
        what += f"{max_unreadable:.3g} allows" + (f", such as {such}" if such else "")
        raise InputError(
            f"{what}: repair or remove the images listed in {folder / 'skipped.txt'}, or set "
            f"data.max_unreadable={min(1, round(bad / count + 0.01, 2))} to leave them out"
        )


def finish(
    folder: Path, plan: Plan, mine: Mapping[int, ShardRecord], max_unreadable: float
) -> bool:
    """Writes the index if all shards are complete. Returns whether they are.

    Every process calls this at the end, so the last process finds all shards. If two processes do,
    they write the same index. `mine` has the shards that this process wrote or checked. If too many
    items are unreadable, the shards are kept: with a larger limit, images are not read again.
    """
    numbers = range(len(plan.ranges()))
    others = [number for number in numbers if number not in mine]
    if not all(record_file(folder, number).is_file() for number in others):
        return False
    with ThreadPoolExecutor() as pool:
        found = zip(others, pool.map(partial(good_shard, folder), others), strict=True)
        mine = {**mine, **{number: shard for number, shard in found if shard is not None}}
    if len(mine) < len(numbers):
        return False
    shards = [mine[number] for number in numbers]
    labels, skipped, done = combined(shards)
    if skipped:
        write_text(folder / "skipped.txt", "".join(f"{reason}\n" for reason in skipped))
    require_few_bad(folder, len(skipped), plan.count, max_unreadable, "".join(skipped[:1]))
    rows, checksums = [shard.rows for shard in shards], [shard.checksum for shard in shards]
    index = Index(rows=rows, checksums=checksums, labels=labels, skipped=len(skipped), done=done)
    index.write(folder / "index.json")
    return True
