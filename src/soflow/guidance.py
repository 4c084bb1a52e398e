"""Classifier-free guidance inside training: the network learns the guided flow, so sampling pays nothing for it.

    decay(t) = 1                                         for t <= t_d
               1 - exp(-k u / (1 - u)),  k = 1 / 40      for t >  t_d,   u = clamp((1 - t) / (1 - t_d), 0, 1 - 1e-6)
    guided   = v_t + decay(t) (omega - 1) (v_t - v(x_t, t, null))
    target   = m guided + (1 - m) v(x_t, t, y)           for samples that keep their label
               v_t                                       for samples whose label was dropped

Source: SoFlow (arXiv 2512.15657), guidance inside training.
"""

from dataclasses import dataclass

import torch

from soflow.symbols import Labels, Mask, Sample, Times, across

DECAY_RATE = 1 / 40


@dataclass(frozen=True)
class Guidance:
    """The guided velocity target and the dropping of labels.

    scale: omega, above 1. mix: m, the weight of the guided velocity against the network's own. label_dropout: the share
    of samples trained without their label. decay_time: t_d, above which guidance fades towards noise (1: never).
    null_label: the label that means "no condition", which is the number of classes.
    """

    scale: float
    mix: float
    label_dropout: float
    decay_time: float
    null_label: int

    def decay(self, t: Times) -> Times:
        """1 up to t_d, then smoothly to 0 at t = 1."""
        if self.decay_time >= 1:
            return torch.ones_like(t)
        u = ((1 - t) / (1 - self.decay_time)).clamp(0, 1 - 1e-6)
        return torch.where(t <= self.decay_time, 1, 1 - torch.exp(-DECAY_RATE * u / (1 - u)))

    def target(self, v_t: Sample, v_null: Sample, v_label: Sample, t: Times, dropped: Mask) -> Sample:
        """The velocity to learn, from v_null = v(x_t, t, null) and v_label = v(x_t, t, y)."""
        guided = v_t + across(self.decay(t) * (self.scale - 1), v_t) * (v_t - v_null)
        mixed = self.mix * guided + (1 - self.mix) * v_label
        return torch.where(across(dropped, v_t), v_t, mixed)

    def drop(self, labels: Labels, dropped: Mask) -> Labels:
        """The labels, with the dropped ones set to null."""
        return torch.where(dropped, self.null_label, labels)
