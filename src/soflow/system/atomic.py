"""Files that are always whole: written under another name, flushed to disk and renamed."""

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

#: Errors of file systems that flush no folders, such as some on a network.
NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
#: Seconds after which a half-written file belongs to no running process.
OLD = 86_400


def require_writable(folder: Path) -> None:
    """Makes the folder. Raises InputError if it cannot be written."""
    reason = "no permission"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error.strerror)
    else:
        if os.access(folder, os.W_OK):
            return
    raise InputError(f"cannot write to {folder}: {reason}; choose another folder with --out")


def write_text(file: Path, text: str) -> None:
    """Writes a text; what UTF-8 cannot encode, as in some file names, becomes escapes.

    Raises:
        RunError: If the file cannot be written.
    """
    write_bytes(file, text.encode("utf-8", "backslashreplace"))


def write_bytes(file: Path, content: bytes) -> None:
    """Raises RunError if the file cannot be written."""
    try:
        replace_file(file, content)
    except OSError as error:
        raise cannot_write(file, error) from None


def replace_file(file: Path, content: bytes | memoryview) -> str:
    """Writes a file whole and returns its checksum.

    Raises:
        OSError: If it cannot be written. The file is then unchanged.
    """
    with replaced(file) as partial, new_file(partial) as stream:
        stream.write(content)
    return stream.checksum


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """The name to write a file under; it replaces `file` at the end of the block.

    After an exception `file` is unchanged, and nothing is left behind.
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
    """A stream to write to that also computes the checksum."""

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
    """A new file to write to, which is on disk when the block ends.

    Raises:
        OSError: If it cannot be written, or does not read back as it was written.
    """
    with open(file, "xb") as stream:
        summed = Summed(stream)
        try:
            yield summed
        except RuntimeError:  # torch's writer hides the error of the stream
            if summed.failure is None:
                raise
            raise summed.failure from None
        stream.flush()
        os.fsync(stream.fileno())
    if checksum(file) != summed.checksum:
        raise OSError(errno.EIO, "the file does not read back as it was written")


def flush_folder(folder: Path) -> None:
    """Flushes what was renamed or removed in a folder to disk, on systems that can do so."""
    if os.name == "nt":  # folders cannot be opened there
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
    """The name under which a file is written before it is renamed, different at every call."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")


def is_partial(file: Path) -> bool:
    return file.name.startswith(".") and file.suffix == ".partial"


def remove_old_partials(folder: Path) -> None:
    """Removes half-written files of killed processes, a day after the last change."""
    for file in folder.iterdir():
        with suppress(OSError):  # another process may have renamed or removed it
            if is_partial(file) and time.time() - file.stat().st_mtime > OLD:
                file.unlink()


def cannot_write(place: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot write {place}: {error.strerror or error}; "
        "make room, then run the same command again"
    )
