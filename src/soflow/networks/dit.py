"""The diffusion transformer with two times: F(x_t, t, s, y) from embeddings of t, t - s and y.

A sample is cut into patches, each of which is a token: squares of an image, segments of a signal.
Parameter names are those of the DiT family (arXiv 2212.09748), so its checkpoints load.
Source: SoFlow (arXiv 2512.15657), the networks on ImageNet and their sizes.
"""

from itertools import chain
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.networks.conditions import ConditionInput
from soflow.networks.embeddings import (
    GuidanceEmbedder,
    LabelEmbedder,
    TimeEmbedder,
    added_guidance,
    grid_positions,
)
from soflow.networks.registry import NETWORKS, require_fit
from soflow.symbols import GuidanceRows, Labels, Times
from soflow.system.registry import Setting

#: The sizes of the paper: depth, width, heads.
SIZES = {"B": (12, 768, 12), "M": (16, 1024, 16), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


class PatchEmbedder(nn.Module):
    """(B, C, H, W) or (B, C, L) -> (B, tokens, width), one token per patch."""

    def __init__(self, channels: int, width: int, patch: int, axes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv1d
        self.proj = conv(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention: (B, tokens, width) -> same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, tokens, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, d)
        # Under autocast on a GPU, the forward-mode derivative of torch's plain attention cannot be
        # differentiated backwards. q, k and v have their type already.
        with torch.autocast(x.device.type, enabled=False):
            x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a tanh-GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


def modulation(width: int, parts: int) -> nn.Sequential:
    """From the condition (B, width) to `parts` shifts, scales and gates; zero at first."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, tokens, width), shift and scale (B, width)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block; the condition modulates its normalizations and residuals."""

    repeated = True  # one of many alike, compiled and sharded on its own

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        modulations = self.adaLN_modulation(condition).chunk(6, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """(B, tokens, width) -> (B, tokens, values of a patch); zero at the start."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = layer_norm(width)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


@NETWORKS.register("dit")
class DiT(nn.Module):
    """The diffusion transformer F(x, t, s, labels) for images, latents and signals.

    x and the result are images or latents (B, C, H, W), or signals (B, C, L); t and s are (B,).

    Args:
        shape: The shape of one sample, (C, H, W) or (C, L). H and W, or L, must be multiples of
            `patch`.
        num_classes: The number of classes; 0 for a network without labels. The label
            `num_classes`, or labels=None, means "no class".
        cond_shape: The shape of one condition: a vector (D,) or a map (C, H, W); () without
            conditions.
        takes_guidance: Whether the network takes a guidance scale and its interval, `guidance`.

    Raises:
        ValueError: For another shape, or sizes that do not divide one another.

    Example:
        >>> import soflow, torch
        >>> network = soflow.DiT((1, 8, 8), num_classes=10, patch=4, width=32, depth=1)
        >>> x, t, s = torch.randn(3, 1, 8, 8), torch.ones(3), torch.zeros(3)
        >>> network(x, t, s, torch.tensor([0, 7, 10])).shape
        torch.Size([3, 1, 8, 8])
    """

    dimensions = (2, 3)

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        patch: Annotated[int, Setting("side of a patch, in pixels or values", gt=0)] = 2,
        width: Annotated[int, Setting("channels of a token", gt=0)] = 128,
        depth: Annotated[int, Setting("number of blocks", gt=0)] = 6,
        heads: Annotated[int, Setting("attention heads", gt=0)] = 4,
        mlp_ratio: Annotated[
            float, Setting("width of a block's MLP, in units of width", ge=0.1)
        ] = 4.0,
        cond_shape: tuple[int, ...] = (),
        takes_guidance: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "patch": patch, "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio,
        }  # fmt: skip
        require_fit(self, shape)
        channels, *sizes = shape
        for size in sizes:
            if size % patch:
                given = f"size {size} of data.shape={list(shape)}"
                raise ValueError(
                    f"DiT: {given} must be a multiple of patch {patch} (network.patch)"
                )
        axes = len(sizes)
        for name, divisor in (("heads", heads), ("sines and cosines of positions", 2 * axes)):
            if width % divisor:
                raise ValueError(f"DiT: width {width} must be a multiple of {divisor}, for {name}")
        self.channels, self.patch, self.heads = channels, patch, heads
        self.grid = tuple(
            size // patch for size in sizes
        )  # (rows, columns) of tokens, or (length,)
        self.cond = ConditionInput(cond_shape, shape, width)
        self.x_embedder = PatchEmbedder(channels + self.cond.channels, width, patch, axes)
        self.t_embedder = TimeEmbedder(width)
        self.s_embedder = TimeEmbedder(width)  # embeds t - s; named as in the reference checkpoints
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.guidance_embedder = GuidanceEmbedder(width) if takes_guidance else None
        self.pos_embed = nn.Parameter(grid_positions(self.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch**axes * channels)
        self.initialize()

    def initialize(self) -> None:
        """Draws initial weights: linears Xavier-uniform, the label table and the MLP of t normal.

        Modulations and the output are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.get_parameter("proj.bias"))
        mlp = self.t_embedder.mlp
        for module in (self.y_embedder.embedding_table, mlp[0], mlp[2]):
            nn.init.normal_(module.get_parameter("weight"), std=0.02)
        for module in (*self.blocks, self.final_layer):
            nn.init.zeros_(module.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.guidance_embedder is not None:
            self.guidance_embedder.initialize()

    def forward(
        self,
        x: Tensor,
        t: Times,
        s: Times,
        labels: Labels | None = None,
        cond: Tensor | None = None,
        guidance: GuidanceRows | None = None,
    ) -> Tensor:
        """F(x, t, s, labels): (B, ...), (B,), (B,), (B,) or None -> (B, ...)."""
        with torch.autocast(x.device.type, enabled=False):
            times = self.t_embedder(t) + self.s_embedder(t - s)
            times = added_guidance(self.guidance_embedder, times, guidance)
            condition = self.cond.added(times + self.y_embedder(labels, like=x), cond)
        x = self.x_embedder(self.cond.joined(x, cond)) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        return self.unpatchify(self.final_layer(x, condition))

    def unpatchify(self, x: Tensor) -> Tensor:
        """(B, tokens, values of a patch) -> (B, C, H, W) or (B, C, L)."""
        axes = len(self.grid)
        x = x.unflatten(1, self.grid).unflatten(-1, (*[self.patch] * axes, self.channels))
        # (B, *grid, *patch, C) -> (B, C, rows, patch, columns, patch)
        pairs = chain.from_iterable((1 + axis, 1 + axes + axis) for axis in range(axes))
        sizes = [side * self.patch for side in self.grid]
        return x.permute(0, 2 * axes + 1, *pairs).reshape(-1, self.channels, *sizes)
