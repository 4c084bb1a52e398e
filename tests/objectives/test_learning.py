"""Training from scratch with the public API learns the true solution function.

Each test takes half a minute. The data are points in the plane. The true map is a closed form, or
an ODE integrated by scipy.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import soflow
from soflow.data import bundled, sources
from soflow.noising import LinearNoising
from soflow.parameterization import EulerParameterization
from support.exact import Exact

#: Standard deviation of each Gaussian per dimension. For 1, the map from t = 1 to 0 would be the
#: identity.
SPREAD = 0.5
CENTERS = np.array([[-1.0, 0.0], [1.0, 0.0]])  # means of the mixture

# p = 0, because in two dimensions the adaptive weight pulls the velocity from the mean to the mode.
# Times reach both ends.
SETTINGS = [
    "network.width=64",
    "network.depth=3",
    "train.batch_size=1536",
    "optimizer.lr=1.5e-3",
    "ema.decay=0.997",
    "objective.p=0",
    "objective.flow_matching_share=0.25",
    "objective.times.flow_matching.mean=-1",
    "objective.times.flow_matching.std=2",
    "objective.times.t.mean=0.5",
    "objective.times.t.std=1.5",
    "objective.times.s.mean=-3",
    "objective.times.s.std=3",
    "train.sample_every=0",
    "checkpoint.every=100000",
    "train.log_every=500",
]

JUMPS = [(t, s) for t in (1.0, 0.75, 0.5, 0.25) for s in (0.7, 0.4, 0.2, 0.0) if s < t]
GRID = torch.cartesian_prod(*[torch.linspace(-2, 2, 9)] * 2)  # in units of the standard deviation


def gaussian(count, random):
    return SPREAD * random.standard_normal((count, 2))


def two_gaussians(count, random):
    return CENTERS[random.integers(2, size=count)] + SPREAD * random.standard_normal((count, 2))


def learned(draw, steps, folder, monkeypatch, more=()):
    """Trains a model with `soflow.train` on points from `draw`."""
    points = type("Points", (bundled.Toy,), {"draw": staticmethod(draw)})
    monkeypatch.setitem(sources.SOURCES.entries, "points", points)
    soflow.train("moons", folder, ["data.source=points", f"train.steps={steps}", *SETTINGS, *more])
    return soflow.load(folder, device="cpu").model


def relative_error(model, points_at, truth):
    """Returns the RMS of f - f* divided by that of f*, over all jumps and grid points x."""
    error = size = 0.0
    for t, s in JUMPS:
        x = points_at(t)
        with torch.no_grad():
            f = model.solution(x, torch.full((len(x),), t), torch.full((len(x),), s))
        true = truth(x, t, s)
        error += float(((f - true) ** 2).sum())
        size += float((true**2).sum())
    return (error / size) ** 0.5


def mixture_velocity(x, t):
    """Returns E[noise - data | x_t = x] from the closed form and likelihood of each Gaussian."""
    alpha, beta = 1 - t, t
    variance = (alpha * SPREAD) ** 2 + beta**2
    away = x[:, None] - alpha * CENTERS  # (points, centers, 2)
    log_likelihood = -(away**2).sum(-1) / (2 * variance)
    likelihood = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    data = CENTERS + alpha * SPREAD**2 / variance * away
    noise = beta / variance * away
    return ((likelihood / likelihood.sum(1, keepdims=True))[..., None] * (noise - data)).sum(1)


def integrated(x, t, s):
    """Integrates the mixture's ODE from t to s to eight digits."""

    def field(time, flat):
        return mixture_velocity(flat.reshape(-1, 2), time).ravel()

    solved = solve_ivp(
        field, (t, s), x.double().numpy().ravel(), method="DOP853", rtol=1e-8, atol=1e-8
    )
    return torch.from_numpy(solved.y[:, -1].reshape(-1, 2))


def test_the_integrated_map_of_one_gaussian_equals_the_closed_form(monkeypatch):
    """The two true maps below agree where both apply."""
    monkeypatch.setitem(globals(), "CENTERS", np.zeros((2, 2)))
    exact = Exact(LinearNoising(), EulerParameterization(), c=SPREAD)
    closed = exact.solution(
        GRID.double(),
        *(torch.full((len(GRID),), float(x), dtype=torch.float64) for x in (0.9, 0.2)),
    )
    torch.testing.assert_close(integrated(GRID, 0.9, 0.2), closed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "more", "most"),
    [
        (300, ["ema.decay=0.97", "train.batch_size=512", "optimizer.lr=4e-3"], 0.07),
        pytest.param(2800, [], 0.03, marks=pytest.mark.slow),
    ],
)
def test_the_map_of_a_gaussian_is_learned(steps, more, most, tmp_path, monkeypatch):
    """Within three percent in a minute, within seven percent in some seconds."""
    exact = Exact(LinearNoising(), EulerParameterization(), c=SPREAD)
    model = learned(gaussian, steps, tmp_path, monkeypatch, more)
    error = relative_error(
        model,
        points_at=lambda t: GRID * exact.spread(torch.tensor([t])),
        truth=lambda x, t, s: exact.solution(x, torch.full((len(x),), t), torch.full((len(x),), s)),
    )
    print(f"a Gaussian: relative RMSE {error:.4f}")
    assert error < most


@pytest.mark.slow
def test_the_map_of_two_gaussians_is_learned_to_three_percent(tmp_path, monkeypatch):
    def points_at(t):
        spread = float(np.sqrt(((1 - t) * SPREAD) ** 2 + t**2))
        return torch.cat(
            [
                (1 - t) * torch.tensor(center, dtype=torch.float32) + spread * GRID
                for center in CENTERS
            ]
        )

    error = relative_error(
        learned(two_gaussians, 2000, tmp_path, monkeypatch), points_at, integrated
    )
    print(f"two Gaussians: relative RMSE {error:.4f}")
    assert error < 0.03
