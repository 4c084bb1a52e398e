"""Compiled training: the repeated blocks of a network are compiled in place.

A network marks the classes of its blocks with `repeated = True`. Names of parameters stay the same,
and equal blocks share compiled code. Shapes are static (dynamic=False): a training step has a few
passes whose numbers of rows never change, so all of them are compiled in the first step. Nothing
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

#: torch.compile's backend.
BACKEND = "inductor"
#: Graphs kept per function; torch's 8 are too few for a UNet's 20 kinds of blocks and its passes.
GRAPHS = 1024


def settings() -> dict[str, Any]:
    """Arguments of torch.compile. Also sets the options that belong to the whole process."""
    dynamo = torch._dynamo.config
    # The names that every version of torch knows.
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, GRAPHS)
    dynamo.accumulated_cache_size_limit = max(dynamo.accumulated_cache_size_limit, GRAPHS)
    # It would cut graphs at the buckets of gradients, but a block is no larger than a bucket.
    dynamo.optimize_ddp = False
    # Dropout draws as in uncompiled code, the same with gradient and without: SoFlow's pair of
    # passes shares its masks.
    options = {"fallback_random": True} if BACKEND == "inductor" else None
    return {"fullgraph": True, "dynamic": False, "backend": BACKEND, "options": options}


def compile_blocks(network: nn.Module) -> None:
    """Compiles the network's blocks, each at its first call. Raises InputError if it has none."""
    blocks = repeated_blocks(network)
    if not blocks:
        raise InputError(
            f"compile=true: {type(network).__name__} marks no module as repeated; use compile=false"
        )
    for block in blocks:
        block.compile(**settings())


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function and all that it calls as one graph, compiled at its first call.

    For MeanFlow's derivative: blocks compiled one by one have no forward-mode derivative.
    """
    return torch.compile(function, **settings())


@contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Raises InputError in place of torch's error if there is no compiler of C++ or GPU code."""
    try:
        yield
    except RuntimeError as error:
        cause = getattr(error, "inner_exception", error)  # of torch._dynamo's BackendCompilerFailed
        if is_out_of_memory(cause):
            raise cause from None
        if cause is error and type(error).__module__ != "torch._inductor.exc":
            raise
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise InputError(
            f"compile=true: this machine cannot compile the network ({reason}); "
            "install a C++ compiler such as g++, or use compile=false"
        ) from error
