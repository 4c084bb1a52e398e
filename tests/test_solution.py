import pytest
import torch

from soflow.noising import LinearNoising, TrigNoising
from soflow.parameterization import EulerParameterization, TrigParameterization
from soflow.solution import FlowModel
from support.exact import exact_model

EVERY = [
    (p, q)
    for p in (LinearNoising(), TrigNoising())
    for q in (EulerParameterization(), TrigParameterization())
]


@pytest.mark.parametrize("parameterization", [EulerParameterization(), TrigParameterization()])
def test_a_jump_of_length_zero_is_the_identity(parameterization):
    x, F = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(parameterization.solution(x, t, t, F), x)


@pytest.mark.parametrize("parameterization", [EulerParameterization(), TrigParameterization()])
def test_the_velocity_is_the_s_derivative_of_the_solution_at_s_equal_t(parameterization):
    x = torch.randn(5, 3, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64) * 0.8 + 0.1

    def net(x, t, s, labels=None):
        return torch.sin(x) + t[:, None] * x - (s**2)[:, None]

    model = FlowModel(net, noising=LinearNoising(), parameterization=parameterization, shape=(3,))
    h = 1e-6
    slope = (model.solution(x, t, t + h) - model.solution(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(model.velocity(x, t), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("noising", "parameterization"), EVERY)
def test_the_exact_map_of_a_gaussian_preserves_the_noised_distribution(noising, parameterization):
    """The map takes x_t with standard deviation sigma(t) to x_s with sigma(s)."""
    c, count = 0.4, 200_000
    model = exact_model(noising, parameterization, (1,), c=c)
    generator = torch.Generator().manual_seed(0)
    data, noise = (
        torch.randn(count, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    t, s = (
        torch.full((count,), 0.7, dtype=torch.float64),
        torch.full((count,), 0.2, dtype=torch.float64),
    )
    x_s = model.solution(noising.add_noise(c * data, noise, t), t, s)
    expected = ((noising.alpha(s[:1]) * c) ** 2 + noising.beta(s[:1]) ** 2).sqrt()
    assert float(x_s.std() / expected) == pytest.approx(1, rel=5e-3)
