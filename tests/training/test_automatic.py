"""The choices of precision=auto and compile=auto, which a run keeps."""

import logging
from types import SimpleNamespace

import pytest
import torch

from soflow.comparison.estimate import estimate
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.networks.dit import Block
from soflow.run.folder import RunFolder
from soflow.system.devices import default_device
from soflow.training import automatic
from soflow.training.automatic import COMPILE_STEPS, resolve
from soflow.training.distributed import make_accelerator
from soflow.workflows.train import train
from support.settings import TINY_DIT

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TRAIN = [*TINY_DIT, "train.steps=2", "train.batch_size=8", "train.sample_every=0"]


@pytest.fixture
def bfloat16(monkeypatch):
    """Sets the speed of bfloat16 relative to float32 on a simulated processor."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    def set_speed(speed):
        monkeypatch.setattr(automatic, "bfloat16_speed", lambda width: speed)

    return set_speed


@pytest.mark.parametrize(("speed", "chosen"), [(0.5, "fp32"), (1.2, "fp32"), (1.4, "bf16")])
def test_a_cpu_uses_bfloat16_if_its_products_are_faster(speed, chosen, bfloat16):
    bfloat16(speed)
    config, note = resolve(read_recipe("digits"), CPU)
    assert (config.precision, config.compile) == (chosen, False)
    assert f"precision={chosen} (" in note
    assert "compile=false" in note


@pytest.mark.parametrize(
    ("capability", "steps", "chosen"),
    [
        ((9, 0), COMPILE_STEPS, ("bf16-tf32", True)),
        ((8, 0), COMPILE_STEPS - 1, ("bf16-tf32", False)),
        ((7, 5), COMPILE_STEPS, ("fp32", True)),
    ],
)
def test_a_gpu_uses_bfloat16_and_compiles_long_runs(capability, steps, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(automatic, "can_compile", lambda: True)
    config, _ = resolve(read_recipe("digits", [f"train.steps={steps}"]), GPU)
    assert (config.precision, config.compile) == chosen
    monkeypatch.setattr(automatic, "can_compile", lambda: False)
    assert resolve(read_recipe("digits", [f"train.steps={steps}"]), GPU)[0].compile is False


def test_other_code_is_not_compiled(monkeypatch):
    """A network without repeated blocks, and an objective with its own derivative."""
    monkeypatch.setattr(automatic, "can_compile", lambda: True)
    settings = [*TINY_DIT, f"train.steps={COMPILE_STEPS}"]
    assert automatic.choose_compile(read_recipe("digits", settings), GPU)
    meanflow = read_recipe("digits", [*settings, "objective.name=mean_flow"])
    assert automatic.choose_compile(meanflow, GPU)
    monkeypatch.setattr(Block, "repeated", False)
    assert not automatic.choose_compile(read_recipe("digits", settings), GPU)
    monkeypatch.setattr(automatic, "signature", lambda objective: SimpleNamespace(parameters={}))
    assert not automatic.choose_compile(meanflow, GPU)


def test_explicit_settings_are_kept(bfloat16):
    bfloat16(9.0)
    config = read_recipe("digits", ["precision=tf32", "compile=true"])
    assert resolve(config, CPU) == (config, "")


def test_a_run_records_the_choice_and_keeps_it(bfloat16, tmp_path, caplog):
    caplog.set_level(logging.INFO, "soflow")
    bfloat16(1.5)
    train("digits", tmp_path, TRAIN)
    assert "precision=bf16" in caplog.text
    assert RunFolder(tmp_path).read_config().precision == "bf16"
    bfloat16(0.5)
    train("digits", tmp_path, TRAIN)
    assert RunFolder(tmp_path).read_config().precision == "bf16"
    with pytest.raises(InputError, match="precision=bf16"):
        train(read_recipe("digits", [*TRAIN, "precision=fp32"]), tmp_path)


def test_an_imported_run_has_no_choice_to_keep(bfloat16):
    bfloat16(1.5)
    config, note = resolve(read_recipe("digits"), CPU, started=read_recipe("digits"))
    assert config.precision == "bf16"
    assert "precision=bf16" in note


def test_the_speed_is_measured():
    assert automatic.bfloat16_speed(64) > 0


def test_estimates_assume_a_gpu():
    one, other = (
        estimate(read_recipe("digits", [*TINY_DIT, f"precision={p}"]))
        for p in ("auto", "bf16-tf32")
    )
    assert one == other


def test_training_without_cuda_runs_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args, **kwargs: True)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    accelerator = make_accelerator(read_recipe("moons"), RunFolder(tmp_path))
    assert accelerator.device == default_device()
