"""Losses that are read later, as on a GPU, give the same run without waiting."""

import pytest
import torch

import soflow
from soflow.errors import RunError
from soflow.run.checkpoint import checkpoints, newest_good
from soflow.run.folder import RunFolder
from soflow.system.progress import silent
from soflow.training.signals import Stopped
from soflow.training.step import TrainStep
from soflow.training.trainer import Trainer
from support.poison import poison
from support.watching import stop_at
from support.whole_runs import DIT, SHORT, UNET, assert_same_run, unguided

SETTINGS = [*DIT, *SHORT, "data.flip=false", "optimizer.clip=1"]


@pytest.fixture
def later(monkeypatch):
    """Losses are only read when something is due."""
    monkeypatch.setattr(Trainer, "computes_at_once", False)


def train(folder, settings=SETTINGS, progress=silent):
    return soflow.train("digits", folder, settings, progress=progress)


@pytest.mark.parametrize("settings", [SETTINGS, [*unguided("soflow"), *UNET, *SHORT]])
def test_the_run_is_equal(settings, tmp_path, monkeypatch):
    train(tmp_path / "at once", settings)
    monkeypatch.setattr(Trainer, "computes_at_once", False)
    train(tmp_path / "later", settings)
    assert_same_run(tmp_path / "at once", tmp_path / "later")


def test_a_step_reads_no_value(tmp_path, monkeypatch, later):
    """A step asks for no value that would have to be copied from the device."""
    step = TrainStep.__call__

    def asked(tensor, *_):
        pytest.fail("a number was read")

    def watched(self, number):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
                patch.setattr(torch.Tensor, name, asked)
            return step(self, number)

    monkeypatch.setattr(TrainStep, "__call__", watched)
    assert checkpoints(train(tmp_path).checkpoints)


def test_the_same_updates_are_skipped_and_named(tmp_path, monkeypatch, caplog):
    poison(monkeypatch, step=4, rows=5)
    settings = [*SETTINGS, "train.on_nonfinite=skip", "train.log_every=8"]
    train(tmp_path / "at once", settings)
    notes = [note for note in caplog.messages if "skipping" in note]
    caplog.clear()
    monkeypatch.setattr(Trainer, "computes_at_once", False)
    train(tmp_path / "later", settings)
    assert_same_run(tmp_path / "at once", tmp_path / "later")
    assert notes == [note for note in caplog.messages if "skipping" in note]
    assert "step 5, in row 5" in notes[0]


def test_a_stopped_run_has_no_checkpoint_after_the_nonfinite_step(tmp_path, monkeypatch, later):
    poison(monkeypatch, step=4, rows=5)
    settings = [*SETTINGS, "train.log_every=8", "train.sample_every=8"]
    with pytest.raises(RunError, match="step 5, in row 5 of the batch"):
        train(tmp_path, settings)
    assert newest_good(RunFolder(tmp_path).checkpoints)[0].step == 3


def test_losses_are_read_before_a_signal_saves_a_checkpoint(tmp_path, later):
    settings = [*SETTINGS, "train.log_every=8", "train.sample_every=8", "checkpoint.every=8"]
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", settings, stop_at(5))
    assert newest_good(RunFolder(tmp_path / "stopped").checkpoints)[0].step == 5
    train(tmp_path / "stopped", settings)
    train(tmp_path / "whole", settings)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", last_only=True)
