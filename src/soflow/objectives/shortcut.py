"""Shortcut models: flow matching, and steps trained to equal two steps of half their length.

    F(x_t, t, t - 2d) -> sg of the mean of F(x_t, t, t - d) and F(x', t - d, t - 2d),
    x' = x_t - d F(x_t, t, t - d)

For the shortest 2d, the target is the mean of the velocities F(x_t, t, t) and F(x', t - d, t - d).

Source: One Step Diffusion via Shortcut Models (arXiv 2410.12557). The targets use the EMA weights,
so `ema.rampup` affects them.
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
    network_labels,
    without_label,
)
from soflow.objectives.passes import Inputs, together, without_gradient
from soflow.solution import FlowModel, require_mean_velocity
from soflow.symbols import Batch, Net, Sample, across, mean_d
from soflow.system.registry import Setting
from soflow.times import LogitNormal

#: Steps have length 2d = 1, 1/2, ... 2^-HALVINGS. They start at multiples of their length.
HALVINGS = 6


@OBJECTIVES.register("shortcut")
@dataclass(frozen=True)
class Shortcut:
    """Shortcut models: some samples match the (guided) flow, others learn steps from half steps.

    The targets of steps come from `model.average`, or from `model.net` if `average` is None.

    Example:
        >>> import dataclasses, soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.Shortcut(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
        >>> ema = soflow.Ema(model.net)
        >>> model = dataclasses.replace(model, average=ema.net)
        >>> losses = objective(model, batch, draws, progress=0.5)
        >>> losses.total.backward()
        >>> sorted(losses.terms)
        ['flow_matching', 'shortcut']
    """

    samplers: ClassVar[tuple[str, ...]] = ("ode", "heun")  # learns jumps of length 1, 1/2, 1/4, ...
    whole_network: ClassVar[bool] = True  # it also calls the network with EMA weights
    parameterization: ClassVar[str] = "euler"

    flow_matching_share: Annotated[
        float,
        Setting("share of the batch for flow matching; the rest learns steps from half steps",
                ge=0, le=1),
    ] = 0.75  # fmt: skip
    p: Power = 0.0
    eps: Eps = 0.01
    times: Annotated[LogitNormal, Setting("density of t for flow matching")] = LogitNormal(
        -0.2, 1.0
    )
    guidance: Annotated[Guidance, Setting("classifier-free guidance inside training")] = Guidance()

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch of shape `shape`."""
        count, device = shape[0], generator.device
        noise = torch.randn(*shape, generator=generator, device=device)
        n_fm = floor(self.flow_matching_share * count)
        n_steps = count - n_fm
        t_fm = self.times.draw(n_fm, generator)
        halvings = torch.randint(0, HALVINGS + 1, (n_steps,), generator=generator, device=device)
        length = 0.5**halvings
        start = torch.rand(n_steps, generator=generator, device=device)
        end = start.div(length).floor() * length
        t, s = torch.cat([t_fm, end + length]), torch.cat([t_fm, end])
        return Draws(noise, t, s, draw_dropped(count, self.guidance, generator), n_fm)

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1)."""
        require_mean_velocity(model)
        fm, steps = slice(draws.n_flow_matching), slice(draws.n_flow_matching, None)
        point = model.noising.sample(batch.data, draws.noise, draws.t)
        x_t, t, v_t = point.x_t, point.t, point.v_t
        labels = network_labels(model, batch, draws, self.guidance)
        velocities = Inputs.of(batch, x_t, t, t, labels).rows(fm)
        jumps = Inputs.of(batch, x_t, t, draws.s, labels).rows(steps)
        F_fm, F_steps = together(model.net, velocities, jumps)

        v, target = model.parameterization.velocity(F_fm), v_t[fm]
        if self.guidance.active:
            rows = batch.rows(fm)
            v_null, _ = guiding_velocities(model, x_t[fm], t[fm], rows, self.guidance, slice(0))
            unlabeled = without_label(model, velocities.labels)
            target = self.guidance.target(target, v_null, v.detach(), t[fm], unlabeled)
        squared = mean_d((F_steps - two_half_steps(model.average or model.net, jumps)) ** 2)
        weight = adaptive_weight(squared, self.p, self.eps)
        return losses(
            flow_matching=velocity_loss(model.parameterization, v, target, t[fm], self.p, self.eps),
            shortcut=Term(weight * squared, squared.detach(), weight, {"t": jumps.t, "s": jumps.s}),
        )


def two_half_steps(average: Net, jumps: Inputs) -> Sample:
    """The mean velocity (B, ...) of two steps of half the length, with the EMA weights.

    Half of the shortest length is not trained. There, the half steps use the velocity F(x, t, t),
    which flow matching trains.
    """
    d = (jumps.t - jumps.s) / 2
    shortest = d < 0.5**HALVINGS
    middle = jumps.t - d
    (first,) = without_gradient(average, jumps._replace(s=torch.where(shortest, jumps.t, middle)))
    x = jumps.x - across(d, jumps.x) * first
    end = torch.where(shortest, middle, jumps.s)
    (second,) = without_gradient(average, jumps._replace(x=x, t=middle, s=end))
    return (first + second) / 2
