"""Does the learned map solve the flow it claims to solve? Numbers without a reference.

Each is a root mean square over dimensions, averaged over samples. If data have standard deviation
1, then 1 is large.
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

#: Steps of the Heun integration that one-step samples are compared with.
STEPS = 2 * HEUN_STEPS
#: Times that `jump_errors` jumps from and to.
JUMP_STARTS = (1.0, 0.9, 0.75, 0.5, 0.25)
JUMP_ENDS = (0.75, 0.5, 0.25, 0.1, 0.0)


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


@dataclass(frozen=True)
class JumpError:
    """The error of one jump from t to s against the model's own ODE.

    Both are root mean squares over dimensions, averaged over samples: of the difference, and of the
    way that the ODE goes from t to s.
    """

    t: float
    s: float
    error: float
    displacement: float

    @property
    def relative(self) -> float:
        """The error over the displacement."""
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
    """|f(x_t, t, s) - x_s| on the model's own trajectories x from noise at t = 1, by t and s.

    Args:
        model: The model.
        noise: Standard normal, (B, ...).
        labels: (B,), or None for no condition.
        starts: The times t to jump from, in (0, 1].
        ends: The times s to jump to, in [0, 1).
        steps: Steps of the Heun integration, if it goes from 1 to 0. Between two times there are as
            many as their distance asks for.
        batch: How many samples to process at once.

    Returns:
        One error for every t and every s below it, largest t and s first.

    Raises:
        InputError: For times outside their range or no pair of them, and for noise or labels that
            do not fit the model.
    """
    if not all(0 < t <= 1 for t in starts) or not all(0 <= s < 1 for s in ends):
        raise InputError("jumps go from times in (0, 1] to times in [0, 1): choose others")
    pairs = [(t, s) for t in sorted(set(starts))[::-1] for s in sorted(set(ends))[::-1] if s < t]
    if not pairs:
        raise InputError("jump_errors needs a time to jump to below a time to jump from")
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
    """Points of the model's own trajectory from noise at t = 1, by time."""
    x, now, points = noise, 1.0, {}
    for time in sorted(times, reverse=True):
        if time < now:
            count = max(1, ceil(steps * (now - time) - 1e-9))
            x = integrate_velocity(model, x, count, labels, "heun", now, time)
        now, points[time] = time, x
    return points
