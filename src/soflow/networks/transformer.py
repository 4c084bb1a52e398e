"""Components of transformers: patch embedding, attention, MLPs, RMSNorm, rotary positions."""

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
    """The grid of tokens: (rows, columns) for an image, (length,) for a signal.

    Raises:
        ValueError: If a size is not a multiple of the patch size.
    """
    for size in shape[1:]:
        if size % patch:
            given = f"size {size} of data.shape={list(shape)}"
            raise ValueError(
                f"{network}: {given} must be a multiple of network.patch={patch}: change one"
            )
    return tuple(size // patch for size in shape[1:])


def unpatchify(x: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """(B, tokens, values per patch) -> (B, C, H, W) or (B, C, L)."""
    axes = len(grid)
    x = x.unflatten(1, tuple(grid)).unflatten(-1, (*[patch] * axes, -1))
    # (B, *grid, *patch, C) -> (B, C, rows, patch, columns, patch)
    pairs = chain.from_iterable((1 + axis, 1 + axes + axis) for axis in range(axes))
    sizes = [side * patch for side in grid]
    return x.permute(0, 2 * axes + 1, *pairs).reshape(-1, x.shape[-1], *sizes)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last dimension, times a learned weight (initially 1).

    The computation is in float32 or higher precision. The result has the dtype of x.
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

    `qk_norm` normalizes queries and keys in each head. `rotation` applies a rotary position
    embedding to them.
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
        # Under autocast on a GPU, the forward-mode derivative of torch's plain attention has no
        # backward pass. q, k and v already have the autocast dtype.
        with torch.autocast(x.device.type, enabled=False):
            q, k = self.q_norm(q), self.k_norm(k)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


def rotation_of(
    grid: Sequence[int], size: int, before: int = 0, device: torch.device | None = None
) -> Tensor:
    """The rotary position embedding of a grid of tokens: cosines and sines, (2, tokens, size / 2).

    The channels of a head form pairs, with the same number of pairs for each axis of the grid. Pair
    i of an axis is rotated by the token's position on this axis times 10000^(-i / pairs).
    Source: arXiv 2104.09864.

    Args:
        grid: (rows, columns), or (length,) for a sequence of tokens.
        size: The number of channels of a head, a multiple of 2 times the number of axes.
        before: The number of tokens before the grid. They are not rotated.
        device: The device of the result.
    """
    w = frequencies(size // len(grid), device)
    places = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = torch.cat([place.reshape(-1, 1) * w for place in places], dim=1)
    angles = functional.pad(angles, (0, 0, before, 0))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates the channel pairs (i, i + d / 2) of x (B, heads, tokens, d) in float32."""
    cos, sin = rotation
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)


def require_heads(network: str, width: int, heads: int, axes: int, rotary: bool) -> None:
    """Raises ValueError if width, heads and rotary positions do not fit together."""
    if width % heads:
        raise ValueError(
            f"{network}: network.width={width} must be a multiple of network.heads={heads}: "
            "change one"
        )
    if rotary and width // heads % (2 * axes):
        raise ValueError(
            f"{network}: heads have {width // heads} channels, but rotary positions need a "
            f"multiple of {2 * axes}: change network.width or network.heads"
        )


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """fc2(silu(a) b), where fc1 returns a and b. Source: arXiv 2002.05202.

    The hidden width is 2/3 of `hidden`, rounded to a multiple of 8. The number of parameters
    then equals the number in an `Mlp` with hidden width `hidden`.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = 8 * max(1, round(hidden / 12))
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(functional.silu(a) * b)
