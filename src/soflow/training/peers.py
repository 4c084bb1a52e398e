"""Several processes: how they may be launched, and what one of them says when another is gone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from soflow.errors import InputError, RunError


def require_plain_launch() -> None:
    """Raises InputError where `accelerate launch` was told to spread the network its own way, unknown to checkpoints."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch is set to use {name}: launch without it (--multi_gpu); "
                "parallel=fsdp spreads a network over processes"
            )


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Raises RunError in place of what torch raises where another process is gone: what happened is that one's to tell."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(
            error
        ):  # gloo's errors have no class of their own
            raise RunError(
                "another process of this run has ended or does not answer; what it said itself, if anything, is the cause; "
                "the same command again goes on from the last checkpoint"
            ) from error
        raise
