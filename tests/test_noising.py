import pytest
import torch

from soflow.noising import LinearNoising, TrigNoising


@pytest.mark.parametrize("noising", [LinearNoising(), TrigNoising()])
def test_noising_leads_from_data_to_noise(noising):
    data, noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(noising.sample(data, noise, zero).x_t, data)
    torch.testing.assert_close(noising.sample(data, noise, one).x_t, noise)


@pytest.mark.parametrize("noising", [LinearNoising(), TrigNoising()])
def test_the_conditional_velocity_is_the_derivative_of_the_noising(noising):
    data, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    h = 1e-6
    slope = (noising.add_noise(data, noise, t + h) - noising.add_noise(data, noise, t - h)) / (
        2 * h
    )
    torch.testing.assert_close(noising.sample(data, noise, t).v_t, slope, rtol=1e-8, atol=1e-8)


def test_the_trigonometric_noising_keeps_the_variance():
    t = torch.rand(100, dtype=torch.float64)
    noising = TrigNoising()
    torch.testing.assert_close(noising.alpha(t) ** 2 + noising.beta(t) ** 2, torch.ones_like(t))


def test_times_with_the_wrong_shape_are_rejected():
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError):
        LinearNoising().sample(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3))
