import math

import pytest
import torch

from soflow.drawing import sample_many
from soflow.errors import InputError
from soflow.noising import LinearNoising, TrigNoising
from soflow.parameterization import EulerParameterization, TrigParameterization
from soflow.sampling import (
    check_sampler,
    even_times,
    integrate_velocity,
    ode,
    one_step,
    renoise,
    sample,
)
from soflow.solution import FlowModel
from support.exact import Exact, exact_model

EVERY = [
    (p, q)
    for p in (LinearNoising(), TrigNoising())
    for q in (EulerParameterization(), TrigParameterization())
]


def noise(count=6):
    return torch.randn(count, 3, dtype=torch.float64)


@pytest.mark.parametrize(("noising", "parameterization"), EVERY)
def test_at_the_exact_map_of_a_gaussian_one_step_and_composed_steps_are_exact(
    noising, parameterization
):
    model, x = exact_model(noising, parameterization, (3,), c=0.6), noise()
    torch.testing.assert_close(one_step(model, x), 0.6 * x)
    torch.testing.assert_close(ode(model, x, 5), 0.6 * x)
    assert model.net.calls == 6


@pytest.mark.parametrize(("noising", "parameterization"), EVERY)
@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("heun", 2)])
def test_integrating_the_velocity_converges_at_the_order_of_the_scheme(
    noising, parameterization, scheme, order
):
    model, x = exact_model(noising, parameterization, (3,), c=0.6), noise()

    def error(steps):
        return float((integrate_velocity(model, x, steps, scheme=scheme) - 0.6 * x).norm())

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("noising", "parameterization"), EVERY)
def test_renoise_returns_the_data_point(noising, parameterization):
    model, x = exact_model(noising, parameterization, (3,), a=0.7), noise()
    fresh = [noise(), noise()]
    torch.testing.assert_close(renoise(model, x, fresh), torch.full_like(x, 0.7))
    assert model.net.calls == 3


def tripled():
    """A model with the network F = 3 x: f(x, t, s) = x + (s - t) 3 x."""
    return FlowModel(
        lambda x, t, s, labels=None: 3 * x,
        noising=LinearNoising(),
        parameterization=EulerParameterization(),
        shape=(3,),
    )


@pytest.mark.parametrize(("times", "t"), [(None, 0.5), ([1, 0.9, 0], 0.9)])
def test_renoise_by_hand(times, t):
    first, second = noise(), noise()
    x = -2 * first  # f(noise, 1, 0) = noise - 3 noise
    x = (1 - t) * x + t * second
    x = x - t * 3 * x
    torch.testing.assert_close(renoise(tripled(), first, [second], times=times), x)


@pytest.mark.parametrize(("times", "t"), [(None, 0.5), ((1.0, 0.2, 0.0), 0.2)])
def test_jumps_meet_at_the_given_times(times, t):
    x = noise()
    torch.testing.assert_close(
        ode(tripled(), x, 2, times=times), (1 - 3 * (1 - t)) * (1 - 3 * t) * x
    )


@pytest.mark.parametrize(
    "times", [[], [1, 0], [1, 0.5, 0.5, 0], [0, 1], [1, 0.5, 0.1], "now", "10"]
)
def test_times_that_do_not_decrease_from_one_to_zero_are_rejected(times):
    with pytest.raises(InputError, match="times"):
        ode(tripled(), noise(), 2, times=times)


def test_heun_takes_two_evaluations_per_step_and_euler_one():
    for scheme, calls in (("euler", 4), ("heun", 8)):
        model = exact_model(LinearNoising(), EulerParameterization(), (3,), c=1.0)
        integrate_velocity(model, noise(), 4, scheme=scheme)
        assert model.net.calls == calls


def test_times_are_evenly_spaced_from_one_to_zero():
    assert even_times(4) == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("sampler", ["renoise", "ode", "euler", "heun"])
def test_samples_do_not_change_with_the_batch_size(sampler):
    exact = Exact(LinearNoising(), EulerParameterization(), c=0.5)
    model = FlowModel(
        lambda x, t, s, labels: exact(x, t, s) + labels[:, None],
        noising=LinearNoising(),
        parameterization=EulerParameterization(),
        shape=(3,),
        num_classes=4,
    )
    labels = torch.arange(10) % 4
    whole = sample_many(model, 10, labels, sampler, 4, seed=1, batch_size=100)
    torch.testing.assert_close(
        whole, sample_many(model, 10, labels, sampler, 4, seed=1, batch_size=3)
    )
    torch.testing.assert_close(whole[:7], sample_many(model, 7, labels[:7], sampler, 4, seed=1))
    assert not torch.allclose(whole, sample_many(model, 10, labels, sampler, 4, seed=2))


def test_the_noise_of_samples_is_standard_normal_and_independent():
    model = FlowModel(
        lambda x, t, s, labels: torch.zeros_like(x),
        noising=LinearNoising(),
        parameterization=EulerParameterization(),
        shape=(4,),
    )
    x = sample_many(model, 5000, None, "ode", 1, seed=0)  # F = 0 returns the noise
    assert float(x.mean()) == pytest.approx(0, abs=0.03)
    assert float(x.std()) == pytest.approx(1, abs=0.03)
    assert float(torch.corrcoef(x.T).triu(1).abs().max()) < 0.05
    assert len(torch.unique(x, dim=0)) == len(x)


def test_inputs_that_do_not_fit_the_model_are_named():
    model = FlowModel(
        lambda x, t, s, labels: x,
        noising=LinearNoising(),
        parameterization=EulerParameterization(),
        shape=(3,),
        num_classes=4,
    )
    x = torch.zeros(2, 3)
    for sampler in (
        one_step,
        lambda *inputs: ode(inputs[0], inputs[1], 2, *inputs[2:]),
        integrate_2,
    ):
        for inputs, word in (
            ((torch.zeros(2, 5),), r"shape \[3\]"),
            ((x, torch.tensor([0, 5])), r"0 \.\. 3, or 4"),
            ((x, torch.tensor([-2, 0])), r"0 \.\. 3"),
        ):
            with pytest.raises(InputError, match=word):
                sampler(model, *inputs)
    with pytest.raises(InputError, match=r"shape \[2\]"):
        model.check(x, torch.tensor([1]))
    one_step(model, x, torch.tensor([0, 4]))


def integrate_2(model, x, labels=None):
    return integrate_velocity(model, x, 2, labels)


def test_impossible_requests_are_rejected():
    for sampler, nfe, word in (
        ("heun", 3, "two evaluations per step, use 4"),
        ("renoise", 0, "at least 1"),
        ("magic", 1, "renoise, ode"),
    ):
        with pytest.raises(InputError, match=word):
            check_sampler(sampler, nfe)


@pytest.mark.parametrize(("sampler", "noises"), [("renoise", 2), ("ode", 2), ("renoise", 9)])
def test_the_number_of_noises_must_fit_the_sampler(sampler, noises):
    model = exact_model(LinearNoising(), EulerParameterization(), (2,), c=1.0)
    with pytest.raises(InputError, match="noises"):
        sample(model, torch.randn(noises, 3, 2), None, sampler, 8)
