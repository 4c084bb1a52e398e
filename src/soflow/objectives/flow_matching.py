"""Flow matching: learns the velocity field, which the samplers `euler` and `heun` integrate.

Source: Flow Matching (arXiv 2210.02747), Rectified Flow (arXiv 2209.03003). The adaptive weight and
guidance follow SoFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from soflow.guidance import Guidance
from soflow.objectives.base import (
    OBJECTIVES,
    Draws,
    Eps,
    Losses,
    Power,
    Term,
    adaptive_weight,
    losses,
)
from soflow.objectives.guided import (
    draw_dropped,
    guiding_velocities,
    network_labels,
    without_label,
)
from soflow.objectives.passes import Inputs
from soflow.parameterization import Parameterization
from soflow.solution import FlowModel
from soflow.symbols import Batch, Sample, Times, mean_d
from soflow.system.registry import Setting
from soflow.times import LogitNormal


@OBJECTIVES.register("flow_matching")
@dataclass(frozen=True)
class FlowMatching:
    """Flow matching: v(x_t, t, y) is trained towards v_t, or towards the guided velocity.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.FlowMatching(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['flow_matching']
    """

    samplers: ClassVar[tuple[str, ...]] = ("euler", "heun")  # learns no jumps
    whole_network: ClassVar[bool] = False

    p: Power = 0.0
    eps: Eps = 0.01
    times: Annotated[LogitNormal, Setting("density of t")] = LogitNormal(-0.2, 1.0)
    guidance: Annotated[Guidance, Setting("classifier-free guidance inside training")] = Guidance()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        t = self.times.draw(shape[0], generator)
        dropped = draw_dropped(shape[0], self.guidance, generator)
        return Draws(noise, t, t, dropped, n_flow_matching=shape[0])

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        x_t, t = point.x_t, point.t
        labels = network_labels(model, batch, draws, self.guidance)
        F = Inputs.of(batch, x_t, t, t, labels).through(model.net)
        v = model.parameterization.velocity(F)
        target = point.v_t
        if self.guidance.active:  # the target mixes in v of this pass, detached
            v_null, _ = guiding_velocities(model, x_t, t, batch, self.guidance, slice(0))
            unlabeled = without_label(model, labels)
            target = self.guidance.target(point.v_t, v_null, v.detach(), t, unlabeled)
        term = velocity_loss(model.parameterization, v, target, t, self.p, self.eps)
        return losses(flow_matching=term)


def velocity_loss(
    parameterization: Parameterization, v: Sample, target: Sample, t: Times, p: float, eps: float
) -> Term:
    """v(x_t, t, y) is trained towards the (guided) conditional velocity."""
    # L_FM = mean of sg(w) mean_d(delta^2),   w = 1 / (|d_s b(t, t)| (mean_d(delta^2) + eps)^p)
    delta = v - target
    squared = mean_d(delta**2)
    weight = adaptive_weight(squared, p, eps) / abs(parameterization.d_s_b)
    return Term(weight * squared, squared.detach(), weight, {"t": t})
