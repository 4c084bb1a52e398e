"""Parts of transformers: patches as tokens, attention, MLPs, normalization, rotary positions."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.networks.embeddings import frequencies


class PatchEmbedder(nn.Module):
    """(B, C, H, W) or (B, C, L) -> (B, tokens, width), one token per patch."""

    def __init__(self, channels: int, width: int, patch: int, axes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv1d
        self.proj = conv(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def token_grid(shape: Sequence[int], patch: int, network: str) -> tuple[int, ...]:
    """(rows, columns) of the tokens of an image, (length,) of those of a signal.

    Raises:
        ValueError: If a size is no multiple of the patch.
    """
    for size in shape[1:]:
        if size % patch:
            given = f"size {size} of data.shape={list(shape)}"
            raise ValueError(
                f"{network}: {given} must be a multiple of patch {patch} (network.patch)"
            )
    return tuple(size // patch for size in shape[1:])


def unpatchify(x: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """(B, tokens, values of a patch) -> (B, C, H, W) or (B, C, L)."""
    axes = len(grid)
    x = x.unflatten(1, tuple(grid)).unflatten(-1, (*[patch] * axes, -1))
    # (B, *grid, *patch, C) -> (B, C, rows, patch, columns, patch)
    pairs = chain.from_iterable((1 + axis, 1 + axes + axis) for axis in range(axes))
    sizes = [side * patch for side in grid]
    return x.permute(0, 2 * axes + 1, *pairs).reshape(-1, x.shape[-1], *sizes)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last dimension, times a weight that begins at 1.

    Computed in float32 or more, and returned in the type of x.
    """

    eps = 1e-6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return (exact * scale * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention: (B, tokens, width) -> same.

    With qk_norm, queries and keys are normalized in each head. `rotation` turns them by the place
    of their token.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, tokens, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, d)
        # Under autocast on a GPU, the forward-mode derivative of torch's plain attention cannot be
        # differentiated backwards. q, k and v have their type already.
        with torch.autocast(x.device.type, enabled=False):
            q, k = self.q_norm(q), self.k_norm(k)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


def rotation_of(
    grid: Sequence[int], size: int, before: int = 0, device: torch.device | None = None
) -> Tensor:
    """The rotary embedding of a grid of tokens: cosines and sines, (2, tokens, size / 2).

    The channels of a head are pairs, an equal number for each axis of the grid. Pair i of an axis
    turns by the token's place on it times 10000^(-i / pairs). Source: arXiv 2104.09864.

    Args:
        grid: (rows, columns), or (length,) for a line of tokens.
        size: Channels of a head, a multiple of 2 times the number of axes.
        before: How many tokens come before those of the grid; they are not turned.
        device: The device.
    """
    w = frequencies(size // len(grid), device)
    places = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * w for place in places], dim=1)
    angles = functional.pad(angles, (0, 0, before, 0))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns the pairs (i, i + d / 2) of channels of x (B, heads, tokens, d), in float32 or more."""
    cos, sin = rotation
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)


def require_heads(network: str, width: int, heads: int, axes: int, rotary: bool) -> None:
    """Raises ValueError if the heads do not divide the width, or pairs of channels a head."""
    if width % heads:
        raise ValueError(f"{network}: width {width} must be a multiple of {heads}, for heads")
    if rotary and width // heads % (2 * axes):
        raise ValueError(
            f"{network}: rotary positions need heads of a multiple of {2 * axes} channels, "
            f"not {width // heads}: change network.width or network.heads"
        )


class Mlp(nn.Module):
    """Two linear layers with a tanh-GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """fc2(silu(a) b), where fc1 returns a and b. Source: arXiv 2002.05202.

    It has the parameters of an `Mlp` with `hidden` values between its layers, and so two thirds of
    them, rounded to a multiple of 8.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = 8 * max(1, round(hidden / 12))
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(functional.silu(a) * b)
