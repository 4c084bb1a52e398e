"""Samples as pictures: images as a grid, vectors and signals as plots."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from soflow.errors import InputError
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
    scale, rows = max(1, 32 // min(pixels.shape[1:3])), -(-len(pixels) // columns)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    missing = rows * columns - len(pixels)
    cells = np.pad(pixels, ((0, missing), (gap, 0), (gap, 0), (0, 0)), constant_values=white)
    _, height, width, channels = cells.shape
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return to_pil(np.pad(sheet, ((0, gap), (0, gap), (0, 0)), constant_values=white))


def png(picture: "Image.Image | Figure", dpi: int = 160) -> bytes:
    """A picture, or a plot at `dpi`, as the content of a PNG file."""
    stream = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(stream, format="png")
    else:
        picture.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def shown_channels(samples: Tensor, like: Tensor) -> Tensor:
    """The first three channels, or one, of (B, C, H, W) as [-1, 1].

    Each covers the values between the 1st and the 99th percentile of that channel of `like`.
    """
    count = shown_count(samples.shape[1])
    values = like[:, :count].transpose(0, 1).flatten(1).double().numpy()  # (count, B H W)
    low, high = np.quantile(values, [0.01, 0.99], axis=1)
    span = np.maximum(high - low, 1e-12)
    low, span = (torch.from_numpy(x).float().view(-1, 1, 1) for x in (low, span))
    return 2 * (samples[:, :count] - low) / span - 1


def about(shape: Sequence[int], names: Sequence[str]) -> str:
    """How `picture` shows images in units of their own, in a sentence; nothing of others."""
    if len(shape) != 3 or (is_image(shape) and not names):
        return ""
    which = ", ".join(names[: shown_count(shape[0])])
    return f"Shown: {which} of {shape[0]}, each from its 1st to its 99th percentile."


def shown_count(channels: int) -> int:
    return 3 if channels > 2 else 1


def picture(
    samples: Tensor, columns: int = 10, names: Sequence[str] = (), real: Tensor | None = None
) -> Image.Image:
    """Samples as a picture that suits their shape. A notebook shows it, and it has `save`.

    Images are a grid; those with names of channels are in units of their own, see `about`. Vectors
    are a histogram, a scatter plot or a pair plot, signals are curves.

    Args:
        samples: (B, D), (B, C, L) or (B, C, H, W); images of one or three channels in -1 to 1.
        columns: How many images or signals are in a row.
        names: Of features or channels; see features.column_names.
        real: Real data like the samples: behind vectors, and for the ranges of the others.

    Returns:
        The picture.

    Raises:
        InputError: If there are no samples or no columns, or samples have another number of axes.

    Example:
        >>> import soflow
        >>> model = soflow.load("runs/digits")
        >>> soflow.picture(model.sample(20, progress=soflow.silent), columns=10).size
        (342, 70)
    """
    if not isinstance(samples, Tensor):
        samples = torch.from_numpy(np.asarray(samples))
    if not 2 <= samples.ndim <= 4 or not samples.numel():
        shapes = "[B, D], [B, C, L] or [B, C, H, W]"
        raise InputError(f"samples have shape {list(samples.shape)}: a picture takes {shapes}")
    if columns < 1:
        raise InputError(f"columns={columns}: a picture has at least one")
    columns = min(columns, len(samples))
    if is_image(samples.shape[1:]) and not names:
        return grid(samples, columns)
    if samples.ndim == 4:
        return grid(shown_channels(samples, samples if real is None else real), columns)
    from soflow.evaluation import sample_plots

    names = names or [str(i) for i in range(samples.shape[1])]
    if samples.ndim == 2:
        return to_picture(sample_plots.vectors(samples, names, real))
    return to_picture(sample_plots.curves(samples, columns, names, real))


def to_picture(figure: "Figure") -> Image.Image:
    return Image.open(io.BytesIO(png(figure, dpi=110)))


def save_picture(
    samples: Tensor, file: str | Path, columns: int = 10, names: Sequence[str] = ()
) -> None:
    """Saves samples as one picture, as `picture` shows them.

    Args:
        samples: (B, D), (B, C, L) or (B, C, H, W); images of one or three channels in -1 to 1.
        file: The file. Its ending says the format, such as .png.
        columns: How many images or signals are in a row.
        names: Of features or channels.

    Raises:
        InputError: As `picture`.

    Example:
        >>> import soflow, torch
        >>> soflow.save_picture(torch.rand(6, 3, 32, 32) * 2 - 1, "noise.png", columns=3)
    """
    picture(samples, columns, names).save(Path(file).expanduser())
