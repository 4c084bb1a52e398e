"""The cache of a dataset's statistics: features of real data are computed once.

    $XDG_CACHE_HOME/soflow/statistics-VERSION-KEY.npz     a statistics file, named by its content

The key covers the samples, the feature network, and the device type and the version of torch, which
change rounding. Only features of images whose content is known are cached.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, Rows, Subset, checksum
from soflow.errors import InputError, RunError
from soflow.evaluation.features import Features, dimensions
from soflow.evaluation.record import Reference
from soflow.evaluation.reference_files import describe_features, read_reference, write_reference
from soflow.evaluation.statistics import POINTS, Statistics
from soflow.system.cache import cache_folder
from soflow.system.fingerprints import checksum_of, fingerprint_of

#: Increase it when statistics of the same data change.
VERSION = 1
#: Rows per part of a checksum.
CHUNK = 4096


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
            if found is not None and fits(found[0], len(data)):
                return found[0]
    statistics = compute()
    about = Reference(dataset=data.name, split=data.split, count=len(data))
    with suppress(OSError, RunError):  # if the cache cannot be written, the next call computes
        file.parent.mkdir(parents=True, exist_ok=True)
        write_reference(file, statistics, features, about, data.shape)
    return statistics


def fits(statistics: Statistics, count: int) -> bool:
    """Whether statistics are complete for a dataset of `count` samples."""
    return statistics.count == count and len(statistics.points) == min(POINTS, count)


def cache_file(data: Dataset, features: Features) -> Path | None:
    """The cache file of these statistics. None if they are not cached."""
    images = data.encoder is None and data.scaling is None and features.name != "coordinates"
    content = content_of(data.rows) if images else None
    if content is None:
        return None
    where = f"{features.device.type} torch {torch.__version__}"
    used = describe_features(features).model_dump_json()
    key = fingerprint_of(f"{content} {list(data.shape)} {used} {where}")
    return cache_folder() / f"statistics-{VERSION}-{key}.npz"


def content_of(rows: Rows) -> str | None:
    """A text that identifies all rows. None if they change, or are too slow to read."""
    if isinstance(rows, Subset):
        content = content_of(rows.rows)
        return None if content is None else f"{content} {checksum(rows.indices)}"
    if isinstance(rows, Tensor):
        plain = rows.device.type == "cpu" and rows.dtype in (torch.uint8, torch.float32)
        if not plain or rows.requires_grad:
            return None
        parts = (part.contiguous().numpy().tobytes() for part in rows.split(CHUNK))
        return f"{list(rows.shape)} {rows.dtype} {checksum_of(parts)}"
    recorded = getattr(rows, "checksums", None)
    if recorded is None or getattr(rows, "changing", False):
        return None
    return f"{list(rows.shape)} {rows.dtype} {' '.join(recorded)}"
