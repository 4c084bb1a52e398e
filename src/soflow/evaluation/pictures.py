"""Samples as pictures: images as a grid, vectors in the plane as a scatter plot."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from soflow.symbols import Sample


def to_uint8(images: Sample) -> np.ndarray:
    """Images in [-1, 1], (B, C, H, W), as bytes (B, H, W, C): clamp(127.5 x + 128, 0, 255)."""
    pixels = (images.detach().float() * 127.5 + 128).clamp(0, 255)
    return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()


def is_image(shape: Sequence[int]) -> bool:
    """Whether a sample of this shape is an image of one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_pil(image: np.ndarray) -> Image.Image:
    """One image (H, W, C) of bytes."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def grid(images: Sample, columns: int, scale: int | None = None) -> Image.Image:
    """Images side by side, `columns` per row.

    Each pixel is `scale` wide; by default an image becomes at least 32 wide.
    """
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    scale = scale or max(1, 32 // width)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    rows, gap = -(-count // columns), 2
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = np.full((rows * step_y + gap, columns * step_x + gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(pixels):
        y, x = gap + i // columns * step_y, gap + i % columns * step_x
        sheet[y : y + height * scale, x : x + width * scale] = image
    return to_pil(sheet)


def scatter(points: Tensor) -> Image.Image:
    """Points in the plane (first two coordinates)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.add_subplot()
    points = points.detach().cpu()
    axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.5, linewidths=0)
    axes.set_aspect("equal")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return Image.open(stream)


def picture(samples: Tensor, columns: int) -> Image.Image:
    """Samples as a picture. Latents (more than three channels) show their first three."""
    if samples.ndim == 2:
        return scatter(samples)
    return grid(samples if is_image(samples.shape[1:]) else samples[:, :3], columns)


def save_picture(samples: Tensor, file: str | Path, columns: int) -> None:
    """Saves samples as one picture; see `picture`."""
    picture(samples, columns).save(file)
