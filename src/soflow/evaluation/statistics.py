"""What is kept of a set of samples to compare it with another: gathered part by part, images never all in memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from soflow.data.dataset import Dataset
from soflow.errors import InputError
from soflow.evaluation.features import BATCH, DEVICE, Features, as_seen
from soflow.evaluation.metrics import (
    ROWS,
    Moments,
    energy_distance,
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbourhood,
    radii,
    recognized,
    spread_of_frechet,
)

#: Of a reference so many features are kept, evenly spread, for what compares points: as many as ADM's reference has images.
POINTS = 10_000
#: The same where features are compared as they are: points whose energy distance is worked out.
ENERGY_POINTS = 4000


@dataclass(frozen=True)
class Statistics:
    """Of `count` samples, 0 where that is not known: moments of all features, of the spatial ones where there are any; the
    features of some or all (n, d), and their logits (n, classes).
    """

    count: int
    moments: Moments
    spatial: Moments | None
    points: Tensor
    logits: Tensor | None

    @property
    def dimensions(self) -> int:
        return len(self.moments.mean)


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


def gather(
    parts: Iterable[Tensor],
    features: Features,
    count: int,
    keep: int | None = None,
    on_done: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Statistics of `count` samples, coming in parts (B, ...). keep: points kept of them, all by default.

    Raises InputError for fewer than two, or for what the features cannot take; RunError for samples that are no numbers.
    """
    if count < 2:
        raise InputError(
            f"there {'is' if count == 1 else 'are'} {count} to compare: a distance needs 2 or more"
        )
    kept = torch.linspace(0, count - 1, min(keep or count, count), dtype=torch.float64).long()
    moments: Moments | None = None
    spatial: Moments | None = None
    points, logits, done = [], [], 0
    for block in rebatched(map(as_seen, parts), ROWS):
        found = []
        for part in block.split(BATCH):
            found.append(features(part))
            on_done(done + sum(len(one.features) for one in found))
        values, scores, maps = (joined(one) for one in zip(*found, strict=True))
        assert values is not None
        moments = merged(moments, values)
        spatial = None if maps is None else merged(spatial, maps)
        here = kept[(kept >= done) & (kept < done + len(block))] - done
        points.append(values[here])
        if scores is not None:
            logits.append(scores[here])
        done += len(block)
    assert moments is not None
    assert done == count
    return Statistics(
        count, moments, spatial, torch.cat(points), torch.cat(logits) if logits else None
    )


def some(points: Tensor, count: int) -> Tensor:
    """`count` of the points (N, d), or all of them, whatever order they are in: classes in turn, or one after the other."""
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]]


def in_turn(labels: Tensor) -> Tensor:
    """Indices (N,) that take the first of each class, then the second of each, and so on."""
    by_class = labels.argsort(stable=True)
    sizes = labels[by_class].unique_consecutive(return_counts=True)[1]
    rank = torch.empty_like(labels)
    rank[by_class] = torch.cat([torch.arange(int(size)) for size in sizes])
    return rank.argsort(stable=True)


def joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def merged(moments: Moments | None, values: Tensor) -> Moments:
    found = Moments.of(values)
    return found if moments is None else moments.merged(found)


def parts_of(dataset: Dataset) -> Iterator[Tensor]:
    """The samples of a data set in parts, (B, ...)."""
    return (dataset.samples(part) for part in torch.arange(len(dataset)).split(BATCH))


@dataclass(frozen=True)
class Figures:
    """How a set of samples compares with a reference; None is what does not apply.

    distance: Frechet (FID where the features are FID's), or energy distance of coordinates, with a standard deviation from
    halves. spatial_distance: sFID. kernel_distance: KID. inception_score: of the features' classes. recognized: the share of
    samples that the features' classifier takes for their class. reliable: False where a Frechet distance rests on fewer
    samples, or fewer real ones, than there are dimensions.
    """

    distance: float
    distance_spread: float | None = None
    spatial_distance: float | None = None
    kernel_distance: float | None = None
    kernel_distance_spread: float | None = None
    inception_score: float | None = None
    inception_score_spread: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    recognized: float | None = None
    reliable: bool = True


@dataclass(frozen=True)
class Scorer:
    """Compares samples with a reference by some features. about: which reference that is; num_classes: of the samples."""

    features: Features
    reference: Statistics
    about: dict[str, Any]
    num_classes: int = 0

    @property
    def gaussian(self) -> bool:
        """Features of a network are compared as Gaussians; coordinates, which are anything but, by the energy distance."""
        return self.features.name != "coordinates"

    @cached_property
    def radii(self) -> tuple[Tensor, Tensor]:
        """Of the reference's points, (M,) each."""
        return radii(self.reference.points.to(DEVICE))

    def gather(
        self,
        parts: Iterable[Tensor],
        count: int,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> Statistics:
        return gather(
            parts, self.features, count, None if self.gaussian else ENERGY_POINTS, on_done
        )

    def distance(self, drawn: Statistics) -> float:
        if self.gaussian:
            return frechet_distance(drawn.moments, self.reference.moments)
        return energy_distance(drawn.points, self.reference.points)

    def distance_of_some(self, drawn: Statistics, count: int, labels: Tensor | None) -> float:
        """The distance of `count` samples alone, of all classes alike where there are labels (N,), as held-out data are."""
        points = (
            some(drawn.points, count) if labels is None else drawn.points[in_turn(labels)[:count]]
        )
        return self.distance(Statistics(len(points), Moments.of(points), None, points, None))

    def reliable(self, count: int) -> bool:
        return (
            not self.gaussian
            or min(count, self.reference.count or count) > self.reference.dimensions
        )

    def figures(
        self,
        drawn: Statistics,
        labels: Tensor | None,
        on_rows: Callable[[int], None] = lambda rows: None,
    ) -> Figures:
        """All there is; labels (N,): the classes that the samples were drawn of. `on_rows` as in metrics.neighbourhood."""
        own, other = drawn.points, self.reference.points
        near = (
            neighbourhood(own.to(DEVICE), other.to(DEVICE), self.radii, on_rows)
            if len(other) > 1
            else None
        )
        kernel = kernel_distance(own, other) if self.gaussian and len(other) > 1 else (None, None)
        logits, spatial, real_spatial = drawn.logits, drawn.spatial, self.reference.spatial
        score = (None, None) if logits is None else inception_score(logits)
        return Figures(
            distance=self.distance(drawn),
            distance_spread=spread_of_frechet(own, self.reference.moments)
            if self.gaussian and len(own) > 3
            else None,
            spatial_distance=frechet_distance(spatial, real_spatial)
            if spatial and real_spatial
            else None,
            kernel_distance=kernel[0],
            kernel_distance_spread=kernel[1],
            inception_score=score[0],
            inception_score_spread=score[1],
            **(asdict(near) if near else {}),
            recognized=recognized(logits, labels)
            if logits is not None and labels is not None and logits.shape[1] == self.num_classes
            else None,
            reliable=self.reliable(drawn.count),
        )


@dataclass(frozen=True)
class Baseline:
    """Real data in place of samples, and the scorer of them: another split's is that of the samples; else its reference lacks
    these very data.
    """

    data: Dataset
    scorer: Scorer
