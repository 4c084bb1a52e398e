"""SoFlow's losses, with more weight where one-step sampling reads the network.

    L = (n_fm / B) L_FM + w (n_scm / B) L_SCM

L_FM and L_SCM are SoFlow's. Two things differ. A share of the jumps goes from pure noise to data,
t = 1 and s = 0, which is the jump that one-step sampling takes; logit-normal times hardly ever come
near it. And the consistency term has a weight w, since in trainings of few steps the long jumps lag
behind the velocity. With w = 1 and no direct jumps this is SoFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor
from typing import Annotated, ClassVar

import torch

from soflow.guidance import DrawnGuidance
from soflow.objectives.base import OBJECTIVES, Draws, Losses, losses
from soflow.objectives.soflow import SoFlow, SoFlowTimes
from soflow.solution import FlowModel
from soflow.symbols import Batch
from soflow.system.registry import Setting
from soflow.times import MiddleTime


@OBJECTIVES.register("jump_flow")
@dataclass(frozen=True)
class JumpFlow:
    """SoFlow with a weight of the consistency term, and with direct jumps from noise to data.

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

    samplers: ClassVar[tuple[str, ...]] = ("renoise", "ode", "heun")
    whole_network: ClassVar[bool] = False

    consistency_weight: Annotated[float, Setting("w, of the consistency term", gt=0)] = 4.0
    direct_share: Annotated[
        float, Setting("share of the jumps that go from t = 1 to s = 0", ge=0, le=1)
    ] = 0.2
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
    guidance: Annotated[DrawnGuidance, Setting("classifier-free guidance inside training")] = (
        DrawnGuidance()
    )

    @cached_property
    def soflow(self) -> SoFlow:
        """SoFlow with these settings."""
        return SoFlow(
            self.flow_matching_share, self.p, self.eps, self.times, self.middle, self.guidance
        )

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws noise, times, label drops and guidance of a batch of `shape`."""
        draws = self.soflow.draw(shape, generator)
        first = draws.n_flow_matching
        direct = slice(first, first + floor(self.direct_share * (shape[0] - first)))
        draws.t[direct], draws.s[direct] = 1.0, 0.0
        return replace(draws, guidance=self.guidance.draw(shape[0], generator))

    def scheduled(self, progress: float) -> dict[str, float]:
        """What follows a schedule at `progress` = k / K."""
        return {"r": self.middle.r(progress)}

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch at `progress` = k / K."""
        scm = slice(draws.n_flow_matching, None)
        l = self.middle(draws.t[scm], draws.s[scm], progress)
        terms = self.soflow.terms(model, batch, draws, l)
        velocity, jump = terms["flow_matching"], terms["consistency"]
        # From 1 / (delta^2 + eps)^p to the velocity's own power
        ratio = (velocity.squared + self.eps) ** (self.p - self.p_velocity)
        return losses(
            flow_matching=velocity._replace(
                loss=ratio * velocity.loss, weight=ratio * velocity.weight
            ),
            consistency=jump._replace(loss=self.consistency_weight * jump.loss),
        )
