"""The trainer logs, keeps checkpoints, evaluates, and reports errors."""

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import soflow
from soflow.config import read_recipe
from soflow.config.optimizer import OptimizerConfig
from soflow.data import dataset as dataset_module
from soflow.data import sources
from soflow.data.dataset import DataRecord
from soflow.errors import InputError, RunError
from soflow.run import checkpoint, checkpoint_manager
from soflow.run.checkpoint import checkpoints, newest_good, require_good
from soflow.run.folder import RunFolder
from soflow.training.automatic import resolve
from soflow.training.optimizers import learning_rate
from soflow.training.signals import Stopped
from soflow.training.trackers import require_trackers
from support.poison import replace_digits
from support.settings import TINY_DIT
from support.watching import stop_at
from support.whole_runs import MLP, WHOLE, assert_same_run, without_clock

SHORT = [
    "train.steps=8",
    "train.batch_size=16",
    "train.log_every=2",
    "checkpoint.every=4",
]
MOONS = [*MLP, *SHORT]
TINY_RUN = [
    *TINY_DIT, "train.steps=30", "train.batch_size=32", "train.log_every=10", "checkpoint.every=15"
]  # fmt: skip


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1]


def steps(out):
    return [c.step for c in checkpoints(RunFolder(out).checkpoints)]


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run with checkpoints at steps 4 and 8."""
    return soflow.train("moons", tmp_path_factory.mktemp("runs") / "run", MOONS).path


@pytest.fixture
def copied(moons, tmp_path):
    return shutil.copytree(moons, tmp_path / "run")


# Files of a run


def test_a_run_directory_contains_the_documented_files(tiny_run):
    assert {p.name for p in tiny_run.iterdir()} == {
        ".lock", "config.yaml", "data.json", "metrics.jsonl", "checkpoints", "samples"
    }  # fmt: skip
    assert steps(tiny_run) == [15, 30]
    assert {p.name for p in last(tiny_run).path.iterdir()} == {
        "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
    }  # fmt: skip
    assert [p.name for p in (tiny_run / "samples").iterdir()] == ["step-00000030.png"]
    line = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[0])
    assert line.keys() >= {
        "step", "loss", "flow_matching_mse", "consistency_mse", "lr", "samples_per_second",
        "seconds",
    }  # fmt: skip
    data = DataRecord.read(tiny_run / "data.json")
    assert (data.name, data.count, len(data.class_names)) == ("digits", 1437, 10)


def test_a_finished_run_does_not_change(tiny_run):
    files = [p for p in tiny_run.rglob("*") if p.is_file() and p.name != "config.yaml"]
    before = {p: p.stat().st_mtime_ns for p in files}
    soflow.train("digits", tiny_run, TINY_RUN)
    assert before == {p: p.stat().st_mtime_ns for p in files}


def test_a_loaded_run_samples_with_ema_weights_in_evaluation_mode(tiny_run):
    run, raw = soflow.load(tiny_run), soflow.load(tiny_run, "raw")
    x, one = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert not torch.equal(run.model.solution(x, one, 0 * one), raw.model.solution(x, one, 0 * one))
    assert not run.model.net.training
    assert run.config == resolve(read_recipe("digits", TINY_RUN), torch.device("cpu"))[0]
    assert run.class_names[3] == "3"
    assert run.samplers[0] == run.default_sampler[0]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    soflow.train("moons", tmp_path, [*MOONS, "checkpoint.every=2", "checkpoint.keep_last=3"])
    assert steps(tmp_path) == [4, 6, 8]


def test_training_lowers_the_loss(tmp_path):
    settings = ["train.steps=80", "train.log_every=20", "train.batch_size=64"]
    run = soflow.train("moons", tmp_path, [*settings, "network.width=32"])
    first, *_, final = run.read_metrics()
    assert final["flow_matching_mse"] < first["flow_matching_mse"]


def test_bfloat16_trains_and_keeps_float32_weights(tmp_path):
    run = soflow.train("moons", tmp_path, [*MOONS, "precision=bf16"])
    assert all(line["loss"] == line["loss"] for line in run.read_metrics())
    weights = load_file(last(tmp_path).path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_accumulation_gives_the_same_run_up_to_rounding(moons_run, tmp_path):
    recipe, settings = WHOLE["moons"]
    whole = soflow.train(recipe, tmp_path, [*settings, "train.accumulate=1"])
    losses = [
        [line["loss"] for line in run.read_metrics()] for run in (RunFolder(moons_run), whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_every_step_has_its_own_dropout_masks(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    soflow.train("moons", tmp_path, MOONS)
    assert len(set(seeds[-8:])) == 8


# Output


def test_without_a_terminal_each_logging_step_is_one_line(tmp_path, capsys):
    soflow.train("moons", tmp_path, MOONS)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == [f"step {k} of 8" for k in (2, 4, 6, 8)]
    for line in lines:
        assert all(word in line for word in ("loss", "flow_matching_mse", "samples/s", " left"))


def test_on_a_terminal_a_bar_shows_loss_and_speed(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    soflow.train("moons", tmp_path, MOONS)
    assert all(word in screen.getvalue() for word in ("training", "loss ", "samples/s"))


def test_tensorboard_gets_every_log_line_once_also_after_a_stop(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = [*MOONS, "train.trackers=[tensorboard]"]
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path, settings, progress=stop_at(5))
    run = soflow.train("moons", tmp_path, settings)
    (folder,) = {p.parent for p in tmp_path.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4, 6, 8]
    losses = [line["loss"] for line in run.read_metrics()]
    assert [event.value for event in events] == pytest.approx(losses)


def test_a_missing_tracker_names_the_install_command():
    with pytest.raises(InputError, match=r"nosuchtracker.*soflow\[track\]"):
        require_trackers(("nosuchtracker",))


# Resuming


@pytest.mark.parametrize("end", ["", '{"step": 8, "lo'])
def test_log_lines_after_the_last_checkpoint_are_not_repeated(end, moons, copied):
    shutil.rmtree(last(copied).path)  # like a kill between the log line and the checkpoint
    with RunFolder(copied).metrics.open("a") as stream:
        stream.write(end)
    run = soflow.train("moons", copied, MOONS)
    assert [line["step"] for line in run.read_metrics()] == [2, 4, 6, 8]
    assert_same_run(moons, copied)


def test_a_run_cannot_be_resumed_with_other_settings(copied):
    with pytest.raises(InputError, match=r"train\.seed=0, not 1"):
        soflow.train("moons", copied, [*MOONS, "train.seed=1"])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_skipped(name, damage, copied):
    newest = last(copied)
    file = newest.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    good, problems = newest_good(RunFolder(copied).checkpoints)
    assert good.step == 4
    assert str(file) in problems[0]
    with pytest.raises(RunError, match="step-00000004"):
        require_good(newest)
    soflow.train("moons", copied, MOONS)  # resumes from step 4 and replaces the damaged checkpoint
    assert newest.problem() is None


def test_a_run_with_only_damaged_checkpoints_is_not_restarted(copied):
    for one in checkpoints(RunFolder(copied).checkpoints):
        (one.path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"step-00000008/model\.safetensors is damaged"):
        soflow.train("moons", copied, MOONS)
    assert steps(copied) == [4, 8]


def test_resuming_from_an_earlier_step_replaces_later_damaged_checkpoints(copied):
    """Otherwise the newest, damaged checkpoint would be kept and the intact one removed."""
    (last(copied).path / "ema.safetensors").write_bytes(b"damaged")
    with pytest.raises(Stopped):
        soflow.train("moons", copied, [*MOONS, "checkpoint.keep_last=1"], progress=stop_at(5))
    assert steps(copied) == [5]
    assert last(copied).problem() is None


def test_a_run_without_a_checkpoint_can_restart_on_other_data(tmp_path):
    """The run was killed before its first checkpoint."""
    out = RunFolder(tmp_path)
    out.create()
    DataRecord(name="pets", count=2, fingerprint="?", class_names=("cat", "dog")).write(out.data)
    soflow.train("moons", out.path, [*MOONS, "train.steps=1"])
    assert DataRecord.read(out.data).name == "moons"


def test_other_data_with_equal_count_and_classes_are_detected(tmp_path, monkeypatch):
    settings = [*TINY_DIT, *SHORT, "train.steps=1"]
    soflow.train("digits", tmp_path, settings)
    soflow.train("digits", tmp_path, settings)
    real = sources.digits("train")
    for other in (replace(real, rows=-real.rows), replace(real, labels=real.labels.flip(0))):
        replace_digits(monkeypatch, other)
        with pytest.raises(InputError, match="fingerprint"):
            soflow.train("digits", tmp_path, settings)


def test_large_data_are_identified_by_a_sample_of_rows(monkeypatch):
    monkeypatch.setattr(dataset_module, "LOOKED_THROUGH", 0)
    real = sources.digits("train")
    assert replace(real, rows=real.rows.clone()).describe() == real.describe()
    assert replace(real, rows=-real.rows).describe() != real.describe()


# Failures


def test_a_second_sigterm_does_not_interrupt_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    real = checkpoint_manager.save_checkpoint

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # launchers and clusters both send one
        return real(*arguments)

    def default(signum, frame):
        raise SystemExit("the second SIGTERM ended the process")

    monkeypatch.setattr(checkpoint_manager, "save_checkpoint", interrupted)
    before = signal.signal(signal.SIGTERM, default)
    try:
        with pytest.raises(Stopped):
            soflow.train("moons", tmp_path, MOONS, progress=stop_at(3, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert last(tmp_path).step == 3
    assert last(tmp_path).problem() is None


def test_a_failed_checkpoint_keeps_earlier_ones(tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path, MOONS, progress=stop_at(3))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(RunError, match=r"step 4 .*No space left on device"):
        soflow.train("moons", tmp_path, MOONS)
    assert steps(tmp_path) == [3]
    assert last(tmp_path).problem() is None


def test_nonfinite_weights_are_never_saved(tmp_path):
    wild = ["checkpoint.every=1", "optimizer.lr=1e38", "optimizer.clip=0", "optimizer.warmup=0"]
    with pytest.raises(RunError, match=r"weights .*step 1"):
        soflow.train("moons", tmp_path, [*MOONS, *wild])
    assert steps(tmp_path) == []
    soflow.train("moons", tmp_path, MOONS)  # other settings can be tried in the same folder


def test_the_first_lines_of_a_resumed_log_do_not_change(moons, tmp_path):
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path, MOONS, progress=stop_at(6))
    before = without_clock(RunFolder(tmp_path))
    soflow.train("moons", tmp_path, MOONS)
    assert without_clock(RunFolder(tmp_path))[: len(before)] == before
    assert without_clock(RunFolder(tmp_path)) == without_clock(RunFolder(moons))


# Learning rate


def test_the_learning_rate_rises_during_warm_up_and_stays_constant():
    config = OptimizerConfig(lr=0.1, warmup=4)
    rates = [learning_rate(config, step, 6) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert learning_rate(OptimizerConfig(lr=0.1), 0, 9) == 0.1
