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
from soflow.objectives.base import BranchLoss, Draws, Losses, adaptive_weight, losses
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.guided import draw_dropped, shown_labels
from soflow.path import Path
from soflow.solution import EulerParameterization
from soflow.symbols import Net, across, mean_d
from soflow.times import LogitNormal

#: Lengths 2d of the steps: 1, 1/2, ... 2^-HALVINGS. Steps start at multiples of their length.
HALVINGS = 6


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
        branches = {}
        if draws.n_velocity > 0:
            flow = FlowMatching(self.path, EulerParameterization(), self.p, self.eps, self.times, self.guidance)
            branches["flow_matching"] = flow.branch(net, batch.rows(fm), draws.rows(fm))
        if draws.n_velocity < len(batch):
            branches["shortcut"] = self.steps(net, batch.rows(steps), draws.rows(steps), average or net)
        return losses(**branches)

    def steps(self, net: Net, batch: Batch, draws: Draws, average: Net) -> BranchLoss:
        """One step from t to s -> two steps of half its length, by the averaged network."""
        x_t, t, s = self.path.add_noise(batch.data, draws.noise, draws.t), draws.t, draws.s
        labels = shown_labels(batch, draws, self.guidance)
        d = (t - s) / 2
        with torch.no_grad():
            first = average(x_t, t, t - d, labels, batch.augment)
            x = x_t - across(d, x_t) * first
            second = average(x, t - d, s, labels, batch.augment)
            target = (first + second) / 2
        squared = mean_d((net(x_t, t, s, labels, batch.augment) - target) ** 2)
        weight = adaptive_weight(squared, self.p, self.eps)
        return BranchLoss(weight * squared, squared.detach(), weight)
