"""The scorer compares samples with a reference by their features."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from soflow.data.conditions import rows_for
from soflow.data.dataset import Dataset
from soflow.drawing import Conditions, LabelDraw, draw_classes
from soflow.errors import InputError
from soflow.evaluation.features import Features
from soflow.evaluation.metrics import (
    KernelDistance,
    energy_distance,
    frechet_distance,
    inception_score,
    neighborhood,
    radii,
    recognized,
    spread_of_frechet,
)
from soflow.evaluation.record import Metrics, Reference
from soflow.evaluation.statistics import ENERGY_POINTS, OnRows, Statistics, gather, ignore
from soflow.evaluation.wasserstein import marginals, sliced_wasserstein
from soflow.solution import FlowModel


@dataclass(frozen=True)
class Scorer:
    """Compares samples with a reference, which `about` describes."""

    features: Features
    reference: Statistics
    about: Reference
    num_classes: int = 0

    @property
    def gaussian(self) -> bool:
        """Whether the metric is a Frechet distance. Coordinates use the energy distance."""
        return self.features.name != "coordinates"

    @cached_property
    def radii(self) -> tuple[Tensor, Tensor]:
        """Nearest-neighbor distances of the reference's points, (M,) each."""
        return radii(self.reference.points.to(self.features.device))

    @cached_property
    def kernel_distance(self) -> KernelDistance:
        """The kernel distance to the reference's points."""
        return KernelDistance(self.reference.points)

    def gather(self, parts: Iterable[Tensor], count: int, on_rows: OnRows = ignore) -> Statistics:
        """Computes the statistics of `count` samples, read in parts (B, ...)."""
        keep = None if self.gaussian else ENERGY_POINTS
        return gather(parts, self.features, count, keep, on_rows)

    def distance(self, statistics: Statistics) -> float:
        """The distance between samples and the reference."""
        if self.gaussian:
            return frechet_distance(statistics.moments, self.reference.moments)
        return energy_distance(statistics.points, self.reference.points)

    def distance_of_some(self, statistics: Statistics, count: int, labels: Tensor | None) -> float:
        """The distance of only `count` samples: a random subset, or balanced by labels (N,)."""
        points = statistics.points
        if labels is None:
            return self.distance(Statistics.of(random_subset(points, count)))
        return self.distance(Statistics.of(points[by_turns(labels)[:count]]))

    def reliable(self, count: int) -> bool:
        """Whether both `count` and the size of the reference exceed the feature dimensions."""
        least = min(count, self.reference.count or count)
        return not self.gaussian or least > self.reference.dimensions

    def metrics(
        self,
        statistics: Statistics,
        labels: Tensor | None,
        on_rows: OnRows = ignore,
        equal: int | None = None,
    ) -> Metrics:
        """Computes all metrics of a set of samples.

        Args:
            statistics: Statistics of the samples.
            labels: Labels that the samples were drawn for, (N,), or None.
            on_rows: Called with the number of rows just compared, of samples and reference.
            equal: Set size for Wasserstein distances, which depend on it. By default, the size of
                the smaller set.
        """
        own, other = statistics.points, self.reference.points
        logits, spatial = statistics.logits, statistics.spatial
        found: dict[str, float] = {}
        if len(other) > 1:
            device = self.features.device
            near = neighborhood(own.to(device), other.to(device), self.radii, on_rows)
            found |= asdict(near)
            if self.gaussian:
                kernel, kernel_spread = self.kernel_distance(own)
                found |= {"kernel_distance": kernel, "kernel_distance_spread": kernel_spread}
        if self.gaussian and len(own) > 3:
            found["distance_spread"] = spread_of_frechet(own, self.reference.moments)
        if spatial is not None and self.reference.spatial is not None:
            found["spatial_distance"] = frechet_distance(spatial, self.reference.spatial)
        if logits is not None:
            score, score_spread = inception_score(logits)
            found |= {"inception_score": score, "inception_score_spread": score_spread}
            if labels is not None and logits.shape[1] == self.num_classes:
                found["recognized"] = recognized(logits, labels)
        distance, reliable = self.distance(statistics), self.reliable(statistics.count)
        values = Metrics(distance=distance, reliable=reliable, **found)
        if not self.features.columns or not len(other):
            return values
        count = min(len(own), len(other), equal or len(own))
        columns = {
            "sliced_wasserstein": sliced_wasserstein(own, other, count),
            "marginals": marginals(own, other, count, self.features.columns),
        }
        return values.model_copy(update=columns)


def as_frequent(labels: Tensor, num: int, num_classes: int) -> Tensor:
    """Labels (num,) with the class frequencies of `labels` (N,). Labels of -1 are ignored."""
    known = labels[(labels >= 0) & (labels < num_classes)].sort().values
    return known[torch.linspace(0, len(known) - 1, num, dtype=torch.float64).round().long()]


def random_subset(points: Tensor, count: int) -> Tensor:
    """A random subset of the points (N, d). The first `count` might all belong to one class."""
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]]


def by_turns(labels: Tensor) -> Tensor:
    """Indices (N,): the first sample of each class, then the second of each class, and so on."""
    by_class = labels.argsort(stable=True)
    sizes = labels[by_class].unique_consecutive(return_counts=True)[1]
    rank = torch.empty_like(labels)
    rank[by_class] = torch.cat([torch.arange(int(size)) for size in sizes])
    return rank.argsort(stable=True)


@dataclass(frozen=True)
class Baseline:
    """Held-out real data, scored like samples, and a scorer whose reference excludes them."""

    data: Dataset
    scorer: Scorer


@dataclass(frozen=True)
class Scoring:
    """A scorer, and the real data that an evaluation needs."""

    scorer: Scorer
    baseline: Baseline | None = None
    points: Dataset | None = None  # model inputs for the diagnostics, such as latents
    labels: Tensor | None = None  # labels of the reference, (N,), if its classes are the run's
    conditions: Dataset | None = None  # source of the conditions for samples

    def frequent(self, num: int, num_classes: int) -> Tensor | None:
        """Labels (num,) with the class frequencies of the reference, or None for images.

        Metrics of tables, vectors and signals compare whole distributions, so a class must be as
        frequent among the samples as in the reference.
        """
        if self.labels is None or not self.scorer.features.columns:
            return None
        return as_frequent(self.labels, num, num_classes)

    def draw_classes(
        self, how: LabelDraw | None, num: int, num_classes: int, seed: int = 0
    ) -> tuple[Tensor | None, str]:
        """Chooses labels (num,) for samples, and describes how. `frequent` is the default."""
        if not num_classes:
            return None, "none"
        if how is None and (labels := self.frequent(num, num_classes)) is not None:
            return labels, "as frequent as in the reference"
        how = how or "balanced"
        return draw_classes(how, num, num_classes, seed), how

    def draw_inputs(
        self, how: LabelDraw | None, num: int, model: FlowModel, seed: int = 0
    ) -> tuple[Tensor | None, Conditions | None, str]:
        """Chooses labels (num,) and conditions for samples, and describes how.

        Conditions come from rows of the dataset, together with the labels of these rows.

        Raises:
            InputError: If `how` is given, but the labels are fixed by the conditions.
        """
        if self.conditions is None:
            labels, how_chosen = self.draw_classes(how, num, model.num_classes, seed)
            return labels, None, how_chosen
        if how is not None:
            raise InputError(
                f"labels={how} cannot be used for this run, whose samples take conditions and "
                "labels from the data: remove it"
            )
        classes = model.num_classes
        labels, cond = rows_for(self.conditions, num, classes, model.null_trained)
        data = f"{self.conditions.name}, {self.conditions.split}"
        return labels, cond, f"from the rows of {data}, with their conditions"

    def equal_count(self, num: int) -> int:
        """The set size for Wasserstein distances: the size of the smallest set."""
        sizes = [num, ENERGY_POINTS, len(self.scorer.reference.points)]
        if self.baseline is not None:
            sizes += [len(self.baseline.data), len(self.baseline.scorer.reference.points)]
        return min(sizes)
