"""Rows of an array as samples: read on demand, and standardized or scaled while reading."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soflow.config.schema import AskedRange, Range
from soflow.data.dataset import Scaling
from soflow.data.values import in_words, usual_range
from soflow.errors import InputError
from soflow.system.progress import Progress, track

#: Bytes that are read at once.
PIECE = 2**26
#: The limits of values and standard deviations that float32 samples can represent.
LARGEST, SMALLEST = 1e37, 1e-37


class ArrayRows:
    """Samples (value - mean) / std (N, C, ...) in float32 of an array, which may be on disk.

    Args:
        array: Numbers of any type, (N, ...).
        axes: The order of axes that gives (N, C, ...), such as (0, 3, 1, 2) if channels are last.
        mean: The mean per channel, (C,).
        std: The standard deviation per channel, (C,).
        content: A text that identifies the values.
    """

    dtype = torch.float32

    def __init__(
        self,
        array: np.ndarray,
        axes: tuple[int, ...],
        mean: np.ndarray,
        std: np.ndarray,
        content: str,
    ) -> None:
        self.array, self.axes = array, axes
        self.shape = tuple(array.shape[axis] for axis in axes)
        channels = (-1, *[1] * (array.ndim - 2))
        self.mean, self.std = mean.reshape(channels), std.reshape(channels)
        self.checksums = (content, str(axes), str(mean.tolist()), str(std.tolist()))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), as (n, C, ...) in memory."""
        values = self.array[which.numpy()].transpose(self.axes).astype(np.float64)
        return torch.from_numpy(((values - self.mean) / self.std).astype(np.float32))


@dataclass(frozen=True)
class Measured:
    """Statistics of an array (N, C, ...): mean and std per channel, (C,), and the overall range.

    The std of a constant channel is 1.
    """

    mean: np.ndarray
    std: np.ndarray
    ends: Range


def pieces(array: np.ndarray, axes: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The samples (n, C, ...) of an array, in pieces of 64 MiB."""
    step = max(1, PIECE // max(1, array[:1].nbytes))
    for first in range(0, len(array), step):
        yield array[first : first + step].transpose(axes)


def measure(
    array: np.ndarray, axes: tuple[int, ...], where: str, progress: Progress = track
) -> Measured:
    """Reads an array once and computes its statistics.

    Raises:
        InputError: If a value is not finite or exceeds single precision.
    """
    count, total, squares, lows, highs = 0, 0.0, 0.0, list[np.ndarray](), list[np.ndarray]()
    with progress(f"measuring {where}", len(array)) as task:
        for piece in pieces(array, axes):
            values = piece.astype(np.float64)
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            if bad.any():
                row = count + int(bad.argmax())
                raise InputError(f"{where} has non-finite values in row {row}: remove such rows")
            across = (0, *range(2, values.ndim))
            weight = len(values) / (count + len(values))
            with np.errstate(over="ignore", invalid="ignore"):
                mean = values.mean(across)
                shift = mean - total
                spread = values.var(across) + shift**2 * (1 - weight)
                total, squares = total + weight * shift, squares + weight * (spread - squares)
            lows.append(values.min(across))
            highs.append(values.max(across))
            count += len(values)
            task.update(count)
    low, high, std = np.min(lows, 0), np.max(highs, 0), np.sqrt(squares)
    ends = (float(low.min()), float(high.max()))
    constant = low == high  # their computed std may be small but not 0, due to rounding
    if max(map(abs, ends)) > LARGEST or not bool(((std >= SMALLEST) | constant).all()):
        raise InputError(f"{where} has values beyond single precision: convert them to other units")
    return Measured(np.where(constant, low, total), np.where(constant, 1.0, std), ends)


def rescaled(
    array: np.ndarray, axes: tuple[int, ...], mean: np.ndarray, std: np.ndarray, content: str
) -> tuple[ArrayRows, Scaling]:
    """Samples (value - mean) / std, and the scaling that restores the original units."""
    scaling = Scaling(tuple(mean.tolist()), tuple(std.tolist()))
    return ArrayRows(array, axes, mean, std, content), scaling


def standardized(
    array: np.ndarray, axes: tuple[int, ...], found: Measured, content: str
) -> tuple[ArrayRows, Scaling]:
    """Samples with mean 0 and variance 1 in each channel."""
    return rescaled(array, axes, found.mean, found.std, content)


def ranged(
    array: np.ndarray, axes: tuple[int, ...], values: Range, content: str
) -> tuple[ArrayRows, Scaling]:
    """Samples whose range of values is scaled to [-1, 1]."""
    channels = array.shape[axes[1]]
    middle, half = (values[0] + values[1]) / 2, (values[1] - values[0]) / 2
    mean, std = np.full(channels, middle), np.full(channels, half)
    return rescaled(array, axes, mean, std, content)


def scaled_rows(
    array: np.ndarray,
    axes: tuple[int, ...],
    asked: AskedRange,
    training: np.ndarray,
    content: str,
    where: str,
) -> tuple[ArrayRows, Scaling, str]:
    """Scales or standardizes an array for use as samples.

    By default, images (N, C, H, W) are scaled from their usual range, and vectors and signals are
    standardized.

    Args:
        array: The samples of one split.
        axes: The order of axes that gives (N, C, ...).
        asked: The range of values, `data.range`.
        training: The samples of the training split, whose statistics are used.
        content: A text that identifies the values.
        where: The name of the array in messages.

    Returns:
        The rows, the scaling that restores the original units, and a note for messages.

    Raises:
        InputError: If values are not finite, or the range of images is not a usual one.
    """
    if not isinstance(asked, str):
        note = f"values {in_words(asked)} are scaled to -1 to 1"
        return *ranged(array, axes, asked, content), note
    found = measure(training, axes, where)
    if asked == "standardize" or array.ndim != 4:
        note = f"values {in_words(found.ends)} are standardized: mean 0, variance 1 per "
        note += "channel" if array.ndim > 2 else "column"
        return *standardized(array, axes, found, content), note
    whole = training.dtype.kind in "biu"
    values = usual_range(*found.ends, whole, where)  # raises for nearly black images
    values = (0.0, 255.0) if training.dtype == np.uint8 else values
    note = f"values {in_words(values)} are scaled to -1 to 1"
    return *ranged(array, axes, values, content), note
