"""The cache of decoded images, and the stores that it and latents are kept in: whole, or not there."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from soflow.data import cache as cache_module
from soflow.data import content as content_module
from soflow.data import store
from soflow.data.batches import Batches
from soflow.data.cache import cached
from soflow.data.folder import FolderImages
from soflow.data.shards import Shards, open_store
from soflow.data.store import Piece, make_store
from soflow.errors import InputError, RunError
from soflow.evaluation.classifier import cache_file
from soflow.evaluation.pictures import to_uint8
from soflow.system.cache import cache_folder
from support.small_data import pixels, write_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(tmp_path, count=40, **options):
    return FolderImages(str(write_folder(tmp_path / "set", pixels(count), **options)), "train")


def refuse(*arguments):
    raise AssertionError("these images are in the cache")


def caches():
    return sorted(path for path in (cache_folder() / "data").iterdir() if path.is_dir())


def test_the_second_run_reads_what_the_first_decoded(tmp_path, monkeypatch):
    source = images(tmp_path)
    first = cached(source, 12, 3)
    monkeypatch.setattr(cache_module, "decode", refuse)
    again = cached(source, 12, 3)
    assert torch.equal(first.samples(), again.samples())
    expected = np.stack([np.asarray(opener()) for opener in source.openers(range(40))])
    assert np.array_equal(to_uint8(again.samples()), expected)
    assert torch.equal(again.labels, torch.tensor(source.labels))
    assert again.class_names == ("cat", "dog")


def test_other_settings_and_other_content_have_caches_of_their_own(tmp_path):
    source = images(tmp_path)
    shapes = [cached(source, size, channels).shape for size, channels in ((12, 3), (6, 3), (12, 1))]
    assert shapes == [(3, 12, 12), (3, 6, 6), (1, 12, 12)]
    write_folder(tmp_path / "set", pixels(41))
    assert len(cached(FolderImages(str(tmp_path / "set"), "train"), 12, 3)) == 41
    assert len(caches()) == 4


def at_one_time(root):
    """A folder with one time for everything, as archives are made that come out the same whenever they are made."""
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    return FolderImages(str(root), "train")


@pytest.mark.parametrize(("ending", "place"), [("bmp", 15_000), ("bmp", -1), ("png", -20)])
def test_folders_of_one_name_sizes_and_times_are_told_apart_by_content(ending, place, tmp_path):
    one = at_one_time(write_folder(tmp_path / "a" / "set", pixels(3, (100, 100, 3)), ending=ending))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert at_one_time(tmp_path / "b" / "set").fingerprint == one.fingerprint  # the same, elsewhere
    file = tmp_path / "b" / "set" / "dog" / f"0001.{ending}"
    content = bytearray(file.read_bytes())
    content[place] ^= 255
    file.write_bytes(content)
    assert at_one_time(tmp_path / "b" / "set").fingerprint != one.fingerprint


def test_files_are_looked_into_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(content_module, "SETTLED", 0)
    write_folder(tmp_path / "set", pixels(3))
    first = at_one_time(tmp_path / "set").fingerprint
    time.sleep(0.02)  # a tick of the file system's clock
    assert FolderImages(str(tmp_path / "set"), "train").fingerprint == first
    with monkeypatch.context() as patch:
        patch.setattr(content_module, "ends", refuse)
        assert FolderImages(str(tmp_path / "set"), "train").fingerprint == first
    file = tmp_path / "set" / "dog" / "0001.png"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert at_one_time(tmp_path / "set").fingerprint != first


def test_files_of_just_now_are_not_relied_on(tmp_path):
    images(tmp_path)
    assert not (cache_folder() / "sources").exists()


def test_a_class_that_train_gains_renumbers_those_of_test_whose_files_are_the_same(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "set" / split, pixels(4))
    assert cached(FolderImages(str(tmp_path / "set"), "test"), 12, 3).labels.tolist() == [
        0,
        0,
        1,
        1,
    ]
    write_folder(tmp_path / "set" / "train", pixels(1), names=("ant",))
    test = cached(FolderImages(str(tmp_path / "set"), "test"), 12, 3)
    assert (test.labels.tolist(), test.class_names) == ([1, 1, 2, 2], ("ant", "cat", "dog"))


def test_changed_images_are_other_data_and_copied_ones_the_same(tmp_path):
    described = cached(images(tmp_path), 12, 3).describe()
    copy = FolderImages(str(write_folder(tmp_path / "copy" / "set", pixels(40))), "train")
    assert cached(copy, 12, 3).describe() == described
    write_folder(tmp_path / "copy" / "set", pixels(40, seed=1))
    other = cached(FolderImages(str(tmp_path / "copy" / "set"), "train"), 12, 3).describe()
    assert other.fingerprint != described.fingerprint
    assert other.model_copy(update={"fingerprint": described.fingerprint}) == described


def test_a_part_of_large_data_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    dataset = cached(images(tmp_path), 12, 3)
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


def test_a_few_bad_images_are_left_out_and_named(tmp_path):
    source, told = images(tmp_path, 300), []
    (tmp_path / "set" / "cat" / "0000.png").write_bytes(b"")
    (tmp_path / "set" / "dog" / "0001.png").write_bytes(b"no image")
    content = (tmp_path / "set" / "dog" / "0003.png").read_bytes()
    (tmp_path / "set" / "dog" / "0003.png").write_bytes(content[: len(content) // 2])
    dataset = cached(source, 12, 3, told.append)
    assert len(dataset) == 297
    assert torch.bincount(dataset.labels).tolist() == [149, 148]
    assert len(told) == 1
    assert "3 of 300 images cannot be read and are left out" in told[0]
    named = (caches()[0] / "skipped.txt").read_text().splitlines()
    assert [line.split(": ")[0].rsplit("/", 2)[-2:] for line in named] == [
        ["cat", "0000.png"],
        ["dog", "0001.png"],
        ["dog", "0003.png"],
    ]
    again = []
    cached(source, 12, 3, again.append)
    assert again == told  # whoever trains on them a second time is told, too


def test_many_bad_images_stop_it_and_leave_nothing(tmp_path):
    source = images(tmp_path, 100)
    for number in (0, 2):
        (tmp_path / "set" / "cat" / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(InputError, match="more than 1% is not training data"):
        cached(source, 12, 3)
    assert caches() == []


def test_what_was_done_to_images_is_told(tmp_path):
    write_folder(tmp_path / "set", pixels(3, (20, 12, 3)))
    write_folder(tmp_path / "set" / "cat", pixels(2, (6, 6, 3), seed=1), names=("a",))
    told = []
    cached(FolderImages(str(tmp_path / "set"), "train"), 12, 3, told.append)
    assert told == [
        "set: 2 of 5 images enlarged to 12x12",
        "set: 3 of 5 images made smaller or cropped to 12x12",
    ]


def test_a_damaged_cache_is_made_again(tmp_path):
    source = images(tmp_path)
    expected = cached(source, 12, 3).samples()
    shard = next(caches()[0].glob("shard-*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    told = []
    assert torch.equal(cached(source, 12, 3, told.append).samples(), expected)
    assert shard.name in told[0]
    assert "reading the images again" in told[0]


@pytest.mark.parametrize("content", ["{", '{"version": 0}', None])
def test_a_cache_that_cannot_be_gone_on_with_is_made_anew(content, tmp_path):
    """A damaged plan, one of another version, none."""
    source = images(tmp_path)
    expected = cached(source, 12, 3).samples()
    (folder,) = caches()
    (folder / "index.json").unlink()
    (folder / "plan.json").unlink()
    if content:
        (folder / "plan.json").write_text(content)
    assert torch.equal(cached(source, 12, 3).samples(), expected)
    assert caches() == [folder]


def test_broken_images_of_any_name_are_listed_a_line_each(tmp_path):
    write_folder(tmp_path / "set", pixels(200), names=())
    folder = os.fsencode(tmp_path / "set")
    for name in (b"\xff.png", b"two\nlines.png"):
        with open(os.path.join(folder, name), "wb"):
            pass
    told = []
    assert len(cached(FolderImages(str(tmp_path / "set"), "train"), 12, 3, told.append)) == 200
    assert "2 of 202 images cannot be read" in told[0]
    lines = (caches()[0] / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.rsplit("/", 1)[1] for line in lines] == [
        "two\\nlines.png: it is no image",
        "\\udcff.png: it is no image",
    ]


PROGRAM = """
import sys, time
from soflow.data import cache
from soflow.data.folder import FolderImages
real = cache.decode
def slow(*arguments):
    time.sleep({pause})
    open(sys.argv[2], "a").write("x")
    return real(*arguments)
cache.decode = slow
dataset = cache.cached(FolderImages(sys.argv[1], "train"), 12, 3, note=lambda text: print(text, file=sys.stderr))
print(int(dataset.samples().double().sum() * 1000))
"""


def start(tmp_path, log, pause=0.05):
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(pause=pause),
        str(tmp_path / "set"),
        str(tmp_path / log),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_that_start_at_once_one_decodes(tmp_path):
    images(tmp_path)
    both = [start(tmp_path, "log", pause=0.15) for _ in range(2)]
    out = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], out
    assert out[0][0] == out[1][0] != ""
    assert (tmp_path / "log").stat().st_size == 40


def test_one_that_is_killed_half_way_costs_nothing_but_its_last_shard(tmp_path):
    images(tmp_path)
    process = start(tmp_path, "log")
    while not list(cache_folder().glob("data/*/shard-00005.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(cache_folder().glob("data/*/index.json"))
    after = start(tmp_path, "after", pause=0)
    value, errors = after.communicate(timeout=60)
    assert after.returncode == 0, errors
    assert (
        tmp_path / "after"
    ).stat().st_size <= 40 - 6 * 3  # six shards of three images were whole
    assert value == start(tmp_path, "none").communicate(timeout=60)[0]
    assert not (tmp_path / "none").exists()


def write(folder, rows, process=0, processes=1, per_shard=3, **plan):
    def make(which):
        return Piece(rows[which.start : which.stop], [i % 5 for i in which])

    return make_store(
        folder, {"kind": "numbers", **plan}, len(rows), per_shard, make, process, processes
    )


def test_rows_come_back_in_any_order(tmp_path):
    rows = np.random.default_rng(0).random((20, 2, 3)).astype(np.float16)
    assert write(tmp_path / "s", rows)
    shards, index = open_store(tmp_path / "s")
    which = torch.tensor([19, 0, 7, 7, 3, 18])
    assert torch.equal(shards[which], torch.from_numpy(rows)[which])
    assert (shards.shape, shards.dtype, len(shards)) == ((20, 2, 3), torch.float16, 20)
    assert index["labels"] == [i % 5 for i in range(20)]


def test_shares_of_processes_make_the_same_store_in_any_order(tmp_path):
    rows = np.arange(20, dtype=np.float32)[:, None]
    write(tmp_path / "one", rows)
    assert not write(tmp_path / "three", rows, 2, 3)
    assert not write(tmp_path / "three", rows, 0, 3)
    with pytest.raises(RunError, match="not whole"):
        open_store(tmp_path / "three")
    assert write(tmp_path / "three", rows, 1, 3)
    one, three = (open_store(tmp_path / name) for name in ("one", "three"))
    assert torch.equal(one[0][torch.arange(20)], three[0][torch.arange(20)])
    assert one[1] == three[1]


def test_a_store_of_another_plan_is_not_mixed_in(tmp_path):
    rows = np.zeros((4, 1), np.float32)
    write(tmp_path / "s", rows, colour="red")
    with pytest.raises(InputError, match="begun with colour=red, this is blue"):
        write(tmp_path / "s", rows, colour="blue")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        write(tmp_path / "full", rows)


def test_missing_and_damaged_shards_are_named(tmp_path):
    write(tmp_path / "s", np.arange(8, dtype=np.float32)[:, None])
    open_store(tmp_path / "s")
    file = tmp_path / "s" / "shard-00001.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"1234")
    with pytest.raises(RunError, match=r"shard-00001\.npy is damaged"):
        open_store(tmp_path / "s")
    file.unlink()
    with pytest.raises(RunError, match=r"shard-00001\.npy is missing"):
        open_store(tmp_path / "s")
    write(tmp_path / "s", np.arange(8, dtype=np.float32)[:, None])  # the same command mends it
    assert open_store(tmp_path / "s")[0][torch.arange(8)][:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("first", [0, 1])
def test_a_damaged_shard_is_mended_whichever_process_comes_first(first, tmp_path):
    """Process 0 must not call a store whole whose shard process 1 has still to mend: it would end with an error, and with it
    the other.
    """
    rows = np.arange(8, dtype=np.float32)[:, None]
    write(tmp_path / "s", rows)
    before = open_store(tmp_path / "s")[1]
    file = tmp_path / "s" / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"1234")
    assert [write(tmp_path / "s", rows, process, 2) for process in (first, 1 - first)] == [
        first == 1,
        True,
    ]
    shards, index = open_store(tmp_path / "s")
    assert shards[torch.arange(8)][:, 0].tolist() == list(range(8))
    assert index == before


def test_while_a_damaged_shard_is_made_again_no_process_takes_the_store_for_whole(tmp_path):
    rows = np.arange(8, dtype=np.float32)[:, None]
    write(tmp_path / "s", rows)
    file = tmp_path / "s" / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"1234")
    seen = []

    def make(which):
        seen.append(write(tmp_path / "s", rows, 0, 2))
        return Piece(rows[which.start : which.stop], [i % 5 for i in which])

    assert make_store(tmp_path / "s", {"kind": "numbers"}, 8, 3, make, 1, 2)
    assert seen == [False]


def test_bad_items_of_all_processes_count_together(tmp_path):
    """Each share has one of 150, which is allowed; both together have two."""

    def make(which):
        skipped = [f"item {i}: bad" for i in which if i in (0, 149)]
        return Piece(np.zeros((len(which) - len(skipped), 1), np.float32), None, skipped)

    assert not make_store(tmp_path / "s", {}, 150, 75, make, 0, 2)
    with pytest.raises(InputError, match="2 or more of 150 images cannot be read"):
        make_store(tmp_path / "s", {}, 150, 75, make, 1, 2)
    assert not (tmp_path / "s" / "index.json").exists()


def test_a_source_that_cannot_be_read_is_not_told_as_a_full_disk(tmp_path):
    def make(which):
        raise FileNotFoundError(2, "No such file or directory", "photos.parquet")

    with pytest.raises(
        RunError,
        match=r"^cannot read photos\.parquet: No such file or directory; when it can be read again",
    ):
        make_store(tmp_path / "s", {}, 4, 2, make)


def test_a_damaged_plan_of_a_folder_of_the_users_own_is_named(tmp_path):
    write(tmp_path / "s", np.zeros((4, 1), np.float32))
    (tmp_path / "s" / "plan.json").write_text("{")
    with pytest.raises(
        InputError, match=r"plan\.json is damaged: delete .*/s and run the same command again"
    ):
        write(tmp_path / "s", np.zeros((4, 1), np.float32))


def test_what_killed_processes_left_half_written_is_removed_after_a_day(tmp_path):
    (tmp_path / "s").mkdir()
    old, new = (tmp_path / "s" / f".shard-00000.npy.{name}.partial" for name in ("old", "new"))
    for file, age in ((old, 90_000), (new, 3_600)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    assert write(tmp_path / "s", np.zeros((4, 1), np.float32))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, monkeypatch):
    real, plan = os.fsync, iter(range(2))  # the plan and its folder: there is room for these

    def full(handle):
        if next(plan, None) is None:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device; make room"):
            write(tmp_path / "s", np.zeros((8, 1), np.float32))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["plan.json"]
    assert write(tmp_path / "s", np.zeros((8, 1), np.float32))


def test_rows_read_ahead_are_those_in_memory(tmp_path, monkeypatch):
    """Large data are read from their files by a thread, a step ahead; what a run sees must not depend on it."""
    dataset = cached(images(tmp_path), 12, 3)
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


def test_flips_are_coin_tosses_of_every_visit(tmp_path):
    dataset = cached(images(tmp_path), 12, 3)
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


def test_shards_are_neither_large_nor_few(monkeypatch):
    assert store.items_of_a_shard(1_281_167, 16_384) == 2**26 // 16_384
    assert store.items_of_a_shard(100, 16_384) == 7
    assert store.items_of_a_shard(3, 2**30) == 1
