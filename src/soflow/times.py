"""The times of a training step: logit-normal t and s, and the middle time l with its schedule r.

Source: SoFlow (arXiv 2512.15657), sampling of times and the schedule of l.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Literal

import torch
from torch import Tensor

from soflow.symbols import Times
from soflow.system.registry import Setting

#: The minimum distance between the two times of a jump, and the minimum t.
FLOOR = 1e-4

Schedule = Literal["constant", "linear", "cosine", "exponential"]


@dataclass(frozen=True)
class LogitNormal:
    """The logit-normal density of times on (0, 1): sigmoid(mean + std * normal).

    Example:
        >>> import soflow, torch
        >>> times = soflow.LogitNormal(mean=-0.2, std=1.0).draw(4, torch.Generator())
        >>> times.shape, bool(((times > 0) & (times < 1)).all())
        (torch.Size([4]), True)
    """

    mean: Annotated[float, Setting("mean of logit(time)")]
    std: Annotated[float, Setting("standard deviation of logit(time)", gt=0)]

    def draw(self, count: int, generator: torch.Generator) -> Times:
        """Draws `count` independent times (count,) on the generator's device."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class MiddleTime:
    """The middle time l = t + (s - t) r of a jump.

    The ratio r changes from `init` to `end` during training, so that l moves towards t.

    Example:
        >>> import soflow, torch
        >>> middle = soflow.MiddleTime("linear", init=0.5, end=0.1)
        >>> middle(torch.tensor([1.0]), torch.tensor([0.0]), progress=0.0)
        tensor([0.5000])
        >>> middle(torch.tensor([1.0]), torch.tensor([0.0]), progress=1.0)
        tensor([0.9000])
    """

    schedule: Annotated[
        Schedule, Setting("schedule of the middle-time ratio r during training; constant: r = end")
    ] = "exponential"
    init: Annotated[
        float, Setting("middle-time ratio r at the first training step", gt=0, le=1)
    ] = 0.1
    end: Annotated[
        float,
        Setting(
            "middle-time ratio r at the last training step; below 0.001, rounding errors can cost "
            "quality",
            gt=0,
            le=1,
        ),
    ] = 0.002

    def r(self, progress: float) -> float:
        """The ratio r at progress = k / K, after k of K training steps."""
        match self.schedule:
            case "constant":
                return self.end
            case "linear":
                return self.init + (self.end - self.init) * progress
            case "cosine":
                return self.end + (self.init - self.end) * (1 + cos(pi * progress)) / 2
            case "exponential":
                return self.init * (self.end / self.init) ** progress
        raise AssertionError(self.schedule)

    def __call__(self, t: Times, s: Times, progress: float) -> Times:
        """The middle times l (B,) in [s, t).

        They lie at least 1e-4 below t, so quotients over t - l stay finite.
        """
        return middle_time(t, s, self.r(progress))


def draw_ordered(
    count: int, density: LogitNormal, generator: torch.Generator
) -> tuple[Times, Times]:
    """Draws two independent times per sample: t is the larger one, s the smaller one."""
    first, second = density.draw(count, generator), density.draw(count, generator)
    return torch.maximum(first, second), torch.minimum(first, second)


def middle_time(t: Tensor, s: Tensor, r: float) -> Tensor:
    """l = min(t + (s - t) r, t - 1e-4)."""
    return torch.minimum(t + (s - t) * r, t - FLOOR)


def draw_jumps(
    count: int, t_density: LogitNormal, s_density: LogitNormal, generator: torch.Generator
) -> tuple[Times, Times]:
    """Draws t and s of `count` jumps independently, then enforces t >= 1e-4 and s <= t - 1e-4."""
    t = t_density.draw(count, generator).clamp(min=FLOOR)
    s = torch.minimum(s_density.draw(count, generator), t - FLOOR)
    return t, s
