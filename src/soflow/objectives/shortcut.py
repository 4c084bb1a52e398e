"""Shortcut models: flow matching, and steps that equal two steps of half the length.

    F(x_t, t, t - 2d) -> sg of the mean of F(x_t, t, t - d) and F(x', t - d, t - 2d),   x' = x_t - d F(x_t, t, t - d)

Source: One Step Diffusion via Shortcut Models (arXiv 2410.12557). The targets come from the averaged network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import torch

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import BranchLoss, Draws, Inputs, Losses, adaptive_weight, losses, together, without_gradient
from soflow.objectives.flow_matching import velocity_loss
from soflow.objectives.guided import draw_dropped, guiding_velocities, shown_labels
from soflow.path import Path
from soflow.solution import EulerParameterization
from soflow.symbols import Net, Sample, across, mean_d
from soflow.times import LogitNormal

#: Lengths 2d of the steps: 1, 1/2, ... 2^-HALVINGS. Steps start at multiples of their length.
HALVINGS = 6
EULER = EulerParameterization()


@dataclass(frozen=True)
class Shortcut:
    """A share of the batch learns steps from half steps; the rest matches the (guided) flow.

    step_share: the share of steps. p, eps: the adaptive weights; p = 0 is the paper's plain square. times: the density of t
    in flow matching. guidance: of the flow, which the steps then follow.
    """

    path: Path
    step_share: float
    p: float
    eps: float
    times: LogitNormal
    guidance: Guidance | None = None

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Noise, times and label drops for a batch of that shape, (B, ...), on the generator's device."""
        count, device = shape[0], generator.device
        noise = torch.randn(*shape, generator=generator, device=device)
        n_steps = floor(self.step_share * count)
        t_fm = self.times.draw(count - n_steps, generator)
        length = 0.5 ** torch.randint(0, HALVINGS + 1, (n_steps,), generator=generator, device=device)
        end = torch.rand(n_steps, generator=generator, device=device).div(length).floor() * length
        t, s = torch.cat([t_fm, end + length]), torch.cat([t_fm, end])
        return Draws(noise, t, s, draw_dropped(count, self.guidance, generator), n_velocity=count - n_steps)

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None) -> Losses:
        fm, steps = slice(draws.n_velocity), slice(draws.n_velocity, None)
        point, labels = self.path.sample(batch.data, draws.noise, draws.t), shown_labels(batch, draws, self.guidance)
        x_t, t, v_t = point.x_t, point.t, point.v_t
        velocities = Inputs(x_t, t, t, labels, batch.augment).rows(fm)
        jumps = Inputs(x_t, t, draws.s, labels, batch.augment).rows(steps)
        F_fm, F_steps = together(net, velocities, jumps)

        target = v_t[fm]
        if self.guidance is not None:
            v_null, _ = guiding_velocities(net, x_t[fm], t[fm], batch.rows(fm), EULER, self.guidance, slice(0))
            target = self.guidance.target(v_t[fm], v_null, F_fm.detach(), t[fm], draws.dropped[fm])
        squared = mean_d((F_steps - two_half_steps(average or net, jumps)) ** 2)
        weight = adaptive_weight(squared, self.p, self.eps)
        return losses(
            flow_matching=velocity_loss(EULER, F_fm, target, t[fm], self.p, self.eps),
            shortcut=BranchLoss(weight * squared, squared.detach(), weight, {"t": jumps.t, "s": jumps.s}),
        )


def two_half_steps(average: Net, jumps: Inputs) -> Sample:
    """The mean velocity over two steps of half the length each, by the averaged network."""
    d = (jumps.t - jumps.s) / 2
    (first,) = without_gradient(average, jumps._replace(s=jumps.t - d))
    x = jumps.x - across(d, jumps.x) * first
    (second,) = without_gradient(average, jumps._replace(x=x, t=jumps.t - d))
    return (first + second) / 2
