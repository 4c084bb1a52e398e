"""Wasserstein distances compared with closed forms and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from soflow.data.dataset import Scaling
from soflow.evaluation.features import coordinates
from soflow.evaluation.metrics import energy_distance
from soflow.evaluation.record import Reference
from soflow.evaluation.scorer import Scorer, Scoring, as_frequent
from soflow.evaluation.statistics import Statistics
from soflow.evaluation.wasserstein import directions, marginals, sliced_wasserstein

REFERENCE = Reference(dataset="made up", count=9)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [1, 5, 300])
def test_directions_are_fixed_orthonormal_bases(d):
    found = directions(d)
    basis = found[: min(d, 256)]
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))
    assert len(found) >= 256
    assert torch.equal(found, directions(d))


@pytest.mark.parametrize("d", [1, 3, 10])
def test_the_sliced_distance_of_a_shift_is_its_length_over_sqrt_dimension(d):
    points, shift = normal(0, 500, d), normal(1, d)
    expected = float(shift.norm()) / d**0.5
    # Compare whole sets, because random subsets would differ.
    assert sliced_wasserstein(points, points + shift, 500) == pytest.approx(expected, rel=1e-5)


def test_the_sliced_distance_of_isotropic_gaussians():
    """Along each direction, W2^2 is (projected shift)^2 + (difference of deviations)^2."""
    shift = torch.tensor([1.0, -2.0, 0.5])
    a, b = normal(0, 20_000, 3), 1.5 * normal(1, 20_000, 3) + shift
    expected = (float(shift.square().sum()) / 3 + 0.5**2) ** 0.5
    assert sliced_wasserstein(a, b, 20_000) == pytest.approx(expected, rel=0.02)


def test_in_one_dimension_it_is_the_distance_of_sorted_values():
    a, b = normal(0, 400, 1), 2 * normal(1, 400, 1) + 1
    expected = np.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2))
    assert sliced_wasserstein(a, b, 400) == pytest.approx(float(expected), rel=1e-5)


def test_marginals_equal_scipy():
    a, b = normal(0, 300, 3), normal(1, 300, 3) * torch.tensor([1.0, 2.0, 1.0]) + 0.3
    found = marginals(a, b, 300, ("one", "two", "three"))
    expected = [scipy.stats.wasserstein_distance(a[:, i], b[:, i]) for i in range(3)]
    assert list(found) == ["one", "two", "three"]
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def test_the_marginal_of_a_channel_uses_all_its_values():
    a, b = normal(0, 50, 2, 7), normal(1, 50, 2, 7) + 1
    found = marginals(a.flatten(1), b.flatten(1), 50, ("left", "right"))
    expected = [
        scipy.stats.wasserstein_distance(a[:, i].flatten(), b[:, i].flatten()) for i in range(2)
    ]
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def test_the_energy_distance_against_scipy():
    """scipy returns sqrt(E / 2), and includes pairs of a point with itself."""
    a, b = normal(0, 2000, 1), normal(1, 2000, 1) + 0.8
    expected = 2 * scipy.stats.energy_distance(a[:, 0], b[:, 0]) ** 2 / 2
    assert energy_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_small_sets_are_compared_in_several_pairs_of_one_size():
    """Distances do not depend on the size of a set if the compared number is the same."""
    real, samples, few = normal(0, 4000, 4), normal(1, 4000, 4), normal(2, 50, 4)
    many_of_50 = sliced_wasserstein(samples, real, 50)
    assert sliced_wasserstein(few, real, 50) == pytest.approx(many_of_50, rel=0.3)
    assert sliced_wasserstein(samples, real, 4000) < many_of_50 / 4


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 5)])
def test_coordinates_are_standardized_with_the_scaling_of_the_real_data(shape):
    scaling = Scaling((1.0, -2e5, 0.0), (0.5, 1e3, 2.0), ("a", "b", "c"))
    inner = normal(0, 200, *shape)
    features = coordinates(shape, scaling)
    torch.testing.assert_close(
        features(scaling.restore(inner)).features, inner.flatten(1), atol=1e-3, rtol=0
    )
    plain = coordinates(shape, None)
    assert torch.equal(plain(inner).features, inner.flatten(1))
    if len(shape) < 3:
        assert features.columns == ("a", "b", "c")
        assert plain.columns == tuple(
            f"{'x' if len(shape) == 1 else 'channel '}{i}" for i in range(3)
        )


def test_classes_can_be_as_frequent_as_in_other_labels():
    labels = torch.tensor([2] * 30 + [-1] * 50 + [0] * 60 + [1] * 10)
    assert as_frequent(labels, 1000, 3).bincount().tolist() == pytest.approx([600, 100, 300], abs=2)


def test_classes_are_balanced_for_images_and_as_in_the_data_for_tables():
    labels = torch.tensor([0] * 90 + [1] * 10)
    table, pictures = (
        Scoring(
            Scorer(coordinates(shape, None), Statistics.of(normal(0, 9, 2)), REFERENCE),
            labels=labels,
        )
        for shape in ((2,), (1, 1, 2))
    )
    assert table.draw_classes(None, 100, 2)[0].bincount().tolist() == [90, 10]
    assert table.draw_classes("balanced", 100, 2)[0].bincount().tolist() == [50, 50]
    assert pictures.draw_classes(None, 100, 2)[0].bincount().tolist() == [50, 50]
    assert table.draw_classes(None, 100, 0) == (None, "none")
