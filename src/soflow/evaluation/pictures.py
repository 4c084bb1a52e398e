"""Samples as pictures: images as a grid, vectors in the plane as a scatter plot."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from soflow.symbols import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def grid(images: Sample, columns: int) -> Image.Image:
    """Images side by side, `columns` per row; small ones are enlarged to at least 32 pixels."""
    pixels, gap, white = to_uint8(images), 2, 255
    scale, rows = max(1, 32 // pixels.shape[2]), -(-len(pixels) // columns)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    missing = rows * columns - len(pixels)
    cells = np.pad(pixels, ((0, missing), (gap, 0), (gap, 0), (0, 0)), constant_values=white)
    _, height, width, channels = cells.shape
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return to_pil(np.pad(sheet, ((0, gap), (0, gap), (0, 0)), constant_values=white))


def scatter(points: Tensor) -> Image.Image:
    """Points in the plane (first two coordinates)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.add_subplot()
    points = points.detach().cpu()
    axes.scatter(points[:, 0], points[:, 1], s=3, alpha=0.5, linewidths=0)
    axes.set_aspect("equal")
    return Image.open(io.BytesIO(png(figure, dpi=110)))


def png(picture: "Image.Image | Figure", dpi: int = 160) -> bytes:
    """A picture, or a plot at `dpi`, as the content of a PNG file."""
    stream = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(stream, format="png")
    else:
        picture.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def picture(samples: Tensor, columns: int) -> Image.Image:
    """Samples as a picture. Latents (more than three channels) show their first three."""
    if samples.ndim == 2:
        return scatter(samples)
    return grid(samples if is_image(samples.shape[1:]) else samples[:, :3], columns)


def save_picture(samples: Tensor, file: str | Path, columns: int) -> None:
    """Saves samples as one picture; see `picture`."""
    picture(samples, columns).save(file)
