"""Data sources by name: built-in sources and registered ones."""

import pytest
import torch

from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.data.folder import FolderImages
from soflow.data.registry import SOURCES, ImageSource
from soflow.errors import InputError
from support.small_data import pixels, write_folder


@pytest.fixture
def registry(monkeypatch):
    """The registry, restored after the test."""
    monkeypatch.setattr(SOURCES, "entries", dict(SOURCES.entries))
    return SOURCES


def test_a_function_is_a_source(registry):
    @registry.register("noise")
    def noise(config, split):
        rows = torch.randn(7, *config.shape, generator=torch.Generator().manual_seed(0))
        return Dataset("noise", split, rows, labels=None)

    config, split = sources.find("noise:test", DataConfig(shape=(5,)))
    assert (config.source, config.path, split) == ("noise", "", "test")
    dataset = sources.load(config, split)
    assert (dataset.shape, len(dataset), dataset.split) == ((5,), 7, "test")
    assert sources.splits(config) == ("train",)
    with pytest.raises(InputError, match="'noise'"):
        sources.open_images(config, "train")


def test_a_class_declares_its_splits(registry):
    @registry.register("halves")
    class Halves:
        def splits(self, config):
            return ("train", "test")

        def load(self, config, split):
            return Dataset("halves", split, torch.zeros(3, 2), labels=None)

    config = DataConfig(source="halves", shape=(2,))
    assert sources.splits(config) == ("train", "test")
    assert len(sources.load(config, "test")) == 3


def test_images_of_an_image_source_are_decoded_and_cached(registry, tmp_path):
    @registry.register("photos")
    class Photos(ImageSource):
        def splits(self, config):
            return ("train",)

        def open(self, config, split):
            return FolderImages(str(tmp_path / "photos"), split)

    write_folder(tmp_path / "photos", pixels(4))
    config = DataConfig(source="photos", size=12)
    assert sources.load(config).shape == (3, 12, 12)
    assert len(sources.open_images(config, "train")) == 4


@pytest.mark.parametrize(("name", "hint"), [("digitz", "--import"), ("imagenet", "soflow encode")])
def test_an_unknown_source_is_rejected_with_a_list_of_known_ones(name, hint):
    for use in (sources.load, sources.splits, lambda config: sources.open_images(config, "train")):
        with pytest.raises(InputError, match=r"data\.source") as error:
            use(DataConfig(source=name))
        assert all(known in str(error.value) for known in [*SOURCES, name, hint])
