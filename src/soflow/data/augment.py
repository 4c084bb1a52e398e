"""EDM's non-leaking augmentation, for the CIFAR-10 recipe.

Each image is flipped with probability 1/2. With probability p each, it is also scaled, stretched
along a random axis and shifted. Six augmentation labels describe these changes to the network. They
are zero for an unchanged image, so generated samples (labels zero) show no augmentation.

Source: EDM (arXiv 2206.00364); image warping as in StyleGAN2-ADA (arXiv 2006.06676).
"""

from dataclasses import dataclass
from functools import cache
from math import pi

import torch
from torch import Tensor
from torch.nn import functional

SCALE_STD = 0.2  # standard deviation of log2(scale)
STRETCH_STD = 0.2  # standard deviation of log2(stretch)
STRETCH_ALONG_AXES = 0.5  # share of stretches along the axes of the image
SHIFT_STD = 0.125  # standard deviation of the shift, as a fraction of the image size

#: The 12-tap symlet low-pass filter. It is orthonormal: downsampling undoes upsampling.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip

REACH = len(SYM6) // 2  # half the length of the filter


@dataclass(frozen=True)
class AugmentPipe:
    """Augments images. `p` is the probability of each geometric transformation."""

    p: float

    num_labels = 6
    least_side = REACH + 1  # minimum side of an image, since its edges are mirrored

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws transformations (count, 6): flip (0 or 1), scale, stretch w, angle r, shifts x, y.

        Scale, stretch and shift are standard normal with probability p, and zero otherwise.
        """
        device = generator.device

        def uniform() -> Tensor:
            return torch.rand(count, 1, generator=generator, device=device)

        def happens(p: float) -> Tensor:
            return (uniform() < p).float()

        def normal(columns: int) -> Tensor:
            return torch.randn(count, columns, generator=generator, device=device)

        flip = happens(0.5)
        scale = normal(1) * happens(self.p)
        stretch = normal(1) * happens(self.p)
        angle = (uniform() * 2 - 1) * pi * happens(1 - STRETCH_ALONG_AXES)
        shift = normal(2) * happens(self.p)
        return torch.cat([flip, scale, stretch, angle, shift], dim=1)

    def labels(self, draws: Tensor) -> Tensor:
        """Augmentation labels (B, 6): flip, scale, w cos r, w sin r, shifts in x and y."""
        flip, scale, w, r, shift_x, shift_y = draws.unbind(1)
        return torch.stack([flip, scale, w * r.cos(), w * r.sin(), shift_x, shift_y], dim=1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Applies transformations (B, 6) to images (B, C, H, W)."""
        flip, geometry = draws[:, 0], draws[:, 1:]
        images = torch.where(flip[:, None, None, None] > 0, images.flip(3), images)
        changed = torch.cat([geometry[:, :2], geometry[:, 3:]], dim=1).any(dim=1)[
            :, None, None, None
        ]
        height, width = images.shape[2:]
        return torch.where(changed, warp(images, inverse_map(geometry, width / height)), images)


def inverse_map(geometry: Tensor, aspect: float = 1.0) -> Tensor:
    """Affine maps from output to input positions in [-1, 1]^2: (B, 5) -> (B, 2, 3).

    The forward transformation scales an image by 2^(0.2 scale). It then stretches the image by
    2^(0.2 w) along the angle r (counterclockwise) and shrinks it by the same factor across this
    direction. It finally shifts the image by 0.125 times its size times the drawn shift. `aspect`
    is the width of the images divided by their height.
    """
    scale, w, r, shift = geometry[:, 0], geometry[:, 1], geometry[:, 2], geometry[:, 3:5]
    cos, sin = r.cos(), r.sin()
    turn = torch.stack([cos, sin, -sin, cos], dim=1).unflatten(1, (2, 2))  # the y axis points down
    shrink = torch.exp2(torch.stack([-STRETCH_STD * w, STRETCH_STD * w], dim=1))
    stretch = turn @ torch.diag_embed(shrink) @ turn.mT
    linear = torch.exp2(-SCALE_STD * scale)[:, None, None] * stretch
    linear[:, 0, 1] /= aspect  # from pixels to [-1, 1]^2
    linear[:, 1, 0] *= aspect
    offset = -linear @ (2 * SHIFT_STD * shift)[:, :, None]
    return torch.cat([linear, offset], dim=2)


@cache
def filter_taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """SYM6 on a device, copied there once."""
    return torch.tensor(SYM6, dtype=dtype, device=device)


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Resamples images (B, C, H, W) with affine maps (B, 2, 3).

    Resampling uses twice the resolution. Images are mirrored at their edges.
    """
    channels, height, width = images.shape[1:]
    taps = filter_taps(images.dtype, images.device)
    kernel = taps.outer(taps).expand(channels, 1, -1, -1)
    lead = REACH - 1  # taps before the position of a pixel

    # Fine sample i = 2 n + k - lead gets tap k of pixel n. Pixel n is between samples 2 n and
    # 2 n + 1.
    padded = functional.pad(images, [REACH] * 4, mode="reflect")
    fine = functional.conv_transpose2d(padded, 2 * kernel, stride=2, groups=channels)
    first = 2 * REACH + lead
    fine = fine[:, :, first : first + 2 * height, first : first + 2 * width]

    # Fine samples of the output, from -lead to 2 size + lead. Downsampling needs this margin.
    def places(size: int) -> Tensor:
        samples = torch.arange(-lead, 2 * size + lead, device=images.device, dtype=images.dtype)
        return (samples + 0.5) / size - 1

    y, x = torch.meshgrid(places(height), places(width), indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ inverse.mT[:, None]  # (B, H', W', 2)
    fine = functional.grid_sample(fine, grid, padding_mode="reflection", align_corners=False)
    return functional.conv2d(fine, kernel / 2, stride=2, groups=channels)
