"""Conditions: input formats, reading, augmentation and batches."""

import numpy as np
import pytest
import torch

from soflow.config.schema import DataConfig
from soflow.data import batches as batches_module
from soflow.data import own as own_module
from soflow.data import sources
from soflow.data.augment import AugmentPipe
from soflow.data.batches import Batches
from soflow.data.conditions import conditions_of, rows_for
from soflow.data.dataset import Dataset
from soflow.data.own import own_dataset
from soflow.data.training_data import make_dataset
from soflow.errors import InputError

COUNT = 12
READ = DataConfig(shape=(-1, -1, -1), num_classes=-1)
RANDOM = np.random.default_rng(0)
IMAGES = torch.from_numpy(RANDOM.uniform(-1, 1, (COUNT, 1, 8, 8)).astype(np.float32))
MAPS = torch.from_numpy(RANDOM.uniform(-9, 9, (COUNT, 3, 8, 8)).astype(np.float32))
BYTES = RANDOM.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
VECTORS = MAPS[:, :, 0, 0]


class Items(torch.utils.data.Dataset):
    def __init__(self, item, count=COUNT):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.item(row)


@pytest.mark.parametrize(
    ("cond", "expected"),
    [
        (MAPS, MAPS),
        (MAPS.double().numpy(), MAPS),
        (MAPS.permute(0, 2, 3, 1).numpy(), MAPS),
        (MAPS[:, 0], MAPS[:, :1]),
        (BYTES, torch.from_numpy(BYTES).permute(0, 3, 1, 2) / 127.5 - 1),
        (torch.from_numpy(BYTES).permute(0, 3, 1, 2), BYTES.transpose(0, 3, 1, 2) / 127.5 - 1),
        (VECTORS, VECTORS),
        (VECTORS[:, 0], VECTORS[:, :1]),
    ],
)
def test_conditions_keep_their_values(cond, expected):
    expected = torch.as_tensor(expected).float()
    labels = torch.arange(COUNT) % 3
    arrays = {"image": IMAGES, "label": labels, "cond": cond}
    items = Items(lambda row: {name: values[row] for name, values in arrays.items()})
    for data in (arrays, items):
        found = own_dataset(data, READ)
        torch.testing.assert_close(found.samples(), IMAGES)
        torch.testing.assert_close(found.conditions(), expected)
        assert found.cond_shape == tuple(expected.shape[1:])
        assert torch.equal(found.labels, labels)
    torch.testing.assert_close(conditions_of(cond, expected.shape[1:], (1, 8, 8)), expected)


@pytest.mark.parametrize("cond", [255 - BYTES[..., 0], VECTORS.numpy()])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_file_of_arrays_holds_conditions(tmp_path, cond, dtype):
    x = BYTES[..., 0].astype(dtype)
    held_out = {"x_test": x[:4], "y_test": np.arange(4) % 3, "cond_test": cond[::-1][:4]}
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(COUNT) % 3, cond=cond, **held_out)
    config = DataConfig(path=str(tmp_path / "set.npz"), source="auto", shape=(1, 8, 8))
    found, other = sources.load(config), sources.load(config, "test")
    expected = torch.from_numpy(cond.copy())
    expected = expected if expected.ndim == 2 else expected[:, None] / 127.5 - 1
    torch.testing.assert_close(found.conditions(), expected)
    torch.testing.assert_close(other.conditions(), expected.flip(0)[:4])
    assert found.num_classes == 3
    renamed = config.model_copy(update={"cond_column": "y"})
    with pytest.raises(InputError, match="int64"):
        sources.load(renamed)


def test_augmented_data_are_read_with_their_conditions():
    """An image and its map get the same random crop."""

    def item(row):
        image = torch.rand(1, 8, 8) + row
        return {"image": image, "cond": 2 * image}

    dataset = own_dataset(Items(item), READ.model_copy(update={"range": (-1.0, 1.0)}))
    assert dataset.rows.changing
    batch = Batches(dataset, 8, seed=0).microbatch(0)
    assert torch.equal(batch.cond, 2 * batch.data)
    for one in (dataset, dataset.part(torch.tensor([3, 1]), "")):
        data, cond = one.pairs()
        assert torch.equal(cond, 2 * data)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("by_item", [True, False])
def test_batches_pair_rows_with_their_conditions(resident, by_item, monkeypatch):
    if not resident:
        monkeypatch.setattr(batches_module, "RESIDENT", 0)
        monkeypatch.setattr(own_module, "RESIDENT", 0)
    data, labels = torch.arange(float(COUNT))[:, None, None, None].expand(-1, 1, 8, 8), range(COUNT)
    arrays = {"image": data, "label": list(labels), "cond": data[:, 0, 0, :1]}
    items = Items(lambda row: {name: values[row] for name, values in arrays.items()})
    config = READ.model_copy(update={"range": (-1.0, 1.0)})
    batches = Batches(own_dataset(items if by_item else arrays, config), 6, seed=0)
    assert batches.resident == resident
    for step in range(3):
        whole = batches.microbatch(step)
        assert torch.equal(whole.cond[:, 0], whole.data[:, 0, 0, 0])
        assert torch.equal(whole.cond[:, 0], whole.labels.float())
        for index in range(2):
            part = batches.microbatch(step, index, 2)
            assert torch.equal(part.cond, whole.cond[index::2])
            assert torch.equal(part.data, whole.data[index::2])


@pytest.mark.parametrize("change", [{"flip": True}, {"augment": AugmentPipe(0.9)}])
def test_a_map_is_augmented_like_its_image(change):
    dataset = Dataset("pairs", "train", IMAGES, None, cond=IMAGES.expand(-1, 2, -1, -1))
    plain, changed = (
        Batches(dataset, 8, seed=0, **settings).microbatch(0) for settings in ({}, change)
    )
    assert not torch.equal(changed.data, plain.data)
    torch.testing.assert_close(changed.cond, changed.data.expand(-1, 2, -1, -1))
    vectors = Dataset("vectors", "train", IMAGES, None, cond=VECTORS)
    assert torch.equal(
        Batches(vectors, COUNT, seed=0, **change).microbatch(0).cond,
        VECTORS[torch.from_numpy(Batches(vectors, COUNT, seed=0).indices(0))],
    )


def test_conditions_change_the_fingerprint():
    datasets = [Dataset("x", "train", IMAGES, None, cond=c) for c in (None, MAPS, MAPS + 1)]
    assert len({one.describe().fingerprint for one in datasets}) == 3


def test_rows_for_samples_are_evenly_spaced():
    labels = torch.tensor([0, 1, -1, 2] * 3)
    dataset = Dataset("x", "train", IMAGES, labels, ("a", "b", "c"), cond=VECTORS)
    every = torch.arange(6)
    shown, cond = rows_for(dataset, 6, 3)
    assert shown.tolist() == [0, 3] * 3
    assert torch.equal(cond[every], VECTORS[::2])
    shown, cond = rows_for(dataset, 18, 3, null_trained=False)
    assert shown.tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert rows_for(dataset, 6, 0)[0] is None


@pytest.mark.parametrize(
    ("cond", "named"),
    [
        (MAPS[:5], "5"),
        (MAPS.long(), "int64"),
        (torch.full((COUNT, 3), torch.nan), "row 0"),
        (torch.ones(COUNT, 8, 8, dtype=torch.uint8), "0 and 1"),
        (torch.from_numpy(BYTES)[:, 0, 0], "uint8"),
    ],
)
def test_unusable_conditions_are_rejected(cond, named):
    with pytest.raises(InputError, match=named):
        own_dataset({"image": IMAGES, "cond": cond}, READ)


def test_conditions_of_items_need_equal_shapes():
    for others in (VECTORS[0, :2], None):
        items = Items(
            lambda row, others=others: {"x": IMAGES[row], "cond": others if row else VECTORS[0]}
        )
        with pytest.raises(InputError, match="item 1"):
            own_dataset(items, READ)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"cond_column": "low"}, "low"), ({"cond_shape": (5,)}, "cond_shape")],
)
def test_requested_conditions_must_exist(settings, named, monkeypatch):
    arrays = {"image": IMAGES, "cond": VECTORS}
    asked = READ.model_copy(update=settings)
    monkeypatch.setattr(sources, "load", lambda config, split: own_dataset(arrays, config))
    with pytest.raises(InputError, match=named):
        make_dataset(asked)
    ignored = make_dataset(READ.model_copy(update={"cond_column": ""}))
    assert ignored.cond is None
