"""Conditions other than classes: vectors are embedded, maps become additional input channels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soflow.errors import InputError


class ConditionInput(nn.Module):
    """The input of a network for a condition `cond` (B, ...), next to its samples (B, C, ...).

    A vector (B, D) is embedded. Its embedding is added to the time embedding, or becomes a token.
    A map (B, C', ...) has the same spatial size as the samples and is concatenated to their
    channels.

    Args:
        cond_shape: The shape of one condition; () for a network without conditions.
        shape: The shape of one sample.
        width: The number of channels of the embedding.

    Raises:
        ValueError: If a map has a different spatial size than the samples.
    """

    def __init__(self, cond_shape: Sequence[int], shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.shape = tuple(cond_shape)
        self.channels = 0  # channels of a map, concatenated to the samples
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
                    f"a condition has shape {list(self.shape)} for samples of shape {list(shape)}: "
                    f"use {fits}"
                )

    def joined(self, x: Tensor, cond: Tensor | None) -> Tensor:
        """x (B, C, ...) with the channels of a map concatenated."""
        if not self.channels:
            return x
        return torch.cat([x, given(cond).to(x.dtype)], dim=1)

    def embedded(self, cond: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The embedding of a vector (B, width); None if the network takes no vector."""
        if self.embedder is None:
            if cond is not None and not self.channels:
                raise InputError("this network takes no conditions: leave out cond")
            return None
        return self.embedder(given(cond).to(dtype))

    def added(self, embedding: Tensor, cond: Tensor | None) -> Tensor:
        """The time embedding plus the embedding of a vector, if any: (B, width)."""
        vector = self.embedded(cond, embedding.dtype)
        return embedding if vector is None else embedding + vector


def given(cond: Tensor | None) -> Tensor:
    """The conditions. Raises InputError without them."""
    if cond is None:
        raise InputError("this network needs conditions: pass cond")
    return cond
