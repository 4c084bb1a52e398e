"""Which of several processes this is, as torchrun, accelerate launch and Slurm's launchers of them say."""

import os


def index() -> int:
    """0 for the first, or only, process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
