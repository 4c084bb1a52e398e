"""alpha-Flow: a gradual transition from flow matching to MeanFlow.

    F(x_t, t, s) -> sg( alpha v + (1 - alpha) F(x_l, l, s) ),
    l = t + alpha (s - t),   x_l = x_t + v (l - t)

alpha falls from 1 to 0 during training. At alpha = 1, the target is v. As alpha approaches 0, the
error (F - target) / alpha approaches MeanFlow's error. At alpha = 0, the objective uses MeanFlow's
target, which needs a Jacobian-vector product. With alpha = r, the target is also SoFlow's
consistency target as a mean velocity, (f(x_l, l, s) - x_t) / (s - t).

The error of a jump is proportional to alpha. Its weight also has the factor alpha until alpha = 0,
where the error is MeanFlow's.

Source: alpha-Flow (arXiv 2510.20771). The weight, the share of flow matching and the schedule of
alpha are those of its published code for the guided B/2 model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from soflow.errors import InputError
from soflow.objectives.base import (
    OBJECTIVES,
    Draws,
    Eps,
    Losses,
    OrderedTimes,
    Term,
    adaptive_weight,
    losses,
)
from soflow.objectives.guided import draw_ordered_jumps, guided_jumps
from soflow.objectives.mean_flow import MeanFlowGuidance
from soflow.objectives.passes import Inputs, TakesDerivative, together, without_gradient
from soflow.solution import FlowModel, require_mean_velocity
from soflow.symbols import Batch, Sample, across, mean_d
from soflow.system.registry import Setting
from soflow.times import LogitNormal


@OBJECTIVES.register("alpha_flow")
@dataclass(frozen=True)
class AlphaFlow(TakesDerivative):
    """The alpha-Flow objective: a transition from flow matching to MeanFlow.

    A share of the batch matches the (guided) flow. The rest learns mean velocities.

    Args:
        compile: Compiles the function that takes the derivative. Set by `soflow.train`.

    Raises:
        InputError: If `begin` is not smaller than `end`.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.AlphaFlow(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['alpha_flow']
    """

    samplers: ClassVar[tuple[str, ...]] = ("renoise", "ode", "heun")
    whole_network: ClassVar[bool] = True  # it differentiates the network once alpha = 0
    forward_derivative: ClassVar[bool] = True
    parameterization: ClassVar[str] = "euler"

    flow_matching_share: Annotated[
        float,
        Setting("share of the batch with s = t (flow matching); the rest trains jumps", ge=0, le=1),
    ] = 0.25
    begin: Annotated[
        float, Setting("fraction of training after which alpha starts to fall from 1", ge=0, le=1)
    ] = 0.0
    end: Annotated[
        float, Setting("fraction of training after which alpha has reached 0", gt=0, le=1)
    ] = 1.0
    steepness: Annotated[float, Setting("steepness of the sigmoid schedule of alpha", gt=0)] = 25.0
    clamp: Annotated[
        float,
        Setting(
            "alpha within this distance of 0 or 1 is set to 0 or 1; 0: alpha stays above 0",
            ge=0,
            lt=0.5,
        ),
    ] = 0.005
    eps: Eps = 0.001
    times: OrderedTimes = LogitNormal(-0.4, 1.0)
    guidance: Annotated[MeanFlowGuidance, Setting("classifier-free guidance inside training")] = (
        MeanFlowGuidance()
    )

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise InputError(
                f"objective.begin={self.begin:g} must be smaller than objective.end={self.end:g}"
            )

    def alpha(self, progress: float) -> float:
        """alpha at `progress` = k / K: a sigmoid that falls from 1 to 0."""
        u = (progress - (self.begin + self.end) / 2) / (self.end - self.begin)
        alpha = 1 / (1 + exp(min(self.steepness * u, 700.0)))  # exp overflows above 709
        if alpha < self.clamp:
            return 0.0
        return 1.0 if alpha > 1 - self.clamp else alpha

    def scheduled(self, progress: float) -> dict[str, float]:
        """The scheduled values at `progress` = k / K, by symbol."""
        return {"alpha": self.alpha(progress)}

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        share, guidance = self.flow_matching_share, self.guidance
        return draw_ordered_jumps(shape, share, self.times, guidance, generator)

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        require_mean_velocity(model)
        inputs, v = guided_jumps(model, batch, draws, self.guidance)
        fm, jumps = slice(draws.n_flow_matching), slice(draws.n_flow_matching, None)
        alpha = self.alpha(progress)
        F_t, target = self.prediction(model, inputs.rows(jumps), v[jumps], alpha)
        (F_fm,) = together(model.net, inputs.rows(fm))

        # loss = c mean_d(delta^2) / sg(mean_d(delta^2) + eps),   c = alpha for jumps at alpha > 0
        squared = mean_d((torch.cat([F_fm, F_t]) - torch.cat([v[fm], target])) ** 2)
        weight = adaptive_weight(squared, 1.0, self.eps)
        if alpha > 0:
            weight = torch.cat([weight[fm], alpha * weight[jumps]])
        term = Term(weight * squared, squared.detach(), weight, {"t": draws.t, "s": draws.s})
        return losses(alpha_flow=term)

    def prediction(
        self, model: FlowModel, jumps: Inputs, v: Sample, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """F(x_t, t, s), and its target without gradient, each (B, ...)."""
        x_t, t, s = jumps.x, jumps.t, jumps.s
        if alpha == 0:
            F_t, dF_dt = self.with_derivative(model.net, jumps, v)
            return F_t, v - across(t - s, v) * dF_dt
        (F_t,) = together(model.net, jumps)
        if alpha == 1:
            return F_t, v
        l = t + alpha * (s - t)
        x_l = x_t + across(l - t, v) * v
        (F_l,) = without_gradient(model.net, jumps._replace(x=x_l, t=l))
        return F_t, alpha * v + (1 - alpha) * F_l
