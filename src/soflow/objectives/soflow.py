"""SoFlow: flow matching and solution consistency, with no Jacobian-vector product.

    L_FM  = mean of sg(w) mean_d( (v(x_t, t, y) - target)^2 )                      objectives/flow_matching.py
    L_SCM = mean of sign(b(t, s)) mean_d( F(x_t, t, s, y) sg(q w) )                below

Source: SoFlow (arXiv 2512.15657), its two losses and guidance; where its code differs from its text: docs/paper_map.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import BranchLoss, Draws, Losses, adaptive_weight, float32, losses, same_dropout
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.guided import draw_dropped, guided_velocity, shown_labels
from soflow.path import Path
from soflow.solution import Parameterization
from soflow.symbols import Labels, Net, Sample, Times, across, mean_d
from soflow.times import LogitNormal, MiddleTime, draw_jumps


@dataclass(frozen=True)
class SoFlow:
    """L = (n_fm / B) L_FM + (n_scm / B) L_SCM: the first n_fm = floor(lambda B) samples match the flow, the rest are
    made consistent. Each L is a mean over its own samples, so the whole is the mean of one loss a sample.

    lambda_: the flow-matching share. p, eps: the adaptive weights. *_times: densities of t in flow matching, and of t and
    s in consistency. middle: the middle time l. guidance: None trains the plain, unguided flow and drops no label.
    """

    path: Path
    parameterization: Parameterization
    lambda_: float
    p: float
    eps: float
    fm_times: LogitNormal
    t_times: LogitNormal
    s_times: LogitNormal
    middle: MiddleTime
    guidance: Guidance | None = None

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Noise, times and label drops for a batch of that shape, (B, ...), on the generator's device."""
        count = shape[0]
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        n_fm = floor(self.lambda_ * count)
        t_fm = self.fm_times.draw(n_fm, generator)
        t_jump, s_jump = draw_jumps(count - n_fm, self.t_times, self.s_times, generator)
        t, s = torch.cat([t_fm, t_jump]), torch.cat([t_fm, s_jump])
        return Draws(noise, t, s, draw_dropped(count, self.guidance, generator), n_velocity=n_fm)

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None) -> Losses:
        """The loss at `progress` = k / K of training."""
        fm, scm = slice(draws.n_velocity), slice(draws.n_velocity, None)
        branches = {}
        if draws.n_velocity > 0:
            branches["flow_matching"] = self.flow_matching(net, batch.rows(fm), draws.rows(fm))
        if draws.n_velocity < len(batch):
            l = self.middle(draws.t[scm], draws.s[scm], progress)
            branches["consistency"] = self.consistency(net, batch.rows(scm), draws.rows(scm), l)
        return losses(**branches)

    def flow_matching(self, net: Net, batch: Batch, draws: Draws) -> BranchLoss:
        """L_FM: v(x_t, t, y) -> the (guided) conditional velocity."""
        flow = FlowMatching(self.path, self.parameterization, self.p, self.eps, self.fm_times, self.guidance)
        return flow.branch(net, batch, draws)

    def consistency(self, net: Net, batch: Batch, draws: Draws, l: Times) -> BranchLoss:
        """L_SCM: f(x_t, t, s) -> f(x_l, l, s), where one Euler step along the (guided) velocity leads from x_t to x_l."""
        point = self.path.sample(batch.data, draws.noise, draws.t)
        target = guided_velocity(net, point, batch, draws, self.parameterization, self.guidance)
        # x_l = x_t + target (l - t)
        x_t, t, s = point.x_t, point.t, draws.s
        x_l = x_t + target * across(l - t, x_t)
        labels = shown_labels(batch, draws, self.guidance)
        return consistency_loss(net, self.parameterization, x_t, t, x_l, l, s, labels, batch.augment, self.p, self.eps)


def consistency_loss(
    net: Net,
    parameterization: Parameterization,
    x_t: Sample,
    t: Times,
    x_l: Sample,
    l: Times,
    s: Times,
    labels: Labels | None,
    augment: Tensor | None,
    p: float,
    eps: float,
) -> BranchLoss:
    """f(x_t, t, s, y) -> sg f(x_l, l, s, y), at times s <= l < t.

    The loss is a surrogate: its gradient is sign(b) w q / D, its value means nothing. Read `squared` instead.
    """
    with float32(x_t):
        replay_dropout = same_dropout(x_t.device)
        with torch.no_grad():  # the target is the same network, not an averaged copy, under the same dropout mask
            f_l = parameterization.solution(x_l, l, s, net(x_l, l, s, labels, augment))
        replay_dropout()
        F_t = net(x_t, t, s, labels, augment)
        f_t = parameterization.solution(x_t, t, s, F_t.detach())

        # q = (f(x_t, t, s) - f(x_l, l, s)) / (t - l),   w = 1 / (mean_d(q^2) + eps)^p
        q = (f_t - f_l) / across(t - l, x_t)
        squared = mean_d(q**2)
        weight = adaptive_weight(squared, p, eps)
        # L_SCM = mean of sign(b(t, s)) mean_d(F(x_t, t, s) sg(q w))
        sign = torch.sign(parameterization.b(t, s))
        loss = sign * mean_d(F_t * q * across(weight, q))
    return BranchLoss(loss, squared, weight)
