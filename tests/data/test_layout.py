"""Splits and classes from folders, label files and zip files."""

import json
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from soflow.data.folder import FolderImages
from soflow.data.layout import Part, class_folders, find_splits
from soflow.data.splits import named_split, split_of
from soflow.errors import InputError
from support.small_data import pixels, write_folder


def named(*folders, count=20):
    """Returns the names of `count` images in each folder."""
    return sorted(f"{folder}/{i:03d}.png".lstrip("/") for folder in folders for i in range(count))


def splits(*names, **options):
    """Returns each split with its number of images."""
    found, _ = find_splits(named(*names, **options), "photos")
    return {split: len(part.names) for split, part in found.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"), ("TRAIN", "train"), ("train_images", "train"),
        ("Testing", "test"), ("holdout", "test"), ("hold_out", "test"), ("test2017", "test"),
        ("val", "validation"), ("Validation", "validation"), ("valid", "validation"),
        ("dev", "validation"), ("trains", None), ("cat", None), ("set", None), ("protest", None),
    ],
)  # fmt: skip
def test_usual_names_of_splits(name, split):
    assert split_of(name) == split


def test_a_split_is_found_by_any_usual_name():
    assert named_split("val", ("train", "validation"), "x") == "validation"
    assert named_split("Testing", ("train", "test"), "x") == "test"
    assert named_split("extra", ("train", "extra"), "x") == "extra"
    with pytest.raises(InputError, match="'dev': choose train"):
        named_split("dev", ("train",), "x")


def test_folders_of_splits():
    assert splits("Training/cat", "Training/dog", "Testing/cat") == {"train": 40, "test": 20}
    assert splits("train", "val", "extra") == {"train": 20, "validation": 20, "extra": 20}
    assert splits("train/cat", "extra/cat") == {"train": 20, "extra": 20}
    assert splits("cat", "dog", "val/cat") == {"train": 40, "validation": 20}
    assert splits("car", "plane", "train") == {"train": 60}  # a class
    assert splits("cat", "dog") == {"train": 40}
    assert splits("") == {"train": 20}
    assert splits("test", "holdout", "train") == {"train": 20, "test": 20, "holdout": 20}


def test_splits_with_a_prefix_and_held_out_folders_without_classes():
    assert splits("seg_train/sea", "seg_test/sea", "seg_pred") == {
        "train": 20, "test": 20, "seg_pred": 20
    }  # fmt: skip
    assert splits("train_station", "test_tube") == {"train": 40}  # classes
    assert splits("cat", "dog", "val") == {"train": 40, "validation": 20}
    assert splits("cat", "dog", "val/cat", "test") == {"train": 40, "test": 20, "validation": 20}
    assert splits("train", "extra") == {"train": 20, "extra": 20}
    assert splits("train猫", "train狗") == {"train": 40}
    with pytest.raises(InputError, match="plane and train"):
        splits("plane", "train")


def test_single_folders_are_skipped_inside_splits_and_next_to_a_stray_image():
    found, _ = find_splits(named("set/train/train/cat", "set/test/test/cat"), "x")
    assert [part.prefix for part in found.values()] == ["set/train/train/", "set/test/test/"]
    found, _ = find_splits(["a.png", *named("photos/cat", "photos/dog")], "x")
    assert class_folders(found["train"], (), "x").classes == ("cat", "dog")
    assert "a.png" in found["train"].notes[0]
    found, _ = find_splits(named("train/images", "val/images"), "x")
    assert class_folders(found["train"], (), "x").classes == ()


def test_images_with_masks_are_rejected_also_without_classes(tmp_path):
    write_folder(tmp_path, pixels(4), names=("images", "masks"))
    with pytest.raises(InputError, match="images and masks"):
        FolderImages(str(tmp_path), "train", labelled=False)


def test_single_folders_are_skipped():
    found, _ = find_splits(named("photos/photos/cat", "photos/photos/dog"), "x")
    assert found["train"].prefix == "photos/photos/"
    assert class_folders(found["train"], (), "x").classes == ("cat", "dog")
    found, _ = find_splits(named("archive/train/cat", "archive/test/cat"), "x")
    assert list(found) == ["train", "test"]
    found, _ = find_splits(named("cat"), "x")
    assert class_folders(found["train"], (), "x").classes == ("cat",)


def test_two_training_splits_and_many_images_beside_splits_are_rejected():
    with pytest.raises(InputError, match="Training and train"):
        splits("train", "Training")
    with pytest.raises(InputError, match="20 images outside of"):
        splits("train", "test", "")


def test_a_few_images_outside_class_folders_are_left_out():
    names = [*named("cat", "dog"), "preview.png"]
    found = class_folders(Part("", names), ["owl"], "x")
    assert "preview.png" not in found.names
    assert len(found.names) == 40
    assert "preview.png" in found.notes[0]
    assert "owl" in found.notes[1]
    with pytest.raises(InputError, match=r"data\.num_classes=0"):
        class_folders(Part("", named("cat", "")), (), "x")


def test_system_folders_are_ignored(tmp_path):
    write_folder(tmp_path, pixels(4))
    for name in ("@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"):
        write_folder(tmp_path / name / "cat", pixels(1), names=())
    images = FolderImages(str(tmp_path), "train")
    assert (len(images), images.class_names) == (4, ("cat", "dog"))


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, pixels(4))
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="dog"):
        FolderImages(str(tmp_path), "train")


def test_class_names_are_composed_so_two_spellings_are_one_class(tmp_path):
    for form in ("NFD", "NFC"):
        write_folder(tmp_path / unicodedata.normalize(form, "café"), pixels(1), names=())
    write_folder(tmp_path / "the", pixels(1), names=())
    images = FolderImages(str(tmp_path), "train")
    assert images.class_names == (unicodedata.normalize("NFC", "café"), "the")
    assert sorted(images.labels) == [0, 0, 1]


def test_every_file_type_is_read_and_others_are_counted(tmp_path):
    for name, kind in (("a.tif", "TIFF"), ("b.jfif", "JPEG"), ("c.ppm", "PPM"), ("d.gif", "GIF")):
        Image.fromarray(pixels(1)[0]).save(tmp_path / name, kind)
    (tmp_path / "e.heic").write_bytes(b"")
    images = FolderImages(str(tmp_path), "train")
    assert len(images) == 4
    assert "1 .heic" in images.notes[-1]


def files_in(folder, labels):
    """Six images in a folder with a metadata.csv as for Hugging Face's imagefolder."""
    write_folder(folder, pixels(6), names=())
    rows = "".join(f"{i:04d}.png,{label}\n" for i, label in enumerate(labels))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")


def test_labels_come_from_metadata(tmp_path):
    files_in(tmp_path / "a", ["cat", "dog", "cat", "", "dog", "owl"])
    images = FolderImages(str(tmp_path / "a"), "train")
    assert images.class_names == ("cat", "dog", "owl")
    assert images.labels == [0, 1, 0, -1, 1, 2]
    before = images.fingerprint
    files_in(tmp_path / "a", ["cat", "dog", "cat", "cat", "dog", "owl"])
    assert FolderImages(str(tmp_path / "a"), "train").fingerprint != before
    rows = [{"file_name": f"{i:04d}.png", "kind": "xy"[i % 2], "text": f"{i}"} for i in range(5)]
    (tmp_path / "a" / "metadata.csv").unlink()
    (tmp_path / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = FolderImages(str(tmp_path / "a"), "train")
    assert images.labels == [0, 1, 0, 1, 0, -1]
    assert "'kind'" in images.notes[0]
    assert "1 images" in images.notes[0]
    with pytest.raises(InputError, match=r"'sort'.*kind, text"):
        FolderImages(str(tmp_path / "a"), "train", label_column="sort")


def test_labels_of_other_splits_use_the_numbers_of_train(tmp_path):
    files_in(tmp_path / "train", ["cat", "dog", "cat", "cat", "dog", "owl"])
    files_in(tmp_path / "test", ["owl"] * 3 + ["dog"] * 3)
    images = FolderImages(str(tmp_path), "test")
    assert images.class_names == ("cat", "dog", "owl")
    assert images.labels == [2, 2, 2, 1, 1, 1]


def test_labels_come_from_stylegans_file_also_in_a_zip(tmp_path):
    folder = write_folder(tmp_path / "set" / "00000", pixels(3), names=())
    table = {"labels": [[f"00000/{i:04d}.png", [2, 0, 1][i]] for i in range(3)]}
    (folder.parent / "dataset.json").write_text(json.dumps(table))
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    for path in (tmp_path / "set", tmp_path / "set.zip"):
        images = FolderImages(str(path), "train")
        assert images.labels == [2, 0, 1]
        assert [opener().size for opener in images.openers(range(3))] == [(12, 12)] * 3
    (folder.parent / "dataset.json").write_text('{"labels": null}')
    write_folder(tmp_path / "set" / "00001", pixels(3), names=())
    images = FolderImages(str(tmp_path / "set"), "train")
    assert images.labels is None
    assert "dataset.json" in images.unlabelled
    for other in ("[1, 2]", '{"labels": {"0": "back"}}'):  # files of other programs
        (folder.parent / "dataset.json").write_text(other)
        images = FolderImages(str(tmp_path / "set"), "train")
        assert images.class_names == ("00000", "00001")
        assert "dataset.json" in images.notes[0]


@pytest.mark.parametrize(
    "text", ["name,label\n0000.png,a\n", "file_name,label\n0000.png,'\x00\n\"", "", "{"]
)
def test_unreadable_label_files_are_named(text, tmp_path):
    write_folder(tmp_path, pixels(2), names=())
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(InputError, match=r"metadata\.csv"):
        FolderImages(str(tmp_path), "train")


@pytest.mark.parametrize("start", ["./", "/", "set\\"])
def test_names_in_zip_files_can_be_spelled_in_many_ways(start, tmp_path):
    folder = write_folder(tmp_path / "set", pixels(4))
    sep = "\\" if "\\" in start else "/"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            name = zipfile.ZipInfo(f"{start}{file.parent.name}{sep}{file.name}")
            archive.writestr(name, file.read_bytes())
    images = FolderImages(str(tmp_path / "set.zip"), "train")
    assert images.class_names == ("cat", "dog")
    assert [opener().size for opener in images.openers(range(4))] == [(12, 12)] * 4


def test_encrypted_zip_files_are_rejected(tmp_path):
    folder = write_folder(tmp_path / "set", pixels(2))
    file = Path(shutil.make_archive(str(tmp_path / "set"), "zip", folder))
    content = bytearray(file.read_bytes())
    place = 0
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        content[place + 8] |= 1
        place += 4
    file.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        FolderImages(str(file), "train")


def test_circular_links_and_folders_with_underscores(tmp_path):
    write_folder(tmp_path, pixels(4), names=("__background__", "cat"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "cat" / "up").symlink_to("..")
    images = FolderImages(str(tmp_path), "train")
    assert (len(images), images.class_names) == (4, ("__background__", "cat"))


def table_of(folder, header, *rows, separator=","):
    lines = [header, *(f"{i:04d}.png,{row}" for i, row in enumerate(rows))]
    text = "\n".join(lines).replace(",", separator)
    (folder / "metadata.csv").write_text(f"{text}\n")
    return FolderImages(str(folder), "train")


def test_label_tables_of_other_programs(tmp_path):
    write_folder(tmp_path, pixels(4), names=())
    images = table_of(tmp_path, "file_name, label", "b", "a", "a", "b", separator=";")
    assert images.labels == [1, 0, 0, 1]
    images = table_of(tmp_path, "file_name,label", "1.0", "0.0", "", "1.0")
    assert images.labels == [1, 0, -1, 1]
    images = table_of(tmp_path, "file_name,owl,cat", "1,0", "0,1", "0,1", "1,0")
    assert (images.labels, images.class_names) == ([1, 0, 0, 1], ("cat", "owl"))
    for header in ("file_name,width", "file_name,split"):  # numbers and splits are not classes
        values = ("1", "2", "2", "1") if "width" in header else ("train", "test") * 2
        images = table_of(tmp_path, header, *values)
        assert images.labels is None
        assert any("not used" in note for note in images.notes)
    with pytest.raises(InputError, match="a and b"):
        table_of(tmp_path, "file_name,label\n0000.png,a", "b")


def test_a_table_next_to_a_single_folder_is_used_and_must_name_its_images(tmp_path):
    inner = tmp_path / "photos"
    write_folder(inner, pixels(4), names=())
    table_of(inner, "file_name,label", "b", "a", "a", "b")
    assert FolderImages(str(tmp_path), "train").labels == [1, 0, 0, 1]
    (inner / "metadata.csv").rename(tmp_path / "metadata.csv")
    with pytest.raises(InputError, match="does not list any"):
        FolderImages(str(tmp_path), "train")
