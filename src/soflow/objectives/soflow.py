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
from soflow.objectives.base import (
    BranchLoss,
    Draws,
    Inputs,
    Losses,
    adaptive_weight,
    float32,
    losses,
    may_share_a_pass,
    same_dropout,
    together,
    without_gradient,
)
from soflow.objectives.flow_matching import velocity_loss
from soflow.objectives.guided import draw_dropped, guiding_velocities, shown_labels
from soflow.path import Path
from soflow.solution import Parameterization
from soflow.symbols import Net, Sample, Times, across, mean_d
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
        scm = slice(draws.n_velocity, None)
        l = self.middle(draws.t[scm], draws.s[scm], progress)
        return losses(**self.branches(net, batch, draws, l))

    def branches(self, net: Net, batch: Batch, draws: Draws, l: Times) -> dict[str, BranchLoss]:
        """The losses of both branches, either of which may have no samples; l: the middle times of the second."""
        fm, scm = slice(draws.n_velocity), slice(draws.n_velocity, None)
        point = self.path.sample(batch.data, draws.noise, draws.t)
        x_t, t, v_t, dropped = point.x_t, point.t, point.v_t, draws.dropped
        target_fm, target_scm = v_t[fm], v_t[scm]
        if self.guidance is not None:
            v_null, v_label = guiding_velocities(net, x_t, t, batch, self.parameterization, self.guidance, scm)
            target_scm = self.guidance.target(v_t[scm], v_null[scm], v_label, t[scm], dropped[scm])

        # One Euler step along the (guided) velocity leads from x_t to x_l:   x_l = x_t + target (l - t)
        x_l = x_t[scm] + target_scm * across(l - t[scm], x_t)
        labels = shown_labels(batch, draws, self.guidance)
        velocities = Inputs(x_t, t, t, labels, batch.augment).rows(fm)
        jumps = Inputs(x_t, t, draws.s, labels, batch.augment).rows(scm)
        F_fm, F_t, F_l = passes(net, velocities, jumps, jumps._replace(x=x_l, t=l))

        v = self.parameterization.velocity(F_fm)
        if self.guidance is not None:  # what is mixed in here is the very prediction that learns, so it costs nothing
            target_fm = self.guidance.target(v_t[fm], v_null[fm], v.detach(), t[fm], dropped[fm])
        return {
            "flow_matching": velocity_loss(self.parameterization, v, target_fm, t[fm], self.p, self.eps),
            "consistency": consistency_loss(self.parameterization, jumps, F_t, x_l, l, F_l, self.p, self.eps),
        }


def passes(net: Net, velocities: Inputs, jumps: Inputs, nearer: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """F of the velocities and F of the jumps from x_t, both with gradient, and F of the jumps from x_l, without.

    The jumps are computed in float32 and under one dropout mask, for their difference is divided by t - l. The velocities
    go with them in one pass where that changes neither.
    """
    device = jumps.x.device
    share = may_share_a_pass(net, device)
    with float32(device):
        replay_dropout = same_dropout(device)
        (F_l,) = without_gradient(net, nearer)  # the same network, not an averaged copy
        replay_dropout()
        if share:
            F_fm, F_t = together(net, velocities, jumps)
            return F_fm, F_t, F_l
        (F_t,) = together(net, jumps)
    (F_fm,) = together(net, velocities)
    return F_fm, F_t, F_l


def consistency_loss(
    parameterization: Parameterization,
    jumps: Inputs,
    F_t: Sample,
    x_l: Sample,
    l: Times,
    F_l: Sample,
    p: float,
    eps: float,
) -> BranchLoss:
    """f(x_t, t, s, y) -> sg f(x_l, l, s, y), at times s <= l < t; F_t = F(x_t, t, s, y), F_l = F(x_l, l, s, y).

    The loss is a surrogate: its gradient is sign(b) w q / D, its value means nothing. Read `squared` instead.
    """
    x_t, t, s, *_ = jumps
    f_t = parameterization.solution(x_t, t, s, F_t.detach())
    f_l = parameterization.solution(x_l, l, s, F_l)
    # q = (f(x_t, t, s) - f(x_l, l, s)) / (t - l),   w = 1 / (mean_d(q^2) + eps)^p
    q = (f_t - f_l) / across(t - l, x_t)
    squared = mean_d(q**2)
    weight = adaptive_weight(squared, p, eps)
    # L_SCM = mean of sign(b(t, s)) mean_d(F(x_t, t, s) sg(q w))
    sign = torch.sign(parameterization.b(t, s))
    loss = sign * mean_d(F_t * q * across(weight, q))
    return BranchLoss(loss, squared, weight, {"t": t, "l": l, "s": s})
