"""Fixtures for all tests. Array shapes in annotations are checked at run time."""

import os
import signal
import subprocess

if os.environ.get("SOFLOW_TEST_DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # expected values in tests are computed on a CPU
# Without bfloat16 instructions, precision=auto selects float32 on every machine.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"
# A second thread does not speed up networks this small.
os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

CHECKED = [
    "symbols",
    "noising",
    "times",
    "solution",
    "guidance",
    "objectives",
    "networks",
    "sampling",
    "evaluation",
    "data",
]
install_import_hook([f"soflow.{name}" for name in CHECKED], "beartype.beartype")

import pytest
import torch

from support.settings import TINY_DIT

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Resets the SIGINT handler. Background processes of a shell script ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache folder for all processes of this test run, so the classifier is trained once."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory):
    """The run directory of a tiny network trained on digits for 30 steps."""
    from soflow.workflows.train import train

    out = tmp_path_factory.mktemp("runs") / "tiny"
    overrides = [
        *TINY_DIT,
        "train.steps=30",
        "train.batch_size=32",
        "train.log_every=10",
        "checkpoint.every=15",
    ]
    train("digits", out, overrides)
    return out


@pytest.fixture(scope="session")
def moons_run(tmp_path_factory: pytest.TempPathFactory):
    """The run directory of an uninterrupted run with the settings WHOLE["moons"]."""
    from soflow.workflows.train import train
    from support.whole_runs import WHOLE

    recipe, settings = WHOLE["moons"]
    return train(recipe, tmp_path_factory.mktemp("runs") / "moons", settings).path


@pytest.fixture
def inside(capfd, monkeypatch):
    """Runs commands in this process, which saves the seconds that importing torch takes."""
    from soflow.cli import main

    def call(*arguments, cwd=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capfd.readouterr()
        status = main.run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return call
