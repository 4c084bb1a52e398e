"""Runs that are stopped or killed resume without loss."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import soflow
from soflow.run import checkpoint_manager
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.system.atomic import beside
from soflow.training import trainer
from soflow.training.signals import Stopped
from soflow.workflows import train as training
from support.watching import at_each_step, stop_at
from support.whole_runs import WHOLE, add_figures, assert_same_run

TESTS = Path(__file__).parents[1]
SLOW = pytest.mark.slow
MOONS, EVALUATED = WHOLE["moons"], WHOLE["moons, evaluated"]
#: Runs that the fast tests stop.
FAST = ("unet soflow", "moons, evaluated")


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1]


def modified(out):
    return {file: file.stat().st_mtime_ns for file in RunFolder(out).checkpoints.rglob("*")}


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory):
    recipe, settings = EVALUATED
    return soflow.train(recipe, tmp_path_factory.mktemp("runs") / "whole", settings).path


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else [SLOW]) for name in WHOLE if name != "moons"],
)
def test_a_stopped_run_resumes_bitwise(name, request, tmp_path):
    recipe, settings = WHOLE[name]
    stopped = tmp_path / "stopped"
    if name == "moons, evaluated":
        whole = request.getfixturevalue("evaluated_run")
    else:
        whole = soflow.train(recipe, tmp_path / "whole", settings).path
    for at, signum in (2, signal.SIGINT), (5, signal.SIGTERM):
        with pytest.raises(Stopped):
            soflow.train(recipe, stopped, settings, progress=stop_at(at, signum))
        assert last(stopped).step == at  # finishes the current step only
    soflow.train(recipe, stopped, settings)
    assert_same_run(whole, stopped)
    before = modified(stopped)
    soflow.train(recipe, stopped, settings)  # the run is finished
    assert before == modified(stopped)


@pytest.mark.parametrize(
    ("work", "signum", "step"),
    [("make_measure", signal.SIGTERM, 3), ("draw_samples", signal.SIGINT, 4)],
)
def test_a_signal_interrupts_samples_and_evaluations(
    work, signum, step, evaluated_run, tmp_path, monkeypatch
):
    """They take seconds to minutes, longer than a cluster waits."""
    recipe, settings = EVALUATED
    finished = []

    def endless(*arguments):
        os.kill(os.getpid(), signum)
        time.sleep(20)
        finished.append(work)

    with monkeypatch.context() as patch:
        made = endless if work == "draw_samples" else lambda *arguments: endless
        patch.setattr(training, work, made)
        with pytest.raises(Stopped):
            soflow.train(recipe, tmp_path, settings)
    assert finished == []
    assert (last(tmp_path).step, last(tmp_path).train_state().due) == (step, True)
    soflow.train(recipe, tmp_path, settings)
    assert_same_run(evaluated_run, tmp_path)


def test_a_signal_at_the_last_step_leaves_log_and_samples_to_the_next_start(moons_run, tmp_path):
    recipe, settings = MOONS
    with pytest.raises(Stopped):
        soflow.train(recipe, tmp_path, settings, progress=stop_at(8, signal.SIGTERM))
    assert not (tmp_path / "samples" / "step-00000008.png").exists()
    soflow.train(recipe, tmp_path, settings)
    assert_same_run(moons_run, tmp_path)


def test_a_signal_before_samples_are_due_skips_them(tmp_path, monkeypatch):
    recipe, settings = MOONS
    real, seen = trainer.gather_state, []

    class Seen(soflow.Callback):
        def on_sample(self, training, model, picture):
            seen.append(picture)

    def signalled(state, keep):
        monkeypatch.setattr(trainer, "gather_state", real)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(state, keep)

    monkeypatch.setattr(trainer, "gather_state", signalled)
    settings = [*settings, "train.sample_every=2"]
    with pytest.raises(Stopped):
        soflow.train(recipe, tmp_path, settings, callbacks=[Seen()])
    assert seen == []
    assert last(tmp_path).step == 2


def test_a_due_log_line_is_written_once_after_any_second_stop(moons_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, settings = MOONS
    settings = [*settings, "train.trackers=[tensorboard]"]
    with pytest.raises(Stopped):
        soflow.train(recipe, tmp_path, settings, progress=stop_at(4))

    def die(step):
        raise ZeroDivisionError

    # At this point the line of step 4 is written, but no checkpoint after it.
    with pytest.raises(ZeroDivisionError):
        soflow.train(recipe, tmp_path, settings, progress=at_each_step(die))
    soflow.train(recipe, tmp_path, settings)
    assert_same_run(moons_run, tmp_path, config=False)
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4, 6, 8]


def test_a_second_ctrl_c_interrupts_immediately_and_handlers_are_restored(
    moons_run, tmp_path, monkeypatch
):
    recipe, settings = MOONS
    real = checkpoint_manager.save_checkpoint

    def slow(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_manager, "save_checkpoint", slow)
        with pytest.raises(KeyboardInterrupt):
            soflow.train(recipe, tmp_path, settings, progress=stop_at(2))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # like a background process of a script
    try:
        soflow.train(recipe, tmp_path, settings, progress=stop_at(2))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert_same_run(moons_run, tmp_path)


@pytest.mark.processes
def test_sigterm_saves_the_step_and_exits_with_143(tmp_path):
    recipe, settings = MOONS
    out = RunFolder(tmp_path / "run")
    more = ["train.steps=1000000", "train.sample_every=0", "checkpoint.every=100000"]
    command = ["-m", "soflow", "train", recipe, *settings, *more, "--out", str(out.path)]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    while not out.read_metrics():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    note = error.splitlines()[-1]
    assert "SIGTERM" in note
    assert f"soflow train {out.path}" in note
    saved = last(out.path)
    assert saved.problem() is None
    # Log lines come every second step, so one may have been due.
    assert saved.step - out.read_metrics()[-1]["step"] in (0, 1, 2)


def kills(count, seed, *names):
    """The counts of support/kills.py."""
    command = [sys.executable, "-m", "support.kills", str(count), str(seed), *names]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=1500, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert process.returncode == 0
    return json.loads(process.stdout)


@pytest.mark.processes
def test_a_run_killed_at_any_moment_gives_the_uninterrupted_result():
    counts = kills(3, 1, "moons")
    assert counts["kills"] == 3
    assert counts["runs that ended as they would have"] > 0


@SLOW
def test_fifty_kills_of_every_objective_lose_nothing():
    counts = kills(50, 0)
    assert counts["kills"] == 50
    assert counts["while a checkpoint was written"] > 5
    assert all(counts[f"by {kind}"] > 5 for kind in ("call", "disk", "clock"))
    add_figures(kills=counts)


def test_only_partial_files_of_a_killed_trainer_are_removed(tmp_path):
    recipe, settings = MOONS
    out = soflow.train(recipe, tmp_path / "run", settings)
    left = [out.config, out.data, out.metrics, out.samples / "step-00000004.png"]
    left += [checkpoint.path / "state.json" for checkpoint in checkpoints(out.checkpoints)]
    others = [beside(out.evaluation), beside(out.samples / "step-00000008-renoise-1-seed-0.png")]
    for file in [*map(beside, left), *others]:
        file.write_text("half of")
    soflow.train(recipe, out.path, settings)
    assert sorted(out.path.rglob("*.partial")) == sorted(others)
