"""Finds the array of labels in a file and converts it to classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from soflow.config.schema import DataConfig
from soflow.data.array_names import bare, of_split
from soflow.data.labels import USUAL_NAMES, Classes, are_few, classes_of, is_one_hot, without_gaps
from soflow.data.npz import Head, heads, load_array
from soflow.errors import InputError

#: numpy's default name of the second array in a .npz. By ADM's convention, it contains labels.
LABELS = "arr_1"


def labels_of(
    path: str,
    arrays: Mapping[str, Head],
    samples: str,
    head: Head,
    config: DataConfig,
    training: Mapping[str, Head],
) -> tuple[Classes, tuple[str, ...]]:
    """The class of each sample, and a note that names the array of labels.

    Raises:
        InputError: If several arrays may contain the labels, or the labels are not classes.
    """
    if not arrays:
        return Classes(None, (), "data.num_classes is 0"), ()
    key, named = label_array(path, arrays, samples, head.shape[0], config.label_column)
    listed = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
    if key is None:
        return Classes(None, (), f"{path} has no array of labels: its arrays are {listed}"), ()
    where, same = f"{path}, array {key},", of_split(key, training)
    values = load_labels(path, key)
    train_values = values if same in (None, key) else load_labels(path, str(same))
    trained = classes_of(list(train_values), (), where)
    found = trained if same in (None, key) else classes_of(list(values), trained.names, where)
    found = without_gaps(found, trained.labels or (), config.num_classes, where)
    if found.labels is None and named and key in training:
        raise InputError(f"{found.reason}: set data.num_classes=0 to train without classes")
    return found, () if found.labels is None else (f"labels: the array {key}",)


def load_labels(path: str, key: str) -> np.ndarray:
    """Reads an array of labels. Raises InputError if it cannot be read."""
    try:
        return load_array(Path(path), key)
    except InputError:
        if heads(Path(path))[key].dtype.hasobject:
            what = f"the array of labels '{key}' in {path} contains Python objects"
            raise InputError(f"{what}: save it as text, .astype(str), or as numbers") from None
        raise


def label_array(
    path: str, arrays: Mapping[str, Head], samples: str, count: int, named: str
) -> tuple[str | None, bool]:
    """The array of labels, if any, and whether its name or a setting identifies it."""
    fitting = {
        key: array for key, array in arrays.items()
        if key != samples and array.shape[:1] == (count,) and len(array.shape) <= 2
    }  # fmt: skip
    if named:
        named = of_split(named, arrays) or named
        if named not in fitting:
            raise InputError(
                f"data.label_column is '{named}', but {path} has no such array of {count:,} "
                f"labels: it has {', '.join(arrays)}"
            )
        return named, True
    usual = [key for key in fitting if bare(key) in USUAL_NAMES]
    for key, array in arrays.items():
        if bare(key) in USUAL_NAMES and key not in (*fitting, samples) and array.shape:
            shape = list(array.shape)
            raise InputError(
                f"{path} has {count:,} samples, but its array of labels '{key}' has shape {shape}: "
                "store one label per sample, or set data.num_classes=0"
            )
    whole = [
        key for key, array in fitting.items()
        if array.dtype.kind in "iu" and array.shape in ((count,), (count, 1))
        and key not in usual and (key == LABELS or are_few(load_array(Path(path), key)))
    ]  # fmt: skip
    hot = [
        key for key, array in fitting.items()
        if key not in (*usual, *whole) and len(array.shape) == 2
        and is_one_hot(load_array(Path(path), key))
    ]  # fmt: skip
    found = usual or whole or hot
    if len(found) > 1:
        raise InputError(
            f"{path} has several arrays that may be labels, {' and '.join(found)}: set "
            f"data.label_column={found[0]}, or data.num_classes=0 to train without labels"
        )
    return next(iter(found), None), bool(usual)
