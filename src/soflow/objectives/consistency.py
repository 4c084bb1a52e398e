"""Consistency training: all points of a trajectory map to one sample, f(x_t, t, 0) -> f(x_l, l, 0).

The loss is SoFlow's consistency loss with s = 0. x_t and x_l use the same data and noise. No
velocity is learned.

Source: improved consistency training (arXiv 2310.14189), ECT (arXiv 2406.14548).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from soflow.objectives.base import OBJECTIVES, Draws, Eps, Losses, Power, losses
from soflow.objectives.passes import Inputs, consistency_passes
from soflow.objectives.soflow import consistency_loss
from soflow.solution import FlowModel
from soflow.symbols import Batch
from soflow.system.registry import Setting
from soflow.times import FLOOR, LogitNormal, MiddleTime


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class Consistency:
    """Consistency training: f(x_t, t, 0, y) is trained towards f(x_l, l, 0, y).

    No velocity is learned, so guidance is not available.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.Consistency(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['consistency']
    """

    samplers: ClassVar[tuple[str, ...]] = ("renoise",)  # learns only jumps to data
    whole_network: ClassVar[bool] = False
    trains_null: ClassVar[bool] = False

    p: Power = 1.0
    eps: Eps = 0.01
    times: Annotated[LogitNormal, Setting("density of t")] = LogitNormal(0.2, 0.8)
    middle: Annotated[MiddleTime, Setting("middle time l = (1 - r) t")] = MiddleTime()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise and times for a batch of shape `shape`."""
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        t = self.times.draw(shape[0], generator).clamp(min=FLOOR)
        no = torch.zeros_like(t, dtype=torch.bool)
        return Draws(noise, t, torch.zeros_like(t), dropped=no, n_flow_matching=0)

    def scheduled(self, progress: float) -> dict[str, float]:
        """The ratio r of the middle time at `progress` = k / K."""
        return {"r": self.middle.r(progress)}

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        l = self.middle(draws.t, draws.s, progress)
        x_t, x_l = (model.noising.add_noise(batch.data, draws.noise, time) for time in (draws.t, l))
        jumps = Inputs.of(batch, x_t, draws.t, draws.s, batch.labels)
        nearer = jumps._replace(x=x_l, t=l)
        _, F_t, F_l = consistency_passes(model.net, jumps.rows(slice(0)), jumps, nearer)
        param, p, eps = model.parameterization, self.p, self.eps
        return losses(consistency=consistency_loss(param, jumps, F_t, x_l, l, F_l, p, eps))
