"""Consistency training: every point of a trajectory is mapped to the same sample, f(x_t, t, 0) -> sg f(x_l, l, 0).

It is SoFlow's consistency loss at s = 0, alone: x_l is made with the same data and noise, and no velocity is learned.

Source: improved consistency training (arXiv 2310.14189), ECT (arXiv 2406.14548).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soflow.data.batches import Batch
from soflow.objectives.base import Draws, Inputs, Losses, losses
from soflow.objectives.guided import draw_dropped
from soflow.objectives.soflow import consistency_loss, passes
from soflow.path import Path
from soflow.solution import Parameterization
from soflow.symbols import Net
from soflow.times import FLOOR, LogitNormal, MiddleTime


@dataclass(frozen=True)
class Consistency:
    """f(x_t, t, 0, y) -> f(x_l, l, 0, y). There is no velocity to guide by, so the method has no guidance.

    p, eps: the adaptive weight. times: the density of t. middle: the time l = (1 - r) t.
    """

    path: Path
    parameterization: Parameterization
    p: float
    eps: float
    times: LogitNormal
    middle: MiddleTime

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Noise and times for a batch of that shape, (B, ...), on the generator's device."""
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        t = self.times.draw(shape[0], generator).clamp(min=FLOOR)
        return Draws(noise, t, torch.zeros_like(t), draw_dropped(shape[0], None, generator), n_velocity=0)

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None) -> Losses:
        l = self.middle(draws.t, draws.s, progress)
        x_t, x_l = (self.path.add_noise(batch.data, draws.noise, time) for time in (draws.t, l))
        jumps = Inputs(x_t, draws.t, draws.s, batch.labels, batch.augment)
        _, F_t, F_l = passes(net, jumps.rows(slice(0)), jumps, jumps._replace(x=x_l, t=l))
        branch = consistency_loss(self.parameterization, jumps, F_t, x_l, l, F_l, self.p, self.eps)
        return losses(consistency=branch)
