"""Distances between two sets of samples, and how often samples are recognized.

None of these is FID: that name belongs to one network's features under one protocol.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Moments of features (N, d), N of 2 or more."""
        features = features.double()
        return Moments(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)): the Frechet distance, squared, of two Gaussians (as in FID).

    tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(distance.clamp(min=0))


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
