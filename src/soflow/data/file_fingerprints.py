"""Content fingerprints of files, cached by inode and change time.

A fingerprint depends on the content of files, not on where they are. Computing it means reading the
files, so the cache folder keeps it with the inodes and change times (ctime) of the files. Copying
or unpacking files cannot set these. The next run only compares them.
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

#: Bytes read at both ends of a file. Different images of the same length differ there: PNG ends
#: with a checksum, and other compressed images almost never have equal ends.
ENDS = 4096
#: Uncompressed images, which are read completely.
PLAIN = (".bmp",)
#: Threads that read files, to hide network latency, and files per task.
THREADS, CHUNK = 16, 256
#: Nanoseconds after a change until a further change is certain to get another change time.
SETTLED = 2 * 10**9


class File(NamedTuple):
    """A file: its path relative to a folder, size in bytes, times in nanoseconds and inode."""

    name: str
    size: int
    modified: int
    changed: int
    inode: int


class Known(Record):
    """A cached fingerprint. It is valid while the files have the same stamp."""

    stamp: str
    content: str


def file_of(name: str, stat: os.stat_result) -> File:
    return File(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def last_change(file: File) -> int:
    """The time of the last change. On Windows, `changed` is the creation time."""
    return file.modified if os.name == "nt" else file.changed


def fingerprint_of_folder(root: Path, files: Sequence[File], progress: Progress = track) -> str:
    """A fingerprint of the image files below a folder.

    It depends on the name, size, modification time and first and last bytes of each file.
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
    """A fingerprint of the whole content of a file. Raises OSError if it cannot be read."""
    return remembered(path, [file_of(path.name, path.stat())], lambda: checksum(path))


def ends(path: str, size: int) -> int:
    """CRC-32 of both ends of a file, or of a whole small file; -1 if it cannot be read."""
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
    """The cached fingerprint if no file has changed; otherwise the result of `find`."""
    where = os.fspath(place.resolve())
    stamp = fingerprint_of("\n".join([where, *map(repr, files)]))
    kept = cache_folder() / "sources" / f"{fingerprint_of(where)}.json"
    with suppress(RunError, OSError):
        known = Known.read(kept)
        if known is not None and known.stamp == stamp:
            return known.content
    content = find()
    if max(map(last_change, files), default=0) < time.time_ns() - SETTLED:
        with suppress(RunError, OSError):  # without the cache, the next run only takes longer
            kept.parent.mkdir(parents=True, exist_ok=True)
            Known(stamp=stamp, content=content).write(kept)
    return content
