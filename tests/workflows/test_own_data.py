"""Training on data given in Python: accepted types, reading, and resuming."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import soflow
from soflow.cli.main import run as soflow_command
from soflow.config.schema import DataConfig
from soflow.data import own
from soflow.data.batches import Batches
from soflow.data.own import own_dataset
from soflow.errors import InputError
from soflow.training.signals import Stopped
from support.settings import TINY_DIT
from support.watching import stop_at
from support.whole_runs import assert_same_run

SMALL = [*TINY_DIT, "train.steps=4", "train.batch_size=8", "train.sample_every=0"]
VECTORS = ["network.width=16", "network.depth=1", "train.steps=2", "train.batch_size=8"]
READ = DataConfig(shape=(-1, -1, -1), num_classes=-1)
RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
FLOATS = torch.from_numpy(RANDOM.uniform(-1, 1, (12, 3, 16, 16)).astype(np.float32))


class ByIndex(torch.utils.data.Dataset):
    """A torch dataset that counts its accesses."""

    def __init__(self, item, count=12):
        self.item, self.count, self.visits = item, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        self.visits += 1
        return self.item(row)


# Accepted data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (FLOATS, FLOATS),
        (FLOATS.double().numpy(), FLOATS),
        (FLOATS.half(), FLOATS.half().float()),
        (FLOATS.permute(0, 2, 3, 1).numpy(), FLOATS),
        (FLOATS * 3, FLOATS * 3),  # unchanged
        (FLOATS / 2 + 0.5, FLOATS),  # images in 0 to 1
        (list(FLOATS), FLOATS),
        (torch.utils.data.TensorDataset(FLOATS), FLOATS),
        (torch.utils.data.Subset(torch.utils.data.TensorDataset(FLOATS), [3, 1]), FLOATS[[3, 1]]),
        (FLOATS[:, :, 0, 0], FLOATS[:, :, 0, 0]),  # vectors
        (FLOATS[:, 0, 0, 0], FLOATS[:, 0, 0, :1]),
        (FLOATS[:, :, 0] / 2 + 0.5, FLOATS[:, :, 0] / 2 + 0.5),  # signals have no usual range
        ((FLOATS > 0).to(torch.uint8), (FLOATS > 0) * 2.0 - 1),  # masks of 0 and 1
    ],
)
def test_samples_keep_their_values(data, expected):
    found = own_dataset(data, READ)
    samples = found.samples()
    if expected.ndim < 4:  # vectors and signals are standardized
        across = (0, *range(2, expected.ndim))
        torch.testing.assert_close(samples.mean(across), torch.zeros(samples.shape[1]))
        spread = samples.std(across, correction=0)
        torch.testing.assert_close(spread, torch.ones(samples.shape[1]))
        samples = found.scaling.restore(samples)
    torch.testing.assert_close(samples, expected)


def test_vectors_far_from_zero_keep_their_units():
    given = 1.7e9 + 100 * RANDOM.normal(size=(40, 2))
    found = own_dataset(given, READ)
    restored = found.scaling.restore(found.samples()).numpy()
    assert np.abs(restored - given).max() < 1e-3
    changing = own_dataset(ByIndex(lambda row: torch.rand(2)), READ)
    assert changing.scaling is None  # no standardization


@pytest.mark.parametrize(
    "data",
    [
        BYTES,
        torch.from_numpy(BYTES),
        BYTES.transpose(0, 3, 1, 2),
        torch.from_numpy(BYTES).permute(0, 3, 1, 2),
        [Image.fromarray(one) for one in BYTES],
        [(Image.fromarray(one), i % 2) for i, one in enumerate(BYTES)],
    ],
)
def test_bytes_are_images(data):
    found = own_dataset(data, READ)
    assert found.rows.dtype == torch.uint8
    expected = torch.from_numpy(BYTES).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(found.samples(), expected)


def test_an_explicit_range_is_used():
    asked = READ.model_copy(update={"range": (-2.0, 2.0)})
    torch.testing.assert_close(own_dataset(FLOATS, asked).samples(), FLOATS / 2)


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (torch.arange(12) % 3, [0, 1, 2], ()),
        ([0.0, 1.0, 2.0] * 4, [0, 1, 2], ()),
        (np.eye(3)[np.arange(12) % 3], [0, 1, 2], ()),
        (["b", "a", "b"] * 4, [1, 0, 1], ("a", "b")),
        ([None, 0, -1] * 4, [-1, 0, -1], ()),
    ],
)
def test_labels_come_in_a_tuple_or_in_each_item(labels, numbers, names):
    by_item = ByIndex(lambda row: (FLOATS[row], labels[row]))
    by_name = ByIndex(lambda row: {"pixel_values": FLOATS[row], "label": labels[row]})
    for data in ((FLOATS, labels), by_item, by_name):
        found = own_dataset(data, READ)
        assert found.labels.tolist() == numbers * 4
        assert found.class_names == names


def test_the_labels_of_a_hugging_face_dataset(tmp_path, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pictures = [Image.fromarray(one) for one in BYTES]
    table = Dataset.from_dict({"image": pictures, "label": ["y", "x"] * 6})
    found = own_dataset(table, READ.model_copy(update={"shape": (3, 16, 16)}))
    assert found.labels.tolist() == [1, 0] * 6
    assert found.class_names == ("x", "y")
    expected = torch.from_numpy(BYTES).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(found.samples(), expected)
    vectors = Dataset.from_dict({"x": FLOATS[:, :, 0, 0].tolist(), "label": [0, 1] * 6})
    found = own_dataset(vectors, READ)
    torch.testing.assert_close(found.scaling.restore(found.samples()), FLOATS[:, :, 0, 0])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("photos", "data.path"),
        ({"other": FLOATS}, "other"),
        (5, "int"),
        ([], "no samples"),
        (torch.zeros(0, 3), "no samples"),
        (torch.arange(12), "int64"),
        (torch.zeros(12, 5, dtype=torch.uint8), "uint8"),
        (torch.full((12, 3), float("nan")), "row 0"),
        ((FLOATS, [1, 2]), "12 samples and 2 labels"),
        ((FLOATS, [0.5] * 12), "data.num_classes=0"),
        ([FLOATS[0], FLOATS[0, :, :8]], "item 1"),
        ([(1, 2, FLOATS[0])], "3 parts"),
        ([{"foo": 1}], "foo"),
        ([object()], "object"),
        (type("DataFrame", (), {})(), "to_numpy"),
        (BYTES // 16, "data.range"),  # would be nearly black
    ],
)
def test_unusable_data_are_named(data, named):
    with pytest.raises(InputError, match=named):
        own_dataset(data, READ)


# Reading


def test_small_data_are_read_once():
    data = ByIndex(lambda row: (FLOATS[row], row % 2))
    found = own_dataset(data, READ)
    visits = data.visits
    found.samples()
    assert data.visits == visits


def test_large_data_are_read_batch_by_batch(monkeypatch):
    for module in ("own", "batches"):
        monkeypatch.setattr(f"soflow.data.{module}.RESIDENT", 0)
    monkeypatch.setattr(own, "LOOKED_AT", 2)
    data = ByIndex(lambda row: (FLOATS[row], row % 2))
    data.targets = [row % 2 for row in range(12)]
    batches = Batches(own_dataset(data, READ), 4, seed=0)
    assert data.visits < 8  # neither samples nor labels are read completely
    for step in range(6):
        batch, chosen = batches.microbatch(step), batches.indices(step)
        torch.testing.assert_close(batch.data, FLOATS[chosen])
        assert batch.labels.tolist() == [row % 2 for row in chosen]


def test_a_list_of_labels_that_contradicts_the_items_is_ignored(monkeypatch):
    monkeypatch.setattr(own, "RESIDENT", 0)
    data = ByIndex(lambda row: (FLOATS[row], row % 3))
    data.targets = [0] * 12
    assert own_dataset(data, READ).labels.tolist() == [0, 1, 2] * 4


def test_random_items_are_drawn_again_at_every_access():
    data = ByIndex(lambda row: torch.rand(3, 8, 8))
    found = own_dataset(data, READ)
    batches = Batches(found, 12, seed=0)
    assert not torch.equal(batches.microbatch(0).data, batches.microbatch(0).data)
    assert (
        found.describe() == own_dataset(data, READ).describe()
    )  # a resumed run gets the same items


# Runs


def test_a_run_takes_shape_and_classes_from_its_data(tmp_path):
    data = torch.utils.data.TensorDataset(FLOATS, torch.arange(12) % 4)
    run = soflow.train("digits", tmp_path, SMALL, data=data)
    found = run.read_config().data
    assert (found.source, found.path, found.shape, found.num_classes) == (
        "python",
        "",
        (3, 16, 16),
        4,
    )
    record = json.loads(run.data.read_text())
    assert record["count"] == 12
    assert record["fingerprint"] == own_dataset(data, READ).describe().fingerprint
    loaded = soflow.load(tmp_path, device="cpu")
    assert soflow.sample(loaded, soflow.SampleRequest.of(loaded, 2)).shape == (2, 3, 16, 16)


def test_labels_can_be_ignored(tmp_path):
    run = soflow.train("moons", tmp_path, VECTORS, data=(FLOATS[:, 0, 0], torch.arange(12) % 2))
    assert run.read_config().data.num_classes == 0  # as in the recipe moons
    assert run.read_config().data.shape == (16,)


def test_a_run_resumes_only_with_its_own_data(tmp_path, capsys):
    data = (FLOATS, torch.arange(12) % 4)
    settings, out = [*SMALL, "checkpoint.every=2"], tmp_path / "run"
    whole = soflow.train("digits", tmp_path / "whole", settings, data=data)
    with pytest.raises(Stopped):
        soflow.train("digits", out, settings, progress=stop_at(2), data=data)
    with pytest.raises(InputError, match=r"passed from Python.*data="):
        soflow.train("digits", out, settings)
    assert soflow_command(["train", str(out)]) == 2
    assert "passed from Python" in capsys.readouterr().err
    with pytest.raises(InputError, match="fingerprint"):
        soflow.train("digits", out, settings, data=(-FLOATS, data[1]))
    assert_same_run(soflow.train("digits", out, settings, data=data).path, whole.path)


def test_evaluation_needs_the_data_again(tmp_path, capsys):
    run = soflow.train("images", tmp_path, [*SMALL, "evaluate.every=2"], data=FLOATS)
    settings = soflow.EvaluationSettings(num=12, nfe=(1,), weights=("ema",))
    assert len(soflow.evaluate(run.path, settings, data=FLOATS).rows) > 0
    assert soflow_command(["evaluate", str(run.path), "--num", "12"]) == 2
    assert "passed from Python" in capsys.readouterr().err
