"""In a Python program, Ctrl-C and SIGTERM end the program, like without soflow."""

import contextlib
import signal

import pytest

import soflow
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.training.signals import Stopped
from support.watching import stop_at

SHORT = [
    "network.width=16", "network.depth=1", "train.steps=4", "train.batch_size=8",
    "train.sample_every=0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("signum", "python_has", "status"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
)
def test_a_sweep_that_catches_exceptions_ends_at_a_signal(signum, python_has, status, tmp_path):
    tried = []

    def sweep():
        for lr in ("1e-3", "1e-4"):
            tried.append(lr)
            settings = [*SHORT, f"optimizer.lr={lr}"]
            with contextlib.suppress(Exception):
                soflow.train("moons", tmp_path / lr, settings, progress=stop_at(2, signum))

    with pytest.raises(python_has, match="checkpoint written") as stopped:
        sweep()
    assert tried == ["1e-3"]
    assert [one.step for one in checkpoints(RunFolder(tmp_path / "1e-3").checkpoints)] == [2]
    assert isinstance(stopped.value, Stopped)
    assert getattr(stopped.value, "code", None) == status
