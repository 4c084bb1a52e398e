"""Arrays in .npz files, one by one: what they are is read from their heads, and what they hold when it is needed.

Files may be anybody's. Nothing is unpickled, nothing is unpacked onto the disk, no room is made for what is not there.
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

#: Whatever zipfile, its decompressor, numpy and h5py raise for files that they cannot read.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
#: Arrays of more bytes may not be more than so many times as large as what their file holds.
LARGE, MOST_EXPANDED = 2**30, 100


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
                with open_member(archive, member) as stream:
                    head = read_head(stream, member.file_size)
                found[member.filename.removesuffix(".npy")] = head._replace(
                    content=f"{member.file_size} {member.CRC:08x}"
                )
            return found
    except UNREADABLE as error:
        raise damaged(path, error) from None


def is_zip(path: str | Path) -> bool:
    """Whether a file is a zip file, be it a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def read_head(stream: Any, size: int) -> Head:
    """The head that a stream of so many bytes begins with; what follows are the array's. Raises what is UNREADABLE, which is
    also a head that speaks of more bytes, or fewer, than there are.
    """
    version = np.lib.format.read_magic(stream)
    read_it = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, columns_first, dtype = read_it(stream)
    there, told = size - stream.tell(), prod(shape) * dtype.itemsize
    if told != there and not dtype.hasobject:
        raise ValueError(f"an array of {told:,} bytes is said to be where {there:,} are")
    return Head(shape, dtype, columns_first)


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """A stream of one array. Raises ValueError for one that is compressed as numpy does not, or that would grow too much."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in another way than numpy's")
    assert archive.filename is not None
    require_in_proportion(
        member.file_size, min(member.compress_size, Path(archive.filename).stat().st_size)
    )
    return archive.open(member)


def require_in_proportion(size: int, stored: int) -> None:
    """Raises ValueError for a large array that a file holds much less of than what it would be."""
    if size > LARGE and size > MOST_EXPANDED * stored:
        raise ValueError(
            f"{stored:,} bytes would become {size:,}, more than {MOST_EXPANDED} times as many"
        )


def load_array(path: Path, name: str) -> np.ndarray:
    """One array; nothing that could run code is read."""
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
