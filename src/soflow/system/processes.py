"""Rank and number of processes, as set by torchrun, accelerate launch and Slurm launchers."""

import os


def index() -> int:
    """The rank of this process; 0 for the first or only process."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))
