import math

import numpy as np
import pytest
import scipy.linalg
import torch

from soflow.data import sources
from soflow.errors import InputError
from soflow.evaluation.diagnostics import composition_gap, diagnose, one_step_error, solution_residual
from soflow.evaluation.features import accuracy, load_digit_classifier, load_features, train_digit_classifier
from soflow.evaluation.metrics import Moments, energy_distance, frechet_distance, recognized
from soflow.path import LinearPath, TrigPath
from soflow.solution import EulerParameterization, FlowModel, TrigParameterization
from theory import exact_model

EVERY = [(p, q) for p in (LinearPath(), TrigPath()) for q in (EulerParameterization(), TrigParameterization())]


def random_moments(seed, d=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return Moments(torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T, 1000)


def test_the_frechet_distance_of_isotropic_gaussians_in_closed_form():
    d, one, two = 5, 1.5, 0.4
    a = Moments(torch.zeros(d, dtype=torch.float64), one**2 * torch.eye(d, dtype=torch.float64), 10)
    b = Moments(torch.full((d,), 2.0, dtype=torch.float64), two**2 * torch.eye(d, dtype=torch.float64), 10)
    assert frechet_distance(a, b) == pytest.approx(d * 4 + d * (one - two) ** 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_frechet_distance_against_scipys_matrix_square_root(seed):
    a, b = random_moments(seed), random_moments(seed + 10)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = float((a.mean - b.mean).square().sum()) + np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_moments_against_numpy_also_for_one_feature():
    for d in (1, 4):
        features = torch.randn(50, d)
        moments = Moments.of(features)
        np.testing.assert_allclose(moments.covariance.numpy(), np.cov(features.double().numpy().T).reshape(d, d))
        np.testing.assert_allclose(moments.mean.numpy(), features.double().numpy().mean(0))


def test_the_energy_distance_of_two_gaussians_in_closed_form():
    """In one dimension E|x - y| = 2 phi(m) + m (2 Phi(m) - 1), times the spread, for a difference of mean m spreads."""

    def mean_distance(shift, spread):
        m = shift / spread
        return spread * (2 * math.exp(-(m**2) / 2) / math.sqrt(2 * math.pi) + m * math.erf(m / math.sqrt(2)))

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 1, generator=generator)
    b = torch.randn(4000, 1, generator=generator) + 1.0
    expected = 2 * mean_distance(1.0, math.sqrt(2)) - 2 * mean_distance(0.0, math.sqrt(2))
    assert energy_distance(a, b) == pytest.approx(expected, rel=0.05)
    assert abs(energy_distance(a[:2000], a[2000:])) < 0.01


def test_recognized_counts_the_right_answers():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 2]])
    assert recognized(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def classifier():
    return load_digit_classifier()


def test_the_classifier_recognizes_held_out_digits(classifier):
    assert accuracy(classifier) >= 0.98


def test_the_classifier_is_seeded_and_cached(classifier, monkeypatch):
    monkeypatch.setattr("soflow.evaluation.features.train_digit_classifier", lambda: pytest.fail("not from the cache"))
    cached = load_digit_classifier()
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(cached(images), classifier(images))
    monkeypatch.setattr("soflow.evaluation.features.DIGITS_STEPS", 5)
    for one, two in zip(train_digit_classifier().parameters(), train_digit_classifier().parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_damaged_cache_is_made_anew(classifier, monkeypatch, tmp_path):
    from soflow.evaluation import features

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "DIGITS_STEPS", 5)
    file = tmp_path / "soflow" / f"{features.DIGITS_VERSION}.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"not a safetensors file")
    load_digit_classifier()
    assert file.stat().st_size > 10_000


def test_the_distance_tells_real_digits_from_noise_and_from_one_class(classifier):
    with torch.no_grad():
        reference = Moments.of(classifier(sources.digits("train").rows))
        test = sources.digits("test")
        real = frechet_distance(Moments.of(classifier(test.rows)), reference)
        one_class = frechet_distance(Moments.of(classifier(test.rows[test.labels == 3])), reference)
        noise = frechet_distance(Moments.of(classifier(torch.randn(360, 1, 8, 8))), reference)
    assert real < 1.5
    assert noise > 20 * real
    assert one_class > 10 * real


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="digits, classifier, coordinates"):
        load_features("inception", sources.digits("train"))
    with pytest.raises(InputError, match="8x8"):
        load_features("digits", sources.SOURCES["moons"]("train"))


@pytest.mark.parametrize(("path", "parameterization"), EVERY)
def test_the_diagnostics_vanish_at_the_exact_map(path, parameterization):
    model = exact_model(path, parameterization, (3,), c=0.6)
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(100, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(100, generator=generator, dtype=torch.float64)
    point = path.sample(0.6 * data, noise, t)
    s, l = 0.3 * t, 0.7 * t
    assert composition_gap(model, point.x_t, t, l, s) < 1e-12
    assert one_step_error(model, noise) < 1e-3
    residuals = [solution_residual(model, point.x_t, t, s, h=h) for h in (1e-3, 1e-4)]
    assert residuals[0] / residuals[1] == pytest.approx(10, rel=0.05)  # only the difference's own error is left
    assert residuals[1] < 1e-3


def test_the_diagnostics_see_a_map_that_is_wrong():
    path, parameterization = LinearPath(), EulerParameterization()
    exact = exact_model(path, parameterization, (3,), c=0.6).net

    def wrong(x, t, s, labels=None):  # right velocity, jumps too long by a fifth
        return torch.where((s < t)[:, None], 1.2, 1.0) * exact(x, t, s)

    model = FlowModel(wrong, path, parameterization, (3,))
    generator = torch.Generator().manual_seed(0)
    data, noise, t = torch.randn(100, 3), torch.randn(100, 3), torch.rand(100)
    found = diagnose(model, path.sample(0.6 * data, noise, t), None, generator)
    assert min(found.solution_residual, found.composition_gap, found.one_step_error) > 1e-3
