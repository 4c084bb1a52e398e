"""Isolates public functions from the global settings of the calling program.

A public function computes with torch's default settings, and restores the caller's settings. It
shows notes and progress bars only while it runs.
"""

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from soflow.errors import InputError, in_short
from soflow.system.logs import notes
from soflow.system.progress import quiet, silent, track

P = ParamSpec("P")
R = TypeVar("R")

CPU = torch.device("cpu")


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that makes a public function independent of the caller's global settings.

    With `progress=silent`, the function and all functions it calls show only warnings.
    """
    parameters = inspect.signature(function).parameters
    place = list(parameters).index("progress") if "progress" in parameters else None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        progress = None
        if place is not None:
            default = kwargs.get("progress", parameters["progress"].default)
            progress = args[place] if place < len(args) else default
            if not callable(progress):
                raise InputError(
                    f"progress is {in_short(progress)}: pass soflow.track, soflow.silent, or a "
                    "function with the same signature"
                )
        shown = notes(progress is track) if progress in (track, silent) else nullcontext()
        with torch_defaults(), shown, quiet() if progress is silent else nullcontext():
            return function(*args, **kwargs)

    return call


@contextmanager
def torch_defaults() -> Iterator[None]:
    """torch's default dtype and device, with gradients, without autocast and inference mode."""
    dtype = torch.get_default_dtype()
    # A device context slows down every operation, so it is entered only if it is needed.
    elsewhere = torch.get_default_device() != CPU
    with ExitStack() as entered:
        entered.enter_context(torch.inference_mode(False))
        entered.enter_context(torch.enable_grad())
        if elsewhere:
            entered.enter_context(CPU)
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps")):
            entered.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the random states of torch on all devices, of NumPy and of Python."""
    gpu, apple = torch.cuda.is_initialized(), torch.backends.mps.is_available()
    seed, state = torch.initial_seed(), torch.get_rng_state()
    states = torch.cuda.get_rng_state_all() if gpu else []
    on_apple = torch.mps.get_rng_state() if apple else None
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if gpu:
            torch.cuda.set_rng_state_all(states)
        else:  # GPUs first used inside the block get the caller's seed
            torch.cuda.manual_seed_all(seed)
        if on_apple is not None:
            torch.mps.set_rng_state(on_apple)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
