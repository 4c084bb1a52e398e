"""Several training runs in one process, as in a notebook, do not affect each other."""

import signal
import threading

import pytest
from safetensors.torch import load_file

import soflow
from soflow.errors import RunError
from soflow.run.checkpoint import checkpoints
from support.watching import at_each_step, stop_at

MOONS = [
    "network.width=16", "network.depth=1", "train.steps=4", "train.batch_size=8",
    "train.sample_every=0",
]  # fmt: skip
OTHER = ["precision=bf16", "train.seed=1", "train.accumulate=4", "optimizer.name=radam"]


def weights(out, settings=()):
    folder = soflow.train("moons", out, [*MOONS, "precision=fp32", *settings], soflow.silent)
    return folder, load_file(checkpoints(folder.checkpoints)[-1].path / "model.safetensors")


def same(one, two):
    return all(one[name].equal(two[name]) for name in one)


@pytest.fixture
def first(tmp_path):
    return weights(tmp_path / "first")[1]


def fail(done):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("progress", "error"),
    [
        (soflow.silent, None),
        (at_each_step(fail), ZeroDivisionError),
        (stop_at(2), KeyboardInterrupt),
    ],
    ids=["finished", "failed", "interrupted"],
)
def test_a_training_with_other_settings_in_between_changes_nothing(
    progress, error, first, tmp_path
):
    settings = [*MOONS, *OTHER]
    if error is None:
        soflow.train("moons", tmp_path / "other", settings, progress)
    else:
        with pytest.raises(error):
            soflow.train("moons", tmp_path / "other", settings, progress)
    assert same(weights(tmp_path / "again")[1], first)
    # The same call resumes, with the result of an uninterrupted run.
    again, whole = (
        soflow.train("moons", tmp_path / name, settings, soflow.silent)
        for name in ("other", "whole")
    )
    one, two = (
        load_file(checkpoints(run.checkpoints)[-1].path / "model.safetensors")
        for run in (again, whole)
    )
    assert same(one, two)
    assert again.read_config().precision == "bf16"


def test_an_interrupted_call_resumes_when_it_is_repeated(first, tmp_path):
    settings = [*MOONS, "precision=fp32"]
    with pytest.raises(KeyboardInterrupt):
        soflow.train("moons", tmp_path / "run", settings, stop_at(2, signal.SIGINT))
    assert same(weights(tmp_path / "run")[1], first)


def test_a_thread_trains_like_the_main_thread(first, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(weights(tmp_path / "thread")[1]))
    thread.start()
    thread.join()
    assert same(found[0], first)


def test_trainings_in_two_threads_run_one_after_the_other(first, tmp_path):
    """torch's random state belongs to the process, so the second run would change the first."""
    raised = []

    def second():
        with pytest.raises(RunError, match="second") as caught:
            weights(tmp_path / "second")
        raised.append(caught.value)

    def begin(done):
        if done == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    folder = soflow.train(
        "moons", tmp_path / "run", [*MOONS, "precision=fp32"], at_each_step(begin)
    )
    assert len(raised) == 1
    assert not (tmp_path / "second").exists()
    assert same(load_file(checkpoints(folder.checkpoints)[-1].path / "model.safetensors"), first)


def test_a_callback_cannot_train_another_run(first, tmp_path):
    class Nested(soflow.Callback):
        def on_step(self, training):
            with pytest.raises(RunError, match="second"):
                weights(tmp_path / "second")

    settings = [*MOONS, "precision=fp32"]
    folder = soflow.train("moons", tmp_path / "run", settings, soflow.silent, callbacks=[Nested()])
    assert not (tmp_path / "second").exists()
    assert same(load_file(checkpoints(folder.checkpoints)[-1].path / "model.safetensors"), first)
