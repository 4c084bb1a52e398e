"""Classifier-free guidance inside training: the network learns the guided flow.

Sampling then pays nothing for guidance.

    decay(t) = 1                                         for t <= t_d
               1 - exp(-k u / (1 - u)),  k = 1 / 40      for t >  t_d,
                                                         u = clamp((1 - t) / (1 - t_d), 0, 1 - 1e-6)
    guided   = v_t + decay(t) (omega - 1) (v_t - v(x_t, t, null))
    target   = m guided + (1 - m) v(x_t, t, y)           for samples that keep their label
               v_t                                       for samples whose label was dropped

Source: SoFlow (arXiv 2512.15657), guidance inside training.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from soflow.symbols import Mask, Sample, Times, across
from soflow.system.registry import Setting

DECAY_RATE = 1 / 40


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance inside training: the velocity target is guided.

    In the paper, `scale` is omega, `mix` is m and `decay_time` is t_d.

    Example:
        >>> import soflow
        >>> objective = soflow.SoFlow(guidance=soflow.Guidance(scale=2.0, label_dropout=0.2))
        >>> objective.guidance.active, soflow.Guidance().active
        (True, False)
    """

    scale: Annotated[
        float, Setting("omega; 1 trains without guidance and drops no label", ge=1)
    ] = 1.0
    mix: Annotated[
        float, Setting("weight of the guided velocity against the network's own", ge=0, le=1)
    ] = 0.25
    label_dropout: Annotated[
        float, Setting("share of samples trained without their label", ge=0, le=1)
    ] = 0.1
    decay_time: Annotated[
        float, Setting("above this t guidance fades towards noise; 1: never", ge=0, le=1)
    ] = 0.8

    @property
    def active(self) -> bool:
        """Whether anything is guided."""
        return self.scale > 1

    @property
    def drops_labels(self) -> bool:
        """Whether some samples are trained without their label, which trains the null label."""
        return self.active and self.label_dropout > 0

    def decay(self, t: Times) -> Times:
        """The strength of guidance: 1 up to t_d, then it falls smoothly to 0 at t = 1."""
        if self.decay_time >= 1:
            return torch.ones_like(t)
        u = ((1 - t) / (1 - self.decay_time)).clamp(0, 1 - 1e-6)
        return torch.where(t <= self.decay_time, 1, 1 - torch.exp(-DECAY_RATE * u / (1 - u)))

    def target(
        self, v_t: Sample, v_null: Sample, v_label: Sample, t: Times, dropped: Mask
    ) -> Sample:
        """The velocity to learn, from v_null = v(x_t, t, null) and v_label = v(x_t, t, y)."""
        guided = v_t + across(self.decay(t) * (self.scale - 1), v_t) * (v_t - v_null)
        mixed = self.mix * guided + (1 - self.mix) * v_label
        return torch.where(across(dropped, v_t), v_t, mixed)
