"""JumpFlow: SoFlow's losses with more weight on the jumps of few-step sampling.

    L = (n_fm / B) L_FM + (n_scm / B) w L_SCM + (n_c / B) w_c L_C

L_FM and L_SCM are SoFlow's losses (objectives/soflow.py). Each difference from SoFlow has its own
settings:

* A larger share of the batch trains jumps, and their loss has a weight w. In short training runs,
  long jumps lag behind the velocity.
* A share of the jumps goes from noise to data, t = 1 and s = 0. One-step sampling evaluates the
  network at these times, and logit-normal times rarely come close to them.
* L_C trains a jump towards two successive jumps. Its targets come from the network alone, without
  the noise of the conditional velocity:

      f(x_t, t, s) -> sg f(f(x_t, t, l), l, s),    s <= l <= t

  If the second jump is a step along the velocity and l is close to s, L_C is a finite-difference
  form of the condition d_s f = v(f, s).
* The x_l at which L_SCM evaluates the network can follow the network's own velocity.
* The adaptive weight 1 / (squared + eps)^p can have another power p in flow matching. p = 1 favors
  typical samples and moves the velocity away from the mean.
* Guidance does not fade near noise.

With w = 1, SoFlow's share of flow matching, SoFlow's guidance, and no direct or composed jumps,
JumpFlow is identical to SoFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Annotated, ClassVar, Literal

import torch

from soflow.errors import InputError
from soflow.guidance import DrawnGuidance, Guidance
from soflow.objectives.base import OBJECTIVES, Draws, Eps, Losses, Power, Term, losses
from soflow.objectives.guided import network_guidance, network_labels
from soflow.objectives.passes import (
    Inputs,
    float32,
    same_dropout,
    together,
    without_gradient,
)
from soflow.objectives.soflow import SoFlow, SoFlowTimes, jump_loss
from soflow.solution import FlowModel
from soflow.symbols import Batch, across
from soflow.system.registry import Setting
from soflow.times import FLOOR, MiddleTime


@OBJECTIVES.register("jump_flow")
@dataclass(frozen=True)
class JumpFlow:
    """JumpFlow: SoFlow with more weight on the jumps of few-step sampling.

    More of the batch trains jumps, their loss has a weight, some jumps go directly from noise to
    data, and some jumps can be composed of two.

    Raises:
        InputError: If `mix_at_end` is set without guidance, or `composed_weight` or `second`
            without `composed_share`.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.JumpFlow(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['consistency', 'flow_matching']
    """

    samplers: ClassVar[tuple[str, ...]] = ("ode", "renoise", "heun")
    whole_network: ClassVar[bool] = False

    consistency_weight: Annotated[float, Setting("weight w of the consistency term", gt=0)] = 2.5
    weight_at_start: Annotated[
        float | None,
        Setting(
            "consistency weight at the first step, from which it changes linearly to "
            "consistency_weight; null: constant weight",
            ge=0,
        ),
    ] = None
    length_power: Annotated[
        float,
        Setting("n: the consistency weight is multiplied by (t - s)^n to favor long jumps", ge=0),
    ] = 0.0
    direct_share: Annotated[
        float, Setting("share of the jumps that go from t = 1 to s = 0", ge=0, le=1)
    ] = 0.2
    composed_share: Annotated[
        float, Setting("share of the jumps trained towards two successive jumps", ge=0, le=1)
    ] = 0.0
    composed_weight: Annotated[float, Setting("weight w_c of composed jumps", gt=0)] = 1.0
    second: Annotated[
        Literal["jump", "velocity"],
        Setting(
            "second part of a composed jump: jump (any jump), or velocity (a short step along the "
            "velocity)"
        ),
    ] = "jump"
    own_step: Annotated[
        bool,
        Setting(
            "whether the consistency loss evaluates the network at an x_l that follows the "
            "network's own velocity instead of the (guided) conditional velocity"
        ),
    ] = False
    flow_matching_share: Annotated[
        float, Setting("share of the batch for flow matching; the rest trains jumps", ge=0, le=1)
    ] = 0.6
    uniform_share: Annotated[
        float, Setting("share of flow-matching times uniform on [0, 1]", ge=0, le=1)
    ] = 0.0
    p: Power = 1.0
    flow_matching_p: Annotated[
        float | None,
        Setting("power of the adaptive weight in flow matching; 0: no weighting; null: p", ge=0),
    ] = None
    eps: Eps = 0.01
    times: Annotated[SoFlowTimes, Setting("densities of the times")] = SoFlowTimes()
    middle: Annotated[MiddleTime, Setting("middle time l = t + (s - t) r")] = MiddleTime()
    guidance: Annotated[DrawnGuidance, Setting("classifier-free guidance inside training")] = (
        DrawnGuidance()
    )
    mix_at_end: Annotated[
        float | None,
        Setting(
            "guidance.mix at the last step, to which it changes linearly from guidance.mix; "
            "null: constant mix",
            ge=0,
            le=1,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.mix_at_end is not None and not self.guidance.active:
            raise InputError(
                "objective.mix_at_end has no effect without guidance: set objective.guidance.scale "
                "or objective.guidance.max_scale above 1, or leave out mix_at_end"
            )
        if not self.composed_share:
            for name, off in (("composed_weight", 1.0), ("second", "jump")):
                if getattr(self, name) != off:
                    raise InputError(
                        f"objective.{name} has no effect without composed jumps: set "
                        f"objective.composed_share above 0, or leave out {name}"
                    )

    def soflow(self, progress: float) -> SoFlow:
        """SoFlow with the settings of this objective at `progress` = k / K."""
        guidance = self.guidance
        if self.mix_at_end is not None:
            mix = guidance.mix + (self.mix_at_end - guidance.mix) * progress
            guidance = replace(guidance, mix=mix)
        return SoFlow(
            flow_matching_share=self.flow_matching_share,
            p=self.p,
            eps=self.eps,
            times=self.times,
            middle=self.middle,
            guidance=guidance,
        )

    def weight(self, progress: float) -> float:
        """The weight w of the consistency term at `progress` = k / K."""
        end = self.consistency_weight
        start = end if self.weight_at_start is None else self.weight_at_start
        return start + (end - start) * progress

    def scheduled(self, progress: float) -> dict[str, float]:
        """The scheduled values at `progress` = k / K, by symbol."""
        values = {"r": self.middle.r(progress), "w": self.weight(progress)}
        if self.mix_at_end is not None:
            values["m"] = self.soflow(progress).guidance.mix
        return values

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times, dropped labels and guidance for a batch of shape `shape`."""
        draws = self.soflow(0.0).draw(shape, generator)
        count, n_fm, t, s = shape[0], draws.n_flow_matching, draws.t, draws.s
        uniform = slice(floor(self.uniform_share * n_fm))
        t[uniform].uniform_(generator=generator)
        s[uniform] = t[uniform]
        n_composed = floor(self.composed_share * (count - n_fm))
        for jumps in (slice(n_fm, count - n_composed), slice(count - n_composed, count)):
            n_direct = floor(self.direct_share * (jumps.stop - jumps.start))
            direct = slice(jumps.start, jumps.start + n_direct)
            t[direct], s[direct] = 1.0, 0.0
        if self.composed_share > 0:
            if not n_composed:
                raise too_few(self.composed_share, count)
            u = torch.rand(count, generator=generator, device=generator.device)
            draws = replace(draws, n_composed=n_composed, l=s + u * (t - s))
        return replace(draws, guidance=self.guidance.draw(count, generator))

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        soflow, first = self.soflow(progress), len(draws.t) - draws.n_composed
        single, composed = slice(first), slice(first, None)
        jumps = slice(draws.n_flow_matching, first)
        l = self.middle(draws.t[jumps], draws.s[jumps], progress)
        terms = soflow.terms(model, batch.rows(single), draws.rows(single), l, self.own_step)
        velocity, jump = terms["flow_matching"], terms["consistency"]
        if self.flow_matching_p is not None:
            # 1 / (squared + eps)^flow_matching_p instead of 1 / (squared + eps)^p
            scale = (velocity.squared + self.eps) ** (self.p - self.flow_matching_p)
            loss, weight = scale * velocity.loss, scale * velocity.weight
            velocity = velocity._replace(loss=loss, weight=weight)
        w = self.weight(progress) * (draws.t - draws.s)[jumps] ** self.length_power
        found = {"flow_matching": velocity, "consistency": jump._replace(loss=w * jump.loss)}
        if draws.l is not None:
            if not draws.n_composed:
                raise too_few(self.composed_share, len(draws.t))
            guidance = soflow.guidance
            found["composed"] = self.composed(
                model, batch.rows(composed), draws.rows(composed), guidance, progress
            )
        return losses(**found)

    def composed(
        self, model: FlowModel, batch: Batch, draws: Draws, guidance: Guidance, progress: float
    ) -> Term:
        """Trains f(x_t, t, s, y) towards sg f(f(x_t, t, l, y), l, s, y)."""
        param, t, s = model.parameterization, draws.t, draws.s
        x_t = model.noising.sample(batch.data, draws.noise, t).x_t
        labels = network_labels(model, batch, draws, guidance)
        jumps = Inputs.of(batch, x_t, t, s, labels, network_guidance(model, labels, draws))
        by_velocity = self.second == "velocity"
        l = draws.l
        assert l is not None
        if by_velocity:
            l = torch.minimum(s + (self.middle.r(progress) * (t - s)).clamp(min=FLOOR), t)

        # In float32 and with the same dropout mask: the difference is divided by a short time.
        with float32(x_t.device):
            replay_dropout = same_dropout(x_t.device)
            (F_tl,) = without_gradient(model.net, jumps._replace(s=l))
            x_l = param.solution(x_t, t, l, F_tl)
            nearer = jumps._replace(x=x_l, t=l, s=l if by_velocity else s)
            replay_dropout()
            (F_l,) = without_gradient(model.net, nearer)
            replay_dropout()
            (F_ts,) = together(model.net, jumps)
        if by_velocity:
            target, span = x_l + across(s - l, x_l) * param.velocity(F_l), l - s
        else:
            target, span = param.solution(x_l, l, s, F_l), t - s
        term = jump_loss(param, jumps, F_ts, target, span, l, self.p, self.eps)
        return term._replace(loss=self.composed_weight * term.loss)


def too_few(share: float, count: int) -> InputError:
    """The error for a batch without composed jumps. Every process needs at least one."""
    return InputError(
        f"objective.composed_share={share:g} leaves no composed jump in a batch of {count} samples "
        "per process and accumulation step: increase composed_share or train.batch_size"
    )
