"""Flow matching: the velocity field alone. It is sampled by integrating the field, with the `euler` and `heun` samplers.

Source: Flow Matching (arXiv 2210.02747), Rectified Flow (arXiv 2209.03003); weight and guidance as in SoFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import BranchLoss, Draws, Losses, adaptive_weight, losses
from soflow.objectives.guided import draw_dropped, guiding_velocities, shown_labels
from soflow.path import Path
from soflow.solution import Parameterization
from soflow.symbols import Net, Sample, Times, mean_d
from soflow.times import LogitNormal


@dataclass(frozen=True)
class FlowMatching:
    """F(x_t, t, t, y) -> v_t, or the guided velocity.

    p, eps: the adaptive weight. times: the density of t. guidance: None trains the unguided flow and drops no label.
    """

    path: Path
    parameterization: Parameterization
    p: float
    eps: float
    times: LogitNormal
    guidance: Guidance | None = None

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Noise, times and label drops for a batch of that shape, (B, ...), on the generator's device."""
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        t = self.times.draw(shape[0], generator)
        return Draws(noise, t, t, draw_dropped(shape[0], self.guidance, generator), n_velocity=shape[0])

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None) -> Losses:
        point = self.path.sample(batch.data, draws.noise, draws.t)
        x_t, t = point.x_t, point.t
        v = self.parameterization.velocity(net(x_t, t, t, shown_labels(batch, draws, self.guidance), batch.augment))
        target = point.v_t
        if self.guidance is not None:  # the prediction that is mixed in is this very pass, so it costs nothing
            v_null, _ = guiding_velocities(net, x_t, t, batch, self.parameterization, self.guidance, slice(0))
            target = self.guidance.target(point.v_t, v_null, v.detach(), t, draws.dropped)
        return losses(flow_matching=velocity_loss(self.parameterization, v, target, t, self.p, self.eps))


def velocity_loss(
    parameterization: Parameterization, v: Sample, target: Sample, t: Times, p: float, eps: float
) -> BranchLoss:
    """v(x_t, t, y) -> the (guided) conditional velocity. Also a part of other methods."""
    # L_FM = mean of sg(w) mean_d(delta^2),   w = 1 / (|d_s b(t, t)| (mean_d(delta^2) + eps)^p)
    delta = v - target
    squared = mean_d(delta**2)
    weight = adaptive_weight(squared, p, eps) / abs(parameterization.d_s_b)
    return BranchLoss(weight * squared, squared.detach(), weight, {"t": t})
