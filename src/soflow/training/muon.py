"""Muon for the weight matrices of hidden layers, with AdamW for all other parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from soflow.training.activations import repeated_blocks


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The trained weight matrices of hidden linear layers.

    These are the matrices in repeated blocks. In a network without repeated blocks, they are all
    matrices except the first and the last, in order of registration.
    """
    blocks = repeated_blocks(network)
    modules = [module for block in blocks or [network] for module in block.modules()]
    found = dict.fromkeys(
        parameter
        for module in modules
        for parameter in (matrix_of(module),)
        if parameter is not None and parameter.requires_grad
    )
    return list(found) if blocks else list(found)[1:-1]


def matrix_of(module: nn.Module) -> nn.Parameter | None:
    """The weight matrix of a linear or attention layer; None for other modules and embeddings."""
    matrix = None
    if isinstance(module, nn.Linear):
        matrix = module.weight
    elif isinstance(module, nn.MultiheadAttention):
        matrix = module.in_proj_weight
    return matrix if isinstance(matrix, nn.Parameter) else None


class Together(torch.optim.Optimizer):
    """Several optimizers as one. Each updates its own parameters.

    All share one state dictionary. The parameter groups are concatenated.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.share()

    def share(self) -> None:
        """Gives each optimizer the shared state and its own groups."""
        groups = iter(self.param_groups)
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.state = self.state
            part.param_groups = [next(groups) for _ in range(size)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is evaluated once per step"
        for part in self.parts:
            part.step()
