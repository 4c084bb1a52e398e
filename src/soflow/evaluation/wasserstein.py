"""Wasserstein distances of vectors, tables and signals: along directions, and column by column.

Of finite sets they are larger than of the distributions, and the more so the smaller the sets. So
all sets are compared at one `count`, and figures are means over up to PAIRS pairs of subsets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Directions of the sliced distance, or a few more: whole orthonormal bases.
DIRECTIONS = 256
#: Pairs of subsets, at most.
PAIRS = 10


def pairs(a: Tensor, b: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Random subsets (count, d) of a (N, d) and b (M, d), disjoint until a set is used up."""
    generator = torch.Generator().manual_seed(0)
    in_a, in_b = (
        points.double()[torch.randperm(len(points), generator=generator)].split(count)
        for points in (a, b)
    )
    of_a, of_b = len(a) // count, len(b) // count
    return [(in_a[i % of_a], in_b[i % of_b]) for i in range(min(max(of_a, of_b), PAIRS))]


def directions(d: int) -> Tensor:
    """Unit vectors in R^d, (DIRECTIONS or more, d): random orthonormal bases, always the same.

    Squared lengths of projections on a basis add up, so few bases are enough.
    """
    generator = torch.Generator().manual_seed(0)
    bases = -(-DIRECTIONS // d)
    random = torch.randn(bases, d, min(d, DIRECTIONS), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(random).Q.mT.reshape(-1, d)


def sliced_wasserstein(a: Tensor, b: Tensor, count: int) -> float:
    """The sliced Wasserstein-2 distance of points a (N, d) and b (M, d).

    It is the root mean square, over `directions`, of the W2 distance of the points projected on
    one. Of two distributions that differ by a shift it is |shift| / sqrt(d).
    """
    onto = directions(a.shape[1]).T  # (d, P)

    def squared(x: Tensor, y: Tensor) -> float:
        along_x, along_y = ((points @ onto).sort(0).values for points in (x, y))
        return float((along_x - along_y).square().mean())

    found = [squared(x, y) ** 0.5 for x, y in pairs(a, b, count)]
    return sum(found) / len(found)


def marginals(a: Tensor, b: Tensor, count: int, columns: Sequence[str]) -> dict[str, float]:
    """The Wasserstein-1 distance of the values of each column, by its name.

    Args:
        a: Points (N, d).
        b: Points (M, d).
        count: How many of each to compare.
        columns: Names. Each column has d / len(columns) features in a row, as channels have.
    """

    def values(points: Tensor) -> Tensor:
        return points.view(count, len(columns), -1).transpose(0, 1).flatten(1).sort(1).values

    found = [(values(x) - values(y)).abs().mean(1) for x, y in pairs(a, b, count)]
    return dict(zip(columns, torch.stack(found).mean(0).tolist(), strict=True))
