"""Each run directory has at most one trainer."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import soflow
from soflow.errors import RunError
from soflow.run.lock import only_trainer_of
from support.commands import assert_fails
from support.watching import at_each_step
from support.whole_runs import WHOLE, assert_same_run

RECIPE, SETTINGS = WHOLE["moons"]


def test_a_second_process_is_rejected_and_the_first_is_named(tmp_path, inside):
    out = tmp_path / "run"
    ready, write = os.pipe()
    child = os.fork()
    if child == 0:  # only files: a forked process with threads must not do more
        with only_trainer_of(out):
            os.write(write, b"!")
            time.sleep(100)
        os._exit(0)
    try:
        os.read(ready, 1)
        refused = inside("train", RECIPE, *SETTINGS, "--out", out)
        assert_fails(refused, 1, str(out), f"process {child} on", "--out")
        assert sorted(path.name for path in out.iterdir()) == [".lock", ".trainer"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # The lock of a dead process does not block others.
    assert inside("train", RECIPE, *SETTINGS, "--out", out).returncode == 0
    assert not (out / ".trainer").exists()


def test_a_folder_created_only_for_the_lock_is_removed(tmp_path):
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "run", tmp_path / "there"):
        with pytest.raises(ZeroDivisionError), only_trainer_of(out):
            raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").exists()


def test_a_recreated_folder_belongs_to_the_new_run(moons_run, tmp_path):
    """The first trainer does not write its log and checkpoints into the new run."""
    out = tmp_path / "run"

    def replaced(done):
        if done == 5:
            shutil.rmtree(out)
            other = [sys.executable, "-m", "soflow", "train", RECIPE, *SETTINGS, "--out", str(out)]
            subprocess.run(other, check=True, capture_output=True)

    with pytest.raises(RunError, match=re.escape(str(out))):
        soflow.train(RECIPE, out, SETTINGS, progress=at_each_step(replaced))
    assert_same_run(moons_run, out)


def test_a_removed_folder_is_not_recreated(tmp_path):
    out = tmp_path / "run"
    gone = at_each_step(lambda done: shutil.rmtree(out) if done == 5 else None)
    with pytest.raises(RunError, match="step 6"):
        soflow.train(RECIPE, out, SETTINGS, progress=gone)


def test_the_trainer_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".trainer").symlink_to(tmp_path / "precious")
    with only_trainer_of(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / ".trainer").read_text()
    assert (tmp_path / "precious").read_text() == "precious"
