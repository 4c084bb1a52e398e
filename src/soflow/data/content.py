"""What files hold, in a few digits: other content gives others, and the same content elsewhere gives the same.

Finding them costs reading. So they are kept in the cache folder with a stamp of the files: inodes and times of change, which
no archive and no copying sets. The next run looks at the stamp alone.
"""

import os
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from soflow.errors import RunError
from soflow.system.atomic import write_json
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import checksum, fingerprint_of
from soflow.system.progress import counting
from soflow.system.records import read_json

#: Bytes that are read at either end of a file. What is compressed differs there where it differs at all: PNG ends in a
#: checksum, and the others, of the same length, hardly ever meet again.
ENDS = 4096
#: Kinds of images that are not compressed, and are read as a whole.
PLAIN = (".bmp",)
#: Files opened side by side, which hides how long a network takes, and how many a thread takes at a time.
THREADS, CHUNK = 16, 256
#: Stamps count from so many nanoseconds after the last change; sooner a second change may get the same time.
SETTLED = 2 * 10**9


class File(NamedTuple):
    """A file by its path from some folder, its size, and what the file system notes of it, in nanoseconds."""

    name: str
    size: int
    modified: int
    changed: int
    inode: int


def file_of(name: str, stat: os.stat_result) -> File:
    return File(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def of_folder(root: Path, files: Sequence[File]) -> str:
    """Digits for the images below a folder: names, sizes, times of modification, and what lies at either end of each."""

    def find() -> str:
        parts = [files[first : first + CHUNK] for first in range(0, len(files), CHUNK)]
        found: list[int] = []
        with (
            counting(f"looking at the files of {root}", len(files)) as on_done,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            for values in pool.map(
                lambda part: [ends(os.path.join(root, file.name), file.size) for file in part],
                parts,
            ):
                found.extend(values)
                on_done(len(found))
        return fingerprint_of(
            "\n".join(f"{file[:3]} {value}" for file, value in zip(files, found, strict=True))
        )

    return remembered(root, files, find)


def of_file(path: Path) -> str:
    """Digits for all that is in a file. Raises OSError."""
    return remembered(path, [file_of(path.name, path.stat())], lambda: checksum(path))


def ends(path: str, size: int) -> int:
    """CRC-32 of what lies at either end of a file, or of all of it; -1 where it cannot be read."""
    try:
        if size > 2 * ENDS and path.lower().endswith(PLAIN):
            return int(checksum(Path(path)), 16)
        opened = os.open(path, os.O_RDONLY)
        try:
            if size <= 2 * ENDS:
                return zlib.crc32(os.pread(opened, size, 0))
            return zlib.crc32(
                os.pread(opened, ENDS, size - ENDS), zlib.crc32(os.pread(opened, ENDS, 0))
            )
        finally:
            os.close(opened)
    except OSError:
        return -1


def remembered(place: Path, files: Sequence[File], find: Callable[[], str]) -> str:
    """What `find` finds of the files at a place; what it found before, as long as none of them has changed since."""
    stamp = fingerprint_of("\n".join(chain([os.fspath(place.resolve())], map(repr, files))))
    kept = cache_folder() / "sources" / f"{fingerprint_of(os.fspath(place.resolve()))}.json"
    with suppress(RunError, OSError):
        known = read_json(kept)
        if known.get("stamp") == stamp:
            return str(known["content"])
    content = find()
    if max((file.changed for file in files), default=0) < time.time_ns() - SETTLED:
        with suppress(RunError, OSError):  # a cache that cannot be written only costs time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, {"stamp": stamp, "content": content})
    return content
