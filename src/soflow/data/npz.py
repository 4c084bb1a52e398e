"""Arrays in .npz files, one by one: what they are is read from their heads, and what they hold when it is needed."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soflow.errors import InputError, first_line

#: Whatever zipfile, its decompressors and numpy raise for files that they cannot read.
UNREADABLE = (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Head(NamedTuple):
    """An array that is not read: its shape and type, how it lies in memory, and digits for its content where known."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool = False
    content: str = ""


def heads(path: Path) -> dict[str, Head]:
    """Every array of a .npz. Raises InputError for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            found = {}
            for member in members:
                with archive.open(member) as stream:
                    head = read_head(stream)
                found[member.filename.removesuffix(".npy")] = head._replace(content=f"{member.file_size} {member.CRC:08x}")
            return found
    except UNREADABLE as error:
        raise damaged(path, error) from None


def read_head(stream: Any) -> Head:
    """The head that a stream begins with; what follows are the array's bytes. Raises what is UNREADABLE."""
    version = np.lib.format.read_magic(stream)
    read_it = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read_it(stream)
    return Head(shape, dtype, columns_first)


def open_array(path: Path, name: str) -> Any:
    """A stream of one array, its head and then its bytes."""
    try:
        return zipfile.ZipFile(path).open(f"{name}.npy")
    except UNREADABLE as error:
        raise damaged(path, error) from None


def load_array(path: Path, name: str) -> np.ndarray:
    """One array; nothing that could run code is read."""
    try:
        with open_array(path, name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except InputError:
        raise
    except UNREADABLE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path} is damaged: {first_line(error)}")
