"""Statistics of real data are computed once, and again if anything that they depend on changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from soflow.data.dataset import Dataset, Encoder
from soflow.evaluation.features import Features, coordinates
from soflow.evaluation.record import Reference
from soflow.evaluation.reference_files import write_reference
from soflow.evaluation.references import statistics_of
from soflow.evaluation.statistics_cache import cache_file


class Network:
    """Two features of images, and the number of calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, seen):
        self.calls += len(seen)
        pixels = seen.flatten(1).double()
        return torch.stack([pixels.mean(1), pixels.std(1)], dim=1).float()


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Network()


def images(seed=0, count=40):
    pixels = np.random.default_rng(seed).integers(256, size=(count, 4, 4, 1), dtype=np.uint8)
    return Dataset("images", "train", torch.from_numpy(pixels), None)


def features(network, checksum="1"):
    return Features("two", network, {"checksum": checksum})


def assert_equal(one, other):
    assert one.count == other.count
    torch.testing.assert_close(one.moments.mean, other.moments.mean, rtol=0, atol=0)
    torch.testing.assert_close(one.moments.covariance, other.moments.covariance, rtol=0, atol=0)
    torch.testing.assert_close(one.points, other.points, rtol=0, atol=0)


def test_the_second_call_reads_exactly_what_the_first_computed(network):
    first = statistics_of(images(), features(network))
    assert network.calls == 40
    again = statistics_of(images(), features(network))
    assert network.calls < 50  # only the test of the number of dimensions
    assert_equal(first, again)


def test_each_part_of_the_key_counts(network):
    data = images()
    half = data.part(torch.arange(40) < 20, "train")
    other_half = data.part(torch.arange(40) >= 20, "train")
    files = {
        cache_file(data, features(network)),
        cache_file(images(seed=1), features(network)),
        cache_file(data, features(network, "2")),
        cache_file(half, features(network)),
        cache_file(other_half, features(network)),
    }
    assert len(files) == 5
    assert None not in files


def test_data_that_change_or_are_slow_to_read_are_not_cached(network):
    class Lazy:
        shape, dtype = (40, 4, 4, 1), torch.uint8

        def __len__(self):
            return 40

        def __getitem__(self, which):
            return torch.zeros(len(which), 4, 4, 1, dtype=torch.uint8)

    class Changing(Lazy):
        checksums, changing = ("always the same",), True

    for rows in (Lazy(), Changing()):
        assert cache_file(replace(images(), rows=rows), features(network)) is None


def test_a_damaged_file_is_replaced(network):
    first = statistics_of(images(), features(network))
    file = cache_file(images(), features(network))
    file.write_bytes(file.read_bytes()[:100])
    assert_equal(first, statistics_of(images(), features(network)))
    assert network.calls >= 80
    assert file.stat().st_size > 100


def test_without_a_writable_cache_statistics_are_computed(network, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert statistics_of(images(), features(network)).count == 40
    assert network.calls >= 80


def test_only_features_of_images_are_cached(network):
    data = images()
    floats = replace(data, rows=torch.rand(40, 1, 4, 4))
    encoder = Encoder("an autoencoder", scale=0.5, channels=3, size=8)
    assert cache_file(floats, features(network)) is not None
    assert cache_file(floats, coordinates((1, 4, 4), None)) is None
    for rows in (floats.rows.bfloat16(), floats.rows.clone().requires_grad_()):
        assert cache_file(replace(data, rows=rows), features(network)) is None
    assert cache_file(replace(floats, encoder=encoder), features(network)) is None


def test_incomplete_statistics_are_computed_again(network):
    first = statistics_of(images(), features(network))
    file = cache_file(images(), features(network))
    about = Reference(dataset="images", split="train", count=40)
    damaged = replace(first, points=first.points[:3])
    write_reference(file, damaged, features(network), about, (1, 4, 4))
    assert_equal(first, statistics_of(images(), features(network)))
