"""Which device to compute on, and what it can do."""

import os

import torch

from soflow.errors import InputError, first_line


def default_device() -> torch.device:
    """This process's own GPU if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def named_device(name: str | torch.device) -> torch.device:
    """The device that a name means: "gpu", or torch's own names such as "cpu" and "cuda:1".

    Raises:
        InputError: If there is no such device.
    """
    if name == "gpu":
        found = default_device()
        if found.type == "cpu" and torch.backends.mps.is_available():
            found = torch.device("mps")
        if found.type == "cpu":
            raise InputError("device=gpu: torch finds no GPU here, use cpu")
        return found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={name}: {first_line(error)}; use cpu, cuda or gpu") from None
    return device


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64. Apple's GPUs and some others do not."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True
