"""MeanFlow: F is the mean velocity from t to s, learned from its own derivative along the trajectory.

    F(x_t, t, s) -> sg( v - (t - s) dF/dt ),   dF/dt the Jacobian-vector product of F along (v, 1, 0) in (x, t, s)

Source: Mean Flows for One-step Generative Modeling (arXiv 2505.13447).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import BranchLoss, Draws, Inputs, Losses, adaptive_weight, losses, together
from soflow.objectives.guided import draw_dropped, guiding_velocities, shown_labels
from soflow.path import Path
from soflow.solution import EulerParameterization
from soflow.symbols import Net, across
from soflow.times import LogitNormal


def with_derivative(net: Net, inputs: Inputs, v: Tensor) -> tuple[Tensor, Tensor]:
    """F, and without gradient its derivative dF/dt along the trajectory: the direction (v, 1, 0) in (x, t, s)."""
    x, t, s, labels, augment = inputs
    if len(x) == 0:
        return x, x

    at = (x.clone(), t.clone(), s.clone())  # compiled code takes no derivative at views, such as one share of a batch is
    along = (v, torch.ones_like(t), torch.zeros_like(s))
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no forward-mode derivative
        value, derivative = torch.func.jvp(lambda x, t, s: net(x, t, s, labels, augment), at, along)  # type: ignore[misc]
    return value, derivative.detach()


@dataclass(frozen=True)
class MeanFlow:
    """F(x_t, t, s, y) -> the mean of the (guided) velocity from t to s.

    velocity_share: the share of samples with s = t. derivative: of which samples it is taken: of "all", as published, or of
    "jumps" alone, since nothing depends on it where s = t. p, eps: the adaptive weight. times: t and s are the larger and
    the smaller of two draws from it. guidance: its mix m is the paper's 1 - kappa, m times its scale the paper's omega.
    with_derivative: the function above, or as compiled: compiled blocks can be differentiated only as a part of it.
    """

    path: Path
    velocity_share: float
    derivative: Literal["all", "jumps"]
    p: float
    eps: float
    times: LogitNormal
    guidance: Guidance | None = None
    with_derivative: Callable[[Net, Inputs, Tensor], tuple[Tensor, Tensor]] = with_derivative

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
        inputs = Inputs(x_t, t, s, shown_labels(batch, draws, self.guidance), batch.augment)
        plain = draws.n_velocity if self.derivative == "jumps" else 0
        (F_plain,) = together(net, inputs.rows(slice(plain)))
        F_jumps, dF_dt = self.with_derivative(net, inputs.rows(slice(plain, None)), v[plain:])
        F_t, dF_dt = torch.cat([F_plain, F_jumps]), torch.cat([torch.zeros_like(F_plain), dF_dt])
        target = v - across(t - s, v) * dF_dt

        # loss = sum_d(delta^2) / sg(sum_d(delta^2) + eps)^p
        squared = ((F_t - target) ** 2).flatten(1).sum(1)
        weight = adaptive_weight(squared, self.p, self.eps)
        per_dimension = squared.detach() / x_t[0].numel()
        return losses(mean_flow=BranchLoss(weight * squared, per_dimension, weight, {"t": t, "s": s}))
