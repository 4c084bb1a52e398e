"""Reads arrays in .npz files: the headers first, the values on demand.

Files may be untrusted. Nothing is unpickled, nothing is unpacked to disk, and no memory is
allocated for values that a file does not contain.
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

#: Exceptions that zipfile, its decompressors, numpy and h5py raise for unreadable files.
UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
#: Arrays of more than LARGE bytes may expand by at most a factor of MOST_EXPANDED.
LARGE, MOST_EXPANDED = 2**30, 100


class Head(NamedTuple):
    """The header of an array. `content` identifies the values, if known."""

    shape: tuple[int, ...]
    dtype: np.dtype
    columns_first: bool = False
    content: str = ""


def heads(path: Path) -> dict[str, Head]:
    """The headers of all arrays in a .npz file. Raises InputError if it is damaged."""
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
    """Whether a file is a zip file, intact or damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def read_head(stream: Any, size: int) -> Head:
    """Reads the header of an array from a stream of `size` bytes.

    Raises one of UNREADABLE. This includes a header that does not match the number of bytes.
    """
    old = np.lib.format.read_magic(stream) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    there, stated = size - stream.tell(), prod(shape) * dtype.itemsize
    if stated != there and not dtype.hasobject:
        raise ValueError(f"the header of an array states {stated:,} bytes, but it has {there:,}")
    return Head(shape, dtype, columns_first)


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Opens one array. Raises ValueError for unknown compression, or if it expands too much."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} has a compression that numpy does not use")
    assert archive.filename is not None
    stored = min(member.compress_size, Path(archive.filename).stat().st_size)
    require_in_proportion(member.file_size, stored)
    return archive.open(member)


def require_in_proportion(size: int, stored: int) -> None:
    """Raises ValueError if a large array of `size` bytes expands too much from `stored` bytes."""
    if size > LARGE and size > MOST_EXPANDED * stored:
        raise ValueError(
            f"{stored:,} bytes expand to {size:,}, by more than a factor of {MOST_EXPANDED}"
        )


def load_array(path: Path, name: str) -> np.ndarray:
    """Reads one array without unpickling. Raises InputError if it is damaged."""
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
