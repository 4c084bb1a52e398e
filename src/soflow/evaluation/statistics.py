"""Statistics by which sets of samples are compared, gathered without all images in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.evaluation.features import BATCH, Features, as_seen
from soflow.evaluation.metrics import ROWS, Moments
from soflow.system.progress import Task

#: Features kept of a reference, evenly spread, for figures that compare points: as many as ADM's
#: reference has images.
POINTS = 10_000
#: The same for coordinates: points whose energy distance is computed.
ENERGY_POINTS = 4000

#: Is called with the number of rows that were just finished.
OnRows = Callable[[int], None]


def ignore(rows: int) -> None:
    """Reports nothing."""


class Counter:
    """Reports the total of the rows that several steps finish."""

    def __init__(self, task: Task) -> None:
        self.task, self.done = task, 0

    def add(self, rows: int) -> None:
        self.done += rows
        self.task.update(self.done)


@dataclass(frozen=True)
class Statistics:
    """Statistics of samples."""

    count: int  # 0 if it is not known
    moments: Moments
    spatial: Moments | None
    points: Tensor  # the features of some or all samples, (n, d)
    logits: Tensor | None  # of the same samples, (n, classes)

    @staticmethod
    def of(points: Tensor) -> "Statistics":
        """Of features alone, (n, d)."""
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
    """Computes statistics of `count` samples, which do not depend on how they are batched.

    Args:
        parts: The samples, in parts (B, ...).
        features: The feature network.
        count: The number of samples.
        keep: How many points to keep of them; all by default.
        on_rows: Called with the number of samples just finished.

    Raises:
        InputError: If there are fewer than two samples, or the features cannot take them.
        RunError: If a sample holds NaN or infinity.
    """
    if count < 2:
        raise InputError(f"only {count} to compare: a distance needs 2 or more")
    kept = torch.linspace(0, count - 1, min(keep or count, count), dtype=torch.float64).long()
    moments: Moments | None = None
    spatial: Moments | None = None
    points, logits, done = [], [], 0
    seen = (as_seen(part, pixels=not features.columns) for part in parts)
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
    """The same rows in parts of `size`, the last one smaller."""
    rest: Tensor | None = None
    for part in parts:
        rest = part if rest is None else torch.cat([rest, part])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def merged(moments: Moments | None, values: Tensor | None) -> Moments | None:
    """The moments with those of more values, if there are any."""
    if values is None:
        return moments
    found = Moments.of(values)
    return found if moments is None else moments.merged(found)


def parts_of(dataset: Dataset) -> Iterator[Tensor]:
    """The samples of a data set in parts, (B, ...), in the data's own units."""
    for part in torch.arange(len(dataset)).split(BATCH):
        samples = dataset.samples(part)
        yield samples if dataset.scaling is None else dataset.scaling.restore(samples)
