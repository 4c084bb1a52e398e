"""Guidance inside training, for every method that has it: which labels are dropped, and the velocity to learn."""

import torch

from soflow.data.batches import Batch
from soflow.guidance import Guidance
from soflow.objectives.base import Draws
from soflow.path import PathSample
from soflow.solution import Parameterization
from soflow.symbols import Labels, Mask, Net, Sample


def draw_dropped(count: int, guidance: Guidance | None, generator: torch.Generator) -> Mask:
    """Which samples are trained without their label: (count,); none without guidance."""
    share = guidance.label_dropout if guidance else 0.0
    return torch.rand(count, generator=generator, device=generator.device) < share


def shown_labels(batch: Batch, draws: Draws, guidance: Guidance | None) -> Labels | None:
    """The labels the network is shown: some of them dropped where guidance is trained."""
    if guidance is None or batch.labels is None:
        return batch.labels
    return guidance.drop(batch.labels, draws.dropped)


@torch.no_grad()
def guided_velocity(
    net: Net,
    point: PathSample,
    batch: Batch,
    draws: Draws,
    parameterization: Parameterization,
    guidance: Guidance | None,
) -> Sample:
    """v_t, or with guidance m guided + (1 - m) v(x_t, t, y), from v(x_t, t, y) and v(x_t, t, null) in one pass.

    y is the label before dropping; m = 1 needs no v(x_t, t, y).
    """
    if guidance is None:
        return point.v_t
    assert batch.labels is not None
    copies = 1 if guidance.mix == 1 else 2
    null = torch.full_like(batch.labels, guidance.null_label)
    x, t = torch.cat([point.x_t] * copies), torch.cat([point.t] * copies)
    labels = torch.cat([null, batch.labels][:copies])
    augment = None if batch.augment is None else torch.cat([batch.augment] * copies)
    v = parameterization.velocity(net(x, t, t, labels, augment)).chunk(copies)
    return guidance.target(point.v_t, v[0], v[-1], point.t, draws.dropped)
