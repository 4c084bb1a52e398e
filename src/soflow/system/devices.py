"""Which device to compute on, and what it can do."""

import os

import torch


def default_device() -> torch.device:
    """This process's own GPU if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64. Apple's GPUs and some others do not."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True
