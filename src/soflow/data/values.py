"""The range of stored values: which of them become -1 and 1.

    x = 2 (value - low) / (high - low) - 1

Bytes are 0 to 255. Other values have a range that is found from them, if it is a usual one, or that
data.range sets.
"""

from collections.abc import Iterable

import numpy as np

from soflow.config.schema import Range
from soflow.errors import InputError

#: The largest values of 8, 10, 12, 14 and 16 bits.
FULL = (255, 1023, 4095, 16383, 65535)
#: Values that stay below this fraction of a range hardly use it: such images look black.
DARK = 0.25


def usual_range(low: float, high: float, whole: bool, where: str) -> Range:
    """The range that values between `low` and `high` have: that of a usual encoding.

    Args:
        low: The smallest value.
        high: The largest value.
        whole: Whether they are whole numbers.
        where: What messages call them.

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
        keep = "" if low < 0 or full is None else f", or data.range=[0,{full}] to keep them as dark"
        raise InputError(
            f"{found}, which is no usual range: set data.range=[{low:g},{high:g}] to make them "
            f"-1 to 1{keep}"
        )
    return (0.0, float(full))


def extremes(parts: Iterable[np.ndarray]) -> Range:
    """The smallest and the largest value of some arrays."""
    ends = [(float(part.min()), float(part.max())) for part in parts if part.size]
    return min(low for low, _ in ends), max(high for _, high in ends)


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values from `low` to `high` as bytes 0 to 255; beyond them they are clipped."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


def in_words(values: Range) -> str:
    return f"{values[0]:g} to {values[1]:g}"
