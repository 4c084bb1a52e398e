"""Rows of an array as samples: read when they are needed, standardized or scaled on the way."""

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

#: Bytes that are looked at in one piece.
PIECE = 2**26
#: Larger values, and smaller standard deviations, do not fit into samples in float32.
LARGEST, SMALLEST = 1e37, 1e-37


class ArrayRows:
    """Samples (N, C, ...) in float32: (value - mean) / std of an array, which may be on the disk.

    Args:
        array: (N, ...) of any type of numbers.
        axes: The order of its axes as samples have them: (0, 3, 1, 2) for channels that come last.
        mean: One for each channel, (C,).
        std: One for each channel, (C,).
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
    """Statistics of an array (N, C, ...): per channel, (C,), and the extremes of all.

    The std of constant channels is 1.
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
    """Reads an array once for its statistics.

    Raises:
        InputError: If a value is not finite, by its row.
    """
    count, total, squares, lows, highs = 0, 0.0, 0.0, list[np.ndarray](), list[np.ndarray]()
    with progress(f"measuring {where}", len(array)) as task:
        for piece in pieces(array, axes):
            values = piece.astype(np.float64)
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            if bad.any():
                row = count + int(bad.argmax())
                raise InputError(f"{where} is not finite in row {row}: remove such rows")
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
    constant = low == high  # rounding gives them a small std
    if max(map(abs, ends)) > LARGEST or not bool(((std >= SMALLEST) | constant).all()):
        raise InputError(f"{where} has values beyond single precision: give them in other units")
    return Measured(np.where(constant, low, total), np.where(constant, 1.0, std), ends)


def rescaled(
    array: np.ndarray, axes: tuple[int, ...], mean: np.ndarray, std: np.ndarray, content: str
) -> tuple[ArrayRows, Scaling]:
    """Samples (value - mean) / std, and what restores their own units."""
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
    """Samples whose range of values has become -1 to 1."""
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
    """An array as samples.

    Images (N, C, H, W) get their usual range by default, vectors and signals are standardized.

    Args:
        array: The samples of one split.
        axes: The order of the axes of samples.
        asked: data.range.
        training: The samples of the split that is trained on, whose statistics count.
        content: A text that identifies the values.
        where: What messages call the array.

    Returns:
        The rows, what restores their own units, and a note on what was done.

    Raises:
        InputError: If values are not finite, or images have no usual range.
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
    values = usual_range(*found.ends, whole, where)  # refuses what looks nearly black
    values = (0.0, 255.0) if training.dtype == np.uint8 else values
    note = f"values {in_words(values)} are scaled to -1 to 1"
    return *ranged(array, axes, values, content), note
