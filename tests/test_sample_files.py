"""Samples in files: the same whoever draws them, and not drawn twice."""

import numpy as np
import pytest
import torch
from PIL import Image

from soflow import runs, sample_files
from soflow.sample_files import sample_to_file
from soflow.sampling import sample_many


@pytest.fixture
def loaded(tiny_run, monkeypatch):
    monkeypatch.setattr(sample_files, "PIECE", 7)
    return runs.load(tiny_run)


def draw(loaded, file, num=40, **changes):
    labels = torch.arange(num) % 10
    return sample_to_file(loaded, file, num, labels, "renoise", 2, seed=changes.get("seed", 3))


def be(monkeypatch, index, count):
    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def arrays(file):
    with np.load(file) as read:
        return read["arr_0"], read["arr_1"]


def test_the_file_is_the_same_however_many_processes_draw_it(loaded, tmp_path, monkeypatch):
    assert draw(loaded, tmp_path / "one.npz")
    for number in (2, 0, 1):
        be(monkeypatch, number, 3)
        last = draw(loaded, tmp_path / "three.npz")
        assert last == (number == 1) == (tmp_path / "three.npz").exists()
    for one, three in zip(arrays(tmp_path / "one.npz"), arrays(tmp_path / "three.npz"), strict=True):
        assert np.array_equal(one, three)
    images, labels = arrays(tmp_path / "one.npz")
    expected = sample_many(loaded.model, 40, torch.arange(40) % 10, "renoise", 2, seed=3)
    assert np.abs(images[..., 0] - (expected[:, 0].numpy() * 127.5 + 128).clip(0, 255)).max() <= 1.01
    assert labels.tolist() == [i % 10 for i in range(40)]
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz", "three.npz"] or len(list(tmp_path.iterdir())) == 2


def test_a_process_without_a_share_leaves_nothing(loaded, tmp_path, monkeypatch):
    be(monkeypatch, 9, 10)
    assert not draw(loaded, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_call_goes_on(loaded, tmp_path, monkeypatch):
    real, drawn = sample_files.sample_many, []

    def interrupted(model, num, *arguments, **options):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(options["start"])
        return real(model, num, *arguments, **options)

    monkeypatch.setattr(sample_files, "sample_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(loaded, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    after = []

    def counted(model, num, *arguments, **options):
        after.append(options["start"])
        return real(model, num, *arguments, **options)

    monkeypatch.setattr(sample_files, "sample_many", counted)
    assert draw(loaded, tmp_path / "x.npz")
    assert (drawn, after) == ([0, 7, 14, 21], [28, 35])
    draw(loaded, tmp_path / "x.npz", seed=4)  # other samples are not pieced together with these
    assert len(after) == 2 + 6


def test_pictures_and_folders_come_from_the_same_pieces(loaded, tmp_path):
    draw(loaded, tmp_path / "x.npz", 20)
    draw(loaded, tmp_path / "x.png", 20)
    (tmp_path / "many").mkdir()
    draw(loaded, tmp_path / "many", 20)
    images = arrays(tmp_path / "x.npz")[0][..., 0]
    single = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "many").glob("*.png"))]
    assert np.array_equal(np.stack(single), images)
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert np.array_equal(sheet[2:34:4, 36:68:4], images[1])  # the second of the first row, each pixel four wide
