"""Prototype."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Annotated, ClassVar

import torch

from soflow.guidance import Guidance
from soflow.objectives.base import OBJECTIVES, Draws, Losses, Term, adaptive_weight, losses
from soflow.objectives.flow_matching import velocity_loss
from soflow.objectives.guided import draw_dropped, shown_labels
from soflow.objectives.passes import Inputs, consistency_passes, without_gradient
from soflow.objectives.soflow import SoFlowTimes
from soflow.solution import FlowModel
from soflow.symbols import Batch, across, mean_d
from soflow.system.registry import Setting
from soflow.times import MiddleTime, draw_jumps, middle_time


@OBJECTIVES.register("jump_flow")
@dataclass(frozen=True)
class JumpFlow:
    """SoFlow with a weight of the consistency term, and with direct jumps from noise to data.

    Example:
        >>> import soflow, torch
    """

    samplers: ClassVar[tuple[str, ...]] = ("renoise", "ode", "heun")
    whole_network: ClassVar[bool] = False

    consistency_weight: Annotated[float, Setting("w, of the consistency term", gt=0)] = 4.0
    weight_init: Annotated[float, Setting("w at the beginning, -1: the same")] = -1.0
    composed_weight: Annotated[float, Setting("w, of composed")] = 1.0
    composed_share: Annotated[float, Setting("share of the jumps composed", ge=0, le=1)] = 0.0
    composed_ratio: Annotated[float, Setting("l of the composed, -1: random")] = -1.0
    composed_p: Annotated[float, Setting("p of the composed")] = 1.0
    own_step: Annotated[bool, Setting("step along the own velocity")] = False
    direct_share: Annotated[
        float, Setting("share of the jumps that go from t = 1 to s = 0", ge=0, le=1)
    ] = 0.2
    uniform_share: Annotated[float, Setting("share of flow matching with uniform t")] = 0.0
    to_data_share: Annotated[float, Setting("share of jumps with s = 0")] = 0.0
    flow_matching_share: Annotated[
        float, Setting("share of the batch that matches the flow; the rest jumps", ge=0, le=1)
    ] = 0.75
    p: Annotated[
        float, Setting("power of the adaptive weight of jumps; 0 is the plain square", ge=0)
    ] = 1.0
    p_velocity: Annotated[float, Setting("the same, of flow matching", ge=0)] = 1.0
    eps: Annotated[float, Setting("floor of the adaptive weight", gt=0)] = 0.01
    times: Annotated[SoFlowTimes, Setting("densities of the times")] = SoFlowTimes()
    middle: Annotated[MiddleTime, Setting("the middle time l = t + (s - t) r")] = MiddleTime()
    guidance: Annotated[Guidance, Setting("classifier-free guidance inside training")] = Guidance()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws noise, times and label drops of a batch of `shape`."""
        count = shape[0]
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        n_fm = floor(self.flow_matching_share * count)
        t_fm = self.times.flow_matching.draw(n_fm, generator)
        t_jump, s_jump = draw_jumps(count - n_fm, self.times.t, self.times.s, generator)
        t, s = torch.cat([t_fm, t_jump]), torch.cat([t_fm, s_jump])
        dropped = draw_dropped(count, self.guidance, generator)
        ratio = torch.rand(count, generator=generator, device=generator.device)
        n_uniform = floor(self.uniform_share * n_fm)
        t[:n_uniform] = s[:n_uniform] = torch.rand(
            n_uniform, generator=generator, device=generator.device
        )
        n_data = self.n_data(count - n_fm)
        for begin, end in ((n_fm, n_fm + n_data), (n_fm + n_data, count)):
            direct = slice(begin, begin + floor(self.direct_share * (end - begin)))
            t[direct], s[direct] = 1.0, 0.0
            last = slice(end - floor(self.to_data_share * (end - begin)), end)
            s[last] = 0.0
        if self.composed_ratio >= 0:
            ratio = torch.full_like(ratio, self.composed_ratio)
        return Draws(noise, t, s, dropped, n_fm, ratio)

    def n_data(self, n_jumps: int) -> int:
        return n_jumps - floor(self.composed_share * n_jumps)

    def scheduled(self, progress: float) -> dict[str, float]:
        """What follows a schedule at `progress` = k / K."""
        return {"r": self.middle.r(progress)}

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch at `progress` = k / K."""
        n_fm, count = draws.n_flow_matching, len(draws.t)
        n_data = self.n_data(count - n_fm)
        fm, scm = slice(n_fm), slice(n_fm, None)
        data, composed = slice(n_fm, n_fm + n_data), slice(n_fm + n_data, None)
        matched = slice(n_fm + n_data)  # those with a target from the data
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        x_t, t, s, v_t, dropped = point.x_t, point.t, draws.s, point.v_t, draws.dropped
        guidance, param = self.guidance, model.parameterization
        labels = shown_labels(model, batch, draws, guidance)
        ratio = draws.ratio
        l_composed = t[composed] + ratio[composed] * (s[composed] - t[composed])
        l = torch.cat(
            [middle_time(t[data], s[data], self.middle.r(progress)), l_composed]
        )

        own_jump = Inputs.of(batch, x_t, t, s, labels).rows(composed)._replace(s=l_composed)
        own = Inputs.of(batch, x_t, t, t, batch.labels).rows(data)
        if guidance.active:
            null_labels = torch.full_like(batch.labels, model.num_classes)
            null = Inputs.of(batch, x_t, t, t, null_labels).rows(matched)
            F_null, F_own, F_jump = without_gradient(model.net, null, own, own_jump)
            v_null, v_label = param.velocity(F_null), param.velocity(F_own)
            target = guidance.target(v_t[data], v_null[data], v_label, t[data], dropped[data])
            velocity = torch.where(across(dropped[data], v_label), v_null[data], v_label)
        else:
            F_own, F_jump = without_gradient(model.net, own, own_jump)
            target, velocity = v_t[data], param.velocity(F_own)
        step = across(l[:n_data] - t[data], x_t)
        x_l = x_t[data] + target * step
        seen = x_t[data] + velocity * step if self.own_step else x_l
        x_j = param.solution(x_t[composed], t[composed], l_composed, F_jump)

        velocities = Inputs.of(batch, x_t, t, t, labels).rows(fm)
        jumps = Inputs.of(batch, x_t, t, s, labels).rows(scm)
        nearer = jumps._replace(x=torch.cat([seen, x_j]), t=l)
        F_fm, F_t, F_l = consistency_passes(model.net, velocities, jumps, nearer)

        v = param.velocity(F_fm)
        target_fm = v_t[fm]
        if guidance.active:
            target_fm = guidance.target(v_t[fm], v_null[fm], v.detach(), t[fm], dropped[fm])
        fm_term = velocity_loss(param, v, target_fm, t[fm], self.p_velocity, self.eps)

        t, s = jumps.t, jumps.s
        f_t = param.solution(jumps.x, t, s, F_t.detach())
        f_l = param.solution(torch.cat([x_l, x_j]), l, s, F_l)
        span = torch.cat([(t - l)[:n_data], (t - s)[n_data:]])
        q = (f_t - f_l) / across(span, f_t)
        squared = mean_d(q**2)
        weight = torch.cat([
            adaptive_weight(squared[:n_data], self.p, self.eps),
            adaptive_weight(squared[n_data:], self.composed_p, self.eps),
        ])
        end = self.consistency_weight
        first = end if self.weight_init < 0 else self.weight_init
        w = first + (end - first) * progress
        factor = torch.ones_like(t) * w
        factor[n_data:] *= self.composed_weight
        loss = factor * torch.sign(param.b(t, s)) * mean_d(F_t * q * across(weight, q))
        term = Term(loss, squared, weight, {"t": t, "l": l, "s": s})
        return losses(flow_matching=fm_term, consistency=term)
