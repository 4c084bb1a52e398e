"""Which of several processes this is, as torchrun, accelerate launch and Slurm launchers say."""

import os


def index() -> int:
    """0 for the first or only process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))
