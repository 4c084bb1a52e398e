"""The exact solution function in closed form, for data at one point or from a Gaussian.

The formulas hold for every noising process: the flow keeps (x - alpha a) / sigma constant, where
sigma is the standard deviation at time t.
"""

import torch
from torch import Tensor

from soflow.noising import Noising
from soflow.parameterization import Parameterization
from soflow.solution import FlowModel
from soflow.symbols import across


class Exact:
    """F* for data N(a, c^2) in each dimension. c = 0 means data at one point."""

    def __init__(
        self,
        noising: Noising,
        parameterization: Parameterization,
        a: float | Tensor = 0.0,
        c: float = 0.0,
    ) -> None:
        self.noising, self.parameterization, self.a, self.c = noising, parameterization, a, c
        self.calls = 0

    def spread(self, t: Tensor) -> Tensor:
        return ((self.noising.alpha(t) * self.c) ** 2 + self.noising.beta(t) ** 2).sqrt()

    def solution(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        start, end = (
            across(self.noising.alpha(t), x) * self.a,
            across(self.noising.alpha(s), x) * self.a,
        )
        return end + (x - start) * across(self.spread(s) / self.spread(t), x)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, beta = self.noising.alpha(t), self.noising.beta(t)
        d_alpha, d_beta = self.noising.d_alpha(t), self.noising.d_beta(t)
        growth = (alpha * d_alpha * self.c**2 + beta * d_beta) / self.spread(t) ** 2
        return across(d_alpha, x) * self.a + (x - across(alpha, x) * self.a) * across(growth, x)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, labels=None) -> Tensor:
        self.calls += 1
        a, b = self.parameterization.a(t, s), self.parameterization.b(t, s)
        still = s == t
        jump = (self.solution(x, t, s) - across(a, x) * x) / across(torch.where(still, 1.0, b), x)
        return torch.where(
            across(still, x), self.velocity(x, t) / self.parameterization.d_s_b, jump
        )


def exact_model(
    noising: Noising, parameterization: Parameterization, shape: tuple[int, ...], **settings
) -> FlowModel:
    return FlowModel(
        Exact(noising, parameterization, **settings),
        noising=noising,
        parameterization=parameterization,
        shape=shape,
    )
