"""Writes zip and .npy files whose headers can contradict their content."""

import io
import zipfile

import numpy as np


def write_zip(file, members, compression=zipfile.ZIP_DEFLATED):
    """Writes a zip file. Members are given as name -> bytes."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def npy(array=None, shape=None, dtype="|u1", rest=b""):
    """Returns the bytes of a .npy file. The shape in its header can be wrong."""
    stream = io.BytesIO()
    if array is not None:
        np.save(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": dtype, "fortran_order": False, "shape": shape}
        )
        stream.write(rest)
    return stream.getvalue()
