"""Pictures of samples: a grid of images, or plots of vectors and signals."""

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
    """Converts images (B, C, H, W) in [-1, 1] to bytes (B, H, W, C): clip(127.5 x + 128)."""
    pixels = (images.detach().float() * 127.5 + 128).clamp(0, 255)
    return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()


def is_image(shape: Sequence[int]) -> bool:
    """Whether a sample of this shape is an image of one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_pil(image: np.ndarray) -> Image.Image:
    """Converts one image (H, W, C) of bytes."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def grid(images: Sample, columns: int) -> Image.Image:
    """Arranges images in a grid. Small images are enlarged to at least 32 pixels."""
    pixels, gap, white = to_uint8(images), 2, 255
    scale, rows = max(1, 32 // min(pixels.shape[1:3])), -(-len(pixels) // columns)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    missing = rows * columns - len(pixels)
    cells = np.pad(pixels, ((0, missing), (gap, 0), (gap, 0), (0, 0)), constant_values=white)
    _, height, width, channels = cells.shape
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return to_pil(np.pad(sheet, ((0, gap), (0, gap), (0, 0)), constant_values=white))


def grid_columns(num: int, labels: Tensor | None = None, most: int = 10) -> int:
    """The number of columns for a grid of `num` samples, with few empty cells.

    If the labels (num,) repeat, each column has one class.
    """
    period = next((p for p in range(1, most + 1) if repeats(labels, p)), 1)
    wide = [n for n in range(most, most // 2, -1) if n % period == 0]
    return min(num, min(wide, key=lambda n: -num % n))


def repeats(labels: Tensor | None, period: int) -> bool:
    """Whether labels repeat after `period` samples."""
    return labels is None or bool((labels[period:] == labels[:-period]).all())


def png(picture: "Image.Image | Figure", dpi: int = 160) -> bytes:
    """Encodes an image, or a plot with this resolution, as PNG."""
    stream = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(stream, format="png")
    else:
        picture.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def shown_channels(samples: Tensor, like: Tensor) -> Tensor:
    """Scales the first three channels of samples (B, C, H, W), or the first one, to [-1, 1].

    The range of each channel is its 1st to 99th percentile in `like` (N, C, H, W).
    """
    count = shown_count(samples.shape[1])
    values = like[:, :count].transpose(0, 1).flatten(1).double().numpy()  # (count, B H W)
    low, high = np.quantile(values, [0.01, 0.99], axis=1)
    span = np.maximum(high - low, 1e-12)
    low, span = (torch.from_numpy(x).float().view(-1, 1, 1) for x in (low, span))
    return 2 * (samples[:, :count] - low) / span - 1


def about(shape: Sequence[int], names: Sequence[str]) -> str:
    """A sentence on how `picture` shows fields in the data's own units. Empty for other samples."""
    if len(shape) != 3 or (is_image(shape) and not names):
        return ""
    shown = names[: shown_count(shape[0])]
    which = f"{', '.join(shown)} ({len(shown)} of {shape[0]})"
    return f"Channels: {which}, each scaled to its 1st to 99th percentile."


def shown_count(channels: int) -> int:
    return 3 if channels > 2 else 1


def picture(
    samples: Tensor, columns: int = 10, names: Sequence[str] = (), real: Tensor | None = None
) -> Image.Image:
    """Makes a picture of samples. The kind of picture depends on their shape.

    Images are shown as a grid. Vectors are shown as a histogram, a scatter plot or a pair plot.
    Signals are shown as curves.

    Args:
        samples: Vectors (B, D), signals (B, C, L), or images (B, C, H, W). Images with one or three
            channels have values in [-1, 1].
        columns: Number of images or signals per row.
        names: Names of the columns or channels. Pass names for images only if their values are not
            in [-1, 1], such as physical fields: each channel is then shown on its own color scale,
            from its 1st to its 99th percentile.
        real: Real data with the shape of the samples. Vectors are drawn on top of them. For signals
            and fields they set the value ranges.

    Returns:
        A PIL image. Notebooks display it, and its method `save` writes it to a file.

    Raises:
        InputError: If there are no samples, if their shape is not one of the above, or if `columns`
            is below 1.

    Example:
        >>> import soflow
        >>> run = soflow.load("runs/digits")
        >>> soflow.picture(run.sample(20, progress=soflow.silent), columns=10).size
        (342, 70)
    """
    if not isinstance(samples, Tensor):
        samples = torch.from_numpy(np.asarray(samples))
    if not 2 <= samples.ndim <= 4 or not samples.numel():
        shapes = "[B, D], [B, C, L] or [B, C, H, W]"
        raise InputError(f"samples have shape {list(samples.shape)}: a picture needs {shapes}")
    if columns < 1:
        raise InputError(f"columns={columns}: it must be at least 1")
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
    """Saves a picture of samples, as `picture` makes it.

    Args:
        samples: Vectors (B, D), signals (B, C, L), or images (B, C, H, W). Images with one or three
            channels have values in [-1, 1].
        file: File to write. Its extension sets the format, such as `.png`.
        columns: Number of images or signals per row.
        names: Names of the columns or channels, as for `picture`.

    Raises:
        InputError: If `picture` cannot show the samples.

    Example:
        >>> import soflow, torch
        >>> soflow.save_picture(torch.rand(6, 3, 32, 32) * 2 - 1, "noise.png", columns=3)
    """
    picture(samples, columns, names).save(Path(file).expanduser())
