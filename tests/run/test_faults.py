"""A failing disk never costs an earlier checkpoint, and resuming is exact."""

import itertools
import os
import resource
import shutil
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

import soflow
from soflow.config.schema import CheckpointConfig
from soflow.errors import InputError, RunError
from soflow.evaluation.scorer import Scorer
from soflow.run.checkpoint import Checkpoint, TrainState, checkpoints, newest_good
from soflow.run.checkpoint_manager import CheckpointManager
from soflow.run.folder import RunFolder
from soflow.run.metrics import MetricsLine, forget_metrics_after
from soflow.system.progress import silent
from soflow.workflows import train as training
from support.faults import ENOSPC, FAULTS, SHORT, Disk, operations
from support.watching import at_each_step
from support.whole_runs import WHOLE, add_figures, assert_same_run

#: Each fault once, and a disk that stays full.
KINDS = [(fault, False) for fault in FAULTS] + [(ENOSPC, True)]


def state_of(step):
    """Returns each part of a checkpoint, different for each step."""
    weights = {"a": torch.full((40, 10), float(step)), "b": torch.arange(5) + step}
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.full((40, 10), step / 3)}
    return (
        TrainState(step, best_step=1),
        weights,
        {"a": weights["a"].double() / 7},
        {"state": {0: moments}, "param_groups": []},
    )


def save(folder, step):
    """Writes a log line and a checkpoint, like training."""
    manager = CheckpointManager(folder, CheckpointConfig(keep_last=1))
    manager.log(MetricsLine(step=step, loss=step / 3))
    manager.save(*state_of(step), last_chance=False)


def started(path):
    """A run with checkpoints at steps 1 (the best) and 2, which is removed at step 3."""
    folder = RunFolder(path)
    folder.create()
    save(folder, 1)
    save(folder, 2)
    return folder


def assert_holds(checkpoint, step):
    _, weights, ema, optimizer = state_of(step)
    assert checkpoint.step == checkpoint.train_state().step == step
    for which, tensors in (("raw", weights), ("ema", ema)):
        assert all(
            torch.equal(tensor, checkpoint.weights(which)[name]) for name, tensor in tensors.items()
        )
    assert torch.equal(
        checkpoint.optimizer_state()["state"][0]["exp_avg"], optimizer["state"][0]["exp_avg"]
    )


@pytest.mark.parametrize("every", [len(KINDS), pytest.param(1, marks=pytest.mark.slow)])
def test_a_failing_operation_keeps_earlier_checkpoints(every, tmp_path):
    """The fast test makes each operation fail in one way, and log operations in every way."""
    start = started(tmp_path / "started")
    counted = RunFolder(shutil.copytree(start.path, tmp_path / "counted"))
    done = operations(tmp_path, lambda: save(counted, 3))
    assert {"open", "write", "flush", "fsync", "mkdir", "replace", "rmdir"} <= set(done)
    renamed = done.index("replace")  # content, then its folder
    assert [done[renamed - 1], done[renamed + 1]] == ["fsync", "fsync"]
    assert done.count("fsync") >= 7
    # The log is flushed to disk before the checkpoint that relies on it.
    assert "fsync" in done[: done.index("mkdir")]
    tried = 0
    for case, (at, (fault, lasting)) in enumerate(itertools.product(range(len(done)), KINDS)):
        if (case + at) % every and at > done.index("mkdir"):
            continue
        folder = RunFolder(shutil.copytree(start.path, tmp_path / f"{at} {fault} {lasting}"))
        failed = False
        with Disk(tmp_path, at, fault, lasting).in_place():
            try:
                save(folder, 3)
            except RunError as error:
                failed = True
                assert "earlier checkpoints are unchanged" in str(error)
        tried += fault != SHORT or done[at] == "write"

        good, problems = newest_good(folder.checkpoints)
        assert problems == []  # no partial file is taken for a checkpoint
        assert good is not None
        assert failed or good.step == 3
        assert_holds(good, good.step)
        assert_holds(checkpoints(folder.checkpoints)[0], 1)
        assert [checkpoint.problem() for checkpoint in checkpoints(folder.checkpoints)][:-1] in (
            [None],
            [None, None],
        )
        steps = [line["step"] for line in folder.read_metrics()]
        assert steps in ([1, 2], [1, 2, 3])
        assert steps[-1] >= good.step

        forget_metrics_after(folder.metrics, good.step)  # like a resumed run
        save(folder, 4)
        assert_holds(newest_good(folder.checkpoints)[0], 4)
        assert [path.name for path in sorted(folder.checkpoints.iterdir())] == [
            "step-00000001",
            "step-00000004",
        ]
        assert [line["step"] for line in folder.read_metrics()] == [*range(1, good.step + 1), 4]
    assert tried > 30
    if every == 1:
        add_figures(**{"faults in the writing of one checkpoint": tried})


def test_a_failing_operation_while_a_checkpoint_is_rewritten_keeps_it(tmp_path):
    """Like the only checkpoint after a signal, when work after its step is still pending."""
    start = RunFolder(tmp_path / "started")
    start.create()
    manager = CheckpointManager(start, CheckpointConfig(keep_last=1))
    manager.save(replace(state_of(3)[0], due=True), *state_of(3)[1:], last_chance=True)
    counted = RunFolder(shutil.copytree(start.path, tmp_path / "counted"))
    done = operations(tmp_path, lambda: save(counted, 3))
    for at, (fault, lasting) in itertools.product(range(len(done)), KINDS):
        folder = RunFolder(shutil.copytree(start.path, tmp_path / f"{at} {fault} {lasting}"))
        with Disk(tmp_path, at, fault, lasting).in_place(), suppress(RunError):
            save(folder, 3)
        (only,) = checkpoints(folder.checkpoints)
        assert only.problem() is None
        assert_holds(only, 3)
    assert not checkpoints(counted.checkpoints)[0].train_state().due


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
@pytest.mark.parametrize("every", [90, pytest.param(1, marks=pytest.mark.slow)])
def test_training_survives_a_failing_disk_with_the_same_result(on_failure, every, tmp_path):
    """Each operation, from the first folder to the last file, can fail.

    The run stops with one line or continues, and the same command gives a bitwise equal result.
    Only every twentieth write is tried. Samples that could not be drawn are not drawn later.
    """
    recipe, settings = WHOLE["moons"]
    settings = [*settings, f"checkpoint.on_failure={on_failure}"]

    def train(name):
        soflow.train(recipe, tmp_path / name, settings, progress=silent)

    done = operations(tmp_path, lambda: train("whole"))
    others = [at for at, what in enumerate(done) if what != "write"]
    writes = [at for at, what in enumerate(done) if what == "write"]
    tried = stopped = 0
    for case, at in enumerate(sorted([*others, *writes[::20]])):
        if case % every:
            continue
        fault, lasting = KINDS[case // every % len(KINDS)]
        if fault == SHORT and done[at] != "write":
            fault = ENOSPC
        try:
            with Disk(tmp_path, at, fault, lasting).in_place():
                train("run")
        except (RunError, InputError) as error:
            stopped += 1
            assert "\n" not in str(error)
        train("run")
        for file in (tmp_path / "whole" / "samples").iterdir():
            there = tmp_path / "run" / "samples" / file.name
            assert not there.exists() or there.read_bytes() == file.read_bytes()
            shutil.copy(file, tmp_path / "run" / "samples")
        assert_same_run(tmp_path / "whole", tmp_path / "run", last_only=on_failure == "continue")
        shutil.rmtree(tmp_path / "run")
        tried += 1
    assert tried >= 2
    assert stopped > 0 or every > 1
    if every == 1:
        add_figures(**{f"faults in whole runs, on_failure={on_failure}": tried})


def test_continuing_without_a_checkpoint_is_reported(tmp_path, monkeypatch, caplog):
    """The disk is full for a while: only the checkpoints of steps 3 (the best) and 6 are lost."""
    distances = iter([1.0, 4.0, 3.0])
    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: next(distances))
    recipe, settings = WHOLE["moons, evaluated"]
    full = Disk(tmp_path, lasting=True)
    full.operations = ["before"]

    def fill(done):
        full.at = 0 if 3 <= done < 7 else None

    with full.in_place():
        settings = [*settings, "checkpoint.on_failure=continue"]
        folder = soflow.train(recipe, tmp_path / "run", settings, progress=at_each_step(fill))
    (only,) = checkpoints(folder.checkpoints)
    assert (only.step, only.train_state().best_step) == (8, 8)  # no checkpoint that does not exist
    assert [line["step"] for line in folder.read_metrics()] == [2, 3, 4, 6, 8]
    for step in (3, 6):
        lost = [note for note in caplog.messages if f"the checkpoint of step {step} " in note]
        assert len(lost) == 1
        assert "No space left on device" in lost[0]


@pytest.mark.parametrize("end", ["the last step", "a signal"])
def test_the_last_checkpoint_must_be_written(end, moons_run, tmp_path):
    recipe, settings = WHOLE["moons"]
    settings = [*settings, "checkpoint.on_failure=continue"]
    full = Disk(tmp_path, lasting=True)
    full.operations = ["before"]

    def fill(done):
        full.at = 0 if done >= 5 else None
        if end == "a signal" and done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    last = {"the last step": 8, "a signal": 5}[end]
    with full.in_place(), pytest.raises(RunError, match=f"step {last} "):
        soflow.train(recipe, tmp_path / "run", settings, progress=at_each_step(fill))
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [3]
    soflow.train(recipe, tmp_path / "run", settings)
    assert_same_run(moons_run, tmp_path / "run", config=False)


def test_a_file_size_limit_costs_only_the_new_checkpoint(moons_run, tmp_path):
    recipe, settings = WHOLE["moons"]
    newest = checkpoints(moons_run / "checkpoints")[-1].path
    largest = max(file.stat().st_size for file in newest.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        with pytest.raises(RunError, match=r"step 3 .*File too large"):
            soflow.train(recipe, tmp_path / "run", settings, progress=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    soflow.train(recipe, tmp_path / "run", settings)
    assert_same_run(moons_run, tmp_path / "run")


@pytest.mark.parametrize("name", ["__init__", "add_scalar", "close"])
def test_trackers_that_cannot_write_are_dropped(name, moons_run, tmp_path, monkeypatch, caplog):
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    recipe, settings = WHOLE["moons"]
    monkeypatch.setattr(SummaryWriter, name, full)
    soflow.train(recipe, tmp_path, [*settings, "train.trackers=[tensorboard]"], progress=silent)
    assert_same_run(moons_run, tmp_path, config=False)
    (note,) = [note for note in caplog.messages if "train.trackers" in note]
    assert "No space left on device" in note


@pytest.mark.parametrize(
    ("work", "lost", "steps"),
    [("make_measure", "evaluation", [3, 6, 8]), ("draw_samples", "sample grid", [4, 8])],
)
def test_a_failed_evaluation_or_sample_grid_does_not_stop_training(
    work, lost, steps, tmp_path, monkeypatch, caplog
):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    recipe, settings = WHOLE["moons, evaluated"]
    monkeypatch.setattr(training, work, full if work == "draw_samples" else lambda *_: full)
    soflow.train(recipe, tmp_path, settings, progress=silent)
    for step in steps:
        (note,) = [note for note in caplog.messages if note.startswith(f"step {step}: ")]
        assert lost in note
        assert "No space left on device" in note
    assert checkpoints(tmp_path / "checkpoints")[-1].step == 8


def test_other_files_among_checkpoints_are_ignored(tmp_path, caplog):
    """A link to a checkpoint on another disk, an editor's file, a file named like a checkpoint."""
    folder = started(tmp_path / "run")
    elsewhere = folder.checkpoints.rename(tmp_path / "elsewhere") / "step-00000002"
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-00000002").symlink_to(elsewhere)
    (folder.checkpoints / "step-00000001").write_text("no checkpoint")
    (folder.checkpoints / ".step-00000001.swp").write_text("an editor's")
    (folder.checkpoints / ".step-00000001.partial").write_text("a file")
    for step in (3, 4):
        manager = CheckpointManager(folder, CheckpointConfig(keep_last=1))
        state, *tensors = state_of(step)
        manager.save(replace(state, best_step=0), *tensors, last_chance=True)
    assert caplog.messages == []
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        ".step-00000001.swp",
        "step-00000004",
    ]
    assert_holds(Checkpoint(elsewhere), 2)  # the target of the link is not removed
