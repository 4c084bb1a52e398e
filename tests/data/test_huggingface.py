"""Images from Hugging Face datasets, as small local parquet files like those on the Hub."""

import io
import os
import socket
import time
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

import soflow as runs
from soflow.config import read_recipe
from soflow.config.schema import DataConfig
from soflow.data import hub, sources
from soflow.data.hub import opened
from soflow.data.huggingface import HuggingFaceImages
from soflow.data.training_data import make_dataset
from soflow.errors import InputError
from soflow.evaluation.classifier import ImageClassifier, cache_file
from soflow.evaluation.features import as_uint8, load_features
from soflow.evaluation.pictures import to_uint8
from support.settings import TINY_DIT
from support.small_data import pixels, write_parquet


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    opened.cache_clear()


def load_images(path, split, channels, size=8, **columns):
    return sources.load(
        DataConfig(source="huggingface", path=path, shape=(channels, size, size), **columns), split
    )


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((8, 8, 3), 3)])
def test_pixels_labels_and_names_are_read_exactly(shape, channels, tmp_path):
    train, test = pixels(11, shape, 0), pixels(5, shape, 1)
    folder = write_parquet(
        write_parquet(tmp_path / "set", train), test, split="test", caption=["x"] * 5
    )
    folder = write_parquet(tmp_path / "set", train, caption=["x"] * 11)
    for split, expected in (("train", train), ("test", test)):
        dataset = load_images(str(folder), split, channels)
        assert dataset.shape == (channels, 8, 8)
        assert dataset.class_names == ("cat", "dog")
        assert dataset.labels.tolist() == [i % 2 for i in range(len(expected))]
        assert np.array_equal(to_uint8(dataset.samples()).reshape(expected.shape), expected)
        assert float(dataset.samples().min()) >= -1
        assert float(dataset.samples().max()) <= 1


def test_grey_and_rgb_are_converted(tmp_path):
    grey = pixels(3, (8, 8), 0)
    dataset = load_images(str(write_parquet(tmp_path / "grey", grey)), "train", 3)
    assert torch.equal(dataset.samples()[:, 0], dataset.samples()[:, 2])


def test_a_run_trains_on_parquet(tmp_path):
    folder = write_parquet(
        write_parquet(tmp_path / "set", pixels(40, (8, 8), 0)), pixels(8, (8, 8), 1), split="test"
    )
    settings = [*TINY_DIT, "data.source=huggingface", f"data.path={folder}", "data.num_classes=2"]
    out = runs.train(
        "digits",
        tmp_path / "run",
        [*settings, "train.steps=2", "train.batch_size=8", "train.log_every=1"],
    )
    assert len(out.read_metrics()) == 2
    assert make_dataset(read_recipe(str(out.path), ["data.split=test"]).data).split == "test"


@pytest.mark.parametrize(
    ("made", "channels", "split", "word"),
    [
        ("nothing", 1, "train", "nothing"),
        ("images", 1, "validation", "'validation'"),
        ("images", 4, "train", r"data\.shape is \[4, 8, 8\]"),
        ("text", 1, "train", "caption"),
        ("", 1, "train", r"data\.path"),
    ],
)
def test_unreadable_data_are_one_line_errors(made, channels, split, word, tmp_path):
    path = str(tmp_path / made) if made else ""
    if made == "images":
        write_parquet(tmp_path / made, pixels(4, (8, 8), 0))
    if made == "text":
        (tmp_path / made).mkdir()
        Dataset.from_dict({"caption": ["a", "b"]}).to_parquet(tmp_path / made / "train-0.parquet")
    with pytest.raises(InputError, match=word) as raised:
        load_images(path, split, channels)
    assert "\n" not in str(raised.value)


def rewritten(folder, **columns):
    """Returns the file with some columns replaced, in ways that no library writes."""
    table = pyarrow.parquet.read_table(folder / "train-00000-of-00001.parquet")
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pyarrow.array(values, field.type))
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("kind", [[0, 1, -1, 0], [0, None, 1, 0]])
def test_rows_without_a_class_get_the_null_label(kind, tmp_path):
    path = rewritten(write_parquet(tmp_path / "set", pixels(4, (8, 8), 0)), kind=kind)
    config = read_recipe(
        "digits", ["data.source=huggingface", f"data.path={path}", "data.num_classes=2"]
    ).data
    assert make_dataset(config).labels.tolist() == [2 if x in (-1, None) else x for x in kind]
    assert make_dataset(config).num_classes == 2
    assert len(make_dataset(config.model_copy(update={"num_classes": 0}))) == 4


@pytest.mark.parametrize("picture", [{"bytes": b"not a picture", "path": None}, None])
def test_damaged_images_are_listed(picture, tmp_path):
    path = rewritten(write_parquet(tmp_path / "set", pixels(4, (8, 8), 0)), picture=[picture] * 4)
    with pytest.raises(InputError, match=r"of 4 images .*row 0"):
        load_images(path, "train", 1)


def two_of_each(folder):
    """Two columns of images, two of classes, one of numbers and one of text."""
    arrays, others = pixels(4, (8, 8), 0), pixels(4, (8, 8), 1)
    columns = {
        "front": list(arrays), "back": list(others), "fine": [0, 1, 2, 0], "coarse": [0, 1, 1, 0],
        "number": [3, 0, 1, 3], "word": ["x", "b", "x", "a"],
    }  # fmt: skip
    kinds = {
        "front": Image(), "back": Image(), "fine": ClassLabel(names=["p", "q", "r"]),
        "coarse": ClassLabel(names=["s", "t"]), "number": Value("int64"), "word": Value("string"),
    }  # fmt: skip
    folder.mkdir()
    Dataset.from_dict(columns, Features(kinds)).to_parquet(folder / "train-0.parquet")
    return str(folder), arrays, others


def test_ambiguous_columns_must_be_named(tmp_path):
    path, front, back = two_of_each(tmp_path / "set")
    with pytest.raises(InputError, match=r"data\.image_column=front"):
        load_images(path, "train", 1)
    with pytest.raises(InputError, match=r"fine and coarse.*data\.label_column=fine"):
        load_images(path, "train", 1, image_column="back")
    for column, arrays in (("front", front), ("back", back)):
        dataset = load_images(path, "train", 1, image_column=column, label_column="coarse")
        assert np.array_equal(to_uint8(dataset.samples())[..., 0], arrays)
        assert (dataset.labels.tolist(), dataset.class_names) == ([0, 1, 1, 0], ("s", "t"))
    numbers = load_images(path, "train", 1, image_column="front", label_column="number")
    assert (numbers.labels.tolist(), numbers.class_names, numbers.num_classes) == (
        [3, 0, 1, 3],
        (),
        4,
    )
    words = load_images(path, "train", 1, image_column="front", label_column="word")
    assert (words.labels.tolist(), words.class_names) == ([2, 1, 2, 0], ("a", "b", "x"))
    for column in ("image_column", "label_column"):
        columns = {"image_column": "front", "label_column": "fine", column: "side"}
        with pytest.raises(InputError, match=rf"data\.{column}.*'side'.*front, back"):
            load_images(path, "train", 1, **columns)
    with pytest.raises(InputError, match="'fine'"):
        load_images(path, "train", 1, image_column="fine")


def test_a_file_a_saved_dataset_and_a_folder_give_the_same_data(tmp_path):
    arrays = pixels(4, (8, 8), 0)
    folder = write_parquet(tmp_path / "set", arrays)
    Dataset.from_parquet(str(folder / "train-00000-of-00001.parquet")).save_to_disk(
        tmp_path / "saved"
    )
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for path in (folder, folder / "train-00000-of-00001.parquet", tmp_path / "saved", arrow):
        assert np.array_equal(
            to_uint8(load_images(str(path), "train", 1).samples())[..., 0], arrays
        )


def test_class_numbers_come_from_the_split_train(tmp_path):
    arrays = pixels(4, (8, 8), 0)
    write_parquet(tmp_path / "set", arrays, label=False, word=["cat", "dog", "owl", "dog"])
    path = str(
        write_parquet(tmp_path / "set", arrays[:2], split="test", label=False, word=["owl", "dog"])
    )
    test = load_images(path, "test", 1, label_column="word")
    assert (test.labels.tolist(), test.class_names) == ([2, 1], ("cat", "dog", "owl"))
    write_parquet(tmp_path / "more", arrays, label=False, word=["cat", "dog", "cat", "dog"])
    path = str(
        write_parquet(tmp_path / "more", arrays[:2], split="test", label=False, word=["owl", "dog"])
    )
    assert "'owl'" in load_images(path, "test", 1, label_column="word").unlabelled


@pytest.mark.parametrize("path", [None, {"path": "x.png"}])
def test_a_named_column_of_bytes_holds_images(path, tmp_path):
    arrays, stored = pixels(3, (8, 8), 0), []
    for array in arrays:
        Pillow.fromarray(array).save(stream := io.BytesIO(), "PNG")
        stored.append(stream.getvalue() if path is None else {"bytes": stream.getvalue(), **path})
    (tmp_path / "set.parquet").mkdir()  # a folder, as written by Spark
    pyarrow.parquet.write_table(
        pyarrow.table({"x": stored}), tmp_path / "set.parquet" / "part-00000.parquet"
    )
    folder = str(tmp_path / "set.parquet")
    with pytest.raises(InputError, match=r"data\.image_column=x"):
        load_images(folder, "train", 1)
    dataset = load_images(folder, "train", 1, image_column="x")
    assert np.array_equal(to_uint8(dataset.samples())[..., 0], arrays)


@pytest.mark.parametrize("name", ["", "train-00000-of-00001.parquet"])
def test_files_with_equal_path_and_time_differ_by_content(name, tmp_path):
    for seed in (0, 1):
        opened.cache_clear()  # like another process
        folder = write_parquet(tmp_path / "set", pixels(4, (8, 8), seed))
        os.utime(folder / "train-00000-of-00001.parquet", ns=(10**18, 10**18))
        found = load_images(str(folder / name), "train", 1).samples()
        assert np.array_equal(to_uint8(found)[..., 0], pixels(4, (8, 8), seed))


def test_images_without_classes_cannot_be_trained_with_classes(tmp_path):
    folder = write_parquet(tmp_path / "set", pixels(4, (8, 8), 0), label=False)
    config = read_recipe(
        "digits", ["data.source=huggingface", f"data.path={folder}", "data.num_classes=2"]
    )
    with pytest.raises(InputError, match=r"data\.num_classes"):
        make_dataset(config.data)
    assert make_dataset(config.data.model_copy(update={"num_classes": 0})).labels is None


def striped(tmp_path, count=60):
    """Two classes that differ in the direction of their noisy stripes."""
    noise = np.random.default_rng(0).integers(0, 60, (count, 12, 12))
    stripes = 150 * (np.arange(12) // 3 % 2)
    arrays = [
        (noise[i] + (stripes[None] if i % 2 else stripes[:, None])).astype(np.uint8)
        for i in range(count)
    ]
    return load_images(str(write_parquet(tmp_path / "striped", arrays)), "train", 1, 12)


def test_a_classifier_is_trained_once_and_stored(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("soflow.evaluation.classifier.STEPS", 30)
    monkeypatch.setattr("soflow.evaluation.classifier.BATCH", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = striped(tmp_path)
    caplog.clear()
    caplog.set_level("INFO", "soflow")
    classifier = load_features("classifier", dataset, dataset.shape)
    assert classifier.metric == "FD-striped-classifier"
    found = classifier(as_uint8(dataset.samples()))
    assert found.features.shape == (60, 64)
    assert float((found.logits.argmax(1) == dataset.labels).float().mean()) > 0.95
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING"]  # 60 images are few
    again = load_features("classifier", dataset, dataset.shape)
    assert len(caplog.records) == 2
    assert torch.equal(again(as_uint8(dataset.samples())).features, found.features)
    other = type(dataset)(
        dataset.name,
        "train",
        255 - dataset.rows[torch.arange(60)],
        dataset.labels,
        dataset.class_names,
    )
    assert cache_file(dataset, tmp_path) != cache_file(
        other, tmp_path
    )  # other data, another classifier
    swapped = replace(dataset, labels=1 - dataset.labels)
    assert cache_file(dataset, tmp_path) != cache_file(swapped, tmp_path)


def test_features_do_not_depend_on_the_batch_size(monkeypatch):
    classifier = ImageClassifier((1, 8, 8), 2).eval()
    images = torch.randn(10, 1, 8, 8)
    with torch.no_grad():
        whole = classifier(images)
        monkeypatch.setattr("soflow.evaluation.classifier.CHUNK", 3)
        torch.testing.assert_close(classifier(images), whole)


def test_a_classifier_needs_classes(tmp_path):
    dataset = load_images(
        str(write_parquet(tmp_path / "set", pixels(4, (8, 8), 0), label=False)), "train", 1
    )
    with pytest.raises(InputError, match="label"):
        load_features("classifier", dataset, dataset.shape)


def test_columns_of_numbers_and_text_are_classes(tmp_path):
    arrays = pixels(6, (8, 8), 0)
    path = write_parquet(tmp_path / "texts", arrays, label=False, word=["a", "b"] * 3)
    images = HuggingFaceImages(str(path), "train")
    assert (images.labels, images.class_names) == ([0, 1] * 3, ("a", "b"))
    assert "'word'" in images.notes[0]
    captions = [f"a picture {i}" for i in range(6)]
    path = write_parquet(tmp_path / "captions", arrays, label=False, text=captions)
    assert HuggingFaceImages(str(path), "train").labels is None
    path = rewritten(write_parquet(tmp_path / "numbers", arrays), kind=[0, 1] * 3)
    images = HuggingFaceImages(path, "train")
    assert images.labels == [0, 1] * 3
    path = write_parquet(tmp_path / "two", arrays, label=False, a=["x", "y"] * 3, b=["x"] * 6)
    path = write_parquet(tmp_path / "two", arrays, label=False, a=["x", "y"] * 3, b=["u", "v"] * 3)
    with pytest.raises(InputError, match=r"a and b.*data\.label_column=a"):
        HuggingFaceImages(str(path), "train")
    assert HuggingFaceImages(str(path), "train", num_classes=0).labels is None


def test_subsets_are_listed_and_selected(tmp_path):
    root = tmp_path / "sets"
    root.mkdir()
    for name, count in (("small", 2), ("large", 4)):
        write_parquet(root / name, pixels(count, (8, 8), 0))
    card = "".join(f"- config_name: {x}\n  data_files: {x}/*.parquet\n" for x in ("small", "large"))
    (root / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    with pytest.raises(InputError, match=r"small, large.*data\.subset=small"):
        HuggingFaceImages(str(root), "train")
    with pytest.raises(InputError, match=r"'huge'.*small, large"):
        HuggingFaceImages(str(root), "train", subset="huge")
    assert len(HuggingFaceImages(str(root), "train", subset="large")) == 4
    with pytest.raises(InputError, match=r"data\.revision"):
        HuggingFaceImages(str(root), "train", revision="main")


def test_changed_files_are_read_again_in_one_process(tmp_path):
    for count in (2, 5):
        path = write_parquet(tmp_path / "set", pixels(count, (8, 8), 0))
        assert len(HuggingFaceImages(str(path), "train")) == count


def test_the_hub_is_not_contacted_for_local_paths_or_offline(monkeypatch):
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(hub, "answers", lambda address: asked.append(address) or False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for path in ("./set", "a/b/c", "/gone", "set.parquet", "~/set", "a\\b"):
        with pytest.raises(InputError, match="does not exist"):
            hub.require_hub_name(path)
    assert not asked
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        hub.require_hub_name("nobody/nothing")
    assert len(asked) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.require_hub_name("nobody/nothing")


def test_a_server_that_does_not_answer_times_out_soon(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", dict)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    assert hub.answers(f"http://127.0.0.1:{port}")
    server.close()
    assert not hub.answers(f"http://127.0.0.1:{port}")
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: time.sleep(5))
    start = time.monotonic()
    assert not hub.answers("https://example.org")
    assert time.monotonic() - start < 2
