"""Compares the learned solution function with the model's own velocity, without reference data.

Each number is a root mean square over dimensions, averaged over samples. For data with standard
deviation 1, a value of 1 is large.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, nan

import torch
from torch import Tensor

from soflow.errors import InputError
from soflow.noising import NoisedSample
from soflow.sampling import HEUN_STEPS, checked, filled, integrate_velocity, one_step
from soflow.solution import FlowModel
from soflow.symbols import Labels, Sample, Times, mean_d

#: Heun steps of the ODE solution that one-step samples are compared with.
STEPS = 2 * HEUN_STEPS
#: Default start times t and end times s of `jump_errors`.
JUMP_STARTS = (1.0, 0.9, 0.75, 0.5, 0.25)
JUMP_ENDS = (0.75, 0.5, 0.25, 0.1, 0.0)


@dataclass(frozen=True)
class Diagnostics:
    """Errors of the learned solution function.

    Attributes:
        solution_residual: |df/ds - v(f, s)|.
        composition_gap: |f(f(x, t, l), l, s) - f(x, t, s)|.
        one_step_error: |f(noise, 1, 0) - Heun solution of dx/dt = v|.
    """

    solution_residual: float
    composition_gap: float
    one_step_error: float


def rms(x: Sample) -> float:
    """sqrt(mean_d(x^2)), averaged over the batch."""
    return float(mean_d(x**2).sqrt().mean())


def solution_residual(
    model: FlowModel, x_t: Sample, t: Times, s: Times, labels: Labels | None = None, h: float = 1e-3
) -> float:
    """|| df/ds (x_t, t, s) - v(f(x_t, t, s), s) ||, with a forward difference of step h in s."""
    f = model.solution(x_t, t, s, labels)
    f_next = model.solution(x_t, t, s + h, labels)
    return rms((f_next - f) / h - model.velocity(f, s, labels))


def composition_gap(
    model: FlowModel, x_t: Sample, t: Times, l: Times, s: Times, labels: Labels | None = None
) -> float:
    """|| f(f(x_t, t, l), l, s) - f(x_t, t, s) ||: two jumps compared with one."""
    halfway = model.solution(x_t, t, l, labels)
    return rms(model.solution(halfway, l, s, labels) - model.solution(x_t, t, s, labels))


def one_step_error(
    model: FlowModel, noise: Sample, labels: Labels | None = None, steps: int = STEPS
) -> float:
    """|| f(noise, 1, 0) - x_0 ||, where x_0 is the Heun solution of v from the same noise."""
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
    """Computes all diagnostics at noised samples, with s < l < t uniformly random below `point.t`.

    Args:
        model: The model.
        point: Noised samples (B, ...).
        labels: Labels of the samples, (B,), or None.
        generator: Random generator for s and l.
        batch: Samples per forward pass.
        cond: Conditions of the samples, (B, ...), or None.

    Returns:
        The diagnostics, averaged over the samples.
    """
    count = len(point.t)
    below = torch.rand(2, count, generator=generator).sort(dim=0).values.to(point.t.device)
    s, l = 0.98 * point.t * below  # leaves room for the forward difference in s, if t > 0.05
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


@dataclass(frozen=True)
class JumpError:
    """The error of one jump from t to s, compared with the model's own ODE.

    Both values are root mean squares over dimensions, averaged over samples.

    Attributes:
        t: Start time.
        s: End time.
        error: Difference between the jump and the ODE solution at s.
        displacement: Difference between the ODE solutions at s and at t.
    """

    t: float
    s: float
    error: float
    displacement: float

    @property
    def relative(self) -> float:
        """The error divided by the displacement; NaN if the displacement is 0."""
        return self.error / self.displacement if self.displacement else nan


@torch.no_grad()
def jump_errors(
    model: FlowModel,
    noise: Sample,
    labels: Labels | None = None,
    starts: Sequence[float] = JUMP_STARTS,
    ends: Sequence[float] = JUMP_ENDS,
    steps: int = STEPS,
    batch: int = 500,
) -> list[JumpError]:
    """Computes |f(x_t, t, s) - x_s| on the model's own trajectories x, for several t and s.

    Args:
        model: The model.
        noise: Standard normal noise (B, ...), where the trajectories start at t = 1.
        labels: Labels (B,), or None for no labels.
        starts: Start times t of the jumps, in (0, 1].
        ends: End times s of the jumps, in [0, 1).
        steps: Heun steps from t = 1 to t = 0. A shorter interval takes proportionally fewer.
        batch: Samples per forward pass.

    Returns:
        One error for each pair s < t, in descending order of t, then of s.

    Raises:
        InputError: If a time is outside its range, if no end time is below a start time, or if
            noise or labels do not fit the model.
    """
    if not all(0 < t <= 1 for t in starts) or not all(0 <= s < 1 for s in ends):
        raise InputError("jump times are out of range: starts must be in (0, 1], ends in [0, 1)")
    pairs = [(t, s) for t in sorted(set(starts))[::-1] for s in sorted(set(ends))[::-1] if s < t]
    if not pairs:
        raise InputError("no jump: at least one of the ends must be below one of the starts")
    noise, labels = checked(model, noise, labels)
    sums = torch.zeros(len(pairs), 2, dtype=torch.float64)
    for rows in torch.arange(len(noise), device=noise.device).split(batch):
        chosen = None if labels is None else labels[rows]
        x = trajectory(model, noise[rows], chosen, {time for pair in pairs for time in pair}, steps)
        for i, (t, s) in enumerate(pairs):
            jump = model.solution(x[t], filled(t, x[t]), filled(s, x[t]), chosen)
            found = [rms(jump - x[s]), rms(x[s] - x[t])]
            sums[i] += len(rows) * torch.tensor(found, dtype=torch.float64)
    means = (sums / len(noise)).tolist()
    return [JumpError(t, s, *values) for (t, s), values in zip(pairs, means, strict=True)]


def trajectory(
    model: FlowModel, noise: Sample, labels: Labels | None, times: Iterable[float], steps: int
) -> dict[float, Sample]:
    """Points on the model's own ODE trajectory from noise at t = 1, keyed by time."""
    x, now, points = noise, 1.0, {}
    for time in sorted(times, reverse=True):
        if time < now:
            count = max(1, ceil(steps * (now - time) - 1e-9))
            x = integrate_velocity(model, x, count, labels, "heun", now, time)
        now, points[time] = time, x
    return points
