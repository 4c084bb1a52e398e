"""The scorer compares samples with a reference, by the features of a network."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from soflow.data.conditions import rows_for
from soflow.data.dataset import Dataset
from soflow.drawing import Conditions, LabelDraw, draw_classes
from soflow.errors import InputError
from soflow.evaluation.features import DEVICE, Features
from soflow.evaluation.metrics import (
    KernelDistance,
    energy_distance,
    frechet_distance,
    inception_score,
    neighbourhood,
    radii,
    recognized,
    spread_of_frechet,
)
from soflow.evaluation.record import Figures, Reference
from soflow.evaluation.statistics import ENERGY_POINTS, OnRows, Statistics, gather, ignore
from soflow.evaluation.wasserstein import marginals, sliced_wasserstein
from soflow.solution import FlowModel


@dataclass(frozen=True)
class Scorer:
    """Compares samples with a reference, which `about` names."""

    features: Features
    reference: Statistics
    about: Reference
    num_classes: int = 0

    @property
    def gaussian(self) -> bool:
        """Whether features are compared as Gaussians. Coordinates, by energy distance, are not."""
        return self.features.name != "coordinates"

    @cached_property
    def radii(self) -> tuple[Tensor, Tensor]:
        """Of the reference's points, (M,) each."""
        return radii(self.reference.points.to(DEVICE))

    @cached_property
    def kernel_distance(self) -> KernelDistance:
        """To the reference's points."""
        return KernelDistance(self.reference.points)

    def gather(self, parts: Iterable[Tensor], count: int, on_rows: OnRows = ignore) -> Statistics:
        """Computes the statistics of `count` samples, which come in parts (B, ...)."""
        keep = None if self.gaussian else ENERGY_POINTS
        return gather(parts, self.features, count, keep, on_rows)

    def distance(self, statistics: Statistics) -> float:
        """The distance of samples to the reference."""
        if self.gaussian:
            return frechet_distance(statistics.moments, self.reference.moments)
        return energy_distance(statistics.points, self.reference.points)

    def distance_of_some(self, statistics: Statistics, count: int, labels: Tensor | None) -> float:
        """The distance of `count` samples alone; with labels (N,), of equally many per class."""
        points = statistics.points
        if labels is None:
            return self.distance(Statistics.of(random_subset(points, count)))
        return self.distance(Statistics.of(points[by_turns(labels)[:count]]))

    def reliable(self, count: int) -> bool:
        """Whether a distance of `count` samples rests on more samples than dimensions."""
        least = min(count, self.reference.count or count)
        return not self.gaussian or least > self.reference.dimensions

    def figures(
        self,
        statistics: Statistics,
        labels: Tensor | None,
        on_rows: OnRows = ignore,
        equal: int | None = None,
    ) -> Figures:
        """All figures of a set of samples.

        Args:
            statistics: Of the samples.
            labels: The classes that they were drawn for, (N,), if they have any.
            on_rows: Called with the number of rows of samples and reference just compared.
            equal: How many of each set to compare where figures depend on it; the smaller set's
                number by default.
        """
        own, other = statistics.points, self.reference.points
        logits, spatial = statistics.logits, statistics.spatial
        found: dict[str, float] = {}
        if len(other) > 1:
            near = neighbourhood(own.to(DEVICE), other.to(DEVICE), self.radii, on_rows)
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
        values = Figures(distance=distance, reliable=reliable, **found)
        if not self.features.columns or not len(other):
            return values
        count = min(len(own), len(other), equal or len(own))
        columns = {
            "sliced_wasserstein": sliced_wasserstein(own, other, count),
            "marginals": marginals(own, other, count, self.features.columns),
        }
        return values.model_copy(update=columns)


def as_frequent(labels: Tensor, num: int, num_classes: int) -> Tensor:
    """Labels (num,) as frequent as in `labels` (N,), of which -1 is left out."""
    known = labels[(labels >= 0) & (labels < num_classes)].sort().values
    return known[torch.linspace(0, len(known) - 1, num, dtype=torch.float64).round().long()]


def random_subset(points: Tensor, count: int) -> Tensor:
    """`count` of the points (N, d) or all of them: not the first, which may be of one class."""
    if len(points) <= count:
        return points
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]]


def by_turns(labels: Tensor) -> Tensor:
    """Indices (N,) of the first sample of each class, then of the second of each, and so on."""
    by_class = labels.argsort(stable=True)
    sizes = labels[by_class].unique_consecutive(return_counts=True)[1]
    rank = torch.empty_like(labels)
    rank[by_class] = torch.cat([torch.arange(int(size)) for size in sizes])
    return rank.argsort(stable=True)


@dataclass(frozen=True)
class Baseline:
    """Real data in place of samples, and a scorer whose reference does not contain them."""

    data: Dataset
    scorer: Scorer


@dataclass(frozen=True)
class Scoring:
    """What samples are scored against."""

    scorer: Scorer
    baseline: Baseline | None = None
    points: Dataset | None = None  # data as the model sees them, for the diagnostics
    labels: Tensor | None = None  # of the reference, (N,), if its classes are the run's
    conditions: Dataset | None = None  # data whose conditions samples are drawn for

    def frequent(self, num: int, num_classes: int) -> Tensor | None:
        """Labels (num,) as frequent as in the reference, of what is not a picture; else None.

        Rows of a table are compared with all others, so rare classes must be rare among samples.
        """
        if self.labels is None or not self.scorer.features.columns:
            return None
        return as_frequent(self.labels, num, num_classes)

    def draw_classes(
        self, how: LabelDraw | None, num: int, num_classes: int, seed: int = 0
    ) -> tuple[Tensor | None, str]:
        """Labels of samples, (num,), and how they are chosen: by default see `frequent`."""
        if not num_classes:
            return None, "none"
        if how is None and (labels := self.frequent(num, num_classes)) is not None:
            return labels, "as frequent as in the reference"
        how = how or "balanced"
        return draw_classes(how, num, num_classes, seed), how

    def draw_inputs(
        self, how: LabelDraw | None, num: int, model: FlowModel, seed: int = 0
    ) -> tuple[Tensor | None, Conditions | None, str]:
        """Labels (num,) and conditions of samples, and how they are chosen.

        Samples given conditions have those of rows of the data, and their labels.

        Raises:
            InputError: If `how` is given for labels that belong to conditions.
        """
        if self.conditions is None:
            labels, how_chosen = self.draw_classes(how, num, model.num_classes, seed)
            return labels, None, how_chosen
        if how is not None:
            raise InputError(
                f"labels={how}: samples of this run are drawn for the conditions of the data, with "
                "their labels; leave it out"
            )
        classes = model.num_classes
        labels, cond = rows_for(self.conditions, num, classes, model.null_trained)
        data = f"{self.conditions.name}, {self.conditions.split}"
        return labels, cond, f"with conditions of the rows of {data}"

    def equal_count(self, num: int) -> int:
        """Of how many samples Wasserstein distances are: as many as the smallest set has."""
        sizes = [num, ENERGY_POINTS, len(self.scorer.reference.points)]
        if self.baseline is not None:
            sizes += [len(self.baseline.data), len(self.baseline.scorer.reference.points)]
        return min(sizes)
