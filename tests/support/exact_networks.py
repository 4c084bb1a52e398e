"""Networks with exact predictions, for data with a known posterior mean."""

import math

import torch
from torch import nn

#: A mixture of normal distributions: means, standard deviations, weights.
NORMAL = ((0.7,), (0.5,), (1.0,))
MIXTURE = ((-2.0, 1.0), (0.3, 0.6), (0.4, 0.6))


def posterior_means(z, a, sigma, data):
    """Returns E[x_0 | z] and E[x_1 | z] for z = a x_0 + sigma x_1, independently per dimension."""
    means, deviations, weights = (torch.tensor(row, dtype=z.dtype) for row in data)
    z, a, sigma = z[..., None], a.view(-1, 1, 1), sigma.view(-1, 1, 1)
    variance = (a * deviations) ** 2 + sigma**2
    residual = z - a * means
    logits = weights.log() - variance.log() / 2 - residual**2 / (2 * variance)
    share = logits.softmax(-1)
    x_0 = means + a * deviations**2 / variance * residual
    return (share * x_0).sum(-1), (share * sigma / variance * residual).sum(-1)


def exact_velocity(x, t, data):
    """Returns E[x_1 - x_0 | x_t] on the linear path."""
    x_0, x_1 = posterior_means(x, 1 - t, t, data)
    return x_1 - x_0


def draw_data(count, data, generator):
    means, deviations, weights = map(torch.tensor, data)
    which = torch.multinomial(weights, count, replacement=True, generator=generator)
    return means[which] + deviations[which] * torch.randn(count, generator=generator)


def schedule(k, steps):
    """Returns a_k^2 of a diffusion at fractional timesteps: a cosine, nearly 0 at the end."""
    return torch.cos(0.499 * math.pi * (k + 1) / steps) ** 2


class ExactDiffusion(nn.Module):
    """An exact network for a diffusion with the alphas of `schedule`."""

    def __init__(self, prediction, data, steps=1000):
        super().__init__()
        self.prediction, self.data, self.steps = prediction, data, steps
        self.alphas_cumprod = schedule(torch.arange(steps, dtype=torch.float64), steps)

    def forward(self, z, timestep):
        square = schedule(timestep, self.steps)
        a, sigma = square.sqrt(), (1 - square).sqrt()
        x_0, x_1 = posterior_means(z, a, sigma, self.data)
        v = a[:, None] * x_1 - sigma[:, None] * x_0
        return {"epsilon": x_1, "sample": x_0, "v_prediction": v}[self.prediction]


class ExactFlow(nn.Module):
    """An exact network for the linear path, with noise at time `scale`, or at 0 if reversed."""

    def __init__(self, prediction, data, scale=1.0, reverse=False):
        super().__init__()
        self.prediction, self.data, self.scale, self.reverse = prediction, data, scale, reverse

    def forward(self, x, time):
        t = time / self.scale
        t = 1 - t if self.reverse else t
        x_0, x_1 = posterior_means(x, 1 - t, t, self.data)
        v = x_0 - x_1 if self.reverse else x_1 - x_0
        return {"epsilon": x_1, "sample": x_0, "velocity": v}[self.prediction]
