"""Makes a store of rows, shard by shard. shards.py reads it.

    plan.json                what is being made; rows of different plans are never mixed
    shard-00000.npy          rows (n, ...)
    shard-00000.json         their number, checksum and labels, and the items left out
    index.json               written when all shards are there
    skipped.txt              the items left out and why, one per line

Every file is written under another name and renamed. Shards are independent, so several
processes can each make some of them: the one that finds all shards whole writes the index. A
shard of another process that is missing or damaged is left to that process. Interrupted work
continues with the first missing shard.
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

#: The most bytes of a shard, and the fewest shards of a store, so that processes can share it.
SHARD_BYTES, LEAST_SHARDS = 2**26, 16
#: The fraction of a source's items that may be unreadable, by default.
MAY_BE_BAD = 0.01


class OtherWork(InputError):
    """The folder of a store holds something other than what is to be made there."""


class Plan(Record):
    """plan.json: what a store is made from. Subclasses add the settings that its rows depend on."""

    version: Literal[1] = 1
    kind: str  # what the rows are
    count: Count  # items of the source
    per_shard: Count  # of which a shard holds so many

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
    """What a range of a source's items becomes: rows (n, ...) with their labels.

    skipped: one reason per item left out. done: how often items were changed, by what was done.
    """

    rows: np.ndarray
    labels: list[int] | None
    skipped: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)


class ShardRecord(Record):
    """shard-NNNNN.json: a shard that is whole. See `Piece` and `Index`."""

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
    may_be_bad: float = MAY_BE_BAD,
) -> bool:
    """Makes the shards that fall to this process.

    Args:
        folder: The folder of the store.
        plan: What is made.
        make: Turns a range of items into rows.
        process: The index of this process.
        processes: The number of processes.
        task: Is updated with the number of items done by this process.
        may_be_bad: The fraction of items that may be unreadable.

    Returns:
        Whether the store is whole; other processes may still be at work.

    Raises:
        OtherWork: If the folder holds something else.
        InputError: If more of the items cannot be read.
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
                # No process may take the store for whole until this shard is made again.
                record_file(folder, number).unlink(missing_ok=True)
                shard = write_shard(folder, number, made(make, ranges[number]))
            mine[number] = shard
            done += len(ranges[number])
            if task is not None:
                task.update(done)
        return finish(folder, plan, mine, may_be_bad)
    except OSError as error:
        if not folder.is_dir():
            return False  # another process found it whole and has moved it
        raise cannot_write(folder, error) from None


def made(make: Callable[[range], Piece], items: range) -> Piece:
    """What `make` makes of some items. Raises RunError if the source cannot be read."""
    try:
        return make(items)
    except OSError as error:
        why = error.strerror or first_line(error)
        what = f"cannot read {error.filename or 'the source'}: {why}"
        raise RunError(f"{what}; make it readable and run the same command again") from None


def items_of_a_shard(count: int, item_bytes: int) -> int:
    """How many of `count` items go into a shard: no large files, and enough of them to share."""
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
    """Writes the plan. Raises OtherWork if the folder was begun with another one."""
    file = folder / "plan.json"
    if not file.is_file():
        strange = any(not is_partial(entry) for entry in folder.iterdir())
        if strange and not file.is_file():  # another process may just have written it
            raise OtherWork(f"{folder} is not empty: choose a new folder with --out")
        plan.write(file)
    try:
        begun = AnyPlan.read(file)
    except RunError:
        raise OtherWork(f"{file} is damaged: delete {folder} and run the command again") from None
    before = {} if begun is None else begun.model_dump()
    for key, old, new in differences(before, plan.model_dump(mode="json")):
        what = f"with {key}={old}, this is {new}"
        if key == "source":  # a fingerprint
            what = "with other images or another data.range"
        raise OtherWork(f"{folder} was begun {what}: choose another folder with --out")


def differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    """Each key with its old and new value if they differ; inner mappings are compared by key."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new)
        elif old != new:
            yield key, old, new


def record_file(folder: Path, number: int) -> Path:
    return shard_file(folder, number).with_suffix(".json")


def good_shard(folder: Path, number: int) -> ShardRecord | None:
    """The record of a shard, if there is one and the rows have its checksum."""
    try:
        shard = ShardRecord.read(record_file(folder, number))
        good = shard is not None and checksum(shard_file(folder, number)) == shard.checksum
        return shard if good else None
    except (OSError, RunError):
        return None


def write_shard(folder: Path, number: int, piece: Piece) -> ShardRecord:
    """Writes the rows, then the record that makes them count."""
    content = io.BytesIO()
    np.save(content, piece.rows)  # numpy itself does not notice a full disk
    checksum = replace_file(shard_file(folder, number), content.getbuffer())
    counts = {"labels": piece.labels, "skipped": piece.skipped, "done": piece.done}
    shard = ShardRecord(rows=len(piece.rows), checksum=checksum, **counts)
    shard.write(record_file(folder, number))
    return shard


def require_few_bad(folder: Path, bad: int, count: int, may_be_bad: float, such: str = "") -> None:
    """Raises InputError if too many items cannot be read, `such` as one; skipped.txt lists them."""
    if bad > may_be_bad * count:
        what = f"{bad:,} of {count:,} images cannot be read, more than {may_be_bad:.3g} of them"
        what += f", such as {such}" if such else ""
        raise InputError(
            f"{what}: repair or remove those listed in {folder / 'skipped.txt'}, or set "
            f"data.max_unreadable={min(1, round(bad / count + 0.01, 2))} to leave them out"
        )


def finish(folder: Path, plan: Plan, mine: Mapping[int, ShardRecord], may_be_bad: float) -> bool:
    """Writes the index if every shard is whole, and says whether it is.

    Every process ends with this, so the last one finds all shards. If two do, they write the
    same index. mine: the shards that this process has made or checked. The shards stay if too many
    items are bad, so that a larger limit needs no second reading.
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
    require_few_bad(folder, len(skipped), plan.count, may_be_bad, "".join(skipped[:1]))
    rows, checksums = [shard.rows for shard in shards], [shard.checksum for shard in shards]
    index = Index(rows=rows, checksums=checksums, labels=labels, skipped=len(skipped), done=done)
    index.write(folder / "index.json")
    return True
