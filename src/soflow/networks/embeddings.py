"""Embeddings of times, labels and positions. Times are in [0, 1] and are not rescaled."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.symbols import GuidanceRows, Times

MAX_PERIOD = 10_000


def frequencies(
    size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """w_i = 10000^(-i / (size / 2)), i = 0 .. size / 2 - 1: (size / 2,)."""
    half = size // 2
    exponent = torch.arange(half, device=device, dtype=dtype) / half
    return torch.exp(-math.log(MAX_PERIOD) * exponent)


def sinusoidal(t: Times, size: int) -> Tensor:
    """[cos(w_i t), sin(w_i t)] with w_i of `frequencies`: (B,) -> (B, size)."""
    angles = t[:, None] * frequencies(size, t.device)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def grid_positions(grid: Sequence[int], size: int) -> Tensor:
    """Fixed sin-cos position embeddings of a grid of tokens, row by row: (1, tokens, size).

    Args:
        grid: (rows, columns), or (length,) for a sequence of tokens.
        size: The number of channels. In a grid of rows and columns, the first half encodes the
            column and the second half the row, each as [sin, cos] of `size / 4` frequencies. In a
            sequence, all channels encode the position, as [sin, cos] of `size / 2` frequencies.
    """
    w = frequencies(size // len(grid), dtype=torch.float64)
    places = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    parts = []
    for place in reversed(places):
        angles = place.reshape(-1, 1) * w
        parts += [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts, dim=1).float()[None]


class TimeEmbedder(nn.Module):
    """A sinusoidal embedding and a two-layer MLP: (B,) -> (B, width)."""

    frequency_size = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequency_size, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: Times) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype  # float32, or lower when sampling
        return self.mlp(sinusoidal(t, self.frequency_size).to(dtype))


class GuidanceEmbedder(nn.Module):
    """An embedding of guidance (omega, start, end), initially zero: (B, 3) -> (B, width).

    The input is log(omega), which is uniform for scales drawn with power 1. There is no sinusoidal
    embedding: over the small range of scales, it would hardly change.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.initialize()

    def initialize(self) -> None:
        """Sets the last layer to zero, so that guidance initially has no effect."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        first.reset_parameters()
        nn.init.zeros_(self.mlp[2].get_parameter("weight"))
        nn.init.zeros_(self.mlp[2].get_parameter("bias"))

    def forward(self, guidance: GuidanceRows | None, like: Tensor) -> Tensor:
        """Embeds each row. None means no guidance, (1, 0, 1), for every row of `like`."""
        if guidance is None:
            zero = torch.zeros(like.shape[0], device=like.device)
            inputs = (zero, zero, zero + 1)
        else:
            scale, start, end = guidance.unbind(1)
            inputs = (scale.log(), start, end)
        return self.mlp(torch.stack(inputs, dim=1).to(next(self.mlp.parameters()).dtype))


def embedded_guidance(
    embedder: GuidanceEmbedder | None, guidance: GuidanceRows | None, like: Tensor
) -> Tensor | None:
    """The embedding of guidance (B, width); None if the network takes no guidance.

    Raises:
        InputError: If guidance is passed to a network that takes none.
    """
    if embedder is not None:
        return embedder(guidance, like)
    if guidance is not None:
        raise InputError(
            "this network does not take guidance: create it with takes_guidance=True, or leave out "
            "guidance"
        )
    return None


def added_guidance(
    embedder: GuidanceEmbedder | None, embedding: Tensor, guidance: GuidanceRows | None
) -> Tensor:
    """The time embedding plus the guidance embedding, if the network takes guidance."""
    embedded = embedded_guidance(embedder, guidance, like=embedding)
    return embedding if embedded is None else embedding + embedded


class LabelEmbedder(nn.Module):
    """A label table of num_classes + 1 rows, the last for the null label: (B,) -> (B, width)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor | None, like: Tensor) -> Tensor:
        """Embeds the labels. `labels=None` means the null label for every row of `like`."""
        if labels is None:
            null = self.num_classes
            labels = torch.full(like.shape[:1], null, dtype=torch.long, device=like.device)
        return self.embedding_table(labels)
