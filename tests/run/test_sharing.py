"""Settings, data.json and EMA weights of a run are enough to sample."""

import shutil
from pathlib import Path

import pytest
import torch

import soflow
from soflow.errors import RunError
from soflow.evaluation.evaluate import EvaluationSettings
from soflow.run.checkpoint import Checkpoint, checkpoints
from soflow.run.folder import RunFolder
from soflow.workflows.evaluate import evaluate
from support.commands import assert_fails


@pytest.fixture
def gift(tiny_run, tmp_path):
    """The files to send to someone who wants to sample."""
    newest = checkpoints(RunFolder(tiny_run).checkpoints)[-1].path
    place = tmp_path / "gift" / "checkpoints" / newest.name
    place.mkdir(parents=True)
    for name in ("config.yaml", "data.json"):
        shutil.copy(tiny_run / name, tmp_path / "gift")
    for name in ("ema.safetensors", "state.json"):
        shutil.copy(newest / name, place)
    return tmp_path / "gift"


def only(gift) -> Checkpoint:
    (checkpoint,) = checkpoints(RunFolder(gift).checkpoints)
    return checkpoint


def test_it_draws_the_same_samples_as_the_whole_run(gift, tiny_run, inside):
    for place in (gift, only(gift).path):
        assert inside("sample", place, "-n", "2", "--out", gift / "two.png").returncode == 0
    assert inside("sample", gift, "-n", "2").returncode == 0  # into its own folder
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    drawn = [
        soflow.one_step(soflow.load(one, device="cpu").model, noise, labels)
        for one in (gift, tiny_run)
    ]
    assert torch.equal(*drawn)
    assert inside("report", gift).returncode == 0


def test_it_can_initialize_another_run(gift, tmp_path, caplog):
    caplog.set_level("INFO", "soflow")
    settings = ["train.steps=1", "train.batch_size=8", "train.sample_every=0", f"init_from={gift}"]
    folder = soflow.train(str(gift), tmp_path / "next", settings)
    assert f"starting from the EMA weights of {gift}" in caplog.text
    assert (folder.checkpoints / "step-00000001").is_dir()


def test_other_uses_name_the_missing_file(gift, inside):
    resumed = inside("train", gift)
    assert_fails(resumed, 2, str(gift), "init_from")
    assert_fails(inside("sample", gift, "--weights", "raw"), 1, "model.safetensors is missing")
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        evaluate(gift, EvaluationSettings(weights=("ema", "raw")))
    shutil.copy(only(gift).path / "ema.safetensors", only(gift).path / "model.safetensors")
    assert_fails(inside("sample", gift), 1, "model.safetensors is damaged")


def test_existing_files_are_verified(gift, inside):
    file = only(gift).path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert_fails(inside("sample", gift), 1, "ema.safetensors is damaged")
    file.unlink()
    assert_fails(inside("sample", gift), 1, "ema.safetensors is missing")
    (only(gift).path / "state.json").unlink()
    assert_fails(inside("sample", gift), 1, "state.json is missing")


def test_an_evaluation_uses_one_checkpoint_for_all_weights(tiny_run, tmp_path):
    """The newest checkpoint has no raw weights. Raw weights of an older one would not match."""
    copy = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    newest = checkpoints(copy.checkpoints)[-1].path
    (newest / "model.safetensors").unlink()
    assert soflow.load(copy.path).checkpoint.path == newest
    with pytest.raises(RunError, match="step-00000030/model"):
        evaluate(copy.path, EvaluationSettings(weights=("ema", "raw")))


def test_the_home_folder_is_expanded_in_python(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    few = ["train.steps=1", "train.batch_size=8", "train.sample_every=0", "network.width=16"]
    soflow.train("moons", "~/run", few)
    (tmp_path / "mine.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    assert soflow.read_recipe("~/mine.yaml").network.width == 16
    soflow.train(Path("~/run"), Path("~/run"), ["train.steps=2"])
    run = soflow.load("~/run", device="cpu")
    assert run.checkpoint.step == 2
    soflow.sample_to_file(run, soflow.SampleRequest.of(run, 4), "~/some.npz")
    for reference in ("moons", "~/some.npz"):
        assert soflow.evaluate_samples("~/some.npz", "coordinates", reference).rows
    soflow.save_picture(torch.zeros(2, 1, 8, 8), "~/two.png", columns=2)
    assert (tmp_path / "two.png").is_file()
