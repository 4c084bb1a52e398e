"""Compiled training: the repeated parts of a network, turned into fused kernels in place.

A network marks the classes of its blocks with `repeated = True`. Names of parameters stay as they are, and blocks that are
alike share what is compiled. Shapes are compiled as they come (dynamic=False): a training step has a handful of passes whose
numbers of rows never change, so all of them are compiled in the first step. Nothing falls back to uncompiled code
(fullgraph=True): whole blocks or an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from soflow.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

#: torch.compile's backend.
BACKEND = "inductor"
#: Graphs kept of one function, in place of torch's 8: a UNet has some 20 kinds of blocks, each in several passes.
GRAPHS = 1024


def settings() -> dict[str, Any]:
    """How everything is compiled, as arguments of torch.compile. Also sets what is the whole process's, and only there."""
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit = max(
        dynamo.cache_size_limit, GRAPHS
    )  # the names that every version of torch knows
    dynamo.accumulated_cache_size_limit = max(dynamo.accumulated_cache_size_limit, GRAPHS)
    dynamo.optimize_ddp = False  # it would cut graphs at the buckets of gradients; a block is no more than such a part
    # Dropout draws as it does uncompiled, the same with gradient and without: SoFlow's pair of passes shares its masks.
    options = {"fallback_random": True} if BACKEND == "inductor" else None
    return {"fullgraph": True, "dynamic": False, "backend": BACKEND, "options": options}


def compile_blocks(network: nn.Module) -> None:
    """Compiles the network's blocks, each at its first call. Raises InputError where it has none."""
    blocks = [module for module in network.modules() if getattr(module, "repeated", False)]
    if not blocks:
        raise InputError(
            f"compile=true: {type(network).__name__} marks none of its modules as repeated; use compile=false"
        )
    for block in blocks:
        block.compile(**settings())


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as one graph with all that it calls, compiled at its first call.

    MeanFlow's derivative is taken so: blocks that are compiled one by one can be differentiated backwards only.
    """
    return torch.compile(function, **settings())


@contextmanager
def compile_errors_explained() -> Iterator[None]:
    """Raises InputError in place of what torch raises where its compiler finds no compiler of C++ or of GPU code."""
    try:
        yield
    except RuntimeError as error:
        cause = getattr(error, "inner_exception", error)  # of torch._dynamo's BackendCompilerFailed
        if cause is error and type(error).__module__ != "torch._inductor.exc":
            raise
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise InputError(
            f"compile=true: this machine cannot compile the network ({reason}); "
            "install a C++ compiler such as g++, or use compile=false"
        ) from error
