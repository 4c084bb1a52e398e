"""Atomic file writes: a file is written under a temporary name, flushed to disk and renamed."""

import errno
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from soflow.errors import InputError, RunError
from soflow.system.fingerprints import checksum

#: Errors of file systems that cannot flush folders, such as some network file systems.
NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
#: Age in seconds at which a half-written file is assumed to be left by a killed process.
OLD = 86_400


def require_writable(folder: Path) -> None:
    """Creates the folder if needed. Raises InputError if it is not writable."""
    reason = "no permission"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else str(error.strerror)
    else:
        if os.access(folder, os.W_OK):
            return
    raise InputError(f"cannot write to {folder}: {reason}; choose another folder (--out)")


def write_text(file: Path, text: str) -> None:
    """Writes a text file. Characters that UTF-8 cannot encode become escapes.

    Raises:
        RunError: If the file cannot be written.
    """
    write_bytes(file, text.encode("utf-8", "backslashreplace"))


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a file atomically. Raises RunError if it cannot be written."""
    try:
        replace_file(file, content)
    except OSError as error:
        raise cannot_write(file, error) from None


def replace_file(file: Path, content: bytes | memoryview) -> str:
    """Writes a file atomically and returns its checksum.

    Raises:
        OSError: If the file cannot be written. It is then unchanged.
    """
    with replaced(file) as partial, new_file(partial) as stream:
        stream.write(content)
    return stream.checksum


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yields a temporary name to write to. It replaces `file` at the end of the block.

    After an exception, `file` is unchanged and the temporary file is removed.
    """
    partial = beside(file)
    try:
        yield partial
        os.replace(partial, file)
        flush_folder(file.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


class Summed:
    """An output stream that computes a checksum."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.total = 0
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        self.total = zlib.crc32(data, self.total)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.stream.flush()

    @property
    def checksum(self) -> str:
        return f"{self.total:08x}"


@contextmanager
def new_file(file: Path) -> Iterator[Summed]:
    """Opens a new file for writing. The file is flushed to disk when the block ends.

    Raises:
        OSError: If the file cannot be written, or its content differs when it is read back.
    """
    with open(file, "xb") as stream:
        summed = Summed(stream)
        try:
            yield summed
        except RuntimeError:  # torch's writer replaces the error of the stream
            if summed.failure is None:
                raise
            raise summed.failure from None
        stream.flush()
        os.fsync(stream.fileno())
    if checksum(file) != summed.checksum:
        raise OSError(errno.EIO, "the content of the file differs from what was written")


def flush_folder(folder: Path) -> None:
    """Flushes renames and removals in a folder to disk, on systems that support it."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
    finally:
        os.close(descriptor)


def beside(file: Path) -> Path:
    """A temporary name in the same folder, different at every call."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")


def is_partial(file: Path) -> bool:
    return file.name.startswith(".") and file.suffix == ".partial"


def remove_old_partials(folder: Path) -> None:
    """Removes half-written files that have not changed for a day."""
    for file in folder.iterdir():
        with suppress(OSError):  # another process may have renamed or removed it
            if is_partial(file) and time.time() - file.stat().st_mtime > OLD:
                file.unlink()


def cannot_write(place: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {place}: {error.strerror or error}; {remedy(error)}, then run the same "
        "command again"
    )


def remedy(error: OSError) -> str:
    """What to do after a failed write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free disk space" if full else "check the folder and its permissions"
