"""Global settings of a program that uses the library: snapshots, and unusual settings."""

import logging
import os
import signal
import sys
import warnings
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import torch


def snapshot():
    """Returns all global settings that a library call must not change, by name.

    Python's own random state is missing, because the shape checks in tests use it.
    """
    loggers = [logging.getLogger(name) for name in (None, "soflow", "matplotlib", "PIL")]
    return {
        "random state of torch": torch.get_rng_state().tolist(),
        "seed of torch": torch.initial_seed(),
        "random state of numpy": repr(np.random.get_state()),  # noqa: NPY002
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "cudnn": tuple(
            getattr(torch.backends.cudnn, name)
            for name in ("benchmark", "deterministic", "allow_tf32", "enabled")
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "logging": [(one.level, one.propagate, list(one.handlers)) for one in loggers],
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "matplotlib": dict(mpl.rcParams.copy()),
        "numpy": (np.geterr(), np.get_printoptions()),
        "printing": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
    }


def changes(before, after):
    """Returns the names of the settings that differ."""
    return [name for name in before if before[name] != after[name]]


@contextmanager
def odd_settings():
    """Sets float64, autocast, the meta device, inference mode and other random states."""
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
