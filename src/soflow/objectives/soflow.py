"""SoFlow: flow matching and solution consistency, with no Jacobian-vector product.

Source: SoFlow (arXiv 2512.15657), its two losses and guidance; where its code differs from its text: docs/paper_map.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import torch

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import Draws, Losses, adaptive_weight, float32, same_dropout
from soflow.path import Path
from soflow.solution import Parameterization
from soflow.symbols import Labels, Net, PerSample, Sample, Times, across, mean_d
from soflow.times import LogitNormal, MiddleTime, draw_jumps


@dataclass(frozen=True)
class BranchLoss:
    """One branch's numbers for each of its samples: its share of the loss, mean_d of the squared error, the weight w."""

    loss: PerSample
    squared: PerSample
    weight: PerSample


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
        count, device = shape[0], generator.device
        noise = torch.randn(*shape, generator=generator, device=device)
        n_fm = floor(self.lambda_ * count)
        t_fm = self.fm_times.draw(n_fm, generator)
        t_jump, s_jump = draw_jumps(count - n_fm, self.t_times, self.s_times, generator)
        t, s = torch.cat([t_fm, t_jump]), torch.cat([t_fm, s_jump])
        label_dropout = self.guidance.label_dropout if self.guidance else 0.0
        dropped = torch.rand(count, generator=generator, device=device) < label_dropout
        return Draws(noise, t, s, dropped, n_velocity=n_fm)

    def __call__(self, net: Net, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss at `progress` = k / K of training."""
        fm, scm = slice(draws.n_velocity), slice(draws.n_velocity, None)
        branches = {}
        if draws.n_velocity > 0:
            branches["flow_matching"] = self.flow_matching(net, batch.rows(fm), draws.rows(fm))
        if draws.n_velocity < len(batch):
            l = self.middle(draws.t[scm], draws.s[scm], progress)
            branches["consistency"] = self.consistency(net, batch.rows(scm), draws.rows(scm), l)
        total = torch.cat([branch.loss for branch in branches.values()]).mean()
        mse = {f"{name}_mse": branch.squared for name, branch in branches.items()}
        weight = {f"{name}_weight": branch.weight for name, branch in branches.items()}
        return Losses(total, mse | weight)

    def flow_matching(self, net: Net, batch: Batch, draws: Draws) -> BranchLoss:
        """L_FM: v(x_t, t, y) -> the (guided) conditional velocity."""
        point = self.path.sample(batch.data, draws.noise, draws.t)
        x_t, t = point.x_t, point.t
        v = self.parameterization.velocity(net(x_t, t, t, self._labels(batch, draws), batch.augment))

        target = point.v_t
        if self.guidance is not None:  # the prediction that is mixed in is this very pass, so it costs nothing
            with torch.no_grad():
                v_null = self.parameterization.velocity(net(x_t, t, t, None, batch.augment))
                target = self.guidance.target(point.v_t, v_null, v.detach(), t, draws.dropped)

        # L_FM = mean of sg(w) mean_d(delta^2),   w = 1 / (|d_s b(t, t)| (mean_d(delta^2) + eps)^p)
        delta = v - target
        squared = mean_d(delta**2)
        weight = adaptive_weight(squared, self.p, self.eps) / abs(self.parameterization.d_s_b)
        return BranchLoss(weight * squared, squared.detach(), weight)

    def consistency(self, net: Net, batch: Batch, draws: Draws, l: Times) -> BranchLoss:
        """L_SCM: f(x_t, t, s) -> f(x_l, l, s), where one Euler step along the (guided) velocity leads from x_t to x_l.

        The loss is a surrogate: its gradient is sign(b) w q / D, its value means nothing. Read `squared` instead.
        """
        point = self.path.sample(batch.data, draws.noise, draws.t)
        x_t, t, s = point.x_t, point.t, draws.s
        labels = self._labels(batch, draws)

        with torch.no_grad():
            target = point.v_t
            if self.guidance is not None:
                v_label, v_null = self._velocities(net, x_t, t, batch)
                target = self.guidance.target(point.v_t, v_null, v_label, t, draws.dropped)
            # x_l = x_t + target (l - t)
            x_l = x_t + target * across(l - t, x_t)

        with float32(x_t):
            replay_dropout = same_dropout(x_t.device)
            with torch.no_grad():  # the target is the same network, not an averaged copy, under the same dropout mask
                f_l = self.parameterization.solution(x_l, l, s, net(x_l, l, s, labels, batch.augment))
            replay_dropout()
            F_t = net(x_t, t, s, labels, batch.augment)
            f_t = self.parameterization.solution(x_t, t, s, F_t.detach())

            # q = (f(x_t, t, s) - f(x_l, l, s)) / (t - l),   w = 1 / (mean_d(q^2) + eps)^p
            q = (f_t - f_l) / across(t - l, x_t)
            squared = mean_d(q**2)
            weight = adaptive_weight(squared, self.p, self.eps)
            # L_SCM = mean of sign(b(t, s)) mean_d(F(x_t, t, s) sg(q w))
            sign = torch.sign(self.parameterization.b(t, s))
            loss = sign * mean_d(F_t * q * across(weight, q))
        return BranchLoss(loss, squared, weight)

    def _labels(self, batch: Batch, draws: Draws) -> Labels | None:
        """The labels the network is shown: some of them dropped where guidance is trained."""
        if self.guidance is None or batch.labels is None:
            return batch.labels
        return self.guidance.drop(batch.labels, draws.dropped)

    def _velocities(self, net: Net, x_t: Sample, t: Times, batch: Batch) -> tuple[Sample, Sample]:
        """v(x_t, t, y) and v(x_t, t, null), in one pass; y is the label before dropping."""
        assert self.guidance is not None
        assert batch.labels is not None
        labels = torch.cat([batch.labels, torch.full_like(batch.labels, self.guidance.null_label)])
        x, t = torch.cat([x_t, x_t]), torch.cat([t, t])
        augment = None if batch.augment is None else torch.cat([batch.augment, batch.augment])
        v_label, v_null = self.parameterization.velocity(net(x, t, t, labels, augment)).chunk(2)
        return v_label, v_null
