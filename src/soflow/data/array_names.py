"""Finds the array of samples in a file and the order of its axes."""

from collections.abc import Mapping

import numpy as np

from soflow.config.schema import DataConfig
from soflow.data.labels import USUAL_NAMES
from soflow.data.npz import Head
from soflow.data.splits import split_of
from soflow.errors import InputError

#: The kind of samples, and the possible dimensions of their array, by the length of data.shape.
#: The names of kinds are also names of recipes.
KINDS = {1: ("vectors", (1, 2)), 2: ("signals", (2, 3)), 3: ("images", (3, 4))}
#: Usual names of an array of samples, in lower case.
SAMPLES = ("images", "image", "x", "data", "samples", "features", "signals", "vectors", "latents",
           "arr_0", "arr")  # fmt: skip


def by_split(arrays: Mapping[str, Head]) -> dict[str, dict[str, Head]]:
    """The arrays of each split. If no name contains a split, all arrays belong to train."""
    named: dict[str, dict[str, Head]] = {}
    for key, array in arrays.items():
        found = [split for word in key.split("_") if (split := split_of(word))]
        if found:
            named.setdefault(found[0], {})[key] = array
    # If there are x and x_test, x belongs to train.
    held_out = {key for split in named.values() for key in split}
    same = {bare(key) for key in held_out}
    rest = {key: x for key, x in arrays.items() if key not in held_out and bare(key) in same}
    if rest and "train" not in named:
        named["train"] = rest
    return named or {"train": dict(arrays)}


def bare(key: str) -> str:
    """The name of an array in lower case, without the name of its split."""
    words = [word for word in key.lower().split("_") if not split_of(word)]
    return "_".join(words)


def of_split(key: str, arrays: Mapping[str, Head]) -> str | None:
    """The array in `arrays` that corresponds to `key`, the name of an array in any split."""
    same = [one for one in arrays if bare(one) == bare(key)]
    return key if key in arrays else next(iter(same), None)


def sample_array(arrays: Mapping[str, Head], config: DataConfig) -> str:
    """The array of samples: `data.image_column`, or found by name and shape.

    Raises:
        InputError: If no array fits, or several arrays fit.
    """
    kind, dimensions = KINDS[len(config.shape)]
    path, named = config.path, config.image_column
    named = of_split(named, arrays) or named if named else ""
    listed = ", ".join(f"{key} {array.dtype}{list(array.shape)}" for key, array in arrays.items())
    if named and named not in arrays:
        raise InputError(
            f"data.image_column is '{named}', but {path} has no such array: its arrays are {listed}"
        )
    numbers = {
        key: array for key, array in arrays.items()
        if array.dtype.kind in "biuf" and min(array.shape, default=0) > 0
    }  # fmt: skip
    fitting = [key for key, array in numbers.items() if len(array.shape) in dimensions]
    if named:
        if named not in fitting:
            raise InputError(
                f"the array '{named}' in {path} does not contain {kind}: its arrays are {listed}"
            )
        return named
    cond = cond_array(arrays, config)
    found = [key for key in fitting if bare(key) not in USUAL_NAMES and key != cond]
    narrower = (
        [key for key in found if bare(key) in SAMPLES or split_of(key)],
        [key for key in found if numbers[key].dtype == np.uint8 and kind == "images"],
        [key for key in found if len(numbers[key].shape) == dimensions[1]],
    )
    for fewer in narrower:
        found = fewer if len(found) > 1 and len(fewer) == 1 else found
    if len(found) > 1:
        several = " and ".join(found)
        raise InputError(
            f"{path} has several arrays of {kind}, {several}: set data.image_column={found[0]} "
            f"(its arrays are {listed})"
        )
    if found:
        return found[0]
    others = {
        name for name, sizes in KINDS.values() for x in numbers.values() if len(x.shape) in sizes
    }
    hint = "".join(
        f"; for {one}, use the recipe {one}" for one in sorted(others - {kind, "images"})
    )
    raise InputError(f"{path} has no {kind}: its arrays are {listed or 'none'}{hint}")


def cond_array(arrays: Mapping[str, Head], config: DataConfig) -> str | None:
    """The array of conditions, if any."""
    return of_split(config.cond_column, arrays) if config.cond_column else None


def axes_of(head: Head, wanted: tuple[int, ...], path: str) -> tuple[int, ...]:
    """The order of axes that turns an array into samples (N, C, ...).

    Channels are the second or the last axis. If data.shape does not decide, the smaller axis is
    chosen. If both have the same size, channels are last for bytes and second for other types.
    """
    shape = head.shape
    if len(shape) < 3 or (len(wanted) == 3 and len(shape) == 3):
        return (0, *range(1, len(shape)))
    last = (0, len(shape) - 1, *range(1, len(shape) - 1))
    second = tuple(range(len(shape)))
    fits = [
        axes for axes in (second, last)
        if all(b in (-1, shape[a]) for a, b in zip(axes[1:], wanted, strict=True))
    ]  # fmt: skip
    if len(fits) == 1:
        return fits[0]
    if shape[1] != shape[-1]:
        return second if shape[1] < shape[-1] else last
    return last if head.dtype == np.uint8 else second
