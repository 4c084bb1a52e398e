"""The diffusion transformer with two times: F(x_t, t, s, y) from embeddings of t, t - s and y.

A sample is split into patches: squares of an image, or segments of a signal. Each patch is a token.
Parameter names are those of DiT (arXiv 2212.09748), so checkpoints of DiT and SiT can be loaded.
Source: the ImageNet networks of SoFlow (arXiv 2512.15657) and their sizes.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from soflow.networks.conditions import ConditionInput
from soflow.networks.embeddings import (
    GuidanceEmbedder,
    LabelEmbedder,
    TimeEmbedder,
    added_guidance,
    grid_positions,
)
from soflow.networks.registry import NETWORKS, require_fit
from soflow.networks.transformer import (
    Attention,
    Mlp,
    PatchEmbedder,
    SwiGLU,
    require_heads,
    rotation_of,
    token_grid,
    unpatchify,
)
from soflow.symbols import GuidanceRows, Labels, Times
from soflow.system.registry import Setting

#: The network sizes of the paper: (depth, width, heads).
SIZES = {"B": (12, 768, 12), "M": (16, 1024, 16), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def modulation(width: int, parts: int) -> nn.Sequential:
    """Maps the condition (B, width) to `parts` shifts, scales and gates, initially zero."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, tokens, width), shift and scale (B, width)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block. The condition modulates its normalizations and residual branches."""

    repeated = True  # compiled and sharded block by block

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, qk_norm: bool = False, swiglu: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = layer_norm(width)
        self.mlp = (SwiGLU if swiglu else Mlp)(width, int(width * mlp_ratio))
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor, rotation: Tensor | None = None) -> Tensor:
        modulations = self.adaLN_modulation(condition).chunk(6, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), rotation)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """(B, tokens, width) -> (B, tokens, values per patch), initially zero."""

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
        cond_shape: The shape of one condition: a vector (D,), or a map of the samples' size, (C, H,
            W) or (C, L); () without conditions.
        takes_guidance: Whether the network takes `guidance` (B, 3): a scale and its interval of t.

    Raises:
        ValueError: If `shape` has another number of dimensions, the sizes are not divisible as
            needed, or `cond_shape` does not fit `shape`.

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
        patch: Annotated[int, Setting("side length of a patch, in pixels or values", gt=0)] = 2,
        width: Annotated[int, Setting("number of channels of a token", gt=0)] = 128,
        depth: Annotated[int, Setting("number of transformer blocks", gt=0)] = 6,
        heads: Annotated[int, Setting("number of attention heads", gt=0)] = 4,
        mlp_ratio: Annotated[
            float, Setting("hidden width of the MLP in a block, as a multiple of width", ge=0.1)
        ] = 4.0,
        cond_shape: tuple[int, ...] = (),
        rotary: Annotated[
            bool, Setting("add rotary position embeddings to attention, besides sin-cos positions")
        ] = False,
        qk_norm: Annotated[bool, Setting("normalize queries and keys with RMSNorm")] = False,
        swiglu: Annotated[
            bool, Setting("use SwiGLU instead of GELU MLPs, with the same number of parameters")
        ] = False,
        takes_guidance: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "patch": patch, "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio,
            "rotary": rotary, "qk_norm": qk_norm, "swiglu": swiglu,
        }  # fmt: skip
        require_fit(self, shape)
        channels, axes = shape[0], len(shape) - 1
        self.grid = token_grid(shape, patch, "DiT")  # (rows, columns) or (length,), in tokens
        require_heads("DiT", width, heads, axes, rotary)
        if width % (2 * axes):
            raise ValueError(
                f"DiT: network.width={width} must be a multiple of {2 * axes} for the position "
                "embedding: change it"
            )
        self.patch, self.heads, self.rotary = patch, heads, rotary
        self.cond = ConditionInput(cond_shape, shape, width)
        self.x_embedder = PatchEmbedder(channels + self.cond.channels, width, patch, axes)
        self.t_embedder = TimeEmbedder(width)
        self.s_embedder = TimeEmbedder(width)  # embeds t - s; named as in the reference checkpoints
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.guidance_embedder = GuidanceEmbedder(width) if takes_guidance else None
        self.pos_embed = nn.Parameter(grid_positions(self.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            [Block(width, heads, mlp_ratio, qk_norm, swiglu) for _ in range(depth)]
        )
        self.final_layer = FinalLayer(width, patch**axes * channels)
        self.initialize()

    def initialize(self) -> None:
        """Initializes the weights.

        Linear layers are Xavier-uniform. The label table and the MLP of t are normal. Modulations
        and the output layer are zero.
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
        """F(x, t, s, labels): (B, C, H, W) or (B, C, L) -> the same; t, s and labels are (B,)."""
        with torch.autocast(x.device.type, enabled=False):
            times = self.t_embedder(t) + self.s_embedder(t - s)
            times = added_guidance(self.guidance_embedder, times, guidance)
            condition = self.cond.added(times + self.y_embedder(labels, like=x), cond)
        x = self.x_embedder(self.cond.joined(x, cond)) + self.pos_embed
        head = x.shape[-1] // self.heads
        rotation = rotation_of(self.grid, head, device=x.device) if self.rotary else None
        for block in self.blocks:
            x = block(x, condition, rotation)
        return unpatchify(self.final_layer(x, condition), self.grid, self.patch)
