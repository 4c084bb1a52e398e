"""Running out of memory gives one line with advice."""

import pytest
import torch

import soflow
from soflow.cli.main import run as soflow_command
from soflow.config import read_recipe
from soflow.errors import RunError
from soflow.networks.dit import DiT
from soflow.run.checkpoint import TrainState
from soflow.system.memory import is_out_of_memory
from soflow.training.memory import memory_advice
from soflow.training.periodic import PeriodicResults, evaluate_and_draw
from soflow.workflows import train as workflow
from support.settings import TINY_DIT

SHORT = [*TINY_DIT, "train.steps=2", "train.batch_size=16"]
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("Unable to allocate 3 GiB for an array with shape (5,)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 9999 bytes. Error code 12"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9999 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]  # fmt: skip


@pytest.fixture(params=FULL, ids=lambda error: type(error).__name__)
def full(request, monkeypatch):
    """The forward pass of the network runs out of memory."""

    def forward(*arguments, **more):
        raise request.param

    monkeypatch.setattr(DiT, "forward", forward)


def test_torch_raises_the_simulated_error():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**55)
    assert is_out_of_memory(found.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.usefixtures("full")
def test_out_of_memory_in_training_names_helpful_settings(tmp_path, capsys):
    assert soflow_command(["train", "digits", *SHORT, "--out", str(tmp_path)]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "out of memory" in text]
    for setting in (
        "train.accumulate (now 1)", "train.batch_size (now 16)", "precision=bf16 (now fp32)",
        "train.checkpoint_activations",
    ):  # fmt: skip
        assert setting in line


@pytest.mark.usefixtures("full")
def test_out_of_memory_in_sampling_and_evaluation_names_the_batch(tiny_run, tmp_path, capsys):
    out = str(tmp_path / "x.npz")
    assert soflow_command(["sample", str(tiny_run), "--batch", "7", "--out", out]) == 1
    assert "--batch (now 7)" in capsys.readouterr().err
    assert soflow_command(["evaluate", str(tiny_run), "--num", "10"]) == 1
    assert "--batch (now 500)" in capsys.readouterr().err


def test_advice_that_does_not_apply_is_not_given():
    def advice(recipe, network, *settings):
        return memory_advice(read_recipe(recipe, [*settings, "precision=bf16"]), network)

    dit = DiT((1, 8, 8), patch=4, width=32, depth=1, heads=2, num_classes=0)
    plain = torch.nn.Linear(2, 2)  # no repeated blocks
    assert "checkpoint_activations" in advice("digits", dit)
    assert "checkpoint_activations" not in advice("digits", dit, "objective.name=mean_flow")
    assert "checkpoint_activations" not in advice("digits", dit, "train.checkpoint_activations=1")
    assert "checkpoint_activations" not in advice("digits", plain)
    assert "precision" not in advice("digits", plain).partition("(now bf16)")[0]


def test_out_of_memory_is_not_reported_as_damage(tiny_run, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise FULL[0]

    monkeypatch.setattr(workflow, "make_trainer", full)
    with pytest.raises(RunError, match=r"out of memory.*network"):
        soflow.train("digits", tmp_path, SHORT)
    monkeypatch.undo()
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(RunError, match=r"out of memory.*device"):
        soflow.load(tiny_run, device="cpu")


def test_training_continues_without_a_sample_grid(caplog):
    def watch(*arguments):
        raise FULL[0]

    evaluate_and_draw(None, watch, TrainState(3), {}, torch.device("cpu"), PeriodicResults())
    assert "step 3: no sample grid: out of memory" in caplog.text


def test_out_of_memory_elsewhere_is_one_line(monkeypatch, capsys):
    def full(*arguments, **more):
        raise FULL[0]

    monkeypatch.setattr("soflow.cli.main.app", full)
    assert soflow_command(["report", "x"]) == 1
    assert capsys.readouterr().err.startswith("soflow: out of memory (CUDA out of memory")
