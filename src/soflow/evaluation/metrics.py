"""How alike two sets of samples are, by their features (N, d): pure functions in float64.

The inception score and the kernel distance are torchmetrics'. The Frechet distance is our own, since a published reference
is a mean and a covariance, and since the root must say when it fails; so are the measures of neighbourhoods, which it lacks.
None of these is FID unless the features are those of the FID network: see features.py.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from soflow.errors import RunError

#: Rows that are taken together; figures do not depend on how samples came in.
ROWS = 1000
#: Subsets of the kernel distance (KID's protocol), parts of the inception score, and neighbours: k of precision and recall
#: as in ADM (arXiv 2105.05233), k of density and coverage as in their paper (arXiv 2002.09797).
KERNEL_SUBSETS, KERNEL_SUBSET = 100, 1000
SCORE_PARTS = 10
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
#: Relative to the largest eigenvalue: below zero by more than this, a matrix was no covariance, or has no root.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Moments of features (N, d), N of 2 or more, worked out ROWS at a time."""
        total: Moments | None = None
        for rows in features.split(ROWS):
            x = rows.double()
            mean = x.mean(0)
            part = Moments(mean, (x - mean).T @ (x - mean) / max(len(x) - 1, 1), len(x))
            total = part if total is None else total.merged(part)
        assert total is not None
        return total

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub and LeVeque 1983), no large numbers being subtracted."""
        a, b, n = self.count, other.count, self.count + other.count
        apart = other.mean - self.mean
        scatter = (
            (a - 1) * self.covariance
            + (b - 1) * other.covariance
            + torch.outer(apart, apart) * (a * b / n)
        )
        return Moments(self.mean + apart * (b / n), scatter / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (d, d). Raises RunError where there is none."""
        values, vectors = eigen(self.covariance)
        return vectors * values.sqrt() @ vectors.T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and vectors of a symmetric matrix (d, d). Raises RunError where that cannot be had."""
    if not bool(matrix.isfinite().all()):
        raise RunError(
            "the matrix square root does not exist: the covariance holds values that are not finite"
        )
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise RunError(
            f"the matrix square root did not converge ({' '.join(str(error).split())[:100]})"
        ) from None
    if bool(values.min() < -TOLERANCE * values.max().clamp(min=1e-12)):
        raise RunError(
            f"the matrix square root does not exist: an eigenvalue is {float(values.min()):.3g}, the largest "
            f"{float(values.max()):.3g}, so this is no covariance"
        )
    return values.clamp(min=0), vectors


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)): the Frechet distance, squared, of two Gaussians (as in FID).

    tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric. Raises RunError where
    the root does not converge.
    """
    product = b.root @ a.covariance @ b.root
    cross = eigen((product + product.T) / 2)[0].sqrt().sum()
    distance = (
        (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    )
    return float(distance.clamp(min=0))


def spread_of_frechet(features: Tensor, reference: Moments, splits: int = 5) -> float:
    """The standard deviation of the Frechet distance of features (N, d), from their halves.

    Two halves of N/2 are drawn from one distribution, so their distances differ by sqrt(2) deviations of N/2, which are
    sqrt(2) deviations of N: sd = rms(difference) / 2, over `splits` random ways to halve.
    """
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(splits):
        shuffled = torch.randperm(len(features), generator=generator)
        one, two = (
            frechet_distance(Moments.of(features[half]), reference) for half in shuffled.chunk(2)
        )
        squares.append((one - two) ** 2)
    return (sum(squares) / splits) ** 0.5 / 2


@contextmanager
def seeded() -> Iterator[None]:
    """torchmetrics draws from torch's global generator, and warns of the memory that it takes."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """KID (arXiv 1801.01401): the squared maximum mean discrepancy by the kernel (x.y / d + 1)^3, unbiased.

    Of features (N, d) and a reference (M, d): mean and standard deviation over KERNEL_SUBSETS random subsets of
    KERNEL_SUBSET, or of all where there are fewer.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET, len(features), len(reference))
    with seeded():
        metric = KernelInceptionDistance(
            feature=nn.Identity(), subsets=KERNEL_SUBSETS, subset_size=size
        )
        metric.update(features.double(), real=False)
        metric.update(reference.double(), real=True)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def inception_score(logits: Tensor) -> tuple[float, float]:
    """exp E KL(p(class | x) || p(class)) of logits (N, classes) (arXiv 1606.03498): mean and deviation over SCORE_PARTS."""
    from torchmetrics.image.inception import InceptionScore

    with seeded():
        metric = InceptionScore(feature=nn.Identity(), splits=min(SCORE_PARTS, len(logits) // 2))
        metric.update(logits.double())
        mean, spread = metric.compute()
    return float(mean), float(spread.nan_to_num())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m) of a (n, d) and b (m, d)."""
    return torch.cdist(a, b)


def radii(points: Tensor, on_rows: Callable[[int], None] = lambda n: None) -> tuple[Tensor, Tensor]:
    """Of each point (n, d) the distances to its NEIGHBOURS-th and its DENSITY_NEIGHBOURS-th nearest other one, (n,) each."""
    found, points = [], points.double()
    most = min(DENSITY_NEIGHBOURS + 1, len(points))  # the nearest is the point itself
    for rows in points.split(ROWS):
        found.append(distances(rows, points).topk(most, largest=False).values)
        on_rows(len(rows))
    nearest = torch.cat(found)
    return nearest[:, min(NEIGHBOURS, most - 1)], nearest[:, most - 1]


@dataclass(frozen=True)
class Neighbourhood:
    """precision: the share of samples that lie within a real one's reach, the distance to its third nearest; recall: of real
    ones within a sample's (arXiv 1904.06991). density: how many real fifth-nearest reaches a sample lies in, of 5 expected;
    coverage: the share of real ones with a sample in reach (arXiv 2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhood(
    features: Tensor,
    reference: Tensor,
    reference_radii: tuple[Tensor, Tensor] | None = None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> Neighbourhood:
    """All four, of features (N, d) and a reference (M, d), whose `radii` (M,) may be known. `on_rows` hears of every row of
    N + M as it is done.
    """
    features, reference = features.double(), reference.double()
    real_reach, real_wide_reach = reference_radii or radii(reference)  # (M,) each
    reach, _ = radii(features, on_rows)  # (N,)
    precise = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    recalled, covered, within = 0.0, 0.0, 0.0
    for rows, near, wide in zip(
        reference.split(ROWS), real_reach.split(ROWS), real_wide_reach.split(ROWS), strict=True
    ):
        apart = distances(rows, features)  # (rows, N)
        precise |= (apart <= near[:, None]).any(0)
        recalled += float((apart <= reach).any(1).sum())
        in_reach = apart <= wide[:, None]
        covered += float(in_reach.any(1).sum())
        within += float(in_reach.sum())
        on_rows(len(rows))
    return Neighbourhood(
        precision=float(precise.double().mean()),
        recall=recalled / len(reference),
        density=within / (DENSITY_NEIGHBOURS * len(features)),
        coverage=covered / len(reference),
    )


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, x of a (N, d) and y of b (M, d): zero only for equal distributions.

    Pairs of a point with itself are left out, so two sets from one distribution give zero on average.
    """
    a, b = a.double(), b.double()
    within_a = torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))
    within_b = torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))
    return float(2 * torch.cdist(a, b).mean() - within_a - within_b)


def recognized(logits: Tensor, labels: Tensor) -> float:
    """The share of samples whose likeliest class, by logits (N, classes), is their label (N,)."""
    return float((logits.argmax(1) == labels).double().mean())
