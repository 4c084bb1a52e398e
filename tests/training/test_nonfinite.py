"""Non-finite values are named by loss term, step and rows, and skipped or fatal."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import soflow
from soflow.assemble import make_objective
from soflow.config import read_recipe
from soflow.data import sources
from soflow.data.batches import seeded_generator
from soflow.errors import RunError
from soflow.run.checkpoint import checkpoints, newest_good
from soflow.run.folder import RunFolder
from soflow.system.progress import silent
from soflow.training.nonfinite import BadRow, NonFinite
from soflow.training.signals import Stopped
from support.poison import poison, replace_digits
from support.watching import stop_at
from support.whole_runs import DIT, OBJECTIVES, SHORT, assert_same_run

#: Two microbatches of eight rows each.
SETTINGS = [*DIT, *SHORT, "data.flip=false"]


def draws_of(settings, step=4):
    objective = make_objective(read_recipe("digits", settings))
    generator = seeded_generator(0, "draws", step, torch.device("cpu"))
    return objective.draw((16, 1, 8, 8), generator)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("row", [1, 14])
def test_a_nonfinite_loss_is_named_with_its_term_row_and_times(name, row, tmp_path, monkeypatch):
    number = poison(monkeypatch, step=4, rows=row)
    settings = [f"objective.name={name}", *SETTINGS]
    with pytest.raises(RunError) as raised:
        soflow.train("digits", tmp_path, settings, progress=silent)
    said, draws = str(raised.value), draws_of(settings)
    t, s = float(draws.t[row]), float(draws.s[row])
    term = {
        "soflow": "flow_matching" if row == 1 else "consistency",
        "shortcut": "flow_matching" if row == 1 else "shortcut",
    }
    assert f"the loss of the term '{term.get(name, name)}' is nan at step 5" in said
    assert f"row {row} of the batch (sample {number} of the dataset; t={t:.4g}" in said
    assert (f"s={s:.4g}" in said) == (t != s or name == "mean_flow")
    assert f"{tmp_path / 'checkpoints' / 'step-00000003'}" in said
    middle = re.search(r"l=([\d.e-]+)", said)
    assert bool(middle) == (name == "consistency" or (name == "soflow" and row == 14))
    assert not middle or s <= float(middle[1]) <= t
    assert newest_good(RunFolder(tmp_path).checkpoints)[0].step == 3


@pytest.mark.parametrize("rows", [[5, 14], [14, 6]])
def test_all_rows_are_named_in_batch_order(rows, tmp_path, monkeypatch):
    """The batch is split into microbatches, and the first row can be in the second one."""
    numbers = dict(zip(rows, poison(monkeypatch, step=4, rows=rows), strict=True))
    first, second = sorted(rows)
    with pytest.raises(RunError, match=f"rows {first}, {second} of the batch") as raised:
        soflow.train("digits", tmp_path, SETTINGS, progress=silent)
    assert f"samples {numbers[first]}, {numbers[second]} of the dataset" in str(raised.value)
    assert f"the first at t={float(draws_of(SETTINGS).t[first]):.4g}" in str(raised.value)


def test_an_overflowing_square_is_found_even_if_the_loss_is_finite(tmp_path, monkeypatch):
    """Its weight is 1 / infinity, so the loss of this sample is 0."""
    poison(monkeypatch, step=4, rows=14, value=3e18)
    settings = [*SETTINGS, "objective.flow_matching_share=0.75"]
    with pytest.raises(
        RunError, match=r"squared error of the term '.*' is inf at step 5, in row 14 of the batch"
    ):
        soflow.train("digits", tmp_path, settings, progress=silent)


def test_a_nonfinite_gradient_is_named_by_its_parameter(tmp_path, monkeypatch):
    """The losses of all rows are finite."""
    from soflow.networks.dit import DiT

    real, wrong = DiT.forward, draws_of(SETTINGS).t[14]

    def forward(self, x, t, *arguments):
        out = real(self, x, t, *arguments)
        if out.requires_grad:
            rows = (t == wrong).view(-1, 1, 1, 1)
            out.register_hook(lambda gradient: torch.where(rows, torch.inf, gradient))
        return out

    monkeypatch.setattr(DiT, "forward", forward)
    with pytest.raises(RunError, match=r"^the gradient of [\w.]+, .* at step 5;"):
        soflow.train("digits", tmp_path, SETTINGS, progress=silent)


def test_a_diverging_loss_stops_the_run(tmp_path):
    wild = ["optimizer.lr=1e30", "optimizer.clip=0", "optimizer.warmup=0"]
    with pytest.raises(
        RunError, match=r"(loss|error) of the term '.*' is (nan|inf) at step \d+, in rows 0, "
    ):
        soflow.train("digits", tmp_path, [*SETTINGS, *wild], progress=silent)
    assert checkpoints(RunFolder(tmp_path).checkpoints) == []


def test_a_message_names_some_of_many_rows_and_handles_missing_rows():
    rows = [
        BadRow(row, 100 + row, "loss of the term 'consistency' is inf", "t=1, s=0")
        for row in range(20)
    ]
    said = str(NonFinite(step=3, rows=rows, parameters=["a"], means=["loss"]))
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more" in said
    assert "loss" in str(NonFinite(step=3, rows=[], parameters=[], means=["loss"]))


def test_a_skipped_step_does_not_change_the_weights(tmp_path, monkeypatch, caplog, inside):
    caplog.set_level("INFO", "soflow")
    poison(monkeypatch, step=4, rows=5)
    settings = [
        *SETTINGS, "checkpoint.every=1", "checkpoint.keep_last=9", "train.log_every=1",
        "train.on_nonfinite=skip", "ema.rampup=0",
    ]  # fmt: skip
    run = soflow.train("digits", tmp_path / "run", settings, progress=silent)
    kept = {c.step: c for c in checkpoints(run.checkpoints)}
    four, five, six = (kept[step].weights("raw") for step in (4, 5, 6))
    assert all(torch.equal(four[key], five[key]) for key in four)
    assert not all(torch.equal(five[key], six[key]) for key in five)
    # The EMA weights are still updated.
    before, after = (load_file(kept[step].path / "ema.safetensors") for step in (4, 5))
    decay = read_recipe("digits", settings).ema.decay
    for key, weights in four.items():
        torch.testing.assert_close(after[key], decay * before[key] + (1 - decay) * weights)
    four, five = (kept[step].optimizer_state()["state"] for step in (4, 5))
    assert all(torch.equal(four[i][key], five[i][key]) for i in four for key in four[i])
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line.get("skipped") for line in lines] == [None] * 4 + [1] * 4
    assert "loss" not in lines[4]
    assert all(line["loss"] == line["loss"] for line in lines[5:])
    assert any(
        "step 5, in row 5" in note and "skipping the update (1 of at most 100)" in note
        for note in caplog.messages
    )
    assert kept[8].train_state().skipped == 1
    assert inside("report", run.path).returncode == 0  # although a log line has no loss
    for at in (4, 5):  # a resumed run skips the same step
        shutil.copytree(run.path, tmp_path / f"{at}")
        for step in range(at + 1, 9):
            shutil.rmtree(tmp_path / f"{at}" / "checkpoints" / f"step-{step:08d}")
        soflow.train("digits", tmp_path / f"{at}", settings, progress=silent)
        assert_same_run(run.path, tmp_path / f"{at}")


def test_the_count_of_skipped_updates_survives_a_stop(tmp_path, monkeypatch):
    real = sources.digits("train")
    replace_digits(monkeypatch, replace(real, rows=real.rows * torch.nan))
    settings = [*SETTINGS, "train.on_nonfinite=skip", "train.max_skipped=4"]
    with pytest.raises(Stopped):
        soflow.train("digits", tmp_path, settings, progress=stop_at(3))
    with pytest.raises(RunError, match=r"at step 5, .*train\.max_skipped=4"):
        soflow.train("digits", tmp_path, settings, progress=silent)
    stop = [*settings, "train.on_nonfinite=stop"]
    with pytest.raises(RunError, match=r"at step 4, in rows 0, 1, .* and 8 more of the batch"):
        soflow.train("digits", tmp_path, stop, progress=silent)
