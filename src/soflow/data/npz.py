"""Arrays in .npz files: their heads are read first, their values when they are needed.

Files may come from anybody. Nothing is unpickled, nothing is unpacked onto the disk, and no memory
is allocated for values that do not exist.
"""

import struct
import tokenize
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from soflow.errors import InputError, first_line

#: What zipfile, its decompressors, numpy and h5py raise for files that they cannot read.
UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
#: Arrays of more than LARGE bytes may be at most MOST_EXPANDED times as large as in their file.
LARGE, MOST_EXPANDED = 2**30, 100


class Head(NamedTuple):
    """An array that is not read yet. `content` identifies its values, if known."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool = False
    content: str = ""


def heads(path: Path) -> dict[str, Head]:
    """The heads of all arrays of a .npz. Raises InputError if it is damaged."""
    try:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with open_member(archive, member) as stream:
                        head = read_head(stream, member.file_size)
                    name = member.filename.removesuffix(".npy")
                    found[name] = head._replace(content=f"{member.file_size} {member.CRC:08x}")
        return found
    except UNREADABLE as error:
        raise damaged(path, error) from None


def is_zip(path: str | Path) -> bool:
    """Whether a file is a zip file, whole or damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def read_head(stream: Any, size: int) -> Head:
    """Reads the head of an array from a stream of `size` bytes.

    Raises one of UNREADABLE, also if the head states another number of bytes than follow.
    """
    old = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    there, stated = size - stream.tell(), prod(shape) * dtype.itemsize
    if stated != there and not dtype.hasobject:
        raise ValueError(f"an array is said to have {stated:,} bytes, but has {there:,}")
    return Head(shape, dtype, columns_first)


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """A stream of one array. Raises ValueError for strange compression, or if it expands much."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in another way than numpy's")
    assert archive.filename is not None
    stored = min(member.compress_size, Path(archive.filename).stat().st_size)
    require_in_proportion(member.file_size, stored)
    return archive.open(member)


def require_in_proportion(size: int, stored: int) -> None:
    """Raises ValueError if a large array of `size` bytes takes too few bytes in its file."""
    if size > LARGE and size > MOST_EXPANDED * stored:
        raise ValueError(f"{stored:,} bytes expand to {size:,}, more than {MOST_EXPANDED} times")


def load_array(path: Path, name: str) -> np.ndarray:
    """Reads one array without unpickling anything. Raises InputError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            with open_member(archive, member) as stream:
                read_head(stream, member.file_size)
                stream.seek(0)
                return np.lib.format.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path} is damaged: {first_line(error)}")
