"""Images from Hugging Face datasets, from small ones made here: local parquet as the Hub's own copies are."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

from conftest import TINY_DIT
from soflow import runs
from soflow.assemble import make_dataset
from soflow.config import read_recipe
from soflow.data.huggingface import load_images
from soflow.errors import InputError
from soflow.evaluation import features as features_module
from soflow.evaluation.classifier import ImageClassifier, cache_file
from soflow.evaluation.features import Classifier, load_features
from soflow.pictures import to_uint8

NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    load_images.cache_clear()


def pixels(count, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write(folder, arrays, split="train", label=True, **more):
    """A parquet file of PNGs, labels in turn."""
    folder.mkdir(exist_ok=True)
    columns = {"picture": [Pillow.fromarray(array) for array in arrays], **more}
    kinds = {"picture": Image(), **{name: Value("string") for name in more}}
    if label:
        columns["kind"], kinds["kind"] = [i % 2 for i in range(len(arrays))], ClassLabel(names=NAMES)
    Dataset.from_dict(columns, Features(kinds)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((8, 8, 3), 3)])
def test_pixels_labels_and_names_come_back_exactly(shape, channels, tmp_path):
    train, test = pixels(11, shape, 0), pixels(5, shape, 1)
    folder = write(write(tmp_path / "set", train), test, split="test", caption=["x"] * 5)
    folder = write(tmp_path / "set", train, caption=["x"] * 11)
    for split, expected in (("train", train), ("test", test)):
        dataset = load_images(str(folder), split, channels)
        assert dataset.shape == (channels, 8, 8)
        assert dataset.class_names == ("cat", "dog")
        assert dataset.labels.tolist() == [i % 2 for i in range(len(expected))]
        assert np.array_equal(to_uint8(dataset.data).reshape(expected.shape), expected)
        assert float(dataset.data.min()) >= -1
        assert float(dataset.data.max()) <= 1


def test_grey_and_rgb_become_each_other(tmp_path):
    grey = pixels(3, (8, 8), 0)
    dataset = load_images(str(write(tmp_path / "grey", grey)), "train", 3)
    assert torch.equal(dataset.data[:, 0], dataset.data[:, 2])


def test_a_run_trains_on_it(tmp_path):
    folder = write(write(tmp_path / "set", pixels(40, (8, 8), 0)), pixels(8, (8, 8), 1), split="test")
    settings = [*TINY_DIT, "data.source=huggingface", f"data.path={folder}", "data.num_classes=2"]
    out = runs.train("digits", tmp_path / "run", [*settings, "train.steps=2", "train.batch_size=8", "train.log_every=1"])
    assert len(out.read_metrics()) == 2
    assert make_dataset(read_recipe(str(out.path)).data, "test").split == "test"


@pytest.mark.parametrize(
    ("made", "channels", "split", "word"),
    [
        ("nothing", 1, "train", "cannot be read"),
        ("images", 1, "validation", "its splits are train"),
        ("images", 4, "train", "1 .grey. or 3"),
        ("sizes", 1, "train", "several sizes, such as 8x8 and 9x8"),
        ("text", 1, "train", "one column of images and at most one of classes; its columns are caption"),
        ("", 1, "train", "needs data.path"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(made, channels, split, word, tmp_path):
    path = str(tmp_path / made) if made else ""
    if made == "images":
        write(tmp_path / made, pixels(4, (8, 8), 0))
    if made == "sizes":
        write(tmp_path / made, [*pixels(2, (8, 8), 0), *pixels(2, (8, 9), 0)])
    if made == "text":
        (tmp_path / made).mkdir()
        Dataset.from_dict({"caption": ["a", "b"]}).to_parquet(tmp_path / made / "train-0.parquet")
    with pytest.raises(InputError, match=word) as raised:
        load_images(path, split, channels)
    assert "\n" not in str(raised.value)


def rewritten(folder, **columns):
    """The same file with some columns replaced, as no library would write them."""
    table = pyarrow.parquet.read_table(folder / "train-00000-of-00001.parquet")
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pyarrow.array(values, field.type))
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"kind": [0, 1, -1, 0]}, "row 2 has -1, its classes are 0 to 1"),
        ({"kind": [0, None, 1, 0]}, "row 1 has None"),
        ({"picture": [{"bytes": b"not a picture", "path": None}] * 4}, "rows 0 to 3 that cannot be decoded"),
        ({"picture": [None] * 4}, "cannot be decoded"),
    ],
)
def test_damaged_rows_are_named(columns, word, tmp_path):
    path = rewritten(write(tmp_path / "set", pixels(4, (8, 8), 0)), **columns)
    with pytest.raises(InputError, match=word):
        load_images(path, "train", 1)


def test_what_would_lose_something_is_refused(tmp_path):
    with pytest.raises(InputError, match="images of mode RGBA"):
        load_images(str(write(tmp_path / "rgba", pixels(3, (8, 8, 4), 0))), "train", 3)
    deep = [array.astype(np.uint16) * 200 for array in pixels(3, (8, 8), 0)]
    with pytest.raises(InputError, match="images of mode I;16"):
        load_images(str(write(tmp_path / "deep", deep)), "train", 1)


def test_images_without_classes_cannot_be_trained_with_classes(tmp_path):
    folder = write(tmp_path / "set", pixels(4, (8, 8), 0), label=False)
    config = read_recipe("digits", ["data.source=huggingface", f"data.path={folder}", "data.num_classes=2"])
    with pytest.raises(InputError, match="has 0 classes"):
        make_dataset(config.data)
    assert make_dataset(config.data.model_copy(update={"num_classes": 0})).labels is None


def striped(tmp_path, count=60):
    """Two classes that differ in the direction of their stripes, each image with noise of its own."""
    noise = np.random.default_rng(0).integers(0, 60, (count, 12, 12))
    stripes = 150 * (np.arange(12) // 3 % 2)
    arrays = [(noise[i] + (stripes[None] if i % 2 else stripes[:, None])).astype(np.uint8) for i in range(count)]
    return load_images(str(write(tmp_path / "striped", arrays)), "train", 1)


def test_a_classifier_is_trained_once_on_the_data_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("soflow.evaluation.classifier.STEPS", 30)
    monkeypatch.setattr("soflow.evaluation.classifier.BATCH", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, told = striped(tmp_path), []
    classifier = load_features("classifier", dataset, told.append)
    assert isinstance(classifier, Classifier)
    assert "striped" in classifier.name
    with torch.no_grad():
        features = classifier(dataset.data)
        assert features.shape == (60, 64)
        assert float((classifier.logits(features).argmax(1) == dataset.labels).float().mean()) > 0.95
        assert len(told) == 1
        again = load_features("classifier", dataset, told.append)
        assert len(told) == 1
        assert torch.equal(again(dataset.data), features)
    other = type(dataset)(dataset.name, "train", -dataset.data, dataset.labels, dataset.class_names)
    assert cache_file(dataset, tmp_path) != cache_file(other, tmp_path)  # other data, another classifier
    swapped = type(dataset)(dataset.name, "train", dataset.data, 1 - dataset.labels, dataset.class_names)
    assert cache_file(dataset, tmp_path) != cache_file(swapped, tmp_path)


def test_features_do_not_depend_on_how_many_are_looked_at_together(monkeypatch):
    classifier = ImageClassifier("x", (1, 8, 8), 2).eval()
    images = torch.randn(10, 1, 8, 8)
    with torch.no_grad():
        whole = classifier(images)
        monkeypatch.setattr("soflow.evaluation.classifier.CHUNK", 3)
        torch.testing.assert_close(classifier(images), whole)


def test_a_classifier_needs_classes(tmp_path):
    dataset = load_images(str(write(tmp_path / "set", pixels(4, (8, 8), 0), label=False)), "train", 1)
    with pytest.raises(InputError, match="labelled images"):
        features_module.load_features("classifier", dataset)
