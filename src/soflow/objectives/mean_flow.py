"""MeanFlow: F is the mean velocity from t to s, learned from its own derivative along the trajectory.

    F(x_t, t, s) -> sg( v - (t - s) dF/dt ),   dF/dt the Jacobian-vector product of F along (v, 1, 0) in (x, t, s)

Source: Mean Flows for One-step Generative Modeling (arXiv 2505.13447).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import BranchLoss, Draws, Losses, adaptive_weight, losses
from soflow.objectives.guided import draw_dropped, guiding_velocities, shown_labels
from soflow.path import Path
from soflow.solution import EulerParameterization
from soflow.symbols import Net, across
from soflow.times import LogitNormal


def jvp(function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The function's value and its derivative along a direction."""
    value, derivative = torch.func.jvp(function, at, along)  # type: ignore[misc]  # three with has_aux
    return value, derivative


@dataclass(frozen=True)
class MeanFlow:
    """F(x_t, t, s, y) -> the mean of the (guided) velocity from t to s.

    velocity_share: the share of samples with s = t. p, eps: the adaptive weight. times: t and s are the larger and the
    smaller of two draws from it. guidance: its mix m is the paper's 1 - kappa, m times its scale the paper's omega.
    """

    path: Path
    velocity_share: float
    p: float
    eps: float
    times: LogitNormal
    guidance: Guidance | None = None

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Noise, times and label drops for a batch of that shape, (B, ...), on the generator's device."""
        count = shape[0]
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        first, second = self.times.draw(count, generator), self.times.draw(count, generator)
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        n_velocity = floor(self.velocity_share * count)
        s = torch.cat([t[:n_velocity], s[n_velocity:]])
        return Draws(noise, t, s, draw_dropped(count, self.guidance, generator), n_velocity)

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None) -> Losses:
        point = self.path.sample(batch.data, draws.noise, draws.t)
        x_t, t, s = point.x_t, draws.t, draws.s
        v = point.v_t
        if self.guidance is not None:
            v_null, v_label = guiding_velocities(net, x_t, t, batch, EulerParameterization(), self.guidance, slice(None))
            v = self.guidance.target(v, v_null, v_label, t, draws.dropped)
        labels = shown_labels(batch, draws, self.guidance)

        def F(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return net(x, t, s, labels, batch.augment)

        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward-mode derivative
            F_t, dF_dt = jvp(F, (x_t, t, s), (v, torch.ones_like(t), torch.zeros_like(s)))
        target = v - across(t - s, v) * dF_dt.detach()

        # loss = sum_d(delta^2) / sg(sum_d(delta^2) + eps)^p
        squared = ((F_t - target) ** 2).flatten(1).sum(1)
        weight = adaptive_weight(squared, self.p, self.eps)
        per_dimension = squared.detach() / x_t[0].numel()
        return losses(mean_flow=BranchLoss(weight * squared, per_dimension, weight))
