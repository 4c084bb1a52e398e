"""Does the learned map solve the flow it claims to solve? Three numbers without a reference.

Each is a root mean square over dimensions, averaged over samples. If data have standard deviation
1, then 1 is large.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from soflow.noising import NoisedSample
from soflow.sampling import HEUN_STEPS, integrate_velocity, one_step
from soflow.solution import FlowModel
from soflow.symbols import Labels, Sample, Times, mean_d

#: Steps of the Heun integration that one-step samples are compared with.
STEPS = 2 * HEUN_STEPS


@dataclass(frozen=True)
class Diagnostics:
    """solution_residual: |df/ds - v(f, s)|. composition_gap: |f(f(x, t, l), l, s) - f(x, t, s)|.
    one_step_error: |f(noise, 1, 0) - Heun of v|."""

    solution_residual: float
    composition_gap: float
    one_step_error: float


def rms(x: Sample) -> float:
    """sqrt(mean_d(x^2)), averaged over the batch."""
    return float(mean_d(x**2).sqrt().mean())


def solution_residual(
    model: FlowModel, x_t: Sample, t: Times, s: Times, labels: Labels | None = None, h: float = 1e-3
) -> float:
    """|| d f/ds (x_t, t, s) - v(f(x_t, t, s), s) ||, by a forward difference of step h in s."""
    f = model.solution(x_t, t, s, labels)
    f_next = model.solution(x_t, t, s + h, labels)
    return rms((f_next - f) / h - model.velocity(f, s, labels))


def composition_gap(
    model: FlowModel, x_t: Sample, t: Times, l: Times, s: Times, labels: Labels | None = None
) -> float:
    """|| f(f(x_t, t, l), l, s) - f(x_t, t, s) ||: two jumps against one."""
    halfway = model.solution(x_t, t, l, labels)
    return rms(model.solution(halfway, l, s, labels) - model.solution(x_t, t, s, labels))


def one_step_error(
    model: FlowModel, noise: Sample, labels: Labels | None = None, steps: int = STEPS
) -> float:
    """|| f(noise, 1, 0) - Heun of v from the same noise ||: one jump against the own ODE."""
    heun = integrate_velocity(model, noise, steps, labels, "heun")
    return rms(one_step(model, noise, labels) - heun)


@torch.no_grad()
def diagnose(
    model: FlowModel,
    point: NoisedSample,
    labels: Labels | None,
    generator: torch.Generator,
    batch: int = 500,
    cond: Tensor | None = None,
) -> Diagnostics:
    """All three numbers, at noised samples and times s < l < t, drawn evenly below `point.t`.

    Args:
        model: The model.
        point: Noised samples (B, ...).
        labels: Of the samples, (B,), or None.
        generator: Draws s and l.
        batch: How many points to process at once.
        cond: Conditions of the samples, (B, ...), or None.
    """
    count = len(point.t)
    below = torch.rand(2, count, generator=generator).sort(dim=0).values.to(point.t.device)
    s, l = 0.98 * point.t * below  # leaves room for the forward difference
    sums = []
    for rows in torch.arange(count, device=point.t.device).split(batch):
        chosen = None if labels is None else labels[rows]
        x_t, t = point.x_t[rows], point.t[rows]
        one = model if cond is None else model.conditioned(cond[rows])
        residual = solution_residual(one, x_t, t, s[rows], chosen)
        gap = composition_gap(one, x_t, t, l[rows], s[rows], chosen)
        error = one_step_error(one, point.noise[rows], chosen)
        sums.append([len(rows) * value for value in (residual, gap, error)])
    return Diagnostics(*(sum(values) / count for values in zip(*sums, strict=True)))
