"""Guidance inside training, for every method that has it: which labels are dropped, and the velocity to learn."""

import torch
from torch import Tensor

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import Draws, Inputs, without_gradient
from soflow.solution import Parameterization
from soflow.symbols import Labels, Mask, Net, Sample, Times


def draw_dropped(count: int, guidance: Guidance | None, generator: torch.Generator) -> Mask:
    """Which samples are trained without their label: (count,); none without guidance."""
    share = guidance.label_dropout if guidance else 0.0
    return torch.rand(count, generator=generator, device=generator.device) < share


def shown_labels(batch: Batch, draws: Draws, guidance: Guidance | None) -> Labels | None:
    """The labels the network is shown: some of them dropped where guidance is trained."""
    if guidance is None or batch.labels is None:
        return batch.labels
    return guidance.drop(batch.labels, draws.dropped)


def guiding_velocities(
    net: Net, x_t: Sample, t: Times, batch: Batch, parameterization: Parameterization, guidance: Guidance, labelled: slice
) -> tuple[Tensor, Tensor]:
    """v(x_t, t, null) of all samples, and v(x_t, t, y) of the samples `labelled`, y the label before dropping, in one pass.

    At m = 1 the second has no weight, and the first stands in for it.
    """
    assert batch.labels is not None
    null = Inputs(x_t, t, t, torch.full_like(batch.labels, guidance.null_label), batch.augment)
    own = Inputs(x_t, t, t, batch.labels, batch.augment).rows(labelled)
    if guidance.mix == 1:
        (F_null,) = without_gradient(net, null)
        F_own = F_null[labelled]
    else:
        F_null, F_own = without_gradient(net, null, own)
    return parameterization.velocity(F_null), parameterization.velocity(F_own)
