"""Activation checkpointing: less memory for about a third more time.

The backward pass computes the inside of each repeated block again, so that of a forward pass only
the inputs of blocks are kept. Dropout masks are repeated. Source: arXiv 1604.06174.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from soflow.errors import InputError


def checkpoint_blocks(network: nn.Module) -> None:
    """Makes every repeated block of a network keep its inputs alone; compile blocks before.

    Raises:
        InputError: If the network marks no module as repeated.
    """
    blocks = repeated_blocks(network)
    if not blocks:
        raise InputError(
            f"train.checkpoint_activations=true: {type(network).__name__} marks no module as "
            "repeated; set it to false"
        )
    for block in blocks:
        # A module is called through this attribute if it is set, as Module.compile does.
        inner = block._compiled_call_impl or block._call_impl
        block._compiled_call_impl = partial(checkpoint, inner, use_reentrant=False)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The modules that a network marks as repeated."""
    return [module for module in network.modules() if getattr(module, "repeated", False)]
