"""Improved MeanFlow: the mean velocity from t to s, learned by regression on the velocity.

    F(x_t, t, s) + (t - s) sg(dF/dt) -> v,
    dF/dt = Jacobian-vector product of F along (F(x_t, t, t), 1, 0) in (x, t, s)

MeanFlow takes the derivative along the conditional velocity v, which the network cannot know.
Improved MeanFlow takes it along the network's own velocity, so that the prediction depends only on
x_t. With guidance,

    v = v_t + (1 - 1 / omega) (v(x_t, t, y) - v(x_t, t, null))

Source: loss, guidance and share of flow matching of Improved Mean Flows (arXiv 2512.02012). Times
and weight as in MeanFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch

from soflow.errors import InputError
from soflow.objectives.base import OBJECTIVES, Draws, Eps, Losses, OrderedTimes, Power, losses
from soflow.objectives.guided import draw_ordered_jumps, guided_jumps
from soflow.objectives.mean_flow import MeanFlowGuidance, summed_error
from soflow.objectives.passes import TakesDerivative, together, without_gradient
from soflow.solution import FlowModel, require_mean_velocity
from soflow.symbols import Batch, across
from soflow.system.registry import Setting
from soflow.times import LogitNormal


@dataclass(frozen=True)
class ImprovedMeanFlowGuidance(MeanFlowGuidance):
    """The guidance of improved MeanFlow with a fixed scale omega. Its `mix` is 1 / omega.

    Example:
        >>> import soflow
        >>> soflow.ImprovedMeanFlow().guidance.mix
        1.0
    """

    mix: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mix", 1 / max(self.scale, 1.0))


@OBJECTIVES.register("imf")
@dataclass(frozen=True)
class ImprovedMeanFlow(TakesDerivative):
    """Improved MeanFlow: trains F(x_t, t, s, y) + (t - s) sg(dF/dt) towards the (guided) velocity.

    Args:
        compile: Compiles the function that takes the derivative. Set by `soflow.train`.

    Raises:
        InputError: If `guidance` is the guidance of another objective.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.ImprovedMeanFlow(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['imf']
    """

    samplers: ClassVar[tuple[str, ...]] = ("ode", "renoise", "heun")
    whole_network: ClassVar[bool] = True  # it differentiates the network
    forward_derivative: ClassVar[bool] = True
    parameterization: ClassVar[str] = "euler"

    flow_matching_share: Annotated[
        float,
        Setting("share of the batch with s = t (flow matching); the rest trains jumps", ge=0, le=1),
    ] = 0.5
    p: Power = 1.0
    eps: Eps = 0.01
    times: OrderedTimes = LogitNormal(-0.4, 1.0)
    guidance: Annotated[
        ImprovedMeanFlowGuidance, Setting("classifier-free guidance inside training")
    ] = ImprovedMeanFlowGuidance()

    def __post_init__(self) -> None:
        if not isinstance(self.guidance, ImprovedMeanFlowGuidance):
            raise InputError(
                f"guidance is a {type(self.guidance).__name__}: pass "
                "soflow.ImprovedMeanFlowGuidance, which has the target of improved MeanFlow"
            )

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        share, guidance = self.flow_matching_share, self.guidance
        return draw_ordered_jumps(shape, share, self.times, guidance, generator)

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        require_mean_velocity(model)
        inputs, v = guided_jumps(model, batch, draws, self.guidance)
        t, s, jumps = draws.t, draws.s, slice(draws.n_flow_matching, None)

        (direction,) = without_gradient(model.net, inputs._replace(s=t).rows(jumps))
        (F_plain,) = together(model.net, inputs.rows(slice(draws.n_flow_matching)))
        F_jumps, dF_dt = self.with_derivative(model.net, inputs.rows(jumps), direction)
        V = torch.cat([F_plain, F_jumps + across((t - s)[jumps], v) * dF_dt])
        return losses(imf=summed_error(V - v, self.p, self.eps, {"t": t, "s": s}))
