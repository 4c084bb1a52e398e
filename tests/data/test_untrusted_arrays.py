"""Untrusted arrays are read or rejected in one line, and never run code or follow paths."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from soflow.data import npz
from soflow.data.arrays import ArrayImages
from soflow.errors import InputError
from soflow.evaluation.reference_files import arrays_in, read
from soflow.evaluation.sample_set import sample_arrays
from soflow.interop.weights import read_file
from support import hostile
from support.archives import npy, write_zip
from support.hostile import Canary
from support.small_data import pixels


def all_readers(file):
    """Reads a .npz in three ways. Each must reject it. Returns the messages."""
    messages = []
    for reader in (
        lambda: list(sample_arrays(file).parts()),
        lambda: read(file, ("arr_0",), arrays_in(file)),
        lambda: ArrayImages(str(file), "train").images,
    ):
        with pytest.raises(InputError) as raised:
            reader()
        messages.append(str(raised.value))
    return " ".join(messages)


def test_arrays_with_a_false_size_allocate_no_memory(tmp_path):
    for shape in (
        (10**12, 8, 8, 3),
        (2**62, 2, 2, 1),
        (-1, 8, 8, 3),
        (-24, -8, 1, 1),
        (2**31, 2**31, 4, 4),
        (10**4000, 1, 1, 1),
    ):
        file = write_zip(tmp_path / "big.npz", {"arr_0.npy": npy(shape=shape, rest=bytes(192))})
        assert "192" in all_readers(file) or shape[0] in (-24, 10**4000)
    (tmp_path / "big.npy").write_bytes(npy(shape=(10**12, 8, 8, 3), rest=bytes(192)))
    with pytest.raises(InputError, match=r"data\.path=.*big\.npy"):
        ArrayImages(str(tmp_path / "big.npy"), "train")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': [",
        "{" * 300,
        "(" * 9000,
        "x = 1\n",
        "{'descr': '|u1'",
        "if x:\n    1\n  2\n",
        "'\\N{x}'",
        "\n  '''",
    ],
)
def test_headers_that_python_cannot_parse(header, tmp_path):
    for version in (1, 2, 3):
        length = struct.pack("<H" if version == 1 else "<I", len(header))
        content = b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + bytes(100)
        assert (
            all_readers(write_zip(tmp_path / "strange.npz", {"arr_0.npy": content})).count(
                "strange.npz is damaged"
            )
            == 3
        )


def test_objects_are_never_unpickled(tmp_path):
    canary = tmp_path / "canary"
    objects = npy(np.array([Canary(canary)], dtype=object))
    all_readers(write_zip(tmp_path / "evil.npz", {"arr_0.npy": objects}))
    (tmp_path / "evil.npy").write_bytes(objects)
    (tmp_path / "pickle.npy").write_bytes(hostile.pickled(Canary(canary)))
    for name in ("evil.npy", "pickle.npy"):
        with pytest.raises(InputError, match=name):
            ArrayImages(str(tmp_path / name), "train")
    assert not canary.exists()
    np.load(tmp_path / "evil.npz", allow_pickle=True)["arr_0"]  # works if allowed
    assert canary.exists()


def test_compression_methods_that_numpy_never_writes_are_rejected(tmp_path):
    for way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = write_zip(tmp_path / "odd.npz", {"arr_0.npy": npy(pixels(2))}, way)
        assert "arr_0.npy" in all_readers(file)


def test_arrays_that_expand_too_much_are_rejected(tmp_path, monkeypatch):
    black = np.zeros((200, 16, 16, 3), np.uint8)
    np.savez_compressed(tmp_path / "black.npz", arr_0=black)
    assert ArrayImages(str(tmp_path / "black.npz"), "train").images.shape == black.shape
    monkeypatch.setattr(npz, "LARGE", 2**16)
    assert "factor of 100" in all_readers(tmp_path / "black.npz")
    lying = bytearray((tmp_path / "black.npz").read_bytes())
    place = lying.rindex(b"PK\x01\x02")
    lying[place + 20 : place + 24] = struct.pack(
        "<I", 2**31
    )  # treats the compressed array as large
    (tmp_path / "black.npz").write_bytes(lying)
    assert "factor of 100" in all_readers(tmp_path / "black.npz")


def test_a_zip_file_of_several_disks(tmp_path):
    end = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    for name, reader in (
        ("a.npz", lambda file: ArrayImages(str(file), "train")),
        ("a.pt", read_file),
    ):
        (tmp_path / name).write_bytes(end)
        with pytest.raises(InputError, match=name):
            reader(tmp_path / name)


def test_names_in_archives_are_not_used_as_paths(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outside = npy(pixels(2, (4, 4, 3)))
    names = ("../out.npy", "/tmp/soflow-test-out.npy", "a/../../out.npy", "C:\\out.npy")
    file = write_zip(
        tmp_path / "here" / "names.npz", {**dict.fromkeys(names, outside), "arr_0.npy": outside}
    )
    list(sample_arrays(file).parts())
    assert len(ArrayImages(str(file), "train").images) == 2
    assert len(ArrayImages(str(file), "train", "../out").images) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "names.npz"]
    assert not Path("/tmp/soflow-test-out.npy").exists()
