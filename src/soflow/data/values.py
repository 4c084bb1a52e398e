"""The range [low, high] of stored values, which is scaled to [-1, 1].

    x = 2 (value - low) / (high - low) - 1

Bytes have the range 0 to 255. For other values, data.range sets the range, or a usual range that
fits the values is chosen.
"""

from collections.abc import Iterable

import numpy as np

from soflow.config.schema import Range
from soflow.errors import InputError

#: The maximum values of 8, 10, 12, 14 and 16 bits.
FULL = (255, 1023, 4095, 16383, 65535)
#: Images whose values stay below this fraction of the range look black.
DARK = 0.25


def usual_range(low: float, high: float, whole: bool, where: str) -> Range:
    """The usual range for values between `low` and `high`.

    Args:
        low: The smallest value.
        high: The largest value.
        whole: Whether the values are integers.
        where: The name of the values in messages.

    Raises:
        InputError: If no usual range fits.
    """
    if 0 <= low <= high <= 1:
        return (0.0, 1.0)
    if -1 <= low < 0 and high <= 1 and not whole:
        return (-1.0, 1.0)
    full = next((value for value in FULL if high <= value), None)
    if low < 0 or full is None or (full == FULL[0] and high < DARK * full):
        found = f"{where} has values from {low:g} to {high:g}"
        keep = "" if low < 0 or full is None else f", or data.range=[0,{full}] to keep them dark"
        raise InputError(
            f"{found}, which is not a usual range: set data.range=[{low:g},{high:g}] to scale them "
            f"to -1 to 1{keep}"
        )
    return (0.0, float(full))


def extremes(parts: Iterable[np.ndarray]) -> Range:
    """The smallest and the largest value of several arrays."""
    ends = [(float(part.min()), float(part.max())) for part in parts if part.size]
    return min(low for low, _ in ends), max(high for _, high in ends)


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scales values from [low, high] to bytes 0 to 255. Values outside the range are clipped."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def in_words(values: Range) -> str:
    return f"{values[0]:g} to {values[1]:g}"
