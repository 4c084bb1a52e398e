"""Samples in files: the same whoever draws them, and not drawn twice."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from soflow.errors import InputError
from soflow.sampling import sample_many
import soflow as runs
from soflow.workflows import sample as sample_files
from soflow.workflows.sample import sample_to_file


@pytest.fixture
def loaded(tiny_run, monkeypatch):
    monkeypatch.setattr(sample_files, "PIECE", 7)
    return runs.load(tiny_run)


def draw(loaded, file, num=40, labels=None, nfe=2, seed=3):
    labels = torch.arange(num) % 10 if labels is None else labels
    return sample_to_file(loaded, file, num, labels, "renoise", nfe, seed=seed)


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
    for one, three in zip(
        arrays(tmp_path / "one.npz"), arrays(tmp_path / "three.npz"), strict=True
    ):
        assert np.array_equal(one, three)
    images, labels = arrays(tmp_path / "one.npz")
    expected = sample_many(loaded.model, 40, torch.arange(40) % 10, "renoise", 2, seed=3)
    assert (
        np.abs(images[..., 0] - (expected[:, 0].numpy() * 127.5 + 128).clip(0, 255)).max() <= 1.01
    )
    assert labels.tolist() == [i % 10 for i in range(40)]
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz", "three.npz"] or len(
        list(tmp_path.iterdir())
    ) == 2


def test_a_process_without_a_share_leaves_nothing(loaded, tmp_path, monkeypatch):
    be(monkeypatch, 9, 10)
    assert not draw(loaded, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(monkeypatch):
    """Calls with the interruption of its choice, and which pieces were drawn by then."""
    real = sample_files.sample_many

    def call(after, *arguments, **options):
        drawn = []

        def counted(model, num, *others, **more):
            if len(drawn) == after:
                raise KeyboardInterrupt
            drawn.append(more["start"])
            return real(model, num, *others, **more)

        monkeypatch.setattr(sample_files, "sample_many", counted)
        with suppress(KeyboardInterrupt):
            draw(*arguments, **options)
        return drawn

    return call


def test_an_interrupted_call_goes_on(loaded, tmp_path, interrupted):
    assert interrupted(4, loaded, tmp_path / "x.npz") == [0, 7, 14, 21]
    assert not (tmp_path / "x.npz").exists()
    assert interrupted(None, loaded, tmp_path / "x.npz") == [28, 35]
    assert (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("change", ["weights", "labels", "nfe", "seed"])
def test_samples_drawn_otherwise_are_not_pieced_together(
    change, loaded, tiny_run, tmp_path, interrupted
):
    interrupted(4, loaded, tmp_path / "x.npz")
    changes = {"labels": torch.zeros(40, dtype=torch.int64), "nfe": 1, "seed": 4}
    options = {key: value for key, value in changes.items() if key == change}
    other = runs.load(tiny_run, "raw") if change == "weights" else loaded
    assert len(interrupted(None, other, tmp_path / "x.npz", **options)) == 6
    assert draw(other, tmp_path / "fresh.npz", **options)
    for one, fresh in zip(arrays(tmp_path / "x.npz"), arrays(tmp_path / "fresh.npz"), strict=True):
        assert np.array_equal(one, fresh)


def test_a_folder_keeps_what_others_put_there_and_mixes_nothing(loaded, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "000003.png").write_bytes(b"mine")
    with pytest.raises(
        InputError,
        match=r"holds 000003\.png, which soflow sample did not draw: delete .* or choose another",
    ):
        draw(loaded, folder, 20)
    assert (folder / "000003.png").read_bytes() == b"mine"
    (folder / "000003.png").rename(folder / "cover.png")
    assert draw(loaded, folder, 20)
    assert draw(loaded, folder, 20, seed=4)
    with pytest.raises(
        InputError, match=r"holds 000010\.png, drawn before, which would stay among the new ones"
    ):
        draw(loaded, folder, 10)
    assert draw(loaded, folder, 21)
    assert len(list(folder.glob("0*.png"))) == 21
    assert (folder / "cover.png").read_bytes() == b"mine"


def test_pictures_and_folders_come_from_the_same_pieces(loaded, tmp_path):
    draw(loaded, tmp_path / "x.npz", 20)
    draw(loaded, tmp_path / "x.png", 20)
    (tmp_path / "many").mkdir()
    draw(loaded, tmp_path / "many", 20)
    images = arrays(tmp_path / "x.npz")[0][..., 0]
    single = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "many").glob("*.png"))]
    assert np.array_equal(np.stack(single), images)
    sheet = np.asarray(Image.open(tmp_path / "x.png"))
    assert np.array_equal(
        sheet[2:34:4, 36:68:4], images[1]
    )  # the second of the first row, each pixel four wide
