"""Wasserstein distances of vectors, tables and signals: sliced, and of single columns.

Distances between finite sets are biased upwards, and the bias grows as the sets get smaller.
Each comparison therefore uses `count` points of each set, and distances are means over up to PAIRS
pairs of subsets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: Minimum number of directions of the sliced distance. It is rounded up to full orthonormal bases.
DIRECTIONS = 256
#: Maximum number of pairs of subsets.
PAIRS = 10


def pairs(a: Tensor, b: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of random subsets (count, d) of a (N, d) and b (M, d), disjoint within a larger set."""
    generator = torch.Generator().manual_seed(0)
    in_a, in_b = (
        points.double()[torch.randperm(len(points), generator=generator)].split(count)
        for points in (a, b)
    )
    of_a, of_b = len(a) // count, len(b) // count
    return [(in_a[i % of_a], in_b[i % of_b]) for i in range(min(max(of_a, of_b), PAIRS))]


def directions(d: int) -> Tensor:
    """Unit vectors (P, d), with P of at least DIRECTIONS, from seeded random orthonormal bases.

    The squared projections on a basis add up to the squared length. A few bases therefore
    suffice.
    """
    generator = torch.Generator().manual_seed(0)
    bases = -(-DIRECTIONS // d)
    random = torch.randn(bases, d, min(d, DIRECTIONS), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(random).Q.mT.reshape(-1, d)


def sliced_wasserstein(a: Tensor, b: Tensor, count: int) -> float:
    """The sliced Wasserstein-2 distance between points a (N, d) and b (M, d).

    It is the root mean square, over `directions`, of the W2 distance between the projected points.
    For two distributions that differ by a shift, it is |shift| / sqrt(d).
    """
    onto = directions(a.shape[1]).T  # (d, P)

    def squared(x: Tensor, y: Tensor) -> float:
        along_x, along_y = ((points @ onto).sort(0).values for points in (x, y))
        return float((along_x - along_y).square().mean())

    found = [squared(x, y) ** 0.5 for x, y in pairs(a, b, count)]
    return sum(found) / len(found)


def marginals(a: Tensor, b: Tensor, count: int, columns: Sequence[str]) -> dict[str, float]:
    """The Wasserstein-1 distance of each column or channel, by name.

    Args:
        a: Points (N, d).
        b: Points (M, d).
        count: Number of points of each set to compare.
        columns: Names of columns or channels. Each has d / len(columns) consecutive features.
    """

    def values(points: Tensor) -> Tensor:
        return points.view(count, len(columns), -1).transpose(0, 1).flatten(1).sort(1).values

    found = [(values(x) - values(y)).abs().mean(1) for x, y in pairs(a, b, count)]
    return dict(zip(columns, torch.stack(found).mean(0).tolist(), strict=True))
