"""The cache of decoded images is complete or absent."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from soflow.data import cache as cache_module
from soflow.data.batches import Batches
from soflow.data.cache import cached
from soflow.data.folder import FolderImages
from soflow.data.shards import Shards
from soflow.errors import InputError
from soflow.evaluation.classifier import cache_file
from soflow.evaluation.pictures import to_uint8
from soflow.system.cache import cache_folder
from support.small_data import pixels, write_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level("INFO", "soflow")


def images(tmp_path, count=40, **options):
    return FolderImages(str(write_folder(tmp_path / "set", pixels(count), **options)), "train")


def refuse(*arguments):
    raise AssertionError("these images are in the cache")


def caches():
    return sorted(path for path in (cache_folder() / "data").iterdir() if path.is_dir())


def test_the_second_run_reads_the_cache(tmp_path, monkeypatch):
    source = images(tmp_path)
    first = cached(source, (12, 12), 3)
    monkeypatch.setattr(cache_module, "decode", refuse)
    again = cached(source, (12, 12), 3)
    assert torch.equal(first.samples(), again.samples())
    expected = np.stack([np.asarray(opener()) for opener in source.openers(range(40))])
    assert np.array_equal(to_uint8(again.samples()), expected)
    assert torch.equal(again.labels, torch.tensor(source.labels))
    assert again.class_names == ("cat", "dog")


def test_other_settings_and_other_content_have_separate_caches(tmp_path):
    source = images(tmp_path)
    shapes = [
        cached(source, (size, size), channels).shape
        for size, channels in ((12, 3), (6, 3), (12, 1))
    ]
    assert shapes == [(3, 12, 12), (3, 6, 6), (1, 12, 12)]
    write_folder(tmp_path / "set", pixels(41))
    assert len(cached(FolderImages(str(tmp_path / "set"), "train"), (12, 12), 3)) == 41
    assert len(caches()) == 4


def test_a_new_class_in_train_renumbers_the_classes_of_test(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "set" / split, pixels(4))
    assert cached(FolderImages(str(tmp_path / "set"), "test"), (12, 12), 3).labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    write_folder(tmp_path / "set" / "train", pixels(1), names=("ant",))
    test = cached(FolderImages(str(tmp_path / "set"), "test"), (12, 12), 3)
    assert (test.labels.tolist(), test.class_names) == ([1, 1, 2, 2], ("ant", "cat", "dog"))


def test_changed_images_have_another_cache_and_copies_the_same(tmp_path):
    described = cached(images(tmp_path), (12, 12), 3).describe()
    copy = FolderImages(str(write_folder(tmp_path / "copy" / "set", pixels(40))), "train")
    assert cached(copy, (12, 12), 3).describe() == described
    write_folder(tmp_path / "copy" / "set", pixels(40, seed=1))
    other = cached(FolderImages(str(tmp_path / "copy" / "set"), "train"), (12, 12), 3).describe()
    assert other != described


def test_one_split_of_large_data_is_read_on_demand(tmp_path, monkeypatch):
    dataset = cached(images(tmp_path), (12, 12), 3)
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "__getitem__", refuse)
        part = dataset.part(torch.arange(40) % 10 == 3, "some")
    assert (len(part), part.shape, part.rows.dtype) == (4, (3, 12, 12), torch.uint8)
    which = torch.tensor([3, 13, 23, 33])
    assert torch.equal(part.samples(), dataset.samples(which))
    assert torch.equal(part.samples(torch.tensor([2, 0])), dataset.samples(torch.tensor([23, 3])))
    assert torch.equal(part.labels, dataset.labels[which])
    assert torch.equal(
        Batches(part, 4, seed=0).microbatch(0).data,
        part.samples(torch.from_numpy(Batches(part, 4, 0).indices(0))),
    )
    assert cache_file(part, tmp_path) == cache_file(dataset.part(which, "same"), tmp_path)


def test_a_few_unreadable_images_are_left_out_and_named(tmp_path, caplog):
    source = images(tmp_path, 300)
    (tmp_path / "set" / "cat" / "0000.png").write_bytes(b"")
    (tmp_path / "set" / "dog" / "0001.png").write_bytes(b"no image")
    content = (tmp_path / "set" / "dog" / "0003.png").read_bytes()
    (tmp_path / "set" / "dog" / "0003.png").write_bytes(content[: len(content) // 2])
    dataset = cached(source, (12, 12), 3)
    assert len(dataset) == 297
    assert torch.bincount(dataset.labels).tolist() == [149, 148]
    (note,) = caplog.messages
    assert "3 of 300 images" in note
    named = (caches()[0] / "skipped.txt").read_text().splitlines()
    assert [line.split(": ")[0].rsplit("/", 2)[-2:] for line in named] == [
        ["cat", "0000.png"],
        ["dog", "0001.png"],
        ["dog", "0003.png"],
    ]
    cached(source, (12, 12), 3)
    assert caplog.messages == [note, note]  # also when read from the cache


def test_many_unreadable_images_stop_training_unless_allowed(tmp_path):
    source = images(tmp_path, 100)
    for number in (0, 2):
        (tmp_path / "set" / "cat" / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"100 images.*max_unreadable=0\.03") as caught:
        cached(source, (12, 12), 3)
    (folder,) = caches()
    assert str(folder / "skipped.txt") in str(caught.value)
    assert "0002.png" in (folder / "skipped.txt").read_text()
    before = sorted(file.stat().st_mtime_ns for file in folder.glob("shard-*.npy"))
    assert len(cached(source, (12, 12), 3, max_unreadable=0.02)) == 98
    assert before == sorted(file.stat().st_mtime_ns for file in folder.glob("shard-*.npy"))
    with pytest.raises(InputError, match="100 images"):
        cached(source, (12, 12), 3)


def test_notes_list_changes_to_images(tmp_path, caplog):
    write_folder(tmp_path / "set", pixels(3, (20, 12, 3)))
    write_folder(tmp_path / "set" / "cat", pixels(2, (6, 6, 3), seed=1), names=("a",))
    cached(FolderImages(str(tmp_path / "set"), "train"), (12, 12), 3)
    assert caplog.messages == [
        "set: 2 of 5 images were enlarged to 12x12",
        "set: 3 of 5 images were resized or cropped to 12x12",
    ]


def test_a_damaged_cache_is_rebuilt(tmp_path, caplog):
    source = images(tmp_path)
    expected = cached(source, (12, 12), 3).samples()
    shard = next(caches()[0].glob("shard-*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert torch.equal(cached(source, (12, 12), 3).samples(), expected)
    assert shard.name in caplog.messages[0]


@pytest.mark.parametrize("content", ["{", '{"version": 0}', None])
def test_a_cache_with_another_plan_is_rebuilt(content, tmp_path):
    """The plan is damaged, of another version, or missing."""
    source = images(tmp_path)
    expected = cached(source, (12, 12), 3).samples()
    (folder,) = caches()
    (folder / "index.json").unlink()
    (folder / "plan.json").unlink()
    if content:
        (folder / "plan.json").write_text(content)
    assert torch.equal(cached(source, (12, 12), 3).samples(), expected)
    assert caches() == [folder]


def test_unreadable_images_with_any_name_are_listed_one_per_line(tmp_path, caplog):
    write_folder(tmp_path / "set", pixels(200), names=())
    folder = os.fsencode(tmp_path / "set")
    for name in (b"\xff.png", b"two\nlines.png"):
        with open(os.path.join(folder, name), "wb"):
            pass
    assert len(cached(FolderImages(str(tmp_path / "set"), "train"), (12, 12), 3)) == 200
    assert "2 of 202 images" in caplog.messages[0]
    lines = (caches()[0] / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.rsplit("/", 1)[1] for line in lines] == [
        "two\\nlines.png: not an image",
        "\\udcff.png: not an image",
    ]


def start(tmp_path, log, pause=0.05):
    """Starts a process that reads the images and logs each decoding. Returns its result queue."""

    def work(results):
        real = cache_module.decode

        def slow(*arguments):
            time.sleep(pause)
            with open(tmp_path / log, "a") as file:
                file.write("x")
            return real(*arguments)

        cache_module.decode = slow
        dataset = cached(FolderImages(str(tmp_path / "set"), "train"), (12, 12), 3)
        results.put(int(dataset.samples().double().sum() * 1000))

    context = multiprocessing.get_context("fork")  # avoids importing torch
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(results,))
    process.start()
    return process, results


def finish(process, results):
    process.join(60)
    assert process.exitcode == 0
    return results.get()


def test_only_one_of_two_processes_decodes(tmp_path):
    images(tmp_path)
    both = [start(tmp_path, "log") for _ in range(2)]
    one, other = (finish(*process) for process in both)
    assert one == other != 0
    assert (tmp_path / "log").stat().st_size == 40


def test_a_killed_process_loses_at_most_its_last_shard(tmp_path):
    images(tmp_path)
    process, _ = start(tmp_path, "log")
    while not list(cache_folder().glob("data/*/shard-00005.json")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(cache_folder().glob("data/*/index.json"))
    value = finish(*start(tmp_path, "after", pause=0))
    # Six shards of three images were complete.
    assert (tmp_path / "after").stat().st_size <= 40 - 6 * 3
    assert value == finish(*start(tmp_path, "none"))
    assert not (tmp_path / "none").exists()


def test_prefetched_rows_equal_rows_in_memory(tmp_path, monkeypatch):
    """A thread reads rows of large data one step ahead. Batches do not depend on it."""
    dataset = cached(images(tmp_path), (12, 12), 3)
    assert isinstance(dataset.rows, Shards)
    resident = Batches(dataset, 16, seed=1, flip=True)
    monkeypatch.setattr("soflow.data.batches.RESIDENT", 0)
    from_files = Batches(dataset, 16, seed=1, flip=True)
    assert resident.resident
    assert not from_files.resident
    for step in (0, 1, 2, 7, 3):
        for index in (0, 1):
            one, other = resident.microbatch(step, index, 2), from_files.microbatch(step, index, 2)
            assert torch.equal(one.data, other.data)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.data, resident.microbatch(step).data[index::2])


def test_flips_are_random_at_every_visit(tmp_path):
    dataset = cached(images(tmp_path), (12, 12), 3)
    plain, flipped = Batches(dataset, 40, seed=1), Batches(dataset, 40, seed=1, flip=True)
    mirrored = []
    for step in range(10):
        x, y = plain.microbatch(step).data, flipped.microbatch(step).data
        same, mirror = ((x == z).flatten(1).all(1) for z in (y, y.flip(3)))
        assert bool((same | mirror).all())
        mirrored.append(mirror)
    share = torch.cat(mirrored).float().mean()
    assert 0.4 < float(share) < 0.6
    assert not torch.equal(mirrored[0], mirrored[1])
