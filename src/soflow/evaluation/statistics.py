"""Statistics of sets of samples, computed part by part to save memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.evaluation.features import BATCH, Features, as_uint8
from soflow.evaluation.metrics import ROWS, Moments
from soflow.system.progress import Task

#: Maximum number of evenly spaced features to keep of a reference, for metrics that compare points.
#: ADM's reference has as many images.
POINTS = 10_000
#: The same for coordinates, whose energy distance is computed from these points.
ENERGY_POINTS = 4000

#: A callback that receives the number of rows just finished.
OnRows = Callable[[int], None]


def ignore(rows: int) -> None:
    """Ignores the progress."""


class Counter:
    """Reports the total number of finished rows to a progress display."""

    def __init__(self, task: Task) -> None:
        self.task, self.done = task, 0

    def add(self, rows: int) -> None:
        self.done += rows
        self.task.update(self.done)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of samples."""

    count: int  # 0 if unknown
    moments: Moments
    spatial: Moments | None
    points: Tensor  # features of some or all samples, (n, d)
    logits: Tensor | None  # logits of the same samples, (n, classes)

    @staticmethod
    def of(points: Tensor) -> "Statistics":
        """Computes statistics from features (n, d) only."""
        return Statistics(len(points), Moments.of(points), None, points, None)

    @property
    def dimensions(self) -> int:
        return len(self.moments.mean)


def gather(
    parts: Iterable[Tensor],
    features: Features,
    count: int,
    keep: int | None = None,
    on_rows: OnRows = ignore,
) -> Statistics:
    """Computes statistics of `count` samples. They do not depend on the batch size.

    Args:
        parts: The samples in parts (B, ...).
        features: The feature network.
        count: The total number of samples.
        keep: Maximum number of points to keep. By default, all.
        on_rows: Called with the number of samples just finished.

    Raises:
        InputError: If there are fewer than two samples, or the feature network fails on them.
        RunError: If a sample is NaN or infinite.
    """
    if count < 2:
        raise InputError(f"a distance needs at least 2 samples, not {count}")
    kept = torch.linspace(0, count - 1, min(keep or count, count), dtype=torch.float64).long()
    moments: Moments | None = None
    spatial: Moments | None = None
    points, logits, done = [], [], 0
    seen = (as_uint8(part, pixels=not features.columns) for part in parts)
    for block in rebatched(seen, ROWS):
        found = []
        for part in block.split(BATCH):
            found.append(features(part))
            on_rows(len(part))
        values, scores, maps = (
            torch.cat(kind) if kind[0] is not None else None for kind in zip(*found, strict=True)
        )
        assert values is not None
        moments, spatial = merged(moments, values), merged(spatial, maps)
        here = kept[(kept >= done) & (kept < done + len(block))] - done
        points.append(values[here])
        if scores is not None:
            logits.append(scores[here])
        done += len(block)
    assert moments is not None
    assert done == count
    scores = torch.cat(logits) if logits else None
    return Statistics(count, moments, spatial, torch.cat(points), scores)


def rebatched(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroups rows into parts of `size`. The last part may be smaller."""
    rest: Tensor | None = None
    for part in parts:
        rest = part if rest is None else torch.cat([rest, part])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def merged(moments: Moments | None, values: Tensor | None) -> Moments | None:
    """The moments updated with more values, if any."""
    if values is None:
        return moments
    found = Moments.of(values)
    return found if moments is None else moments.merged(found)


def parts_of(dataset: Dataset) -> Iterator[Tensor]:
    """Reads a dataset in parts (B, ...), in its original units."""
    for part in torch.arange(len(dataset)).split(BATCH):
        samples = dataset.samples(part)
        yield samples if dataset.scaling is None else dataset.scaling.restore(samples)
