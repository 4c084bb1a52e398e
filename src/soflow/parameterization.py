"""The coefficients of the solution function, and the velocity field they imply.

    f(x_t, t, s) = a(t, s) x_t + b(t, s) F(x_t, t, s),   a(t, t) = 1, b(t, t) = 0, so f(x, t, t) = x
    v(x_t, t)    = (d/ds f)(x_t, t, s) at s = t

Source: SoFlow (arXiv 2512.15657), parameterization of the solution function.
"""

from abc import ABC, abstractmethod
from math import pi

import torch
from torch import Tensor

from soflow.symbols import Sample, Times, across


class Parameterization(ABC):
    """The coefficients a(t, s) and b(t, s) of the solution function, and (d/ds b)(t, t)."""

    #: (d/ds b)(t, t), the same for every t. (d/ds a)(t, t) is 0 in both parameterizations.
    d_s_b: float

    @abstractmethod
    def a(self, t: Tensor, s: Tensor) -> Tensor:
        """The coefficient of x: (B,), (B,) -> (B,)."""

    @abstractmethod
    def b(self, t: Tensor, s: Tensor) -> Tensor:
        """The coefficient of F: (B,), (B,) -> (B,)."""

    def solution(self, x: Sample, t: Times, s: Times, F: Sample) -> Sample:
        """f(x, t, s), (B, ...), from F = F(x, t, s)."""
        return across(self.a(t, s), x) * x + across(self.b(t, s), x) * F

    def velocity(self, F: Sample) -> Sample:
        """v(x, t), (B, ...), from F = F(x, t, t)."""
        return self.d_s_b * F


class EulerParameterization(Parameterization):
    """The parameterization a = 1, b = s - t: F is the mean velocity from t to s.

    Example:
        >>> import soflow, torch
        >>> x, F = torch.ones(1, 2), torch.full((1, 2), 3.0)  # (B, ...)
        >>> soflow.EulerParameterization().solution(x, torch.ones(1), torch.zeros(1), F)
        tensor([[-2., -2.]])
    """

    d_s_b = 1.0

    def a(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.ones_like(t)

    def b(self, t: Tensor, s: Tensor) -> Tensor:
        return s - t


class TrigParameterization(Parameterization):
    """The parameterization a = cos(pi (s - t) / 2), b = sin(pi (s - t) / 2).

    A jump rotates x towards F.

    Example:
        >>> import soflow, torch
        >>> parameterization = soflow.TrigParameterization()
        >>> t, s = torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.5])
        >>> parameterization.a(t, s), parameterization.b(t, s)
        (tensor([0.7071, 1.0000]), tensor([-0.7071,  0.0000]))
    """

    d_s_b = pi / 2

    def a(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.cos(pi / 2 * (s - t))

    def b(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.sin(pi / 2 * (s - t))
