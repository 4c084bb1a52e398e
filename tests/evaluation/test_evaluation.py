from math import exp

import pytest
import torch

from soflow.data import sources
from soflow.errors import InputError
from soflow.evaluation.diagnostics import (
    composition_gap,
    diagnose,
    jump_errors,
    one_step_error,
    solution_residual,
)
from soflow.evaluation.digits import load_digit_classifier, train_digit_classifier
from soflow.evaluation.metrics import Moments, frechet_distance, recognized
from soflow.evaluation.record import Evaluation, FeaturesUsed, Machine, Reference, Row
from soflow.noising import LinearNoising, TrigNoising
from soflow.parameterization import EulerParameterization, TrigParameterization
from soflow.solution import FlowModel
from support.exact import exact_model

EVERY = [
    (p, q)
    for p in (LinearNoising(), TrigNoising())
    for q in (EulerParameterization(), TrigParameterization())
]


@pytest.fixture(scope="module")
def classifier():
    return load_digit_classifier()


def test_the_classifier_recognizes_held_out_digits(classifier):
    test = sources.digits("test")
    with torch.no_grad():
        assert recognized(classifier.logits(classifier(test.samples())), test.labels) >= 0.98


def test_the_classifier_is_seeded_and_cached(classifier, monkeypatch):
    monkeypatch.setattr(
        "soflow.evaluation.digits.train_digit_classifier", lambda: pytest.fail("not from the cache")
    )
    cached = load_digit_classifier()
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(cached(images), classifier(images))
    monkeypatch.setattr("soflow.evaluation.digits.DIGITS_STEPS", 5)
    for one, two in zip(
        train_digit_classifier().parameters(), train_digit_classifier().parameters(), strict=True
    ):
        assert torch.equal(one, two)


def test_a_damaged_cache_is_rebuilt(classifier, monkeypatch, tmp_path):
    from soflow.evaluation import digits

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digits, "DIGITS_STEPS", 5)
    file = tmp_path / "soflow" / f"{digits.DIGITS_VERSION}.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"not a safetensors file")
    load_digit_classifier()
    assert file.stat().st_size > 10_000


def test_the_distance_separates_real_digits_from_noise_and_from_one_class(classifier):
    with torch.no_grad():
        reference = Moments.of(classifier(sources.digits("train").rows))
        test = sources.digits("test")
        real = frechet_distance(Moments.of(classifier(test.rows)), reference)
        one_class = frechet_distance(Moments.of(classifier(test.rows[test.labels == 3])), reference)
        noise = frechet_distance(Moments.of(classifier(torch.randn(360, 1, 8, 8))), reference)
    assert real < 1.5
    assert noise > 20 * real
    assert one_class > 10 * real


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
    assert residuals[0] / residuals[1] == pytest.approx(
        10, rel=0.05
    )  # only the error of the finite difference remains
    assert residuals[1] < 1e-3


def test_the_diagnostics_detect_a_wrong_map():
    path, parameterization = LinearNoising(), EulerParameterization()
    exact = exact_model(path, parameterization, (3,), c=0.6).net

    def wrong(x, t, s, labels=None):  # correct velocity, but jumps are 20 % too long
        return torch.where((s < t)[:, None], 1.2, 1.0) * exact(x, t, s)

    model = FlowModel(wrong, noising=path, parameterization=parameterization, shape=(3,))
    generator = torch.Generator().manual_seed(0)
    data, noise, t = torch.randn(100, 3), torch.randn(100, 3), torch.rand(100)
    found = diagnose(model, path.sample(0.6 * data, noise, t), None, generator)
    assert min(found.solution_residual, found.composition_gap, found.one_step_error) > 1e-3


def test_errors_of_jumps_are_those_of_a_known_map():
    """dx/dt = x gives x_t = e^(t - 1) x_1, and F(x, t, s) = x jumps to (1 + s - t) x."""
    model = FlowModel(lambda x, t, s, labels=None: x, shape=(3,))
    noise = torch.randn(40, 3, dtype=torch.float64)
    size = float((noise**2).mean(1).sqrt().mean())
    found = jump_errors(model, noise, batch=7)
    times = [(one.t, one.s) for one in found]
    assert times[:5] == [(1.0, s) for s in (0.75, 0.5, 0.25, 0.1, 0.0)]
    assert times[-2:] == [(0.25, 0.1), (0.25, 0.0)]
    assert len(times) == 5 + 5 + 4 + 3 + 2
    for one in found:
        x_t, x_s = exp(one.t - 1) * size, exp(one.s - 1) * size
        error = abs((1 + one.s - one.t) * x_t - x_s)
        assert one.error == pytest.approx(error, abs=1e-4)
        assert one.displacement == pytest.approx(x_t - x_s, abs=1e-4)
        assert one.relative == pytest.approx(one.error / one.displacement)


@pytest.mark.parametrize(("path", "parameterization"), EVERY)
def test_the_exact_map_jumps_without_error(path, parameterization):
    model = exact_model(path, parameterization, (3,), c=0.6)
    noise = torch.randn(20, 3, dtype=torch.float64)
    for one in jump_errors(model, noise, starts=[1.0, 0.3], ends=[0.0, 0.3]):
        assert one.error < 2e-3
        assert one.displacement > 0.05


def test_jumps_use_the_labels_of_their_samples():
    def net(x, t, s, labels):
        return labels[:, None] * torch.where((s < t)[:, None], 2.0, 1.0).expand_as(x)

    model = FlowModel(net, shape=(3,), num_classes=10)
    (one,) = jump_errors(
        model, torch.randn(4, 3), torch.tensor([0, 1, 2, 5]), [1.0], [0.5], batch=3
    )
    assert (one.error, one.displacement) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("starts", "ends"), [([0.0], [0.0]), ([1.0], [1.0]), ([0.5], [0.7])])
def test_jumps_of_length_zero_are_rejected(starts, ends):
    model = FlowModel(lambda x, t, s, labels=None: x, shape=(3,))
    with pytest.raises(InputError, match="jump"):
        jump_errors(model, torch.randn(2, 3), None, starts, ends)


@pytest.mark.parametrize(("lowest", "remarked"), [(-0.1, True), (0.1, False)])
def test_an_evaluation_prints_its_table_and_explains_negative_distances(lowest, remarked):
    rows = [
        Row(distance=value, weights="ema", sampler="ode", nfe=nfe)
        for nfe, value in ((1, 0.25), (2, lowest))
    ]
    evaluation = Evaluation(
        metric="energy distance",
        num=100,
        features=FeaturesUsed(name="coordinates"),
        reference=Reference(dataset="moons", count=50),
        rows=rows,
        machine=Machine(processor="x", threads=1),
    )
    text = str(evaluation)
    assert "| sampler | NFE | energy |" in text
    assert "| ode | 1 | 0.25 |" in text
    assert ("negative" in text) == remarked
