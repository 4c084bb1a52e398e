"""Sample files do not depend on the number of processes, and no sample is drawn twice."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

import soflow as runs
from soflow.errors import InputError
from soflow.system.progress import silent
from soflow.workflows import sample as sample_files
from soflow.workflows.sample import SampleProtocol, sample, sample_to_file
from soflow.workflows.sample_files import write_npz
from soflow.workflows.sample_request import SampleRequest


@pytest.fixture
def loaded(tiny_run, monkeypatch):
    monkeypatch.setattr(sample_files, "PIECE", 7)
    return runs.load(tiny_run)


def draw(loaded, file, num=40, labels=None, nfe=2, seed=3):
    labels = torch.arange(num) % 10 if labels is None else labels
    return sample_to_file(loaded, SampleRequest(num, labels, "renoise", nfe, seed), file, silent)


def set_process(monkeypatch, index, count):
    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def arrays(file):
    with np.load(file) as read:
        return read["arr_0"], read["arr_1"]


def test_the_file_is_the_same_for_any_number_of_processes(loaded, tmp_path, monkeypatch):
    assert draw(loaded, tmp_path / "one.npz")
    for number in (2, 0, 1):
        set_process(monkeypatch, number, 3)
        last = draw(loaded, tmp_path / "three.npz")
        assert last == (number == 1) == (tmp_path / "three.npz").exists()
    for one, three in zip(
        arrays(tmp_path / "one.npz"), arrays(tmp_path / "three.npz"), strict=True
    ):
        assert np.array_equal(one, three)
    images, labels = arrays(tmp_path / "one.npz")
    request = SampleRequest(40, torch.arange(40) % 10, "renoise", 2, seed=3)
    expected = sample(loaded, request, silent)[:, 0].numpy() * 127.5 + 128
    assert np.abs(images[..., 0] - expected.clip(0, 255)).max() <= 1.01
    assert labels.tolist() == [i % 10 for i in range(40)]
    assert {path.name for path in tmp_path.iterdir()} == {"one.npz", "three.npz"}


def test_an_archive_that_cannot_be_written_leaves_no_files(tmp_path, monkeypatch):
    rows, file = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), tmp_path / "x.npz"
    file.write_bytes(b"before")

    def fail(stream, array):
        raise OSError("no space")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="no space"):
        write_npz(rows, torch.zeros(4), file, None)
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_process_without_work_leaves_no_files(loaded, tmp_path, monkeypatch):
    set_process(monkeypatch, 9, 10)
    assert not draw(loaded, tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(monkeypatch):
    """Draws with an interruption after some parts. Returns the first rows of the parts."""
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


def test_an_interrupted_call_reuses_its_parts(loaded, tmp_path, interrupted):
    assert interrupted(4, loaded, tmp_path / "x.npz") == [0, 7, 14, 21]
    assert not (tmp_path / "x.npz").exists()
    assert interrupted(None, loaded, tmp_path / "x.npz") == [28, 35]
    assert (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("change", ["weights", "labels", "nfe", "seed"])
def test_parts_of_other_samples_are_not_mixed_in(change, loaded, tiny_run, tmp_path, interrupted):
    interrupted(4, loaded, tmp_path / "x.npz")
    changes = {"labels": torch.zeros(40, dtype=torch.int64), "nfe": 1, "seed": 4}
    options = {key: value for key, value in changes.items() if key == change}
    other = runs.load(tiny_run, "raw") if change == "weights" else loaded
    assert len(interrupted(None, other, tmp_path / "x.npz", **options)) == 6
    assert draw(other, tmp_path / "fresh.npz", **options)
    for one, fresh in zip(arrays(tmp_path / "x.npz"), arrays(tmp_path / "fresh.npz"), strict=True):
        assert np.array_equal(one, fresh)


def test_a_folder_keeps_other_images_and_never_mixes_samples(loaded, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "000003.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"000003\.png"):
        draw(loaded, folder, 20)
    assert (folder / "000003.png").read_bytes() == b"mine"
    (folder / "000003.png").rename(folder / "cover.png")
    assert draw(loaded, folder, 20)
    assert draw(loaded, folder, 20, seed=4)
    assert SampleProtocol.read(folder / "protocol.json").seed == 4
    with pytest.raises(InputError, match=r"000010\.png"):
        draw(loaded, folder, 10)
    assert draw(loaded, folder, 21)
    assert len(list(folder.glob("0*.png"))) == 21
    assert (folder / "cover.png").read_bytes() == b"mine"


def test_pictures_and_folders_use_the_same_parts(loaded, tmp_path):
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
    )  # the second sample of the first row, each pixel four wide


def test_a_request_is_completed_by_the_run(loaded):
    request = SampleRequest.of(loaded, 5)
    assert (request.sampler, request.nfe, request.seed) == ("ode", 1, 0)
    assert request.labels.tolist() == [0, 1, 2, 3, 4]
    assert SampleRequest.of(loaded, 3, labels="7,2").labels.tolist() == [7, 2, 7]
    assert SampleRequest.of(loaded, 3, sampler="heun").nfe == 2
    assert SampleRequest.of(loaded, 3, nfe=4).sampler == "ode"
    at_random = SampleRequest.of(loaded, 50, draw="random", seed=1).labels
    assert at_random[:40].tolist() != list(range(10)) * 4
    assert torch.equal(SampleRequest.of(loaded, 5, draw="random", seed=1).labels, at_random[:5])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": "magic"}, "magic.*renoise, ode, euler, heun"),
        ({"sampler": "heun", "nfe": 3}, "nfe is 3"),
        ({"nfe": 0}, "0"),
        ({"labels": "cat"}, "cat.* 0 to 9"),
        ({"labels": "1", "draw": "random"}, "labels"),
    ],
)
def test_wrong_requests(options, named, loaded):
    with pytest.raises(InputError, match=named):
        SampleRequest.of(loaded, 4, **options)


def test_labels_must_be_one_per_sample():
    with pytest.raises(InputError, match=r"\[3\].*\[4\]"):
        SampleRequest(4, torch.arange(3), "renoise", 1)


def test_a_file_that_cannot_be_written(loaded, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("file/x.png", "x.gif", "file", "folder.png"):
        with pytest.raises(InputError, match=name.split("/")[0]):
            draw(loaded, tmp_path / name)
