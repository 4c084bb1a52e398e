"""Metrics that compare two sets of samples by their features (N, d): pure functions in float64.

The inception score comes from torchmetrics. The Frechet distance is implemented here, because
published references consist of a mean and a covariance only, and because a failing matrix square
root must raise an error. Torchmetrics has no precision, recall, density or coverage, and its kernel
distance is slower. The Frechet distance is FID only with the features `inception`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor, nn

from soflow.errors import RunError, first_line
from soflow.system.isolation import random_state_kept

#: Rows per block of a computation. Metrics do not depend on the batch size of samples.
ROWS = 1000
#: Number and size of the kernel distance's subsets (as in KID), and splits of the inception score.
KERNEL_SUBSETS, KERNEL_SUBSET = 100, 1000
SCORE_PARTS = 10
#: k of precision and recall as in ADM (arXiv 2105.05233). k of density and coverage as in the paper
#: that defines them (arXiv 2002.09797).
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
#: A valid covariance may have negative eigenvalues up to this fraction of its largest one.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Computes the moments of features (N, d), with N of at least 2, ROWS at a time."""

        def of_rows(rows: Tensor) -> Moments:
            x = rows.double()
            mean = x.mean(0)
            return Moments(mean, (x - mean).T @ (x - mean) / max(len(x) - 1, 1), len(x))

        return reduce(Moments.merged, map(of_rows, features.split(ROWS)))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of the union of two sets, without cancellation (Chan et al. 1983)."""
        a, b, n = self.count, other.count, self.count + other.count
        apart = other.mean - self.mean
        within = (a - 1) * self.covariance + (b - 1) * other.covariance
        scatter = within + torch.outer(apart, apart) * (a * b / n)
        return Moments(self.mean + apart * (b / n), scatter / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root (d, d) of the covariance. Raises RunError if none exists."""
        values, vectors = eigen(self.covariance)
        return vectors * values.sqrt() @ vectors.T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a covariance (d, d). Raises RunError if it is invalid."""
    if not bool(matrix.isfinite().all()):
        raise RunError("the covariance has NaN or infinite values: it has no matrix square root")
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise RunError(f"the matrix square root did not converge: {first_line(error)}") from None
    least, most = float(values.min()), float(values.max())
    if least < -TOLERANCE * max(most, 1e-12):
        raise RunError(
            f"the matrix is not a covariance: its smallest eigenvalue is {least:.3g}, "
            f"its largest {most:.3g}"
        )
    return values.clamp(min=0), vectors


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Frechet distance between two Gaussians, as in FID.

    It is |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). Here tr (A B)^(1/2) is the sum of the
    square roots of the eigenvalues of the symmetric matrix B^(1/2) A B^(1/2).

    Raises:
        RunError: If a covariance has no square root.
    """
    product = b.root @ a.covariance @ b.root
    cross = eigen((product + product.T) / 2)[0].sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return float((means + a.covariance.trace() + b.covariance.trace() - 2 * cross).clamp(min=0))


def spread_of_frechet(features: Tensor, reference: Moments, splits: int = 5) -> float:
    """Estimates the standard deviation of the Frechet distance of features (N, d).

    The features are split randomly into two halves, and the distance of each half is computed. The
    difference of two independent distances has sqrt(2) times the standard deviation of one. A
    distance from N/2 features has sqrt(2) times the standard deviation of one from N. So the
    estimate is rms(difference) / 2, over `splits` random splits.
    """
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(splits):
        halves = torch.randperm(len(features), generator=generator).chunk(2)
        one, two = (frechet_distance(Moments.of(features[half]), reference) for half in halves)
        squares.append((one - two) ** 2)
    return (sum(squares) / splits) ** 0.5 / 2


@contextmanager
def seeded() -> Iterator[None]:
    """Seeds the global generator that torchmetrics uses, and hides the warnings of torchmetrics."""
    with random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


class KernelDistance:
    """KID (arXiv 1801.01401): an unbiased estimate of the squared MMD to a reference.

    The kernel is (x.y / d + 1)^3. Results equal those of torchmetrics up to rounding. The
    computation is faster: subsets overlap, and each pair is computed only once.

    Args:
        reference: Features of the reference, (M, d).
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.double()
        self.within: dict[int, Tensor] = {}  # terms of the reference alone, by number of samples

    def __call__(self, features: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of the distance of features (N, d), over random subsets."""
        x, y = features.double(), self.reference
        m = min(KERNEL_SUBSET, len(x), len(y))
        with seeded():
            draws = [
                (torch.randperm(len(y))[:m], torch.randperm(len(x))[:m])
                for _ in range(KERNEL_SUBSETS)
            ]
        of_y, of_x = (torch.stack(subsets) for subsets in zip(*draws, strict=True))
        if len(x) not in self.within:
            self.within[len(x)] = kernel_within(y, of_y)
        within = self.within[len(x)] + kernel_within(x, of_x)
        found = within / (m * (m - 1)) - 2 * kernel_sums(x, y, of_x, of_y) / m**2
        return float(found.mean()), float(found.std(unbiased=False))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel matrix (x.y / d + 1)^3, (n, m), of x (n, d) and y (m, d)."""
    return (x @ y.T).mul_(1.0 / x.shape[1]).add_(1.0).pow_(3)


def kernel_sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The sums over i, j of kernel(x_i, y_j), (S,), for S pairs of subsets of x and y.

    Args:
        x: Points (n, d).
        y: Points (m, d).
        of_x: Indices of each subset of x, (S, k).
        of_y: Indices of each subset of y, (S, k).
    """
    if 3 * len(x) * len(y) > of_x.numel() * of_y.shape[1]:  # separate subsets are less work
        return torch.stack([kernel(x[i], y[j]).sum() for i, j in zip(of_x, of_y, strict=True)])
    # Compute all pairs once. The sum over a subset is then a product with a 0/1 matrix.
    in_x, in_y = (
        torch.zeros(len(of), len(points), dtype=points.dtype).scatter_(1, of, 1.0)
        for of, points in ((of_x, x), (of_y, y))
    )
    parts = [
        (chosen * (kernel(rows, y) @ in_y.T).T).sum(1)
        for rows, chosen in zip(x.split(ROWS), in_x.split(ROWS, 1), strict=True)
    ]
    return torch.stack(parts).sum(0)


def kernel_within(x: Tensor, of_x: Tensor) -> Tensor:
    """The sums (S,) of `kernel_sums` within each subset of x, without pairs of equal indices."""
    alone = ((x**2).sum(1) / x.shape[1] + 1.0) ** 3
    return kernel_sums(x, x, of_x, of_x) - alone[of_x].sum(1)


def inception_score(logits: Tensor) -> tuple[float, float]:
    """The inception score (arXiv 1606.03498), exp E KL(p(class | x) || p(class)).

    Args:
        logits: Class logits of the samples, (N, classes).

    Returns:
        Mean and standard deviation over at most SCORE_PARTS splits.
    """
    from torchmetrics.image.inception import InceptionScore

    with seeded():
        metric = InceptionScore(feature=nn.Identity(), splits=min(SCORE_PARTS, len(logits) // 2))
        metric.update(logits.double())
        mean, spread = metric.compute()
    return float(mean), float(spread.nan_to_num())


def radii(points: Tensor, on_rows: Callable[[int], None] = lambda n: None) -> tuple[Tensor, Tensor]:
    """Distances (n,) to the NEIGHBOURS-th and the DENSITY_NEIGHBOURS-th nearest neighbor."""
    found, points = [], points.double()
    most = min(DENSITY_NEIGHBOURS + 1, len(points))  # the nearest is the point itself
    for rows in points.split(ROWS):
        found.append(torch.cdist(rows, points).topk(most, largest=False).values)
        on_rows(len(rows))
    nearest = torch.cat(found)
    return nearest[:, min(NEIGHBOURS, most - 1)], nearest[:, most - 1]


@dataclass(frozen=True)
class Neighborhood:
    """Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    The radius of a point is the distance to its k-th nearest neighbor in its own set. k is
    NEIGHBOURS for precision and recall, and DENSITY_NEIGHBOURS for density and coverage.

    Attributes:
        precision: Fraction of samples within the radius of a real sample.
        recall: Fraction of real samples within the radius of a sample.
        density: Mean number of real samples whose radius contains a sample, divided by k.
        coverage: Fraction of real samples with a sample within their radius.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighborhood(
    features: Tensor,
    reference: Tensor,
    reference_radii: tuple[Tensor, Tensor] | None = None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> Neighborhood:
    """Computes precision, recall, density and coverage.

    Args:
        features: Features of the samples, (N, d).
        reference: Features of the real samples, (M, d).
        reference_radii: `radii` of the reference, (M,) each. Computed by default.
        on_rows: Called with the number of rows just finished, N + M in total.
    """
    features, reference = features.double(), reference.double()
    blocks = (one.split(ROWS) for one in (reference, *(reference_radii or radii(reference))))
    reach, _ = radii(features, on_rows)  # (N,)
    precise = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    recalled, covered, within = 0.0, 0.0, 0.0
    for rows, near, wide in zip(*blocks, strict=True):
        apart = torch.cdist(rows, features)  # (rows, N)
        precise |= (apart <= near[:, None]).any(0)
        recalled += float((apart <= reach).any(1).sum())
        in_reach = apart <= wide[:, None]
        covered += float(in_reach.any(1).sum())
        within += float(in_reach.sum())
        on_rows(len(rows))
    return Neighborhood(
        precision=float(precise.double().mean()),
        recall=recalled / len(reference),
        density=within / (DENSITY_NEIGHBOURS * len(features)),
        coverage=covered / len(reference),
    )


def energy_distance(a: Tensor, b: Tensor) -> float:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between points a (N, d) and b (M, d).

    For distributions, it is zero only if they are equal. The estimate is unbiased: pairs of a point
    with itself are excluded, so two sets from the same distribution give zero on average.
    """
    a, b = a.double(), b.double()
    within_a = torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))
    within_b = torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))
    return float(2 * torch.cdist(a, b).mean() - within_a - within_b)


def recognized(logits: Tensor, labels: Tensor) -> float:
    """The accuracy of logits (N, classes) on samples with labels (N,). Labels of -1 are ignored."""
    labelled = labels >= 0
    return float((logits.argmax(1) == labels)[labelled].double().mean())
