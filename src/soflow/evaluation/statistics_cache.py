"""The cache of a dataset's statistics: features of real data are computed once.

    $XDG_CACHE_HOME/soflow/statistics-VERSION-KEY.npz     a statistics file, named by its content

The key covers the samples, the feature network and what decides the last digits of features. Only
data whose content is known are cached.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, Rows, Subset, checksum
from soflow.errors import InputError, RunError
from soflow.evaluation.features import DEVICE, Features, dimensions
from soflow.evaluation.record import Reference
from soflow.evaluation.reference_files import describe_features, read_reference, write_reference
from soflow.evaluation.statistics import Statistics
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import fingerprint_of

#: Increase it when statistics of the same data change.
VERSION = 1


def cached_statistics(
    data: Dataset, features: Features, compute: Callable[[], Statistics]
) -> Statistics:
    """Reads the statistics of a dataset from the cache, or computes and caches them."""
    file = cache_file(data, features)
    if file is None:
        return compute()
    if file.is_file():
        with suppress(InputError):  # damaged
            found = read_reference(file, features, dimensions(features, data.shape), data.shape)
            if found is not None:
                return found[0]
    statistics = compute()
    about = Reference(dataset=data.name, split=data.split, count=len(data))
    with suppress(OSError, RunError):  # if the cache cannot be written, the next call computes
        file.parent.mkdir(parents=True, exist_ok=True)
        write_reference(file, statistics, features, about, data.shape)
    return statistics


def cache_file(data: Dataset, features: Features) -> Path | None:
    """The cache file of these statistics. None if they are not cached."""
    content = content_of(data.rows)
    if features.columns or content is None:
        return None
    where = f"{DEVICE.type} torch {torch.__version__}"
    used = describe_features(features).model_dump_json()
    key = fingerprint_of(f"{content} {list(data.shape)} {used} {where}")
    return cache_folder() / f"statistics-{VERSION}-{key}.npz"


def content_of(rows: Rows) -> str | None:
    """A text that identifies all rows. None if they change, or are too slow to read."""
    if isinstance(rows, Subset):
        content = content_of(rows.rows)
        return None if content is None else f"{content} {checksum(rows.indices)}"
    if isinstance(rows, Tensor):
        return f"{list(rows.shape)} {rows.dtype} {checksum(rows)}"
    recorded = getattr(rows, "checksums", None)
    if recorded is None or getattr(rows, "changing", False):
        return None
    return f"{list(rows.shape)} {rows.dtype} {' '.join(recorded)}"
