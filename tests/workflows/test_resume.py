"""Runs that resume with changed settings: allowed, rejected and recorded changes."""

import json
import shutil

import numpy as np
import pytest
import torch

import soflow
from soflow.comparison.plan import require_same_as_begun
from soflow.config import read_recipe
from soflow.data.batches import Batches
from soflow.data.dataset import Dataset
from soflow.data.training_data import make_dataset
from soflow.errors import InputError, RunError
from soflow.objectives.soflow import SoFlow
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.run.history import Change, read_history, write_history
from soflow.run.resume import Difference
from soflow.training.signals import Stopped
from soflow.workflows.resume import schedules_at
from support.watching import stop_at
from support.whole_runs import MLP, assert_same_run

SETTINGS = [
    *MLP, "train.steps=4", "train.batch_size=16", "train.log_every=1", "train.sample_every=0",
    "checkpoint.every=2", "optimizer.warmup=0",
]  # fmt: skip


def last(out):
    return checkpoints(RunFolder(out).checkpoints)[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 4 steps on moons."""
    return soflow.train("moons", tmp_path_factory.mktemp("runs") / "run", SETTINGS).path


@pytest.fixture
def run(finished, tmp_path):
    return RunFolder(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_trains_further_with_its_optimizer_state(run, inside):
    before = last(run.path).optimizer_state()["state"][0]["step"]
    result = inside("train", run.path, "train.steps=8")
    assert result.returncode == 0
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 9))
    state = last(run.path).optimizer_state()["state"][0]["step"]
    assert (float(before), float(state)) == (4, 8)
    (change,) = read_history(run.history)
    assert (change.step, change.key, change.old, change.new) == (4, "train.steps", 4, 8)
    # The schedule steps back: r(4, 4) = 0.002, r(4, 8) = sqrt(0.1 * 0.002).
    assert all(word in result.stderr for word in ("r(4, 4)=0.002", "r(4, 8)=0.01414"))
    assert run.read_config().train.steps == 8
    again = inside("train", run.path, "train.steps=8")  # nothing to do or to record
    assert again.returncode == 0
    assert len(read_history(run.history)) == 1


def test_settings_change_from_the_current_step_on(run):
    changes = {
        "train.steps": 6, "optimizer.lr": 1e-5, "optimizer.betas": (0.8, 0.9),
        "optimizer.lr_schedule": "linear", "optimizer.lr_end": 0.5,
        "optimizer.weight_decay": 0.1, "optimizer.clip": 2.0, "optimizer.warmup": 2,
        "train.batch_size": 32, "ema.decay": 0.5, "ema.every": 2, "ema.float64": True,
        "ema.rampup": 0.0, "precision": "bf16",
    }  # fmt: skip
    given = [
        f"{key}={json.dumps(list(value) if isinstance(value, tuple) else value)}"
        for key, value in changes.items()
    ]
    started = run.read_config()
    soflow.train(str(run.path), run.path, given)
    config, history = run.read_config(), read_history(run.history)
    assert {change.key: change.new for change in history} == changes
    assert {change.step for change in history} == {4}
    assert config.optimizer.lr == 1e-5
    assert config.model_copy(update={"description": ""}) != started
    assert [line["lr"] for line in run.read_metrics()][3:] == pytest.approx(
        [1e-3, 1e-5 * 2 / 3, 5e-6]  # the warm-up ends before step 3 of 6
    )
    assert last(run.path).weights("ema")["final_layer.weight"].dtype == torch.float64
    group = last(run.path).optimizer_state()["param_groups"][0]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.8, 0.9), 0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["train.seed=1"], r"train\.seed=0, not 1"),
        (["network.width=32", "train.steps=8"], r"network\.width"),
        (["objective.p=0.5", "train.steps=8"], r"objective\.p"),
        (["optimizer.name=radam", "train.steps=8"], r"optimizer\.name"),
        (["optimizer.lr=1e-5"], r"4 of 4 steps.*optimizer\.lr.*train\.steps"),
        (["train.steps=3"], r"4 of 3 steps.*train\.steps"),
    ],
)
def test_settings_that_cannot_change_are_named(given, words, run):
    before = run.config.read_text()
    with pytest.raises(InputError, match=words):
        soflow.train(str(run.path), run.path, given)
    assert run.config.read_text() == before
    assert not run.history.exists()


def test_a_different_setting_that_was_not_given_is_rejected_with_advice(run):
    soflow.train(str(run.path), run.path, ["train.steps=6"])
    with pytest.raises(InputError, match=r"train\.steps=6, not 8000.*set train\.steps=8000"):
        soflow.train("moons", run.path, [text for text in SETTINGS if "train.steps" not in text])
    config = read_recipe("moons", [*SETTINGS, "train.steps=8"])
    with pytest.raises(InputError, match=r"train\.steps=6, not 8"):
        soflow.train(config, run.path)
    soflow.train(config, run.path, ["train.steps=8"])
    assert last(run.path).step == 8


def test_overrides_apply_to_a_configuration(tmp_path):
    folder = soflow.train(read_recipe("moons", SETTINGS), tmp_path, ["train.steps=3"])
    assert folder.read_metrics()[-1]["step"] == 3
    with pytest.raises(InputError, match=r"train\.step"):
        soflow.train(read_recipe("moons", SETTINGS), tmp_path, ["train.stepz=3"])


CHANGED = ["train.steps=9", "train.batch_size=24", "optimizer.lr=1e-4", "ema.decay=0.9"]


@pytest.mark.parametrize("at", [5, 7])
def test_changed_settings_survive_a_kill_bitwise(at, run, tmp_path):
    whole = shutil.copytree(run.path, tmp_path / "whole")
    soflow.train(str(whole), whole, CHANGED)
    with pytest.raises(Stopped):
        soflow.train(str(run.path), run.path, CHANGED, progress=stop_at(at))
    (
        run.checkpoints / f"step-{at:08d}" / "state.json"
    ).unlink()  # like a kill before the checkpoint
    soflow.train(str(run.path), run.path)
    assert_same_run(whole, run.path)
    keys = [change.key for change in read_history(run.history)]
    assert sorted(keys) == sorted(text.split("=")[0] for text in CHANGED)


def test_another_batch_size_continues_after_the_samples_already_used(run, monkeypatch):
    """4 steps of 16 samples, then 2 of 24: the first epoch uses every sample once, in order."""
    chosen = []
    real = Batches.indices

    def noted(self, step):
        rows = real(self, step)
        chosen.append((step, tuple(rows)))
        return rows

    monkeypatch.setattr(Batches, "indices", noted)
    soflow.train(str(run.path), run.path, ["train.steps=6", "train.batch_size=24"])
    seen = [int(row) for _, rows in sorted(set(chosen)) for row in rows]
    count = json.loads(run.data.read_text())["count"]
    one_by_one = Batches(Dataset("rows", "train", torch.zeros(count, 2), None), 1, seed=0)
    assert seen == [int(real(one_by_one, position)[0]) for position in range(64, 112)]
    assert last(run.path).train_state().samples == 112


def test_a_checkpoint_without_a_count_of_samples_resumes_equally(run, tmp_path):
    """Earlier versions write such checkpoints. The run may also be killed before its next one."""
    whole = shutil.copytree(run.path, tmp_path / "whole")
    soflow.train(str(whole), whole, CHANGED)
    newest = last(run.path)
    record = newest.record()
    state = record.state
    state.samples = 0
    record.model_copy(update={"state": state}).save(newest.path / "state.json")
    with pytest.raises(Stopped):
        soflow.train(str(run.path), run.path, CHANGED, progress=stop_at(5))
    shutil.rmtree(last(run.path).path)
    soflow.train(str(run.path), run.path)
    assert_same_run(whole, run.path)


def test_the_history_is_written_once_and_follows_a_run_that_steps_back(tmp_path):
    file = tmp_path / "history.jsonl"

    def change(step, new, when="2026-01-01T00:00:00+00:00"):
        return Change(step=step, when=when, key="optimizer.lr", old=0.1, new=new)

    write_history(file, [change(4, 0.2)], 4)
    write_history(file, [change(4, 0.2, when="2026-01-02T00:00:00+00:00")], 4)
    assert read_history(file) == [change(4, 0.2)]
    write_history(file, [change(8, 0.3)], 8)
    write_history(file, [], 6)  # the checkpoint of step 8 is damaged
    assert [(one.step, one.new) for one in read_history(file)] == [(4, 0.2), (6, 0.3)]
    back = Change(step=6, when="2026-01-01", key="optimizer.lr", old=0.3, new=0.1)
    for again in (back, change(6, 0.3), change(6, 0.3)):  # changed and changed back before any step
        write_history(file, [again], 6)
    assert [one.new for one in read_history(file)] == [0.2, 0.3, 0.1, 0.3]
    file.write_text("{")
    with pytest.raises(RunError, match=r"history\.jsonl"):
        read_history(file)


def test_a_schedule_that_does_not_move_is_not_mentioned():
    change = Difference("train.steps", 4, 8)
    constant = SoFlow(middle=soflow.MiddleTime(schedule="constant"))
    assert schedules_at(constant, 4, change) == ""
    assert schedules_at(object(), 4, change) == ""
    assert "r(4, 8)" in schedules_at(SoFlow(), 4, change)


def test_flips_can_be_enabled(tmp_path):
    small = ["network.width=32", "network.depth=1", "network.heads=2", "network.patch=4"]
    settings = [*small, "train.steps=1", "train.batch_size=8", "train.sample_every=0"]
    folder = soflow.train("digits", tmp_path, settings)
    soflow.train(str(tmp_path), tmp_path, ["train.steps=2", "data.flip=true"])
    assert folder.read_config().data.flip
    assert {change.key for change in read_history(folder.history)} == {"train.steps", "data.flip"}


def test_missing_or_changed_data_of_a_run_are_reported(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).standard_normal((32, 3), dtype=np.float32))
    run = soflow.train("vectors", tmp_path / "run", [*SETTINGS, f"data.path={file}"])
    moved = file.rename(tmp_path / "moved.npy")
    more, out = "train.steps=6", str(run.path)
    with pytest.raises(InputError, match=r"run needs the same data to resume.*data\.path=PATH"):
        soflow.train(out, out, [more])
    np.save(file, np.zeros((32, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"run needs the same data to resume.*\[4\]"):
        soflow.train(out, out, [more])
    soflow.train(out, out, [more, f"data.path={moved}"])
    assert run.read_metrics()[-1]["step"] == 6


def test_a_continued_run_is_not_part_of_a_comparison(finished, tmp_path):
    """Its figures belong to fewer steps and to another schedule."""
    folder = shutil.copytree(finished, tmp_path / "soflow-seed-0")
    soflow.train(folder, folder, ["train.steps=6"])
    config = RunFolder(folder).read_config()
    with pytest.raises(InputError, match=r"train\.steps was changed after step 4"):
        require_same_as_begun({"soflow": config}, make_dataset(config.data), 1, "steps", tmp_path)
