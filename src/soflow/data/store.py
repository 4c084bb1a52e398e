"""Storing rows: a folder of shards, made piece by piece, that is either whole or says what it lacks. Read by shards.py.

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
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from soflow.data.shards import VERSION, shard_file
from soflow.errors import InputError, RunError, first_line
from soflow.system.atomic import (
    cannot_write,
    is_partial,
    remove_old_partials,
    replace_file,
    write_json,
    write_text,
)
from soflow.system.fingerprints import checksum
from soflow.system.records import natural, read_json

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
RECORD = {
    "rows": natural,
    "checksum": str,
    "labels": ([natural], None),
    "skipped": [str],
    "done": {...: natural},
}


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
            raise OtherWork(
                f"{folder} holds something else already: choose a new folder with --out"
            )
        write_json(file, plan)
    try:
        begun = read_json(file)
    except RunError:
        raise OtherWork(
            f"{file} is damaged: delete {folder} and run the same command again"
        ) from None
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


def record_file(folder: Path, number: int) -> Path:
    return shard_file(folder, number).with_suffix(".json")


def good_shard(folder: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that was written before, if its rows are still those."""
    try:
        record = read_json(record_file(folder, number), RECORD)
        return (
            record
            if record and checksum(shard_file(folder, number)) == record["checksum"]
            else None
        )
    except (OSError, RunError):
        return None


def write_shard(folder: Path, number: int, piece: Piece) -> dict[str, Any]:
    """Writes rows, then the record that makes them count."""
    content = io.BytesIO()
    np.save(
        content, piece.rows
    )  # not into the file: numpy does not notice a disk that takes no more
    replace_file(shard_file(folder, number), content.getbuffer())
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


def finish(
    folder: Path, plan: dict[str, Any], shards: int, mine: dict[int, dict[str, Any]]
) -> bool:
    """Writes the index if every shard is there and good; says whether it is. mine: the records of the shards that this
    process has made or looked at itself.

    Each process ends with this, so the last of them finds all shards good; where two do, they write the same index.
    """
    others = [number for number in range(shards) if number not in mine]
    if not all(record_file(folder, number).is_file() for number in others):
        return False
    with ThreadPoolExecutor() as pool:
        found = dict(zip(others, pool.map(partial(good_shard, folder), others), strict=True))
    read = [
        record
        for number in range(shards)
        if (record := mine.get(number) or found[number]) is not None
    ]
    if len(read) < shards:
        return False
    skipped = [reason for one in read for reason in one["skipped"]]
    if len(skipped) > MAY_BE_BAD * plan["count"]:
        raise too_many_bad(skipped, len(skipped), plan["count"])
    if skipped:
        write_text(folder / "skipped.txt", "".join(f"{reason}\n" for reason in skipped))
    labels = (
        None
        if any(one.get("labels") is None for one in read)
        else [label for one in read for label in one["labels"]]
    )
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
