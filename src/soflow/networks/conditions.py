"""Conditions other than classes: vectors are embedded, maps are further input channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConditionInput(nn.Module):
    """How a network takes a condition `cond` (B, ...) beside its samples (B, C, ...).

    A vector (B, D) is embedded: it is added to the embedding of the times, or is a token. A map
    (B, C', ...), of the same sizes as the samples, is concatenated to their channels.

    Args:
        cond_shape: One condition's shape, () for a network without.
        shape: One sample's shape.
        width: Channels of the embedding.

    Raises:
        ValueError: For maps of other sizes than the samples.
    """

    def __init__(self, cond_shape: Sequence[int], shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.shape = tuple(cond_shape)
        self.channels = 0  # that a map adds to those of the samples
        self.embedder: nn.Module | None = None
        if len(self.shape) == 1:
            (size,) = self.shape
            self.embedder = nn.Sequential(
                nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width)
            )
        elif self.shape:
            self.channels, *sizes = self.shape
            if sizes != list(shape[1:]):
                fits = "[D]" + f" or [C, {', '.join(map(str, shape[1:]))}]" * (len(shape) > 1)
                raise ValueError(
                    f"a condition has shape {list(self.shape)} beside samples of {list(shape)}: "
                    f"give {fits}"
                )

    def joined(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """The input channels: those of x and of a map."""
        if not self.channels:
            return x
        assert cond is not None, "the network needs cond"
        return torch.cat([x, cond.to(x.dtype)], dim=1)

    def embedded(self, cond: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The embedding of a vector, (B, width); None for a network that takes none."""
        if self.embedder is None:
            assert self.channels or cond is None, "the network takes no cond"
            return None
        assert cond is not None, "the network needs cond"
        return self.embedder(cond.to(dtype))

    def added(self, embedding: Tensor, cond: Tensor | None) -> Tensor:
        """The embedding of the times, and of a vector."""
        vector = self.embedded(cond, embedding.dtype)
        return embedding if vector is None else embedding + vector
