"""Disks that fail while a run writes: whatever goes wrong, no earlier checkpoint is lost, and going on is exact."""

import itertools
import resource
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from soflow.config.schema import CheckpointConfig
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import Checkpoint, TrainState, checkpoints, newest_good
from soflow.run.checkpoint_manager import CheckpointManager
from soflow.run.folder import RunFolder
from soflow.training.display import SilentDisplay
from soflow.workflows import runs
from support.faults import ENOSPC, FAULTS, SHORT, Disk, operations
from support.whole_runs import WHOLE, StopAt, add_figures, assert_same_run

#: Each fault once; and a disk that is full and stays so.
KINDS = [(fault, False) for fault in FAULTS] + [(ENOSPC, True)]


def state_of(step):
    """Something for each part of a checkpoint, another for each step."""
    weights = {"a": torch.full((40, 10), float(step)), "b": torch.arange(5) + step}
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.full((40, 10), step / 3)}
    return (
        TrainState(step, best_step=1),
        weights,
        {"a": weights["a"].double() / 7},
        {"state": {0: moments}, "param_groups": []},
    )


def save(folder, step, notes=(), on_failure="stop"):
    """A log line and a checkpoint, as training writes them."""
    keeper = CheckpointManager(
        folder, CheckpointConfig(keep_last=1, on_failure=on_failure), list(notes).append
    )
    keeper.log({"step": step, "loss": step / 3})
    keeper.save(*state_of(step), last_chance=False)


def begun(path):
    """A run folder with the checkpoints of steps 1, the best, and 2; at 3 the second is to go."""
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
def test_each_operation_of_a_checkpoint_may_fail_and_earlier_ones_are_still_there(every, tmp_path):
    """The short test lets each operation fail in one way, those on the log in every way, as the long one all of them."""
    start = begun(tmp_path / "begun")
    counted = RunFolder(shutil.copytree(start.path, tmp_path / "counted"))
    done = operations(tmp_path, lambda: save(counted, 3))
    assert {"open", "write", "flush", "fsync", "mkdir", "replace", "rmdir"} <= set(done)
    renamed = done.index("replace")  # what is renamed is on the disk, and that it was
    assert [done[renamed - 1], done[renamed + 1]] == ["fsync", "fsync"]
    assert done.count("fsync") >= 7
    assert (
        "fsync" in done[: done.index("mkdir")]
    )  # the log is there before the checkpoint that counts on it
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
                assert "earlier ones are untouched" in str(error)
        tried += fault != SHORT or done[at] == "write"

        good, problems = newest_good(folder.checkpoints)
        assert problems == []  # what is half-written is never taken for a checkpoint
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

        folder.forget_metrics_after(good.step)  # as a run does that goes on
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


def test_each_operation_may_fail_where_a_checkpoint_is_written_again(tmp_path):
    """As one that a signal left: what came after its step was yet to be done, and then it is the only one there is."""
    start = RunFolder(tmp_path / "begun")
    start.create()
    keeper = CheckpointManager(start, CheckpointConfig(keep_last=1), str)
    keeper.save(replace(state_of(3)[0], due=True), *state_of(3)[1:], last_chance=True)
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
def test_training_survives_a_failing_disk_and_ends_where_it_would_have(on_failure, every, tmp_path):
    """Whatever fails, from the first folder to the last file: the run tells of it in a line, or goes on; the same command
    ends in the same bits. Of the thousand writes only every twentieth is tried. What could not be drawn stays undrawn.
    """
    recipe, settings = WHOLE["moons"]
    settings = [*settings, f"checkpoint.on_failure={on_failure}"]

    def train(name):
        runs.train(recipe, tmp_path / name, settings, display=SilentDisplay())

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
            assert (
                not there.exists() or there.read_bytes() == file.read_bytes()
            )  # half of one is none
            shutil.copy(file, tmp_path / "run" / "samples")
        assert_same_run(tmp_path / "whole", tmp_path / "run", last_only=on_failure == "continue")
        shutil.rmtree(tmp_path / "run")
        tried += 1
    assert tried >= 2
    assert stopped > 0 or every > 1
    if every == 1:
        add_figures(**{f"faults in whole runs, on_failure={on_failure}": tried})


def test_going_on_without_a_checkpoint_is_told_and_the_next_one_is_written(tmp_path, monkeypatch):
    """As where a disk is full for a while: those of steps 3, which would be the best, and 6 are lost, and no more."""
    from soflow.evaluation.scorer import Scorer

    distances = iter([1.0, 4.0, 3.0])
    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: next(distances))
    recipe, settings = WHOLE["moons, measured on the way"]
    notes = []

    class Noting(SilentDisplay):
        def note(self, text):
            notes.append(text)

        def step(self, done, loss, samples_per_second):
            full.at = 0 if 3 <= done < 7 else None

    full = Disk(tmp_path, lasting=True)
    full.operations = ["before"]
    with full.in_place():
        runs.train(
            recipe,
            tmp_path / "run",
            [*settings, "checkpoint.on_failure=continue"],
            display=Noting(),
        )
    folder = RunFolder(tmp_path / "run")
    assert [c.step for c in checkpoints(folder.checkpoints)] == [8]
    assert [line["step"] for line in folder.read_metrics()] == [2, 3, 4, 6, 8]
    for step in (3, 6):
        lost = [note for note in notes if f"cannot write the checkpoint of step {step}" in note]
        assert len(lost) == 1
        assert "No space left on device; earlier ones are untouched; going on without it" in lost[0]
    assert (
        checkpoints(folder.checkpoints)[-1].train_state().best_step == 8
    )  # not one that is not there


@pytest.mark.parametrize("end", ["the last step", "a signal"])
def test_the_last_chance_of_a_checkpoint_is_not_let_go_by(end, tmp_path):
    recipe, settings = WHOLE["moons"]
    settings = [*settings, "checkpoint.on_failure=continue"]
    runs.train(recipe, tmp_path / "whole", settings)
    full = Disk(tmp_path, lasting=True)
    full.operations = ["before"]

    class FullFrom5(StopAt):
        def step(self, done, loss, samples_per_second):
            full.at = 0 if done >= 5 else None
            super().step(done, loss, samples_per_second)

    last = {"the last step": 8, "a signal": 5}[end]
    with (
        full.in_place(),
        pytest.raises(
            RunError, match=rf"cannot write the checkpoint of step {last} to .*; make room"
        ),
    ):
        runs.train(
            recipe, tmp_path / "run", settings, display=FullFrom5(5 if end == "a signal" else None)
        )
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [3]
    runs.train(recipe, tmp_path / "run", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_the_system_itself_refuses_to_write_costs_only_the_new_checkpoint(moons_run, tmp_path):
    recipe, settings = WHOLE["moons"]
    sizes = [
        file.stat().st_size for file in checkpoints(moons_run / "checkpoints")[-1].path.iterdir()
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (max(sizes) - 1, hard)
    )  # no file may grow beyond so many bytes
    try:
        with pytest.raises(
            RunError,
            match=r"the checkpoint of step 3 to .*: File too large; earlier ones are untouched",
        ):
            runs.train(recipe, tmp_path / "run", settings, display=SilentDisplay())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    runs.train(recipe, tmp_path / "run", settings)
    assert_same_run(moons_run, tmp_path / "run")


@pytest.mark.parametrize("name", ["__init__", "add_scalar", "close"])
def test_trackers_that_cannot_write_are_let_go(name, moons_run, tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    recipe, settings = WHOLE["moons"]
    notes = []

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    class Noting(SilentDisplay):
        def note(self, text):
            notes.append(text)

    monkeypatch.setattr(SummaryWriter, name, full)
    runs.train(
        recipe, tmp_path / "run", [*settings, "train.trackers=[tensorboard]"], display=Noting()
    )
    assert_same_run(moons_run, tmp_path / "run", config=False)
    assert (
        len(
            [
                note
                for note in notes
                if "what train.trackers asks for (No space left on device)" in note
            ]
        )
        == 1
    )


@pytest.mark.parametrize("what", ["measuring", "draw_samples"])
def test_samples_that_cannot_be_looked_at_cost_no_more_than_that(what, tmp_path, monkeypatch):
    recipe, settings = WHOLE["moons, measured on the way"]
    notes = []

    def full(*arguments):
        raise OSError(28, "No space left on device")

    class Noting(SilentDisplay):
        def note(self, text):
            notes.append(text)

    monkeypatch.setattr(runs, what, full if what == "draw_samples" else lambda *arguments: full)
    runs.train(recipe, tmp_path / "run", settings, display=Noting())
    lost = {"measuring": ([3, 6, 8], "figure"), "draw_samples": ([4, 8], "picture")}[what]
    for step in lost[0]:
        assert f"step {step} has no {lost[1]}: [Errno 28] No space left on device" in notes
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 8


def test_what_lies_among_checkpoints_keeps_none_from_being_written(tmp_path):
    """A checkpoint moved to another disk and linked, an editor's file, a file for a checkpoint."""
    folder = begun(tmp_path / "run")
    elsewhere = folder.checkpoints.rename(tmp_path / "elsewhere") / "step-00000002"
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-00000002").symlink_to(elsewhere)
    (folder.checkpoints / "step-00000001").write_text("no checkpoint")
    (folder.checkpoints / ".step-00000001.swp").write_text("an editor's")
    (folder.checkpoints / ".step-00000001.partial").write_text("a file")
    notes = []
    for step in (3, 4):
        keeper = CheckpointManager(folder, CheckpointConfig(keep_last=1), notes.append)
        keeper.save(replace(state_of(step)[0], best_step=0), *state_of(step)[1:], last_chance=True)
    assert notes == []
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        ".step-00000001.swp",
        "step-00000004",
    ]
    assert_holds(Checkpoint(elsewhere), 2)  # what was linked is not touched
