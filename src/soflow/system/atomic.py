"""Files that are always whole: written beside their place, flushed to disk and renamed."""

import errno
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from soflow.errors import InputError, RunError
from soflow.system.fingerprints import checksum

#: Seconds after which a file that is still beside its place belongs to no process.
OLD = 86_400


def require_writable(folder: Path) -> None:
    """Makes the folder. Raises InputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another folder with --out"
        ) from None
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"cannot write to {folder}: no permission; choose another folder with --out"
        )


def write_json(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Raises RunError where it cannot be written. What is no Unicode, such as some files' names, is written as escapes."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"))


def write_bytes(file: Path, content: bytes) -> None:
    """Raises RunError where it cannot be written."""
    try:
        replace_file(file, content)
    except OSError as error:
        raise cannot_write(file, error) from None


def replace_file(file: Path, content: bytes | memoryview) -> None:
    """Raises OSError where it cannot be written; the file then is as it was."""
    partial = beside(file)
    try:
        with new_file(partial) as stream:
            stream.write(content)
        os.replace(partial, file)
        flush_folder(file.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


class Summed:
    """Writes to a stream, and adds up the checksum of what it was given."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.value = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        self.value = zlib.crc32(data, self.value)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.stream.flush()

    @property
    def checksum(self) -> str:
        return f"{self.value:08x}"


@contextmanager
def new_file(file: Path) -> Iterator[Summed]:
    """A file to write, which is on the disk when the block ends. Raises OSError where it is not, or not as it was given."""
    with open(file, "xb") as stream:
        summed = Summed(stream)
        try:
            yield summed
        except RuntimeError:  # what torch's writer makes of a failure
            if summed.failure is None:
                raise
            raise summed.failure from None
        stream.flush()
        os.fsync(stream.fileno())
    if checksum(file) != summed.checksum:
        raise OSError(errno.EIO, "what was written is not what is there")


def flush_folder(folder: Path) -> None:
    """Has the disk take note of what was renamed in a folder, and what was removed."""
    if os.name == "nt":  # where folders cannot be opened, and the system sees to it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def beside(file: Path) -> Path:
    """Where a file is written before it is renamed to its place; no two processes, on any machine, get the same."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")


def is_partial(file: Path) -> bool:
    return file.name.startswith(".") and file.suffix == ".partial"


def remove_old_partials(folder: Path) -> None:
    """Removes what processes that were killed have left half-written: files that nobody has touched for a day."""
    for file in folder.iterdir():
        with suppress(OSError):  # another process may have renamed or removed it
            if is_partial(file) and time.time() - file.stat().st_mtime > OLD:
                file.unlink()


def cannot_write(place: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {place}: {error.strerror or error}; make room, then run the same command again"
    )
