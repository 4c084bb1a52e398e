"""How similar two sets of samples are, by their features (N, d): pure functions in float64.

The inception score is torchmetrics'. The Frechet distance is our own: a published reference is a
mean and a covariance, and a matrix root that fails must say so. Torchmetrics lacks the measures of
neighbourhoods, and its kernel distance is slower. Only the FID network's features give FID.
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

#: Rows that are processed at once. Figures do not depend on how samples are batched.
ROWS = 1000
#: Subsets of the kernel distance (KID's protocol), and parts of the inception score.
KERNEL_SUBSETS, KERNEL_SUBSET = 100, 1000
SCORE_PARTS = 10
#: k of precision and recall as in ADM (arXiv 2105.05233), and k of density and coverage as in their
#: paper (arXiv 2002.09797).
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
#: A covariance has no eigenvalue below minus this times its largest one.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Moments of features (N, d), N of 2 or more, ROWS at a time."""

        def of_rows(rows: Tensor) -> Moments:
            x = rows.double()
            mean = x.mean(0)
            return Moments(mean, (x - mean).T @ (x - mean) / max(len(x) - 1, 1), len(x))

        return reduce(Moments.merged, map(of_rows, features.split(ROWS)))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together, without cancellation (Chan et al. 1983)."""
        a, b, n = self.count, other.count, self.count + other.count
        apart = other.mean - self.mean
        within = (a - 1) * self.covariance + (b - 1) * other.covariance
        scatter = within + torch.outer(apart, apart) * (a * b / n)
        return Moments(self.mean + apart * (b / n), scatter / (n - 1), n)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (d, d). Raises RunError if it has none."""
        values, vectors = eigen(self.covariance)
        return vectors * values.sqrt() @ vectors.T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a covariance (d, d). Raises RunError if it is invalid."""
    if not bool(matrix.isfinite().all()):
        raise RunError("the matrix square root does not exist: the covariance is not finite")
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise RunError(f"the matrix square root did not converge: {first_line(error)}") from None
    least, most = float(values.min()), float(values.max())
    if least < -TOLERANCE * max(most, 1e-12):
        raise RunError(f"no covariance: an eigenvalue is {least:.3g}, the largest {most:.3g}")
    return values.clamp(min=0), vectors


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance of two Gaussians, squared (as in FID).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), where tr (A B)^(1/2) is the sum of the roots of
    the eigenvalues of A^(1/2) B A^(1/2), which is symmetric. Raises RunError if there is no root.
    """
    product = b.root @ a.covariance @ b.root
    cross = eigen((product + product.T) / 2)[0].sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    return float((means + a.covariance.trace() + b.covariance.trace() - 2 * cross).clamp(min=0))


def spread_of_frechet(features: Tensor, reference: Moments, splits: int = 5) -> float:
    """The standard deviation of the Frechet distance of features (N, d), from their halves.

    Two halves of N/2 come from one distribution, so their distances differ by sqrt(2) deviations of
    N/2, which are sqrt(2) deviations of N: sd = rms(difference) / 2, over `splits` random halvings.
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
    """Seeds torch's global generator, which torchmetrics draws from, and hides its warnings."""
    with random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


class KernelDistance:
    """KID (arXiv 1801.01401): the squared maximum mean discrepancy to a reference, unbiased.

    The kernel is (x.y / d + 1)^3. Figures equal those of torchmetrics to rounding, and take less
    time: subsets overlap, and each pair is computed once.

    Args:
        reference: The features of the reference, (M, d).
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.double()
        self.within: dict[int, Tensor] = {}  # the reference's own terms, by the number of samples

    def __call__(self, features: Tensor) -> tuple[float, float]:
        """The distance of features (N, d): mean and standard deviation over random subsets."""
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
    """(x.y / d + 1)^3 of x (n, d) and y (m, d): (n, m)."""
    return (x @ y.T).mul_(1.0 / x.shape[1]).add_(1.0).pow_(3)


def kernel_sums(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The sum over i, j of kernel(x_i, y_j), for each subset of x and of y: (S,).

    Args:
        x: Points (n, d).
        y: Points (m, d).
        of_x: The indices of each subset of x, (S, k).
        of_y: The indices of each subset of y, (S, k).
    """
    if 3 * len(x) * len(y) > of_x.numel() * of_y.shape[1]:  # all pairs are more work than subsets
        return torch.stack([kernel(x[i], y[j]).sum() for i, j in zip(of_x, of_y, strict=True)])
    # All pairs once: the sum over a subset is a product with 0s and 1s.
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
    """The same within each subset of x, without pairs of a point with itself: (S,)."""
    alone = ((x**2).sum(1) / x.shape[1] + 1.0) ** 3
    return kernel_sums(x, x, of_x, of_x) - alone[of_x].sum(1)


def inception_score(logits: Tensor) -> tuple[float, float]:
    """exp E KL(p(class | x) || p(class)) of logits (N, classes) (arXiv 1606.03498).

    Returns mean and standard deviation over SCORE_PARTS.
    """
    from torchmetrics.image.inception import InceptionScore

    with seeded():
        metric = InceptionScore(feature=nn.Identity(), splits=min(SCORE_PARTS, len(logits) // 2))
        metric.update(logits.double())
        mean, spread = metric.compute()
    return float(mean), float(spread.nan_to_num())


def radii(points: Tensor, on_rows: Callable[[int], None] = lambda n: None) -> tuple[Tensor, Tensor]:
    """Distances (n,) of points (n, d) to the NEIGHBOURS-th and DENSITY_NEIGHBOURS-th nearest."""
    found, points = [], points.double()
    most = min(DENSITY_NEIGHBOURS + 1, len(points))  # the nearest is the point itself
    for rows in points.split(ROWS):
        found.append(torch.cdist(rows, points).topk(most, largest=False).values)
        on_rows(len(rows))
    nearest = torch.cat(found)
    return nearest[:, min(NEIGHBOURS, most - 1)], nearest[:, most - 1]


@dataclass(frozen=True)
class Neighbourhood:
    """How samples lie among real ones (arXiv 1904.06991, 2002.09797).

    The reach of a sample is the distance to its third nearest neighbour, or to its fifth for
    density and coverage.
    """

    precision: float  # the fraction of samples within reach of a real one
    recall: float  # the fraction of real ones within reach of a sample
    density: float  # the number of real ones within whose reach a sample is, relative to 5
    coverage: float  # the fraction of real ones with a sample in reach


def neighbourhood(
    features: Tensor,
    reference: Tensor,
    reference_radii: tuple[Tensor, Tensor] | None = None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> Neighbourhood:
    """Precision, recall, density and coverage.

    Args:
        features: (N, d).
        reference: (M, d).
        reference_radii: The `radii` of the reference, (M,) each, if they are known.
        on_rows: Called with the number of rows just finished, N + M in all.
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
    return Neighbourhood(
        precision=float(precise.double().mean()),
        recall=recalled / len(reference),
        density=within / (DENSITY_NEIGHBOURS * len(features)),
        coverage=covered / len(reference),
    )


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, x from a (N, d) and y from b (M, d).

    It is zero only for equal distributions. Pairs of a point with itself are left out, so two sets
    from one distribution give zero on average.
    """
    a, b = a.double(), b.double()
    within_a = torch.cdist(a, a).sum() / (len(a) * (len(a) - 1))
    within_b = torch.cdist(b, b).sum() / (len(b) * (len(b) - 1))
    return float(2 * torch.cdist(a, b).mean() - within_a - within_b)


def recognized(logits: Tensor, labels: Tensor) -> float:
    """The fraction of labelled samples whose likeliest class, by logits (N, classes), is theirs."""
    labelled = labels >= 0
    return float((logits.argmax(1) == labels)[labelled].double().mean())
