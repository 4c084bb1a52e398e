"""Compiled training: compiles the repeated blocks of a network in place.

A network marks the classes of its blocks with `repeated = True`. The names of parameters stay the
same, and equal blocks share compiled code. Shapes are static (dynamic=False): a training step has
a few passes, each with one or two numbers of rows, so the first step compiles all of them. Nothing
falls back to uncompiled code (fullgraph=True).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from soflow.errors import InputError
from soflow.system.memory import is_out_of_memory
from soflow.training.activations import repeated_blocks

P = ParamSpec("P")
R = TypeVar("R")

#: The backend of torch.compile.
BACKEND = "inductor"
#: Graphs kept per function. The default of 8 is too few for the 20 kinds of blocks of a UNet.
GRAPHS = 1024


def settings() -> dict[str, Any]:
    """Arguments of torch.compile. Also sets the options that apply to the whole process."""
    dynamo = torch._dynamo.config
    # These names exist in every supported version of torch.
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, GRAPHS)
    dynamo.accumulated_cache_size_limit = max(dynamo.accumulated_cache_size_limit, GRAPHS)
    # This option splits graphs at gradient buckets. It is not needed: a block fits in one bucket.
    dynamo.optimize_ddp = False
    # Dropout must draw the same masks as uncompiled code, with and without gradients, because the
    # two passes of SoFlow's consistency pair share their masks.
    options = {"fallback_random": True} if BACKEND == "inductor" else None
    return {"fullgraph": True, "dynamic": False, "backend": BACKEND, "options": options}


def compile_blocks(network: nn.Module) -> None:
    """Compiles the network's blocks, each at its first call. Raises InputError without blocks."""
    blocks = repeated_blocks(network)
    if not blocks:
        raise InputError(
            f"compile is true, but {type(network).__name__} marks no module as repeated: set "
            "compile=false"
        )
    for block in blocks:
        block.compile(**settings())


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function, with all functions it calls, as one graph at its first call.

    MeanFlow needs this for its derivative: separately compiled blocks have no forward-mode
    derivative.
    """
    return torch.compile(function, **settings())


@contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Raises InputError instead of torch's error if this machine has no C++ or GPU compiler."""
    try:
        yield
    except RuntimeError as error:
        cause = getattr(error, "inner_exception", error)  # set by BackendCompilerFailed
        if is_out_of_memory(cause):
            raise cause from None
        if cause is error and type(error).__module__ != "torch._inductor.exc":
            raise
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise InputError(
            f"compile is true, but this machine cannot compile the network ({reason}): install a "
            "C++ compiler such as g++, or set compile=false"
        ) from error
