"""Noising processes: the path from a clean sample at t = 0 to noise at t = 1.

    x_t = alpha(t) data + beta(t) noise            v_t = alpha'(t) data + beta'(t) noise

Source: SoFlow (arXiv 2512.15657), the noising process. Symbols: soflow/symbols.py.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from soflow.symbols import Sample, Times, across


@dataclass(frozen=True)
class NoisedSample:
    """The point x_t and the velocity v_t of each sample, with the data, noise and times used."""

    data: Sample
    noise: Sample
    t: Times
    x_t: Sample
    v_t: Sample


class Noising(ABC):
    """A noising process: alpha, beta and their derivatives, each (B,) -> (B,)."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The coefficient of the data at time t: (B,) -> (B,)."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """The coefficient of the noise at time t: (B,) -> (B,)."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha: (B,) -> (B,)."""

    @abstractmethod
    def d_beta(self, t: Tensor) -> Tensor:
        """The derivative of beta: (B,) -> (B,)."""

    def add_noise(self, data: Sample, noise: Sample, t: Times) -> Sample:
        """The point x_t = alpha(t) data + beta(t) noise, (B, ...)."""
        return across(self.alpha(t), data) * data + across(self.beta(t), data) * noise

    def sample(self, data: Sample, noise: Sample, t: Times) -> NoisedSample:
        """The point x_t of each sample and its conditional velocity v_t, each (B, ...)."""
        v_t = across(self.d_alpha(t), data) * data + across(self.d_beta(t), data) * noise
        return NoisedSample(data, noise, t, x_t=self.add_noise(data, noise, t), v_t=v_t)


class LinearNoising(Noising):
    """Straight lines from data to noise: alpha = 1 - t, beta = t.

    Example:
        >>> import soflow, torch
        >>> data, noise = torch.zeros(1, 2), torch.ones(1, 2)
        >>> point = soflow.LinearNoising().sample(data, noise, torch.tensor([0.25]))
        >>> point.x_t, point.v_t
        (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_beta(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class TrigNoising(Noising):
    """A quarter turn from data to noise: alpha = cos(pi t / 2), beta = sin(pi t / 2).

    Since alpha^2 + beta^2 = 1, x_t has variance 1 at every t if the data have variance 1.

    Example:
        >>> import soflow, torch
        >>> noising, t = soflow.TrigNoising(), torch.tensor([0.2, 0.7])
        >>> noising.alpha(t) ** 2 + noising.beta(t) ** 2
        tensor([1., 1.])
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(pi / 2 * t)

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -pi / 2 * torch.sin(pi / 2 * t)

    def d_beta(self, t: Tensor) -> Tensor:
        return pi / 2 * torch.cos(pi / 2 * t)
