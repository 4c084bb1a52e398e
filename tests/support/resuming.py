"""Helper for tests that resume a run."""

from pathlib import Path

import soflow
from soflow.run.folder import RunFolder


def train_and_resume(settings: list[str], out: Path) -> RunFolder:
    """Trains digits for 4 steps, damages the last checkpoint, and checks the resumed checkpoint."""
    folder = soflow.train("digits", out, settings)
    last = folder.checkpoints / "step-00000004" / "model.safetensors"
    whole = last.read_bytes()
    last.write_bytes(b"damaged")
    soflow.train("digits", out, settings)
    assert last.read_bytes() == whole
    return folder
