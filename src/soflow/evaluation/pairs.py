"""Pictures of conditional samples next to their conditions and real samples."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from soflow.data.conditions import rows_for
from soflow.data.dataset import Dataset
from soflow.drawing import sample_many
from soflow.evaluation.pictures import grid, is_image, picture
from soflow.sampling import Sampler
from soflow.solution import FlowModel
from soflow.symbols import Sample

#: Rows of a picture, and samples per row.
ROWS, PAIRS = 10, 4


def draw_pairs(
    model: FlowModel,
    dataset: Dataset,
    num: int,
    drawing: tuple[Sampler, int],
    device: torch.device,
) -> tuple[Sample, Tensor, Tensor]:
    """Draws samples (num, ...) for conditions from the dataset.

    Returns:
        Samples, conditions and the real samples with these conditions, each (num, ...).
    """
    labels, cond = rows_for(dataset, num, model.num_classes, model.null_trained)
    real, given = dataset.pairs(cond.rows)
    assert given is not None, "the data have no conditions"
    drawn = sample_many(model, num, labels, *drawing, seed=0, device=device, cond=given)
    return drawn, given, model.decode(real.to(device)).cpu()


def paired(samples: Tensor, cond: Tensor, real: Tensor, names: Sequence[str] = ()) -> Image.Image:
    """Makes a picture of samples. Images are shown next to conditions and real images.

    Args:
        samples: Samples (B, ...).
        cond: Conditions of the samples (B, ...), shown if they are images of the same size.
        real: Real samples with these conditions, (B, ...).
        names: Names of columns or channels, as in `picture`.
    """
    if not is_image(samples.shape[1:]) or names:
        behind = None if samples.shape[1:] == (2,) else real
        return picture(samples, 8, names, behind)
    shown = is_image(cond.shape[1:]) and cond.shape[2:] == samples.shape[2:]
    parts = [cond, samples, real] if shown else [samples, real]
    channels = max(part.shape[1] for part in parts)
    alike = [part.expand(-1, channels, -1, -1) for part in parts]
    return grid(torch.stack(alike, dim=1).flatten(0, 1), len(parts) * PAIRS)
