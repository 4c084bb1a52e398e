"""Folders, arrays, and SOURCE arguments of commands."""

import os
import re
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from soflow.config.schema import DataConfig
from soflow.data import array_labels, sources
from soflow.data import arrays as arrays_module
from soflow.data.arrays import ArrayImages
from soflow.data.folder import FolderImages, splits_of
from soflow.data.npz import load_array
from soflow.data.training_data import make_dataset, summary
from soflow.data.tree import FolderTree
from soflow.errors import InputError
from soflow.evaluation.pictures import to_uint8
from soflow.workflows.train import train
from support.small_data import pixels, write_folder, write_parquet


def content(images):
    """Returns all images of a dataset as arrays."""
    return [np.asarray(opener()) for opener in images.openers(range(len(images)))]


def test_class_folders_give_labels_and_names(tmp_path):
    arrays = pixels(6)
    images = FolderImages(str(write_folder(tmp_path / "pets", arrays)), "train")
    assert (images.name, len(images), images.class_names) == ("pets", 6, ("cat", "dog"))
    assert images.labels == [0, 0, 0, 1, 1, 1]  # sorted by path
    assert np.array_equal(np.stack(content(images)), arrays[[0, 2, 4, 1, 3, 5]])
    assert images.where(3).endswith("dog/0001.png")


def test_images_without_classes_are_in_one_folder(tmp_path):
    images = FolderImages(str(write_folder(tmp_path, pixels(3), names=())), "train")
    assert (len(images), images.labels, images.class_names) == (3, None, ())


def test_every_file_type_is_read_and_other_files_are_ignored(tmp_path):
    for number, ending in enumerate(["png", "JPG", "jpeg", "webp", "bmp"]):
        Image.fromarray(pixels(1)[0]).save(tmp_path / f"{number}.{ending}")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / ".hidden" / "x.png")
    assert len(FolderImages(str(tmp_path), "train")) == 5


def test_nested_images_belong_to_the_class_above_and_links_are_followed_once(tmp_path):
    write_folder(tmp_path / "set", pixels(4))
    write_folder(tmp_path / "set" / "dog" / "small", pixels(2), names=())
    write_folder(tmp_path / "elsewhere", pixels(3), names=())
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "fox")
    os.symlink(tmp_path / "set", tmp_path / "set" / "dog" / "loop")
    images = FolderImages(str(tmp_path / "set"), "train")
    assert images.class_names == ("cat", "dog", "fox")
    assert np.bincount(images.labels).tolist() == [2, 4, 3]


def test_images_also_reached_by_a_link_keep_their_own_path(tmp_path):
    write_folder(tmp_path, pixels(4))
    os.symlink(tmp_path / "cat", tmp_path / "aged")
    os.symlink(tmp_path / "dog", tmp_path / "cat" / "friend")
    images = FolderImages(str(tmp_path), "train")
    assert [file.split(os.sep)[0] for file in images.files] == ["cat", "cat", "dog", "dog"]
    assert images.class_names == ("cat", "dog")
    assert any("aged" in note for note in images.notes)


def test_pipes_are_ignored_and_broken_links_are_unreadable(tmp_path):
    write_folder(tmp_path, pixels(2), names=())
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "pipe.png", tmp_path / "linked.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "gone.png")
    assert FolderImages(str(tmp_path), "train").files == ["0000.png", "0001.png", "gone.png"]


def test_splits_are_subfolders_with_common_class_numbers(tmp_path):
    write_folder(tmp_path / "train", pixels(4), names=("a", "b", "c"))
    write_folder(tmp_path / "test", pixels(3), names=("b", "c", "a"))
    config = DataConfig(source="folder", path=str(tmp_path), size=12)
    assert sources.splits(config) == ("train", "test")
    test = FolderImages(str(tmp_path), "test")
    assert test.class_names == ("a", "b", "c")
    assert test.labels == [0, 1, 2]
    with pytest.raises(InputError, match="train and test"):
        FolderImages(str(tmp_path), "val")


def test_a_class_can_be_called_train_and_split_names_ignore_case(tmp_path):
    vehicles = write_folder(tmp_path / "vehicles", pixels(6), names=("car", "plane", "train"))
    images = FolderImages(str(vehicles), "train")
    assert (len(images), images.class_names) == (6, ("car", "plane", "train"))
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    for name in ("Train", "VALID"):
        write_folder(tmp_path / "set" / name, pixels(4))
    assert sources.splits(DataConfig(source="folder", path=str(tmp_path / "set"), size=12)) == (
        "train",
        "validation",
    )
    assert FolderImages(str(tmp_path / "set"), "valid").class_names == ("cat", "dog")
    write_folder(tmp_path / "held" / "test", pixels(4))
    assert FolderImages(str(tmp_path / "held"), "test").class_names == ("cat", "dog")
    with pytest.raises(InputError, match="no split 'train'"):
        FolderImages(str(tmp_path / "held"), "train")


def test_ambiguous_splits_and_classes_are_rejected(tmp_path):
    for name in ("train", "test", "more"):
        write_folder(tmp_path / name, pixels(2))
    assert splits_of(FolderTree(tmp_path))[0].keys() == {"train", "test", "more"}
    (tmp_path / "more").rename(tmp_path / "Training")
    with pytest.raises(InputError, match="Training and train"):
        FolderImages(str(tmp_path), "train")
    for name in ("images", "masks"):
        write_folder(tmp_path / "pairs" / name, pixels(2), names=())
    with pytest.raises(InputError, match=r"images and masks.*data\.path"):
        FolderImages(str(tmp_path / "pairs"), "train")


def test_the_reason_for_missing_labels_is_known(tmp_path):
    write_folder(tmp_path / "empty", pixels(4))
    (tmp_path / "empty" / "cow").mkdir()
    empty = FolderImages(str(tmp_path / "empty"), "train")
    assert empty.class_names == ("cat", "dog")
    assert any("cow" in note for note in empty.notes)
    write_folder(tmp_path / "mixed", pixels(4))
    write_folder(tmp_path / "mixed", pixels(1), names=())
    mixed = FolderImages(str(tmp_path / "mixed"), "train")
    assert (len(mixed), mixed.labels) == (4, [0, 0, 1, 1])
    assert any("0000.png" in note for note in mixed.notes)
    assert len(FolderImages(str(tmp_path / "mixed"), "train", labelled=False)) == 5
    write_folder(tmp_path / "mixed", pixels(3), names=())
    with pytest.raises(InputError, match=r"3 images .*data\.num_classes=0"):
        FolderImages(str(tmp_path / "mixed"), "train")
    write_folder(tmp_path / "more" / "train", pixels(2))
    write_folder(tmp_path / "more" / "test", pixels(3), names=("cat", "dog", "owl"))
    assert "'owl'" in FolderImages(str(tmp_path / "more"), "test").unlabelled


def test_the_summary_says_what_is_used_and_what_is_left_out(tmp_path):
    photos = write_folder(tmp_path / "photos", pixels(5))
    (photos / "notes.txt").write_text("no image")
    write_folder(photos / "val", pixels(2))
    config = DataConfig(source="auto", path=str(photos), size=12, num_classes=-1)
    text_of_summary = "\n".join(summary(config, make_dataset(config)))
    for words in (
        "5 samples of [3, 12, 12]",
        "0 to 255",
        "cat 3, dog 2",
        "1 .txt",
        "validation (2)",
    ):
        assert words in text_of_summary
    flat = write_folder(tmp_path / "flat", pixels(4), names=())
    config = config.model_copy(update={"path": str(flat)})
    assert "no classes: " in summary(config, make_dataset(config))[-1]


def test_the_fingerprint_of_a_folder_depends_on_its_content(tmp_path):
    before = FolderImages(str(write_folder(tmp_path, pixels(4))), "train").fingerprint
    assert FolderImages(str(tmp_path), "train").fingerprint == before
    Image.fromarray(pixels(1, seed=5)[0]).save(tmp_path / "cat" / "0000.png")
    assert FolderImages(str(tmp_path), "train").fingerprint != before


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((5, 12, 12), (12, 12)),
        ((5, 12, 10, 3), (12, 10, 3)),
        ((5, 3, 12, 10), (12, 10, 3)),
        ((5, 12, 12, 1), (12, 12)),
    ],
)
def test_arrays_of_every_layout(shape, seen, tmp_path):
    array = pixels(1, shape)[0]
    np.savez(tmp_path / "set.npz", arr_0=array, arr_1=np.arange(5))
    np.save(tmp_path / "set.npy", array)
    images = ArrayImages(str(tmp_path / "set.npz"), "train")
    assert images.labels == [0, 1, 2, 3, 4]
    assert content(images)[3].shape == seen
    expected = array[3].transpose(1, 2, 0) if shape[1] == 3 else array[3].squeeze()
    assert np.array_equal(content(images)[3], expected)
    bare = ArrayImages(str(tmp_path / "set.npy"), "train")
    assert np.array_equal(content(bare)[3], expected)
    assert "set.npy" in bare.unlabelled


def test_arrays_named_after_their_split(tmp_path):
    train, test = pixels(4), pixels(2, seed=1)
    arrays = {
        "train_images": train,
        "train_labels": np.arange(4)[:, None],
        "x_test": test,
        "y_test": np.array([1, 0]),
    }
    np.savez(tmp_path / "m.npz", **arrays)
    path = str(tmp_path / "m.npz")
    assert np.array_equal(ArrayImages(path, "train").images, train)
    assert ArrayImages(path, "train").labels == [0, 1, 2, 3]
    assert ArrayImages(path, "test").labels == [1, 0]
    assert sources.splits(DataConfig(source="arrays", path=path)) == ("train", "test")


def test_arrays_are_loaded_one_by_one_on_demand(tmp_path, monkeypatch):
    """Labels are read at once, images at the first access, other arrays never."""
    loaded = []
    for module in (arrays_module, array_labels):
        monkeypatch.setattr(
            module, "load_array", lambda path, name: loaded.append(name) or load_array(path, name)
        )
    path = str(tmp_path / "m.npz")
    train = pixels(4)
    objects = np.array([{}, None], dtype=object)
    np.savez_compressed(
        path, train_images=train, train_labels=np.arange(4), test_images=pixels(2), made_by=objects
    )
    assert sources.splits(DataConfig(source="arrays", path=path)) == ("train", "test")
    images = ArrayImages(path, "train")
    assert loaded == ["train_labels"]
    assert np.array_equal(np.stack(content(images)), train)
    assert loaded == ["train_labels", "train_images"]


def test_the_fingerprint_of_arrays_depends_on_their_content(tmp_path, monkeypatch):
    """Each choice of split, image array and label array in one file is a different dataset."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, arrays = tmp_path / "one" / "set.npz", {}
    for number, split in enumerate(("train", "test")):
        for second in (0, 1):
            arrays[f"{split}_images_{'ab'[second]}"] = pixels(4, seed=2 * number + second)
            arrays[f"{split}_labels_{'ab'[second]}"] = (np.arange(4) + number + 2 * second) % 5
    (tmp_path / "one").mkdir()
    np.savez(path, **arrays)
    for split, image, label in product(("train", "test"), "ab", "ab"):
        keys = {
            "image_column": f"{split}_images_{image}",
            "label_column": f"{split}_labels_{label}",
        }
        dataset = sources.load(DataConfig(source="arrays", path=str(path), size=12, **keys), split)
        assert np.array_equal(to_uint8(dataset.samples()), arrays[keys["image_column"]])
        assert dataset.labels.tolist() == arrays[keys["label_column"]].tolist()
    for ending, save in (("npz", np.savez), ("npy", np.save)):
        found = []
        for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = tmp_path / folder / f"set.{ending}"
            save(file, pixels(4, seed=seed))
            os.utime(file, ns=(10**18, 10**18))
            found.append(ArrayImages(str(file), "train").fingerprint)
        assert found[0] == found[1] != found[2]


def test_numbers_that_are_not_classes(tmp_path):
    path = str(tmp_path / "set.npz")
    for labels, word in (
        (1_700_000_000 + np.arange(3), "label 1700000002"),
        (np.arange(3) + 0.5, "array labels"),
    ):
        np.savez(path, images=pixels(3), labels=labels)
        with pytest.raises(InputError, match=word):
            ArrayImages(path, "train")
        np.savez(path, images=pixels(3), seconds=labels)
        assert ArrayImages(path, "train").labels is None
    np.savez(path, images=pixels(3), labels=np.arange(4))
    with pytest.raises(InputError, match=r"3 samples.*'labels' has shape \[4\]"):
        ArrayImages(path, "train")
    np.savez(
        path, images=pixels(3), labels=np.array([999, 0, 5])
    )  # a subset of a dataset with many classes
    assert ArrayImages(path, "train", num_classes=1000).labels == [999, 0, 5]


def test_ambiguous_arrays_are_named(tmp_path):
    path = str(tmp_path / "two.npz")
    np.savez(path, a=pixels(3), b=pixels(3, seed=1))
    with pytest.raises(InputError, match=r"a and b"):
        ArrayImages(path, "train")
    assert np.array_equal(ArrayImages(path, "train", "b").images, pixels(3, seed=1))
    np.savez(path, a=pixels(3).astype(float))
    with pytest.raises(InputError, match=r"float64\[3, 12, 12, 3\]"):
        ArrayImages(path, "train")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.npz"):
        ArrayImages(str(tmp_path / "bad.npz"), "train")
    np.savez(path, a=pixels(0))
    with pytest.raises(InputError, match=r"two\.npz has no images"):
        ArrayImages(path, "train")
    np.savez_compressed(path, a=np.zeros((9, 12, 12), np.uint8), b=np.arange(9))
    damaged = bytearray((tmp_path / "two.npz").read_bytes())
    damaged[damaged.index(b"b.npy") + 45] ^= 255
    (tmp_path / "two.npz").write_bytes(damaged)
    with pytest.raises(InputError, match=r"two\.npz is damaged"):
        ArrayImages(path, "train")
    np.savez(path, a=pixels(12), b=np.array([0, -2, 1] * 4))
    assert "label -2" in ArrayImages(path, "train").unlabelled


def test_a_text_gives_a_source_and_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", pixels(2))
    write_parquet(tmp_path / "stored", pixels(2))
    np.savez(tmp_path / "a.npz", pixels(2))
    like = DataConfig(shape=(3, 12, 12))
    for text, source, path, split in (
        ("digits", "digits", "", ""),
        ("digits:test", "digits", "", "test"),
        ("photos", "folder", "photos", ""),
        ("photos:test", "folder", "photos", "test"),
        ("stored:train", "huggingface", "stored", "train"),
        (
            "stored/train-00000-of-00001.parquet",
            "huggingface",
            "stored/train-00000-of-00001.parquet",
            "",
        ),
        ("a.npz:val", "arrays", "a.npz", "val"),
        ("uoft-cs/cifar10:test", "huggingface", "uoft-cs/cifar10", "test"),
    ):
        found, named = sources.find(text, like)
        assert (found.source, found.path, named) == (source, path, split)
        assert found.shape == (3, 12, 12)
    for text in ("./nowhere", "/no/such/place", "b.npz", "a/b/c"):
        with pytest.raises(InputError, match=re.escape(text)):
            sources.find(text, like)


def test_file_endings_may_be_upper_case(tmp_path):
    for ending, source in (
        ("NPZ", "arrays"),
        ("NPY", "arrays"),
        ("PARQUET", "huggingface"),
        ("H5", "latents"),
    ):
        assert sources.kind_of(str(tmp_path / f"set.{ending}")) == source
        with pytest.raises(InputError, match=rf"set\.{ending}"):
            sources.find(f"set.{ending}", DataConfig())
    np.savez(tmp_path / "set.npz", pixels(2))
    (tmp_path / "set.npz").rename(tmp_path / "SET.NPZ")
    np.save(tmp_path / "set.npy", pixels(2))
    (tmp_path / "set.npy").rename(tmp_path / "SET.NPY")
    for name in ("SET.NPZ", "SET.NPY"):
        config, _ = sources.find(str(tmp_path / name), DataConfig(shape=(3, 12, 12)))
        assert len(sources.load(config)) == 2


def test_sources_without_images_are_rejected(tmp_path):
    with pytest.raises(InputError, match=r"'digits'.* folder, huggingface, arrays"):
        sources.open_images(DataConfig(source="digits"), "train")


def test_a_path_of_another_source_names_the_right_source(tmp_path):
    write_parquet(tmp_path / "stored", pixels(2))
    with pytest.raises(InputError, match=r"data\.source=huggingface"):
        sources.load(DataConfig(source="folder", path=str(tmp_path / "stored"), size=12))
    write_folder(tmp_path / "photos", pixels(2))
    with pytest.raises(InputError, match=r"data\.source=folder"):
        sources.load(DataConfig(source="huggingface", path=str(tmp_path / "photos"), size=12))


def test_every_source_gives_the_same_data(tmp_path):
    """Three sources crop, resize and convert the same eight images alike."""
    arrays = pixels(8, (12, 16, 3))
    write_folder(tmp_path / "folder", arrays)
    write_parquet(tmp_path / "parquet", arrays)
    np.savez(tmp_path / "arrays.npz", arr_0=arrays, arr_1=np.arange(8) % 2)
    by_class = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # in the order of the folder
    for shape in ((3, 12, 12), (1, 6, 6)):
        folder, parquet, from_arrays = (
            sources.load(DataConfig(source=source, path=str(tmp_path / path), shape=shape))
            for source, path in (
                ("folder", "folder"),
                ("huggingface", "parquet"),
                ("arrays", "arrays.npz"),
            )
        )
        assert folder.shape == parquet.shape == from_arrays.shape == shape
        assert torch.equal(parquet.samples(), from_arrays.samples())
        assert torch.equal(folder.samples(), parquet.samples(by_class))
        assert float(parquet.samples().abs().max()) <= 1
        assert torch.equal(parquet.labels, from_arrays.labels)
        assert torch.equal(folder.labels, parquet.labels[by_class])


def test_a_path_with_a_bundled_source_is_an_error(tmp_path):
    folder = write_folder(tmp_path / "pets", pixels(6))
    for source in ("digits", "moons"):
        with pytest.raises(InputError, match=rf"data\.path=.*data\.source={source}"):
            train(source, tmp_path / "run", [f"data.path={folder}"])
    sources.require_path_is_read(DataConfig(source="auto", path=str(folder), shape=(3, 8, 8)))


def test_a_folder_with_images_and_parquet_needs_an_explicit_source(tmp_path):
    write_folder(tmp_path, pixels(2), names=())
    write_parquet(tmp_path, pixels(2))
    with pytest.raises(InputError, match=r"data\.source=folder"):
        sources.kind_of(str(tmp_path))
    config = DataConfig(source="folder", path=str(tmp_path), shape=(3, 8, 8), num_classes=0)
    assert len(sources.load(config)) == 2
    for file in tmp_path.glob("*.parquet"):
        file.rename(tmp_path / "metadata.parquet")
    assert sources.kind_of(str(tmp_path)) == "folder"


def test_folders_can_have_any_name_and_be_links(tmp_path):
    write_folder(tmp_path / "set.csv", pixels(2))
    assert sources.kind_of(str(tmp_path / "set.csv")) == "folder"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "cat").symlink_to(tmp_path / "set.csv" / "cat")
    (tmp_path / "links" / "about.csv").write_text("a,b")
    assert sources.kind_of(str(tmp_path / "links")) == "folder"
    with pytest.raises(InputError, match="neither a folder"):
        sources.load(DataConfig(source="auto", path=str(tmp_path / "set.csv/cat/0000.png")))
