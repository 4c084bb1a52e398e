"""Fingerprints of files: other content gives another one, the same content elsewhere the same.

Computing them takes reading. They are kept in the cache folder together with the inodes and times
of change of the files, which no archive and no copy can set. The next run compares only these.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from soflow.errors import RunError
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import checksum, checksum_of, fingerprint_of
from soflow.system.progress import Progress, track
from soflow.system.records import Record

#: Bytes read at either end of a file. Different images of the same length differ there: PNG ends
#: in a checksum, and other compressed formats hardly ever agree.
ENDS = 4096
#: Uncompressed images are read as a whole.
PLAIN = (".bmp",)
#: Files opened in parallel, which hides the latency of a network, and files per thread and task.
THREADS, CHUNK = 16, 256
#: Nanoseconds after which a second change of a file is sure to get another time.
SETTLED = 2 * 10**9


class File(NamedTuple):
    """A file by its path below some folder, with its size, times in nanoseconds and inode."""

    name: str
    size: int
    modified: int
    changed: int
    inode: int


class Known(Record):
    """A fingerprint computed before, valid as long as the files have the same stamp."""

    stamp: str
    content: str


def file_of(name: str, stat: os.stat_result) -> File:
    return File(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def last_change(file: File) -> int:
    """When a file was last changed; on Windows `changed` is when it was made."""
    return file.modified if os.name == "nt" else file.changed


def fingerprint_of_folder(root: Path, files: Sequence[File], progress: Progress = track) -> str:
    """A fingerprint of the images below a folder.

    It depends on names, sizes, times of modification and the bytes at either end of each file.
    """

    def lines(part: Sequence[File]) -> list[str]:
        return [f"{one[:3]} {ends(os.path.join(root, one.name), one.size)}" for one in part]

    def find() -> str:
        parts = [files[first : first + CHUNK] for first in range(0, len(files), CHUNK)]
        work = progress(f"reading the files of {root}", len(files))
        found: list[str] = []
        with work as task, ThreadPoolExecutor(THREADS) as pool:
            for some in pool.map(lines, parts):
                found += some
                task.update(len(found))
        return fingerprint_of("\n".join(found))

    return remembered(root, files, find)


def fingerprint_of_file(path: Path) -> str:
    """A fingerprint of everything in a file. Raises OSError if it cannot be read."""
    return remembered(path, [file_of(path.name, path.stat())], lambda: checksum(path))


def ends(path: str, size: int) -> int:
    """CRC-32 of both ends of a file, or of all of it; -1 if it cannot be read."""
    try:
        if size <= 2 * ENDS or path.lower().endswith(PLAIN):
            return int(checksum(Path(path)), 16)
        with open(path, "rb", buffering=0) as stream:
            first = stream.read(ENDS)
            stream.seek(size - ENDS)
            return int(checksum_of((first, stream.read(ENDS))), 16)
    except OSError:
        return -1


def remembered(place: Path, files: Sequence[File], find: Callable[[], str]) -> str:
    """The fingerprint that `find` computes, or the one computed before if no file has changed."""
    where = os.fspath(place.resolve())
    stamp = fingerprint_of("\n".join([where, *map(repr, files)]))
    kept = cache_folder() / "sources" / f"{fingerprint_of(where)}.json"
    with suppress(RunError, OSError):
        known = Known.read(kept)
        if known is not None and known.stamp == stamp:
            return known.content
    content = find()
    if max(map(last_change, files), default=0) < time.time_ns() - SETTLED:
        with suppress(RunError, OSError):  # without this cache the next run only takes longer
            kept.parent.mkdir(parents=True, exist_ok=True)
            Known(stamp=stamp, content=content).write(kept)
    return content
