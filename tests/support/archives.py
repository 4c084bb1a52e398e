"""Zip files and .npy files that need not be what they say."""

import io
import zipfile

import numpy as np


def write_zip(file, members, compression=zipfile.ZIP_DEFLATED):
    """A zip file of these members, name -> bytes."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def npy(array=None, shape=None, dtype="|u1", rest=b""):
    """The bytes of a .npy, with a shape that need not be that of its values."""
    stream = io.BytesIO()
    if array is not None:
        np.save(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": dtype, "fortran_order": False, "shape": shape}
        )
        stream.write(rest)
    return stream.getvalue()
