"""SoFlow: flow matching and solution consistency, without Jacobian-vector products.

    L_FM  = mean of sg(w) mean_d( (v(x_t, t, y) - target)^2 )        objectives/flow_matching.py
    L_SCM = mean of sign(b(t, s)) mean_d( F(x_t, t, s, y) sg(q w) )  below

Source: the two losses and the guidance of SoFlow (arXiv 2512.15657). docs/paper_map.md lists where
the published code differs from the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
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
from soflow.objectives.flow_matching import velocity_loss
from soflow.objectives.guided import (
    draw_dropped,
    guiding_velocities,
    network_guidance,
    network_labels,
    without_label,
)
from soflow.objectives.passes import Inputs, consistency_passes, without_gradient
from soflow.parameterization import Parameterization
from soflow.solution import FlowModel
from soflow.symbols import Batch, Sample, Times, across, mean_d
from soflow.system.registry import Setting
from soflow.times import LogitNormal, MiddleTime, draw_jumps


@dataclass(frozen=True)
class SoFlowTimes:
    """The logit-normal densities of SoFlow's times.

    Example:
        >>> import soflow
        >>> times = soflow.SoFlowTimes(t=soflow.LogitNormal(0.0, 1.0))
        >>> soflow.SoFlow(times=times).times.s
        LogitNormal(mean=-1.0, std=0.8)
    """

    flow_matching: Annotated[LogitNormal, Setting("density of t for flow matching")] = LogitNormal(
        -0.2, 1.0
    )
    t: Annotated[LogitNormal, Setting("density of the start t of a jump")] = LogitNormal(0.2, 0.8)
    s: Annotated[LogitNormal, Setting("density of the end s of a jump")] = LogitNormal(-1.0, 0.8)


@OBJECTIVES.register("soflow")
@dataclass(frozen=True)
class SoFlow:
    """SoFlow: flow matching and solution consistency, L = (n_fm / B) L_FM + (n_scm / B) L_SCM.

    The first n_fm = floor(lambda B) samples of a batch match the flow. The other n_scm samples
    train consistency. L_FM and L_SCM are means over their own samples, so L is the mean loss per
    sample.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.SoFlow(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['consistency', 'flow_matching']
    """

    samplers: ClassVar[tuple[str, ...]] = ("renoise", "ode", "heun")
    whole_network: ClassVar[bool] = False

    flow_matching_share: Annotated[
        float,
        Setting("lambda, share of the batch for flow matching; the rest trains consistency",
                ge=0, le=1),
    ] = 0.75  # fmt: skip
    p: Power = 1.0
    eps: Eps = 0.01
    times: Annotated[SoFlowTimes, Setting("densities of the times")] = SoFlowTimes()
    middle: Annotated[MiddleTime, Setting("middle time l = t + (s - t) r")] = MiddleTime()
    guidance: Annotated[Guidance, Setting("classifier-free guidance inside training")] = Guidance()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        count = shape[0]
        noise = torch.randn(*shape, generator=generator, device=generator.device)
        n_fm = floor(self.flow_matching_share * count)
        t_fm = self.times.flow_matching.draw(n_fm, generator)
        t_jump, s_jump = draw_jumps(count - n_fm, self.times.t, self.times.s, generator)
        t, s = torch.cat([t_fm, t_jump]), torch.cat([t_fm, s_jump])
        dropped = draw_dropped(count, self.guidance, generator)
        return Draws(noise, t, s, dropped, n_flow_matching=n_fm)

    def scheduled(self, progress: float) -> dict[str, float]:
        """The ratio r of the middle time at `progress` = k / K."""
        return {"r": self.middle.r(progress)}

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        scm = slice(draws.n_flow_matching, None)
        l = self.middle(draws.t[scm], draws.s[scm], progress)
        return losses(**self.terms(model, batch, draws, l))

    def terms(
        self, model: FlowModel, batch: Batch, draws: Draws, l: Times, own_step: bool = False
    ) -> dict[str, Term]:
        """Both terms of the loss. A term may have no samples.

        Args:
            model: The model.
            batch: The batch.
            draws: The random numbers of the step.
            l: The middle times of the jumps, (n_scm,).
            own_step: Whether F(x_l, l, s) is evaluated at an x_l that follows the network's own
                velocity. The linear part of the target keeps the x_l of the guided velocity. This
                option is part of JumpFlow, not of the paper.
        """
        fm, scm = slice(draws.n_flow_matching), slice(draws.n_flow_matching, None)
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        x_t, t, v_t = point.x_t, point.t, point.v_t
        target_fm, target_scm = v_t[fm], v_t[scm]
        guidance = self.guidance
        labels = network_labels(model, batch, draws, guidance)
        drawn = network_guidance(model, labels, draws)
        velocities = Inputs.of(batch, x_t, t, t, labels, drawn).rows(fm)
        jumps = Inputs.of(batch, x_t, t, draws.s, labels, drawn).rows(scm)
        if guidance.active:
            v_null, v_label = guiding_velocities(model, x_t, t, batch, guidance, scm, drawn)
            unlabeled = without_label(model, labels)
            target_scm = guidance.target(
                v_t[scm], v_null[scm], v_label, t[scm], unlabeled[scm], jumps.guidance
            )

        # One Euler step along the (guided) velocity leads to x_l = x_t + target (l - t)
        x_l = x_t[scm] + target_scm * across(l - t[scm], x_t)
        nearer = jumps._replace(x=x_l, t=l)
        if own_step:
            (F,) = without_gradient(model.net, jumps._replace(s=jumps.t))
            own = model.parameterization.velocity(F)
            nearer = nearer._replace(x=jumps.x + own * across(l - jumps.t, x_t))
        F_fm, F_t, F_l = consistency_passes(model.net, velocities, jumps, nearer)

        v = model.parameterization.velocity(F_fm)
        if guidance.active:  # the target mixes in v of this pass, detached
            target_fm = guidance.target(
                v_t[fm], v_null[fm], v.detach(), t[fm], unlabeled[fm], velocities.guidance
            )
        param, p, eps = model.parameterization, self.p, self.eps
        return {
            "flow_matching": velocity_loss(param, v, target_fm, t[fm], p, eps),
            "consistency": consistency_loss(param, jumps, F_t, x_l, l, F_l, p, eps),
        }


def consistency_loss(
    parameterization: Parameterization,
    jumps: Inputs,
    F_t: Sample,
    x_l: Sample,
    l: Times,
    F_l: Sample,
    p: float,
    eps: float,
) -> Term:
    """Trains f(x_t, t, s, y) towards sg f(x_l, l, s, y), with s <= l < t.

    F_t = F(x_t, t, s, y) and F_l = F(x_l, l, s, y). The span of q is t - l. The loss is a
    surrogate: its gradient with respect to F_t is sign(b) w q / D, and its value has no meaning.
    `squared` is the error to report.
    """
    f_l = parameterization.solution(x_l, l, jumps.s, F_l)
    return jump_loss(parameterization, jumps, F_t, f_l, jumps.t - l, l, p, eps)


def jump_loss(
    parameterization: Parameterization,
    jumps: Inputs,
    F_t: Sample,
    target: Sample,
    span: Times,
    l: Times,
    p: float,
    eps: float,
) -> Term:
    """Trains f(x_t, t, s, y) towards a target without gradient, over a span of time (B,)."""
    x_t, t, s, *_ = jumps
    f_t = parameterization.solution(x_t, t, s, F_t.detach())
    # q = (f(x_t, t, s) - target) / span,   w = 1 / (mean_d(q^2) + eps)^p
    q = (f_t - target) / across(span, x_t)
    squared = mean_d(q**2)
    weight = adaptive_weight(squared, p, eps)
    # L_SCM = mean of sign(b(t, s)) mean_d(F(x_t, t, s) sg(q w))
    sign = torch.sign(parameterization.b(t, s))
    loss = sign * mean_d(F_t * q * across(weight, q))
    return Term(loss, squared, weight, {"t": t, "l": l, "s": s})
