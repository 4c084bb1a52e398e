"""Metrics compared with theory, brute force and other libraries."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from soflow.errors import RunError
from soflow.evaluation.metrics import (
    KernelDistance,
    Moments,
    energy_distance,
    frechet_distance,
    inception_score,
    neighborhood,
    recognized,
    spread_of_frechet,
)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_moments(seed, d=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return Moments(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T, 1000)


def test_the_frechet_distance_of_isotropic_gaussians_equals_its_closed_form():
    d, one, two = 5, 1.5, 0.4
    a = Moments(torch.zeros(d, dtype=torch.float64), one**2 * torch.eye(d, dtype=torch.float64), 10)
    b = Moments(
        torch.full((d,), 2.0, dtype=torch.float64), two**2 * torch.eye(d, dtype=torch.float64), 10
    )
    assert frechet_distance(a, b) == pytest.approx(d * 4 + d * (one - two) ** 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_frechet_distance_equals_scipys_matrix_square_root(seed):
    a, b = random_moments(seed), random_moments(seed + 10)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = float((a.mean - b.mean).square().sum()) + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_moments_equal_numpy_also_for_one_feature():
    for d in (1, 4):
        features = torch.randn(50, d)
        moments = Moments.of(features)
        np.testing.assert_allclose(
            moments.covariance.numpy(), np.cov(features.double().numpy().T).reshape(d, d)
        )
        np.testing.assert_allclose(moments.mean.numpy(), features.double().numpy().mean(0))


def test_the_energy_distance_of_two_gaussians_in_closed_form():
    """For a mean of m deviations, E|x - y| is 2 phi(m) + m (2 Phi(m) - 1) deviations."""

    def mean_distance(shift, spread):
        m = shift / spread
        return spread * (
            2 * math.exp(-(m**2) / 2) / math.sqrt(2 * math.pi) + m * math.erf(m / math.sqrt(2))
        )

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 1, generator=generator)
    b = torch.randn(4000, 1, generator=generator) + 1.0
    expected = 2 * mean_distance(1.0, math.sqrt(2)) - 2 * mean_distance(0.0, math.sqrt(2))
    assert energy_distance(a, b) == pytest.approx(expected, rel=0.05)
    assert abs(energy_distance(a[:2000], a[2000:])) < 0.01


def test_recognized_counts_correct_predictions():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 2]])
    assert recognized(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_moments_in_parts_are_those_of_the_whole_even_far_from_zero(monkeypatch):
    """Sums of squares would lose all digits of a deviation of 1e-3 at 1e5, even in float64."""
    features = (1e5 + 1e-3 * normal(0, 2503, 4).double()).double()
    whole = np.cov(features.numpy().T)
    np.testing.assert_allclose(
        Moments.of(features).covariance.numpy(), whole, rtol=1e-6, atol=1e-12
    )
    monkeypatch.setattr("soflow.evaluation.metrics.ROWS", 1)
    np.testing.assert_allclose(
        Moments.of(features).covariance.numpy(), whole, rtol=1e-4, atol=1e-11
    )


def test_the_frechet_distance_equals_torchmetrics():
    a, b = normal(0, 300, 8) + 0.3, normal(1, 200, 8) @ normal(2, 8, 8)

    class Identity(nn.Identity):
        num_features = 8

    other = FrechetInceptionDistance(feature=Identity(), normalize=False).set_dtype(torch.float64)
    other.update(a, real=False)
    other.update(b, real=True)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(
        float(other.compute()), rel=1e-4
    )


def test_the_frechet_distance_of_samples_tends_to_the_gaussians_own():
    """It is d (1 + 1) for N(0, 1) and N(1, 4) in d dimensions, here to 2 % with 100,000 samples."""
    a, b = normal(0, 100_000, 3), 2 * normal(1, 100_000, 3) + 1
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(6, rel=0.02)


def test_fewer_samples_than_dimensions_have_a_matrix_root():
    a, b = Moments.of(normal(0, 20, 50)), Moments.of(normal(1, 30, 50))
    root = scipy.linalg.sqrtm(b.covariance.numpy() + 1e-12 * np.eye(50)).real
    product = root @ a.covariance.numpy() @ root
    cross = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
    expected = (
        float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace())
        - 2 * cross
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("covariance", "word"),
    [
        (torch.diag(torch.tensor([1.0, -0.5])), "its smallest eigenvalue is -0"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1]]), "NaN or infinite"),
    ],
)
def test_a_missing_matrix_root_is_an_error(covariance, word):
    good = Moments.of(normal(0, 50, 2))
    bad = Moments(good.mean, covariance.double(), 50)
    for one, two in ((good, bad), (bad, good)):
        with pytest.raises(RunError, match=word):
            frechet_distance(one, two)


def test_a_root_that_does_not_converge_is_an_error(monkeypatch):
    def fail(matrix):
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(RunError, match="eigh"):
        frechet_distance(Moments.of(normal(0, 50, 2)), Moments.of(normal(1, 50, 2)))


def test_the_spread_from_halves_is_that_of_repeated_sampling():
    """The deviation of 60 distances of 400 samples each equals the mean of their estimates."""
    reference = Moments.of(normal(0, 20_000, 4))
    sets = [0.3 + 1.1 * normal(seed, 400, 4) for seed in range(1, 61)]
    found = [frechet_distance(Moments.of(one), reference) for one in sets]
    estimated = [spread_of_frechet(one, reference) for one in sets]
    assert np.mean(estimated) == pytest.approx(np.std(found), rel=0.3)


def test_the_kernel_distance_against_its_definition():
    """If each subset has all samples, the result is the unbiased estimate over all pairs."""
    a, b = normal(0, 30, 5).double() + 0.5, normal(1, 30, 5).double()

    def kernel(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    n = len(a)
    within = sum(
        kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j
    ) / (n * (n - 1))
    between = sum(kernel(x, y) for x in a for y in b) / n**2
    mean, spread = KernelDistance(b)(a)
    assert mean == pytest.approx(within - 2 * between, rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("subset", [130, 20])  # all pairs at once, and subset by subset
def test_the_kernel_distance_is_that_of_torchmetrics(subset, monkeypatch):
    from torchmetrics.image.kid import KernelInceptionDistance

    monkeypatch.setattr("soflow.evaluation.metrics.KERNEL_SUBSET", subset)
    reference = normal(0, 130, 7)
    distance = KernelDistance(reference)
    for count in (150, 1050, 150):  # the third time uses the cached terms of the reference
        features = normal(count, count, 7)
        metric = KernelInceptionDistance(feature=nn.Identity(), subset_size=subset)
        metric.update(features.double(), real=False)
        metric.update(reference.double(), real=True)
        torch.manual_seed(0)
        expected = tuple(float(value) for value in metric.compute())
        assert distance(features) == pytest.approx(expected, rel=1e-11)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    mean, spread = KernelDistance(normal(1, 2000, 5))(normal(0, 2000, 5))
    assert abs(mean) < 2 * spread
    assert KernelDistance(normal(1, 2000, 5))(normal(0, 2000, 5)) == (mean, spread)


def test_the_inception_score_of_known_classifiers():
    """Certain and balanced predictions score the number of classes, uncertain ones score 1."""
    certain = 100.0 * torch.eye(7).repeat(1000, 1)
    assert inception_score(certain)[0] == pytest.approx(7, rel=0.02)
    assert inception_score(torch.zeros(50, 7))[0] == pytest.approx(1)


def test_the_inception_score_over_ten_parts():
    """numpy gives the same score, up to the random splits, which even out over many images."""
    logits = normal(0, 20_000, 3).double()
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    score, spread = inception_score(logits)
    assert score == pytest.approx(expected, rel=1e-3)
    assert 0 < spread < 0.05


def brute_force(features, reference, k=3, wide=5):
    """Precision, recall, density and coverage as defined in their papers, point by point."""

    def apart(x, y):
        return float(np.sqrt(((x - y) ** 2).sum()))

    def reach(points, k):
        return [
            sorted(apart(x, y) for j, y in enumerate(points) if j != i)[k - 1]
            for i, x in enumerate(points)
        ]

    near, far, own = reach(reference, k), reach(reference, wide), reach(features, k)
    precision = np.mean([any(apart(x, y) <= r for y, r in zip(reference, near)) for x in features])  # noqa: B905
    recall = np.mean([any(apart(y, x) <= r for x, r in zip(features, own)) for y in reference])  # noqa: B905
    density = np.mean(
        [sum(apart(x, y) <= r for y, r in zip(reference, far)) / wide for x in features]  # noqa: B905
    )
    coverage = np.mean([any(apart(x, y) <= r for x in features) for y, r in zip(reference, far)])  # noqa: B905
    return precision, recall, density, coverage


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_neighborhood_metrics_equal_brute_force(shift, monkeypatch):
    features, reference = normal(0, 37, 3).double() + shift, normal(1, 52, 3).double()
    expected = brute_force(features.numpy(), reference.numpy())
    for rows in (1000, 10):
        monkeypatch.setattr("soflow.evaluation.metrics.ROWS", rows)
        heard = []
        found = neighborhood(features, reference, on_rows=heard.append)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
            expected
        )
        assert sum(heard) == 52 + 37


def test_sets_reordered_duplicated_and_of_one_class():
    """Precision, recall and coverage of changed sets, with two classes far apart.

    Reordering changes nothing. Repeating a few samples keeps precision but lowers coverage. One
    class alone keeps precision but halves recall.
    """
    centers = torch.tensor([[0.0, 0.0], [50.0, 0.0]])
    reference = centers.repeat(300, 1) + normal(0, 600, 2)
    samples = centers.repeat(300, 1) + normal(1, 600, 2)
    whole = neighborhood(samples, reference)
    assert neighborhood(samples[torch.randperm(600)], reference) == whole
    few = neighborhood(samples[:30].repeat(20, 1), reference)
    assert few.precision == pytest.approx(whole.precision, abs=0.05)
    assert few.coverage < 0.5 * whole.coverage
    one_class = neighborhood(samples[::2], reference)
    assert one_class.precision == pytest.approx(whole.precision, abs=0.05)
    assert one_class.recall < 0.55
    assert whole.recall > 0.9
    assert one_class.coverage < 0.55
