"""Runs that are stopped, killed, started twice or fed what is no number: nothing is lost, and it is told what happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soflow.config import read_recipe
from soflow.data import sources
from soflow.data.batches import seeded_generator
from soflow.errors import InputError, RunError
from soflow.run import checkpoint
from soflow.run import checkpoint_manager as keeper
from soflow.run.checkpoint import TrainState, checkpoints, newest_good, remove_old
from soflow.run.folder import RunFolder
from soflow.run.lock import only_trainer_of
from soflow.system.atomic import beside
from soflow.training.display import SilentDisplay
from soflow.training.signals import Stopped
from soflow.workflows import runs
from support.commands import assert_fails
from support.whole_runs import DIT, OBJECTIVES, SHORT, WHOLE, StopAt, add_figures, assert_same_run

TESTS = Path(__file__).parent
SLOW = pytest.mark.slow


#: Runs that the short tests stop.
SHORTLY = ("unet soflow", "moons, measured on the way")


# Stopped and taken up again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SHORTLY else [SLOW])
        for name in WHOLE
        if name != "moons"
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path):
    recipe, settings = WHOLE[name]
    runs.train(recipe, tmp_path / "whole", settings)
    for at, signum in (2, signal.SIGINT), (5, signal.SIGTERM):
        with pytest.raises(Stopped):
            runs.train(recipe, tmp_path / "stopped", settings, display=StopAt(at, signum))
        assert (
            checkpoints(tmp_path / "stopped" / "checkpoints")[-1].step == at
        )  # the step that was at work, and no further
    runs.train(recipe, tmp_path / "stopped", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    before = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "stopped" / "checkpoints").rglob("*")
    }
    runs.train(recipe, tmp_path / "stopped", settings)  # at its end there is nothing to do
    assert before == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "stopped" / "checkpoints").rglob("*")
    }


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory):
    recipe, settings = WHOLE["moons, measured on the way"]
    return runs.train(recipe, tmp_path_factory.mktemp("runs") / "whole", settings).path


@pytest.mark.parametrize(
    ("moment", "signum"), [("measuring", signal.SIGTERM), ("drawing", signal.SIGINT)]
)
def test_a_signal_does_not_wait_for_what_can_be_done_again(
    moment, signum, measured_run, tmp_path, monkeypatch
):
    """Samples take seconds to draw and minutes to measure, more than a cluster gives. Both are done when the run goes on."""
    recipe, settings = WHOLE["moons, measured on the way"]
    name = {"measuring": "measuring", "drawing": "draw_samples"}[moment]
    real, ended = getattr(runs, name), []

    def endless(*arguments):
        os.kill(os.getpid(), signum)
        time.sleep(20)
        ended.append("was waited for")

    with monkeypatch.context() as patch:
        patch.setattr(runs, name, endless if moment == "drawing" else lambda *arguments: endless)
        with pytest.raises(Stopped):
            runs.train(recipe, tmp_path / "stopped", settings)
    assert getattr(runs, name) is real
    assert ended == []
    stopped = checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
    assert (stopped.step, stopped.train_state().due) == (
        {"measuring": 3, "drawing": 4}[moment],
        True,
    )
    runs.train(recipe, tmp_path / "stopped", settings)
    assert_same_run(measured_run, tmp_path / "stopped")


def test_a_signal_at_the_last_step_leaves_its_log_and_picture_to_the_next_start(
    moons_run, tmp_path
):
    recipe, settings = WHOLE["moons"]
    with pytest.raises(Stopped):
        runs.train(recipe, tmp_path / "stopped", settings, display=StopAt(8, signal.SIGTERM))
    assert not (tmp_path / "stopped" / "samples" / "step-00000008.png").exists()
    runs.train(recipe, tmp_path / "stopped", settings)
    assert_same_run(moons_run, tmp_path / "stopped")


def test_sigterm_as_a_cluster_sends_it_saves_the_step_and_exits_with_143(tmp_path):
    recipe, settings = WHOLE["moons"]
    settings = [setting.replace("steps=8", "steps=1000000") for setting in settings]
    out = RunFolder(tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "soflow",
        "train",
        recipe,
        *settings,
        "checkpoint.every=100000",
        "--out",
        str(out.path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not out.read_metrics():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert (
        error.splitlines()[-1]
        == f"stopped by SIGTERM, checkpoint written; go on with: soflow train {out.path}"
    )
    saved = checkpoints(out.checkpoints)[-1]
    assert saved.problem() is None
    assert saved.step - out.read_metrics()[-1]["step"] in (
        0,
        1,
        2,
    )  # a log line comes every second step, or was due


def test_a_step_that_was_due_is_logged_once_however_the_next_life_ends(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, settings = WHOLE["moons"]
    settings = [*settings, "checkpoint.every=100", "train.trackers=[tensorboard]"]
    runs.train(recipe, tmp_path / "whole", settings)
    with pytest.raises(Stopped):
        runs.train(recipe, tmp_path / "stopped", settings, display=StopAt(4))

    class Dies(SilentDisplay):
        def step(self, done, loss, samples_per_second):
            raise ZeroDivisionError

    with pytest.raises(
        ZeroDivisionError
    ):  # the line of step 4 is written by then, and no checkpoint after it
        runs.train(recipe, tmp_path / "stopped", settings, display=Dies())
    runs.train(recipe, tmp_path / "stopped", settings)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    (folder,) = {path.parent for path in (tmp_path / "stopped").rglob("events.out.tfevents*")}
    assert [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss")] == [
        2,
        4,
        6,
        8,
    ]


def test_a_signal_that_came_before_looking_is_not_made_to_wait(tmp_path, monkeypatch):
    from soflow.training import trainer

    recipe, settings = WHOLE["moons"]
    real, seen = trainer.gather_state, []

    def signalled(state, keep):
        monkeypatch.setattr(trainer, "gather_state", real)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(state, keep)

    monkeypatch.setattr(trainer, "gather_state", signalled)
    settings = [*settings, "train.sample_every=2"]
    with pytest.raises(Stopped):
        runs.train(
            recipe, tmp_path / "run", settings, watch=lambda *arguments: seen.append(arguments)
        )
    assert seen == []
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].step == 2


def test_a_second_ctrl_c_does_not_wait_and_signals_are_as_before(moons_run, tmp_path, monkeypatch):
    recipe, settings = WHOLE["moons"]
    real = keeper.save_checkpoint

    def slow(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "save_checkpoint", slow)
        with pytest.raises(KeyboardInterrupt):
            runs.train(recipe, tmp_path / "run", settings, display=StopAt(2))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a script
    try:
        runs.train(recipe, tmp_path / "run", settings, display=StopAt(2))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert_same_run(moons_run, tmp_path / "run")


def kills(count, seed, *names):
    """What tests/kills.py tells of so many kills."""
    command = [sys.executable, str(TESTS / "kills.py"), str(count), str(seed), *names]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=1500, check=False)
    assert process.returncode == 0
    return json.loads(process.stdout)


def test_runs_killed_at_any_moment_end_as_they_would_have():
    told = kills(3, 1, "moons")
    assert told["kills"] == 3
    assert told["runs that ended as they would have"] > 0


@SLOW
def test_fifty_kills_of_every_method_lose_nothing():
    told = kills(50, 0)
    assert told["kills"] == 50
    assert told["while a checkpoint was written"] > 5
    assert all(told[f"by {kind}"] > 5 for kind in ("call", "disk", "clock"))
    add_figures(kills=told)


def test_what_a_killed_trainer_left_half_written_is_removed_and_nothing_else(tmp_path):
    recipe, settings = WHOLE["moons"]
    out = runs.train(recipe, tmp_path / "run", settings)
    left = [out.config, out.data, out.metrics, out.samples / "step-00000004.png"]
    left += [checkpoint.path / "state.json" for checkpoint in checkpoints(out.checkpoints)]
    others = [beside(out.evaluation), beside(out.samples / "step-00000008-renoise-1-seed-0.png")]
    for file in [*map(beside, left), *others]:
        file.write_text("half of")
    runs.train(recipe, tmp_path / "run", settings)
    assert sorted(out.path.rglob("*.partial")) == sorted(others)


# One trainer to a folder ---------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path, inside):
    out = tmp_path / "run"
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but files: a fork of a process with threads may do no more
        with only_trainer_of(out):
            os.write(told, b"!")
            time.sleep(100)
        os._exit(0)
    try:
        os.read(ready, 1)
        recipe, settings = WHOLE["moons"]
        assert_fails(
            inside("train", recipe, *settings, "--out", out),
            1,
            f"being trained by process {child} on",
            "--out",
        )
        assert sorted(path.name for path in out.iterdir()) == [".lock", ".trainer"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (
        inside("train", recipe, *settings, "--out", out).returncode == 0
    )  # the lock of a dead process holds nobody up
    assert not (out / ".trainer").exists()


def test_a_folder_made_only_to_be_locked_does_not_stay_and_others_do(tmp_path):
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "run", tmp_path / "there"):
        with pytest.raises(ZeroDivisionError), only_trainer_of(out):
            raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").exists()


def test_a_folder_that_was_removed_and_made_anew_belongs_to_the_new_run(moons_run, tmp_path):
    """Its first trainer is still at work: it does not mix its log and its checkpoints with the other's."""
    recipe, settings = WHOLE["moons"]

    class Replaced(SilentDisplay):
        def step(self, done, loss, samples_per_second):
            if done == 5:
                shutil.rmtree(tmp_path / "run")
                runs.train(recipe, tmp_path / "run", settings)

    with pytest.raises(
        RunError, match="was removed while it was being trained, and is another folder now"
    ):
        runs.train(recipe, tmp_path / "run", settings, display=Replaced())
    assert_same_run(moons_run, tmp_path / "run")
    with pytest.raises(RunError, match="cannot write the checkpoint of step 6"):
        runs.train(recipe, tmp_path / "gone", settings, display=Gone(tmp_path / "gone"))


class Gone(SilentDisplay):
    """Removes the run folder after step 5."""

    def __init__(self, place):
        self.place = place

    def step(self, done, loss, samples_per_second):
        if done == 5:
            shutil.rmtree(self.place)


def test_the_trainers_name_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".trainer").symlink_to(tmp_path / "precious")
    with only_trainer_of(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / ".trainer").read_text()
    assert (tmp_path / "precious").read_text() == "precious"


# What is kept --------------------------------------------------------------------------------------------------------


def test_every_so_many_steps_one_is_kept_for_good_and_the_best_and_the_last(tmp_path, monkeypatch):
    from soflow.evaluation.scorer import Scorer

    distances = iter([float("nan"), 2.0, 4.0, 3.0])  # what is no number is not the best
    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: next(distances))
    recipe, settings = WHOLE["moons, measured on the way"]
    more = [
        "train.steps=12",
        "checkpoint.every=1",
        "checkpoint.keep_every=5",
        "checkpoint.keep_last=2",
    ]
    runs.train(recipe, tmp_path / "run", [*settings, *more])
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [5, 6, 10, 11, 12]


@pytest.mark.parametrize("damaged", [[8], [6, 8]])
def test_the_newest_good_one_is_used_and_damaged_ones_are_named(damaged, tmp_path):
    recipe, settings = WHOLE["moons"]
    settings = [*settings, "checkpoint.every=2", "checkpoint.keep_last=4"]
    runs.train(recipe, tmp_path / "whole", settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in damaged:
        file = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "state.json"
        file.write_text(
            file.read_text()
            .replace('"step": 0', '"step": 1')
            .replace('"skipped": 0', '"skipped": 1')
        )
    notes = []

    class Noting(SilentDisplay):
        def note(self, text):
            notes.append(text)

    runs.train(recipe, tmp_path / "run", settings, display=Noting())
    for step in damaged:
        assert any(
            f"step-{step:08d}/state.json is damaged" in note and "passing over it" in note
            for note in notes
        )
    assert (
        f"going on from {tmp_path / 'run' / 'checkpoints' / f'step-{min(damaged) - 2:08d}'}"
        in notes
    )
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_goes_is_what_is_superfluous_or_later(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    remove_old(tmp_path, TrainState(step=6), keep_last=1, keep_every=2)
    assert [c.step for c in checkpoints(tmp_path)] == [
        2,
        4,
        6,
    ]  # later ones are from before the run went back
    remove_old(tmp_path, TrainState(step=6, best_step=2), keep_last=1)
    assert [c.step for c in checkpoints(tmp_path)] == [2, 6]


@pytest.mark.parametrize("why", ["the disk", "another version"])
def test_a_checkpoint_that_cannot_be_read_now_is_neither_passed_over_nor_removed(
    why, tmp_path, monkeypatch
):
    """It may be read tomorrow, or by another version."""
    recipe, settings = WHOLE["moons"]
    settings = [*settings, "checkpoint.every=2", "checkpoint.keep_last=4"]
    runs.train(recipe, tmp_path / "run", settings)
    if why == "the disk":
        real = checkpoint.checksum

        def failing(file):
            if "step-00000008" in str(file):
                raise OSError(5, "Input/output error", str(file))
            return real(file)

        monkeypatch.setattr(checkpoint, "checksum", failing)
        told = r"step-00000008/model.safetensors cannot be read \(Input/output error\): mend that, or remove"
    else:
        file = tmp_path / "run" / "checkpoints" / "step-00000008" / "state.json"
        values = {**json.loads(file.read_text()), "version": 3}
        del values["checksum"]
        file.write_text(json.dumps({**values, "checksum": checkpoint.checksum_of(values)}))
        told = r"step-00000008 is of run-folder version 3, this soflow reads 2"
    with pytest.raises(RunError, match=told):
        runs.train(recipe, tmp_path / "run", settings)
    assert [c.step for c in checkpoints(tmp_path / "run" / "checkpoints")] == [2, 4, 6, 8]


def test_checkpoints_without_the_settings_they_were_made_with_are_not_gone_on_with(tmp_path):
    recipe, settings = WHOLE["moons"]
    out = runs.train(recipe, tmp_path / "run", settings)
    out.config.unlink()
    with pytest.raises(
        InputError,
        match=r"has checkpoints, but no config.yaml that says how they were made: bring it back",
    ):
        runs.train(recipe, tmp_path / "run", [*settings, "train.seed=99"])


# Numbers that go wrong -----------------------------------------------------------------------------------------------


def poisoned(monkeypatch, step, batch_size=16, row=5, value=float("nan")):
    """Digits of which the one at a row of a step's batch, or some, are no numbers, or one number; which they are."""
    from dataclasses import replace

    from soflow.data.batches import Batches

    real = sources.digits("train")
    item = Batches(real, batch_size, 0).indices(step)[row]
    rows = (
        real.rows.clone().float() / 127.5 - 1
        if real.rows.dtype == torch.uint8
        else real.rows.clone()
    )
    rows[item] = value
    monkeypatch.setitem(sources.SOURCES, "digits", lambda split: replace(real, rows=rows))
    return item


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("row", [1, 14])
def test_a_loss_that_is_not_finite_is_told_with_its_term_sample_and_times(
    name, row, tmp_path, monkeypatch
):
    item = poisoned(monkeypatch, step=4, row=row)
    settings = [f"objective.name={name}", *DIT, *SHORT, "data.flip=false"]
    with pytest.raises(RunError) as raised:
        runs.train("digits", tmp_path / "run", settings, display=SilentDisplay())
    config = read_recipe("digits", settings)
    draws = runs.make_objective(config).draw(
        (16, 1, 8, 8), seeded_generator(0, "draws", 4, torch.device("cpu"))
    )
    t, s = float(draws.t[row]), float(draws.s[row])
    term = {
        "soflow": "flow matching" if row == 1 else "consistency",
        "shortcut": "flow matching" if row == 1 else "shortcut",
    }
    assert f", at step 5, by sample {row} of its batch (number {item} of the data): " in str(
        raised.value
    )
    assert f"the {term.get(name, name.replace('_', ' '))} loss, nan, at t={t:.4g}" in str(
        raised.value
    )
    assert (f"s={s:.4g}" in str(raised.value)) == (t != s or name == "mean_flow")
    assert (
        f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000003'}"
        in str(raised.value)
    )
    middle = re.search(r"l=([\d.e-]+)", str(raised.value))
    assert bool(middle) == (name == "consistency" or (name == "soflow" and row == 14))
    assert not middle or s <= float(middle[1]) <= t
    assert newest_good(tmp_path / "run" / "checkpoints")[0].step == 3


def spoiling(monkeypatch, t):
    """Networks give no finite gradient to the output for the sample at time t; the loss is as it was."""
    from soflow.networks.dit import DiT

    real = DiT.forward

    def forward(self, x, times, *arguments):
        out = real(self, x, times, *arguments)
        if out.requires_grad:
            wrong = (times == t).view(-1, 1, 1, 1)
            out.register_hook(lambda gradient: torch.where(wrong, torch.inf, gradient))
        return out

    monkeypatch.setattr(DiT, "forward", forward)


@pytest.mark.parametrize("row", [0, 14])
def test_a_gradient_that_is_not_finite_is_told_with_the_sample_it_comes_from(
    row, tmp_path, monkeypatch
):
    settings = [*DIT, *SHORT]
    config = read_recipe("digits", settings)
    draws = runs.make_objective(config).draw(
        (16, 1, 8, 8), seeded_generator(0, "draws", 4, torch.device("cpu"))
    )
    spoiling(monkeypatch, draws.t[row])
    with pytest.raises(RunError) as raised:
        runs.train("digits", tmp_path / "run", settings, display=SilentDisplay())
    said = str(raised.value)
    assert re.search(
        r"^the gradient of [\w.]+ and \d+ more is not finite, at step 5, by sample", said
    )
    term = "flow matching" if row == 0 else "consistency"
    assert re.search(
        rf"by sample {row} of its batch .*: the {term} loss, -?\d.*, at t={float(draws.t[row]):.4g}",
        said,
    )


def test_a_step_that_goes_wrong_may_be_skipped_and_leaves_the_weights_alone(
    tmp_path, monkeypatch, inside
):
    poisoned(monkeypatch, step=4)
    every = [
        "checkpoint.every=1",
        "checkpoint.keep_last=9",
        "train.log_every=1",
        "train.on_nonfinite=skip",
        "data.flip=false",
    ]
    settings = [*DIT, *SHORT, *every]
    notes = []

    class Noting(SilentDisplay):
        def note(self, text):
            notes.append(text)

    runs.train("digits", tmp_path / "run", settings, display=Noting())
    kept = {c.step: c for c in checkpoints(tmp_path / "run" / "checkpoints")}
    four, five, six = (load_file(kept[step].path / "model.safetensors") for step in (4, 5, 6))
    assert all(torch.equal(four[key], five[key]) for key in four)
    assert not all(torch.equal(five[key], six[key]) for key in five)
    before, after = (load_file(kept[step].path / "ema.safetensors") for step in (4, 5))
    decay = read_recipe(
        "digits", settings
    ).ema.decay  # the average goes on towards the weights as they stand
    for key, weights in four.items():
        torch.testing.assert_close(after[key], decay * before[key] + (1 - decay) * weights)
    four, five = (kept[step].optimizer_state()["state"] for step in (4, 5))
    assert all(torch.equal(four[i][key], five[i][key]) for i in four for key in four[i])
    lines = RunFolder(tmp_path / "run").read_metrics()
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line.get("skipped") for line in lines] == [None] * 4 + [1] * 4
    assert "loss" not in lines[4]
    assert all(line["loss"] == line["loss"] for line in lines[5:])
    assert any(
        "at step 5, by sample 5" in note and "skipping the update, 1 of at most 100" in note
        for note in notes
    )
    assert kept[8].train_state().skipped == 1
    assert (
        inside("report", tmp_path / "run").returncode == 0
    )  # though there is a line without a loss
    for at in (4, 5, 6):  # a run that goes on skips as much
        shutil.copytree(tmp_path / "run", tmp_path / f"{at}")
        for step in range(at + 1, 9):
            shutil.rmtree(tmp_path / f"{at}" / "checkpoints" / f"step-{step:08d}")
        runs.train("digits", tmp_path / f"{at}", settings, display=SilentDisplay())
        assert_same_run(tmp_path / "run", tmp_path / f"{at}")


def test_skipping_has_a_limit_that_outlives_a_stop(tmp_path, monkeypatch):
    real = sources.digits("train")
    from dataclasses import replace

    monkeypatch.setitem(
        sources.SOURCES, "digits", lambda split: replace(real, rows=real.rows * torch.nan)
    )
    settings = [*DIT, *SHORT, "data.flip=false", "train.on_nonfinite=skip", "train.max_skipped=4"]
    with pytest.raises(Stopped):
        runs.train("digits", tmp_path / "run", settings, display=StopAt(3))
    with pytest.raises(
        RunError,
        match=r"at step 5, .*, after 4 updates were skipped, as many as train.max_skipped allows; the la",
    ):
        runs.train("digits", tmp_path / "run", settings, display=SilentDisplay())
    with pytest.raises(RunError, match=r"at step 4, by sample 0 .* \(and others after it\)"):
        runs.train(
            "digits",
            tmp_path / "run",
            [*settings, "train.on_nonfinite=stop"],
            display=SilentDisplay(),
        )


@pytest.mark.parametrize("rows", [(5, 14), (14, 6)])
def test_of_several_samples_the_first_of_the_batch_is_named(rows, tmp_path, monkeypatch):
    """Though the batch is worked off in parts, and the first may be in the second."""
    poisoned(monkeypatch, step=4, row=list(rows))
    settings = [*DIT, *SHORT, "data.flip=false"]
    with pytest.raises(
        RunError, match=rf"by sample {min(rows)} of its batch .* \(and others after it\);"
    ):
        runs.train("digits", tmp_path / "run", settings, display=SilentDisplay())


def test_an_error_too_large_to_be_squared_is_caught_though_the_loss_is_finite(
    tmp_path, monkeypatch
):
    """Its weight is 1 / infinity: the loss of such a sample is 0."""
    poisoned(monkeypatch, step=4, row=14, value=3e18)
    settings = [*DIT, *SHORT, "data.flip=false", "network.depth=1"]
    with pytest.raises(RunError) as raised:
        runs.train("digits", tmp_path / "run", settings, display=SilentDisplay())
    assert "by sample 14 of its batch" in str(raised.value)
