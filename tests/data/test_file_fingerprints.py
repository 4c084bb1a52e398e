"""Fingerprints of image files depend on content and are computed once."""

import os
import shutil
import time

import pytest

from soflow.data import file_fingerprints
from soflow.data.folder import FolderImages
from soflow.system.cache import cache_folder
from support.small_data import pixels, write_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refuse(*arguments):
    raise AssertionError("these files have been read before")


def at_one_time(root):
    """A folder in which all files have the same time, as in reproducible archives."""
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return FolderImages(str(root), "train")


@pytest.mark.parametrize(("ending", "place"), [("bmp", 15_000), ("bmp", -1), ("png", -20)])
def test_folders_with_equal_names_sizes_and_times_differ_by_content(ending, place, tmp_path):
    one = at_one_time(write_folder(tmp_path / "a" / "set", pixels(3, (100, 100, 3)), ending=ending))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert (
        at_one_time(tmp_path / "b" / "set").fingerprint == one.fingerprint
    )  # the same content in another folder
    file = tmp_path / "b" / "set" / "dog" / f"0001.{ending}"
    content = bytearray(file.read_bytes())
    content[place] ^= 255
    file.write_bytes(content)
    assert at_one_time(tmp_path / "b" / "set").fingerprint != one.fingerprint


def test_files_are_read_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(file_fingerprints, "SETTLED", 0)
    write_folder(tmp_path / "set", pixels(3))
    first = at_one_time(tmp_path / "set").fingerprint
    time.sleep(0.02)  # one tick of the file system's clock
    assert FolderImages(str(tmp_path / "set"), "train").fingerprint == first
    with monkeypatch.context() as patch:
        patch.setattr(file_fingerprints, "ends", refuse)
        assert FolderImages(str(tmp_path / "set"), "train").fingerprint == first
    file = tmp_path / "set" / "dog" / "0001.png"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert at_one_time(tmp_path / "set").fingerprint != first


def test_just_modified_files_are_not_trusted(tmp_path):
    FolderImages(str(write_folder(tmp_path / "set", pixels(4))), "train")
    assert not (cache_folder() / "sources").exists()
