"""MeanFlow: learns the mean velocity F from t to s with its derivative along the trajectory.

    F(x_t, t, s) -> sg( v - (t - s) dF/dt ),
    dF/dt = Jacobian-vector product of F along (v, 1, 0) in (x, t, s)

Source: Mean Flows for One-step Generative Modeling (arXiv 2505.13447).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from soflow.guidance import Guidance
from soflow.objectives.base import (
    OBJECTIVES,
    Draws,
    Eps,
    Losses,
    OrderedTimes,
    Power,
    Term,
    adaptive_weight,
    losses,
)
from soflow.objectives.guided import draw_ordered_jumps, guided_jumps
from soflow.objectives.passes import TakesDerivative, together
from soflow.solution import FlowModel, require_mean_velocity
from soflow.symbols import Batch, Sample, Times, across
from soflow.system.registry import Setting
from soflow.times import LogitNormal


@dataclass(frozen=True)
class MeanFlowGuidance(Guidance):
    """The guidance of MeanFlow. It does not fade.

    In the MeanFlow paper, `mix` is 1 - kappa, and `mix` times `scale` is omega.

    Example:
        >>> import soflow
        >>> objective = soflow.MeanFlow(guidance=soflow.MeanFlowGuidance(scale=2.0))
        >>> objective.guidance.mix
        1.0
    """

    mix: Annotated[
        float,
        Setting(
            "weight m = 1 - kappa of the guided velocity in the target; the network's own velocity "
            "gets 1 - m",
            ge=0,
            le=1,
        ),
    ] = 1.0
    decay_time: Annotated[float, Setting("always 1: guidance does not fade", ge=1, le=1)] = 1.0


@OBJECTIVES.register("mean_flow")
@dataclass(frozen=True)
class MeanFlow(TakesDerivative):
    """MeanFlow: trains F(x_t, t, s, y) towards the mean of the (guided) velocity from t to s.

    Args:
        compile: Compiles the function that takes the derivative. Set by `soflow.train`.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.MeanFlow(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['mean_flow']
    """

    samplers: ClassVar[tuple[str, ...]] = ("ode", "renoise", "heun")
    whole_network: ClassVar[bool] = True  # it differentiates the network
    forward_derivative: ClassVar[bool] = True
    parameterization: ClassVar[str] = "euler"

    flow_matching_share: Annotated[
        float,
        Setting("share of the batch with s = t (flow matching); the rest trains jumps", ge=0, le=1),
    ] = 0.75
    derivative: Annotated[
        Literal["all", "jumps"],
        Setting(
            "samples to take the derivative for: all, as published, or jumps only (s < t), which "
            "gives the same loss at lower cost"
        ),
    ] = "all"
    p: Power = 1.0
    eps: Eps = 0.01
    times: OrderedTimes = LogitNormal(-0.4, 1.0)
    guidance: Annotated[MeanFlowGuidance, Setting("classifier-free guidance inside training")] = (
        MeanFlowGuidance()
    )

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        share, guidance = self.flow_matching_share, self.guidance
        return draw_ordered_jumps(shape, share, self.times, guidance, generator)

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        require_mean_velocity(model)
        inputs, v = guided_jumps(model, batch, draws, self.guidance)
        t, s = draws.t, draws.s
        plain = draws.n_flow_matching if self.derivative == "jumps" else 0
        (F_plain,) = together(model.net, inputs.rows(slice(plain)))
        F_jumps, dF_dt = self.with_derivative(model.net, inputs.rows(slice(plain, None)), v[plain:])
        F_t, dF_dt = torch.cat([F_plain, F_jumps]), torch.cat([torch.zeros_like(F_plain), dF_dt])
        target = v - across(t - s, v) * dF_dt
        return losses(mean_flow=summed_error(F_t - target, self.p, self.eps, {"t": t, "s": s}))


def summed_error(delta: Sample, p: float, eps: float, times: dict[str, Times]) -> Term:
    """The term of an error (B, ...) that is summed over dimensions. `squared` is its mean."""
    # loss = sum_d(delta^2) / sg(sum_d(delta^2) + eps)^p
    summed = (delta**2).flatten(1).sum(1)
    weight = adaptive_weight(summed, p, eps)
    return Term(weight * summed, summed.detach() / delta[0].numel(), weight, times)
