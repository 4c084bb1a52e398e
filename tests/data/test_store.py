"""Stores of rows are complete, or say what is missing."""

import os
import time

import numpy as np
import pytest
import torch

from soflow.data import store
from soflow.data.shards import open_store
from soflow.data.store import Piece, Plan, make_store
from soflow.errors import InputError, RunError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Numbers(Plan):
    kind: str = "numbers"
    per_shard: int = 3
    colour: str = "red"


def write(folder, rows, process=0, processes=1, **plan):
    def make(which):
        return Piece(rows[which.start : which.stop], [i % 5 for i in which])

    return make_store(folder, Numbers(count=len(rows), **plan), make, process, processes)


def test_rows_can_be_read_in_any_order(tmp_path):
    rows = np.random.default_rng(0).random((20, 2, 3)).astype(np.float16)
    assert write(tmp_path / "s", rows)
    shards, index = open_store(tmp_path / "s")
    which = torch.tensor([19, 0, 7, 7, 3, 18])
    assert torch.equal(shards[which], torch.from_numpy(rows)[which])
    assert (shards.shape, shards.dtype, len(shards)) == ((20, 2, 3), torch.float16, 20)
    assert index.labels == [i % 5 for i in range(20)]


def test_processes_make_the_same_store_in_any_order(tmp_path):
    rows = np.arange(20, dtype=np.float32)[:, None]
    write(tmp_path / "one", rows)
    assert not write(tmp_path / "three", rows, 2, 3)
    assert not write(tmp_path / "three", rows, 0, 3)
    with pytest.raises(RunError, match="three"):
        open_store(tmp_path / "three")
    assert write(tmp_path / "three", rows, 1, 3)
    one, three = (open_store(tmp_path / name) for name in ("one", "three"))
    assert torch.equal(one[0][torch.arange(20)], three[0][torch.arange(20)])
    assert one[1] == three[1]


def test_stores_with_different_plans_are_not_mixed(tmp_path):
    rows = np.zeros((4, 1), np.float32)
    write(tmp_path / "s", rows, colour="red")
    with pytest.raises(InputError, match=r"colour=red.* blue"):
        write(tmp_path / "s", rows, colour="blue")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="full"):
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
    write(tmp_path / "s", np.arange(8, dtype=np.float32)[:, None])  # the same command repairs it
    assert open_store(tmp_path / "s")[0][torch.arange(8)][:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("first", [0, 1])
def test_a_damaged_shard_is_repaired_whichever_process_starts_first(first, tmp_path):
    """Process 0 must not report a complete store while process 1 still repairs a shard."""
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


def test_no_process_sees_a_complete_store_during_a_repair(tmp_path):
    rows = np.arange(8, dtype=np.float32)[:, None]
    write(tmp_path / "s", rows)
    file = tmp_path / "s" / "shard-00001.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"1234")
    seen = []

    def make(which):
        seen.append(write(tmp_path / "s", rows, 0, 2))
        return Piece(rows[which.start : which.stop], [i % 5 for i in which])

    assert make_store(tmp_path / "s", Numbers(count=8), make, 1, 2)
    assert seen == [False]


def test_unreadable_items_of_all_processes_are_summed(tmp_path):
    """Each process has 1 of 150, which is allowed. Together they have 2, which is not."""

    def make(which):
        skipped = [f"item {i}: bad" for i in which if i in (0, 149)]
        return Piece(np.zeros((len(which) - len(skipped), 1), np.float32), None, skipped)

    plan = Numbers(count=150, per_shard=75)
    assert not make_store(tmp_path / "s", plan, make, 0, 2)
    with pytest.raises(InputError, match="2 of 150"):
        make_store(tmp_path / "s", plan, make, 1, 2)
    assert not (tmp_path / "s" / "index.json").exists()


def test_an_unreadable_source_is_not_reported_as_a_full_disk(tmp_path):
    def make(which):
        raise FileNotFoundError(2, "No such file or directory", "photos.parquet")

    with pytest.raises(RunError, match=r"photos\.parquet: No such file"):
        make_store(tmp_path / "s", Numbers(count=4), make)


def test_a_damaged_plan_in_a_user_folder_is_named(tmp_path):
    write(tmp_path / "s", np.zeros((4, 1), np.float32))
    (tmp_path / "s" / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json is damaged"):
        write(tmp_path / "s", np.zeros((4, 1), np.float32))


def test_partial_files_of_killed_processes_are_removed_after_a_day(tmp_path):
    (tmp_path / "s").mkdir()
    old, new = (tmp_path / "s" / f".shard-00000.npy.{name}.partial" for name in ("old", "new"))
    for file, age in ((old, 90_000), (new, 3_600)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    assert write(tmp_path / "s", np.zeros((4, 1), np.float32))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_full_disk_leaves_no_partial_files(tmp_path, monkeypatch):
    real, plan = os.fsync, iter(range(2))  # there is room for the plan and its folder

    def full(handle):
        if next(plan, None) is None:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            write(tmp_path / "s", np.zeros((8, 1), np.float32))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["plan.json"]
    assert write(tmp_path / "s", np.zeros((8, 1), np.float32))


def test_shards_are_neither_large_nor_few(monkeypatch):
    assert store.items_of_a_shard(1_281_167, 16_384) == 2**26 // 16_384
    assert store.items_of_a_shard(100, 16_384) == 7
    assert store.items_of_a_shard(3, 2**30) == 1
