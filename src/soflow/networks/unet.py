"""EDM's DDPM++ UNet with two times: F(x_t, t, s, y) from embeddings of t, t - s, y, augmentation.

Layout, parameter names and initialization follow EDM (arXiv 2206.00364), so checkpoints with this
layout can be loaded. Source: the CIFAR-10 network of SoFlow (arXiv 2512.15657).
"""

from math import sqrt
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from soflow.errors import InputError
from soflow.networks.conditions import ConditionInput
from soflow.networks.embeddings import MAX_PERIOD, GuidanceEmbedder, added_guidance
from soflow.networks.registry import NETWORKS, require_fit
from soflow.symbols import GuidanceRows, Labels, Times
from soflow.system.registry import Setting

#: The resampling filter along each axis.
TAPS = (1, 3, 3, 1)


def frequencies(t: Times, size: int) -> Tensor:
    """[sin(w_i t), cos(w_i t)]: (B,) -> (B, size).

    The frequencies are w_i = 10000^(-i / (n - 1)), i = 0 .. n - 1, with n = size / 2.
    """
    half = size // 2
    exponent = torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1)
    angles = t[:, None] * (1 / MAX_PERIOD) ** exponent
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class GroupNorm(nn.GroupNorm):
    """Like `nn.GroupNorm`, but with a forward-mode derivative when compiled or in bfloat16.

    The fused kernel of torch has none in these cases.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.dtype == torch.float32:
            return super().forward(x)
        groups = x.float().unflatten(1, (self.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        normal = ((groups - mean) * torch.rsqrt(variance + self.eps)).view_as(x)
        normal = normal.to(self.weight.dtype)  # float32, or lower when sampling
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def group_norm(channels: int) -> GroupNorm:
    """A GroupNorm with min(32, C / 4) groups. Raises ValueError if C is not divisible by them."""
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise ValueError(
            f"UNet: {channels} channels cannot be split into {groups} groups: use a multiple of 32 "
            "(network.model_channels, network.channel_mult)"
        )
    return GroupNorm(groups, channels, eps=1e-6)


class Conv(nn.Conv2d):
    """Optional smooth resampling ("up" or "down"), then a convolution that keeps the size."""

    resample_filter: Tensor

    def __init__(self, channels: int, out: int, kernel: int, resample: str | None = None) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2)
        self.resample = resample
        if resample:
            line = torch.tensor(TAPS, dtype=torch.float32)
            taps = line.outer(line) / line.sum() ** 2
            self.register_buffer("resample_filter", taps[None, None])

    def forward(self, x: Tensor) -> Tensor:
        if self.resample:
            channels, pad = x.shape[1], (self.resample_filter.shape[-1] - 1) // 2
            taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
            if self.resample == "down":
                x = functional.conv2d(x, taps, stride=2, padding=pad, groups=channels)
            else:
                x = functional.conv_transpose2d(x, 4 * taps, stride=2, padding=pad, groups=channels)
        return super().forward(x)


class UNetBlock(nn.Module):
    """A residual block with the embedding as input, optional resampling and optional attention."""

    repeated = True  # compiled and sharded block by block

    def __init__(
        self,
        channels: int,
        out: int,
        embedding: int,
        dropout: float,
        resample: str | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.norm0 = group_norm(channels)
        self.conv0 = Conv(channels, out, 3, resample)
        self.affine = nn.Linear(embedding, out)
        self.norm1 = group_norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Conv(out, out, 3)
        plain = channels == out and not resample
        self.skip = nn.Identity() if plain else Conv(channels, out, 1, resample)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(out)
            self.qkv = Conv(out, 3 * out, 1)
            self.proj = Conv(out, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x)))
        h = functional.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(self.dropout(h))
        x = (self.skip(x) + h) / sqrt(2)
        if self.attention:
            x = (self.proj(self.attend(self.qkv(self.norm2(x)))) + x) / sqrt(2)
        return x

    def attend(self, qkv: Tensor) -> Tensor:
        """Single-head attention over all pixels, in float32.

        Channel 3 i + j of `qkv` is channel i of the queries (j = 0), keys (1) or values (2).
        """
        size = qkv.shape[2:]
        parts = qkv.flatten(2).unflatten(1, (-1, 3)).float()  # (B, C, 3, pixels)
        q, k, v = parts.permute(2, 0, 3, 1)[:, :, None]  # each (B, 1, pixels, C)
        with torch.autocast(qkv.device.type, enabled=False):
            out = functional.scaled_dot_product_attention(q, k, v)
        return out[:, 0].transpose(1, 2).unflatten(2, size).to(qkv.dtype).contiguous()


class LabelMap(nn.Linear):
    """A linear map of sqrt(num_classes) onehot(label), as in EDM: (B,) -> (B, out).

    As in EDM, the null label is a vector of zeros. Its output is the bias.
    """

    def forward(self, input: Labels) -> Tensor:
        rows = functional.pad(self.weight.mT, (0, 0, 0, 1))  # (num_classes + 1, out), the last zero
        return sqrt(self.in_features) * functional.embedding(input, rows) + self.bias


@NETWORKS.register("unet")
class UNet(nn.Module):
    """EDM's UNet with a second time, F(x, t, s, labels), for images and latents (B, C, H, W).

    Args:
        shape: The shape of one sample, (C, H, W). H and W must be multiples of 2^(levels - 1).
        augment_labels: The number of augmentation labels per sample.
        num_classes: The number of classes; 0 for a network without labels. The label
            `num_classes`, or labels=None, means "no class".
        cond_shape: The shape of one condition: a vector (D,) or a map (C, H, W); () without
            conditions.
        takes_guidance: Whether the network takes `guidance` (B, 3): a scale and its interval of t.

    Raises:
        ValueError: If `shape` is not (C, H, W), H or W is not divisible as needed, or a number of
            channels cannot be split into groups.

    Example:
        >>> import soflow, torch
        >>> network = soflow.UNet((3, 8, 8), model_channels=16, channel_mult=(1, 2), blocks=1)
        >>> network(torch.randn(2, 3, 8, 8), torch.ones(2), torch.zeros(2)).shape
        torch.Size([2, 3, 8, 8])
    """

    dimensions = 3

    def __init__(
        self,
        shape: tuple[int, ...],
        model_channels: Annotated[int, Setting("base number of channels", gt=0)] = 128,
        channel_mult: Annotated[
            tuple[int, ...],
            Setting("channels of each resolution level, as multiples of model_channels", gt=0),
        ] = (2, 2, 2),
        blocks: Annotated[int, Setting("number of residual blocks per resolution level", gt=0)] = 4,
        attention: Annotated[
            tuple[int, ...],
            Setting(
                "resolution levels with attention, given by their shorter side in pixels", gt=0
            ),
        ] = (16,),
        dropout: Annotated[
            float, Setting("dropout probability inside residual blocks", ge=0, lt=1)
        ] = 0.3,
        channel_mult_noise: Annotated[
            int,
            Setting(
                "channels of the sinusoidal embeddings of t and t - s, as a multiple of "
                "model_channels",
                gt=0,
            ),
        ] = 2,
        channel_mult_emb: Annotated[
            int,
            Setting(
                "channels of the joint embedding of times and conditions, as a multiple of "
                "model_channels",
                gt=0,
            ),
        ] = 4,
        augment_labels: int = 0,
        num_classes: int = 0,
        cond_shape: tuple[int, ...] = (),
        takes_guidance: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "model_channels": model_channels, "channel_mult": channel_mult, "blocks": blocks,
            "attention": attention, "dropout": dropout, "channel_mult_noise": channel_mult_noise,
            "channel_mult_emb": channel_mult_emb,
        }  # fmt: skip
        require_fit(self, shape)
        channels, *sides = shape
        halvings = len(channel_mult) - 1
        for side in sides:
            if side % 2**halvings:
                given = f"size {side} of data.shape={list(shape)}"
                raise ValueError(
                    f"UNet: {given} must be a multiple of {2**halvings}, since it is halved "
                    f"{halvings} times: change it or network.channel_mult"
                )
        self.frequency_size = model_channels * channel_mult_noise
        embedding = model_channels * channel_mult_emb
        self.cond = ConditionInput(cond_shape, shape, 2 * self.frequency_size)
        self.map_label = self.map_augment = None
        if num_classes:
            self.map_label = LabelMap(num_classes, 2 * self.frequency_size)
        if augment_labels:
            self.map_augment = nn.Linear(augment_labels, 2 * self.frequency_size, bias=False)
        self.guidance_embedder = None
        if takes_guidance:
            self.guidance_embedder = GuidanceEmbedder(2 * self.frequency_size)
        self.map_layer0 = nn.Linear(2 * self.frequency_size, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)

        def block(
            inputs: int, out: int, resample: str | None = None, attend: bool = False
        ) -> UNetBlock:
            return UNetBlock(inputs, out, embedding, dropout, resample, attend)

        # Encoder, from the highest resolution. The decoder uses the output of every module.
        levels = []
        for i, mult in enumerate(channel_mult):
            size = [side >> i for side in sides]
            levels.append(("x".join(map(str, size)), model_channels * mult, min(size) in attention))
        top = "x".join(map(str, sides))
        self.enc = nn.ModuleDict(
            {f"{top}_conv": Conv(channels + self.cond.channels, model_channels, 3)}
        )
        width, skips = model_channels, [model_channels]
        for i, (level, out, attend) in enumerate(levels):
            if i > 0:
                self.enc[f"{level}_down"] = block(width, width, resample="down")
                skips.append(width)
            for n in range(blocks):
                self.enc[f"{level}_block{n}"] = block(width, out, attend=attend)
                width = out
                skips.append(width)

        # Decoder, from the lowest resolution. Each numbered block takes the last unused encoder
        # output.
        self.dec = nn.ModuleDict()
        for i, (level, out, attend) in reversed(list(enumerate(levels))):
            if i == len(levels) - 1:
                self.dec[f"{level}_in0"] = block(width, width, attend=True)
                self.dec[f"{level}_in1"] = block(width, width)
            else:
                self.dec[f"{level}_up"] = block(width, width, resample="up")
            for n in range(blocks + 1):
                inputs, last = width + skips.pop(), n == blocks
                self.dec[f"{level}_block{n}"] = block(inputs, out, attend=attend and last)
                width = out
        self.dec[f"{top}_aux_norm"] = group_norm(width)
        self.dec[f"{top}_aux_conv"] = Conv(width, channels, 3)
        self.initialize()

    def initialize(self) -> None:
        """Initializes weights: Xavier-uniform, scaled down for residual branches and the output."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                with torch.no_grad():
                    if name.endswith(("conv1", "proj", "aux_conv")):
                        module.weight *= 1e-5
                    elif name.endswith("qkv"):
                        module.weight *= sqrt(0.2)
        if self.guidance_embedder is not None:
            self.guidance_embedder.initialize()

    def embed(
        self,
        t: Times,
        s: Times,
        labels: Labels | None,
        augment: Tensor | None,
        cond: Tensor | None,
        guidance: GuidanceRows | None,
    ) -> Tensor:
        """The embedding (B, embedding) of times, labels and conditions, an input of every block."""
        embedding = torch.cat(
            [frequencies(time, self.frequency_size) for time in (t, t - s)], dim=1
        ).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            null = torch.full_like(t, self.map_label.in_features, dtype=torch.long)
            embedding = embedding + self.map_label(null if labels is None else labels)
        if self.map_augment is not None and augment is not None:
            embedding = embedding + self.map_augment(augment)
        embedding = added_guidance(self.guidance_embedder, embedding, guidance)
        embedding = self.cond.added(embedding, cond)
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(embedding))))

    def forward(
        self,
        x: Tensor,
        t: Times,
        s: Times,
        labels: Labels | None = None,
        augment: Tensor | None = None,
        cond: Tensor | None = None,
        guidance: GuidanceRows | None = None,
    ) -> Tensor:
        """F(x, t, s, labels): (B, C, H, W), (B,), (B,), (B,) or None -> (B, C, H, W)."""
        if labels is not None and self.map_label is None:
            raise InputError("this UNet has no classes: leave out labels")
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(t, s, labels, augment, cond, guidance)

        x, skips = self.cond.joined(x, cond), []
        for module in self.enc.values():
            x = module(x, embedding) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if isinstance(module, UNetBlock):
                x = module(x, embedding)
            elif name.endswith("aux_norm"):
                x = functional.silu(module(x))
            else:
                x = module(x)
        return x
