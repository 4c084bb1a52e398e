"""Classifier-free guidance inside training: the network learns the guided flow.

Guided sampling then needs no additional network evaluations.

    decay(t) = 1                                         for t <= t_d
               1 - exp(-k u / (1 - u)),  k = 1 / 40      for t >  t_d,
                                                         u = clamp((1 - t) / (1 - t_d), 0, 1 - 1e-6)
    guided   = v_t + decay(t) (omega - 1) (v_t - v(x_t, t, null))
    target   = m guided + (1 - m) v(x_t, t, y)           for samples that keep their label
               v_t                                       for samples without a label

`DrawnGuidance` draws omega and an interval [a, b] of t for each sample. Outside the interval, omega
is 1. The network takes (omega, a, b) as the input `guidance` (B, 3), so that users can choose them
when they draw samples.

Sources: SoFlow (arXiv 2512.15657), guidance inside training; improved MeanFlow (arXiv 2512.02012),
guidance as an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from soflow.errors import InputError, in_short
from soflow.symbols import GuidanceRows, Labels, Mask, Sample, Times, across
from soflow.system.registry import Setting

DECAY_RATE = 1 / 40
#: An interval as users pass it: (start, end).
AnyInterval: TypeAlias = Sequence[Any] | np.ndarray | Tensor
#: A guidance scale as users pass it: one number, or one per sample.
AnyScale: TypeAlias = float | int | Sequence[Any] | np.ndarray | Tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance inside training, with one fixed guidance scale.

    The velocity target is guided, so samples need one network evaluation per step, not two.
    In the paper, `scale` is omega, `mix` is m and `decay_time` is t_d.

    Example:
        >>> import soflow
        >>> objective = soflow.SoFlow(guidance=soflow.Guidance(scale=2.0, label_dropout=0.2))
        >>> objective.guidance.active, soflow.Guidance().active
        (True, False)
    """

    scale: Annotated[
        float, Setting("guidance scale omega; 1: no guidance and no dropped labels", ge=1)
    ] = 1.0
    mix: Annotated[
        float,
        Setting(
            "weight m of the guided velocity in the target; the network's own velocity gets 1 - m",
            ge=0,
            le=1,
        ),
    ] = 0.25
    label_dropout: Annotated[
        float, Setting("share of samples trained without their label", ge=0, le=1)
    ] = 0.1
    decay_time: Annotated[
        float,
        Setting("guidance fades from t = decay_time to t = 1; 1: it does not fade", ge=0, le=1),
    ] = 0.8

    @property
    def active(self) -> bool:
        """Whether training is guided."""
        return self.scale > 1

    @property
    def drops_labels(self) -> bool:
        """Whether dropped labels train the null label."""
        return self.active and self.label_dropout > 0

    def draw(self, count: int, generator: torch.Generator) -> GuidanceRows | None:
        """Returns None: all samples share one scale, which is not an input of the network."""
        return None

    def decay(self, t: Times) -> Times:
        """The strength of guidance (B,): 1 up to t_d, then falling smoothly to 0 at t = 1."""
        if self.decay_time >= 1:
            return torch.ones_like(t)
        u = ((1 - t) / (1 - self.decay_time)).clamp(0, 1 - 1e-6)
        return torch.where(t <= self.decay_time, 1, 1 - torch.exp(-DECAY_RATE * u / (1 - u)))

    def strength(self, t: Times, drawn: GuidanceRows | None = None) -> Times:
        """decay(t) (omega - 1), (B,). With drawn scales, 0 outside each sample's interval."""
        if drawn is None:
            return self.decay(t) * (self.scale - 1)
        scale, start, end = drawn.unbind(1)
        acts = (start <= t) & (t <= end)
        return torch.where(acts, self.decay(t) * (scale - 1), 0)

    def target(
        self,
        v_t: Sample,
        v_null: Sample,
        v_label: Sample,
        t: Times,
        unlabeled: Mask,
        drawn: GuidanceRows | None = None,
    ) -> Sample:
        """The training target of the velocity, (B, ...).

        Args:
            v_t: The conditional velocity, (B, ...).
            v_null: v(x_t, t, null), (B, ...).
            v_label: v(x_t, t, y), (B, ...).
            t: The times, (B,).
            unlabeled: The samples trained without a label, (B,) bool: it was dropped, or the data
                have none.
            drawn: Guidance (omega, start, end) per sample, (B, 3); None for the fixed scale.
        """
        guided = v_t + across(self.strength(t, drawn), v_t) * (v_t - v_null)
        mixed = self.mix * guided + (1 - self.mix) * v_label
        return torch.where(across(unlabeled, v_t), v_t, mixed)


@dataclass(frozen=True)
class DrawnGuidance(Guidance):
    """Guidance with a scale and an interval of t that are drawn for each training sample.

    Without `max_scale`, it works like `Guidance` with one fixed scale. By default, the scale does
    not fade.

    With `max_scale`, omega is drawn from p(omega) ~ omega^-power on [1, max_scale]. Guidance acts
    in an interval of t: its start is uniform on [0, latest_start], its end is uniform on
    [earliest_end, 1]. `scale` is the default scale of sampling. `decay_time` also fades guidance
    inside the interval; 1 turns this off.

    Raises:
        InputError: If `scale` is above `max_scale`.

    Example:
        >>> import soflow, torch
        >>> guidance = soflow.DrawnGuidance(scale=1.5, max_scale=4.0)
        >>> rows = guidance.draw(100, torch.Generator().manual_seed(0))  # omega, start, end
        >>> rows.shape, bool(((rows[:, 0] >= 1) & (rows[:, 0] <= 4)).all())
        (torch.Size([100, 3]), True)
        >>> guidance.chosen(2.5, (0.1, 0.9))
        tensor([2.5000, 0.1000, 0.9000])
    """

    scale: Annotated[
        float,
        Setting(
            "guidance scale omega; 1: no guidance and no dropped labels; with max_scale, the "
            "default scale of sampling",
            ge=1,
        ),
    ] = 1.0
    decay_time: Annotated[
        float,
        Setting("guidance fades from t = decay_time to t = 1; 1: it does not fade", ge=0, le=1),
    ] = 1.0
    max_scale: Annotated[
        float | None,
        Setting(
            "draw a guidance scale from [1, max_scale] for each sample and make it an input of the "
            "network; null: train with the fixed scale",
            gt=1,
        ),
    ] = None
    power: Annotated[
        float,
        Setting("power of the density omega^-power that scales are drawn from", ge=0, le=10),
    ] = 1.0
    latest_start: Annotated[
        float,
        Setting(
            "latest start of the guidance interval of t; starts are uniform on [0, latest_start]",
            ge=0,
            le=0.5,
        ),
    ] = 0.5
    earliest_end: Annotated[
        float,
        Setting(
            "earliest end of the guidance interval of t; ends are uniform on [earliest_end, 1]",
            ge=0.5,
            le=1,
        ),
    ] = 0.5

    def __post_init__(self) -> None:
        if self.max_scale is not None and self.scale > self.max_scale:
            raise InputError(
                f"objective.guidance.scale={self.scale:g} is above max_scale={self.max_scale:g}: "
                "it is the default scale of sampling, so choose a scale in the trained range"
            )

    @property
    def drawn(self) -> bool:
        """Whether scales are drawn and are an input of the network."""
        return self.max_scale is not None

    @property
    def active(self) -> bool:
        return self.drawn or super().active

    def draw(self, count: int, generator: torch.Generator) -> GuidanceRows | None:
        """Draws (omega, start, end) for `count` samples, (count, 3); None if the scale is fixed."""
        if self.max_scale is None:
            return None
        u, start, end = torch.rand(3, count, generator=generator, device=generator.device)
        # Inverse transform sampling of the density ~ omega^-power
        base, less = log(self.max_scale), 1 - self.power
        omega = torch.exp(base * u if less == 0 else torch.log1p(u * expm1(less * base)) / less)
        return torch.stack(
            [omega, self.latest_start * start, 1 - (1 - self.earliest_end) * end], dim=1
        )

    def chosen(self, scale: AnyScale | None = None, interval: AnyInterval | None = None) -> Tensor:
        """The guidance input of the network for sampling: (3,), or (B, 3).

        Args:
            scale: One scale, or one per sample (B,). Default: the field `scale`.
            interval: The interval (start, end) of t in which guidance acts. Default: (0, 1).

        Raises:
            InputError: If the scale or the interval lies outside the trained range.
        """
        omega = numbers(self.scale if scale is None else scale, "guidance")
        if omega.ndim > 1:
            raise InputError(f"guidance has shape {list(omega.shape)}: pass one scale per sample")
        low, high = 1.0, self.max_scale or self.scale
        if not bool(((omega >= low) & (omega <= high * (1 + 1e-6))).all()):
            raise InputError(
                f"guidance is {in_short(scale)}: this model was trained with scales from 1 to "
                f"{high:g}, so choose a scale in this range"
            )
        ends = numbers((0.0, 1.0) if interval is None else interval, "guidance_interval")
        start, end = self.latest_start, self.earliest_end
        if ends.shape != (2,) or not (0 <= ends[0] <= start and end <= ends[1] <= 1):
            raise InputError(
                f"guidance_interval is {in_short(interval)}: pass (start, end), with start in "
                f"[0, {start:g}] and end in [{end:g}, 1], the range this model was trained with"
            )
        return torch.cat([omega[..., None], ends.expand(*omega.shape, 2)], dim=-1)


def draws_scales(guidance: object) -> bool:
    """Whether an objective's guidance draws its scales."""
    return isinstance(guidance, DrawnGuidance) and guidance.drawn


def numbers(values: object, name: str) -> Tensor:
    """Converts numbers to a float32 tensor on the CPU. Raises InputError for anything else."""
    try:
        found = torch.as_tensor(values, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {in_short(values)}: pass numbers") from None
    return found


def unguided_without_label(
    guidance: GuidanceRows, labels: Labels | None, null: int
) -> GuidanceRows:
    """Guidance (B, 3) in which samples without a class get (1, 0, 1), no guidance."""
    scale, start, end = guidance.unbind(1)
    without = torch.ones_like(scale, dtype=torch.bool) if labels is None else labels == null
    columns = zip((scale, start, end), (1.0, 0.0, 1.0), strict=True)
    return torch.stack([torch.where(without, none, column) for column, none in columns], dim=1)
