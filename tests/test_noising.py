import pytest
import torch

from soflow.noising import LinearNoising, TrigNoising


@pytest.mark.parametrize("path", [LinearNoising(), TrigNoising()])
def test_a_path_leads_from_data_to_noise(path):
    data, noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    zero, one = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(path.sample(data, noise, zero).x_t, data)
    torch.testing.assert_close(path.sample(data, noise, one).x_t, noise)


@pytest.mark.parametrize("path", [LinearNoising(), TrigNoising()])
def test_the_conditional_velocity_is_the_derivative_of_the_path(path):
    data, noise = torch.randn(2, 4, 3, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    h = 1e-6
    slope = (path.add_noise(data, noise, t + h) - path.add_noise(data, noise, t - h)) / (2 * h)
    torch.testing.assert_close(path.sample(data, noise, t).v_t, slope, rtol=1e-8, atol=1e-8)


def test_the_trigonometric_path_keeps_the_variance():
    t = torch.rand(100, dtype=torch.float64)
    path = TrigNoising()
    torch.testing.assert_close(path.alpha(t) ** 2 + path.beta(t) ** 2, torch.ones_like(t))


def test_times_of_the_wrong_shape_are_refused():
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError):
        LinearNoising().sample(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3))
