"""Sample grids that are drawn during training."""

from math import ceil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from soflow.config import Config
from soflow.data.dataset import Dataset
from soflow.drawing import class_by_class, sample_many
from soflow.evaluation.features import column_names
from soflow.evaluation.pairs import PAIRS, ROWS, draw_pairs, paired
from soflow.evaluation.pictures import grid_columns, picture, png
from soflow.evaluation.scorer import as_frequent
from soflow.run.folder import RunFolder
from soflow.solution import FlowModel
from soflow.system.atomic import write_bytes

#: Number of vectors in a picture.
POINTS = 2000


def draw_samples(
    config: Config,
    folder: RunFolder,
    step: int,
    model: FlowModel,
    device: torch.device,
    dataset: Dataset | None = None,
) -> Path:
    """Writes a picture of samples: images or signals, one column per class, or points.

    Vectors and signals are plotted with their column names. Except for 2D points, plots also show
    the first samples of the data. Runs with conditions use the conditions of the data. Their images
    are shown next to the conditions and the real images.
    """
    file = folder.sample_grid(step)
    if dataset is not None and dataset.cond is not None:
        write_bytes(file, png(picture_of_pairs(config, model, device, dataset)))
        return file
    classes = config.data.num_classes
    if len(config.data.shape) == 1:
        num, columns = POINTS, 1
    else:
        classes = min(classes, 10)
        columns = grid_columns(40, class_by_class(40, classes))
        num = columns * ceil(40 / columns)
    labels = class_by_class(num, classes)
    if len(config.data.shape) == 1 and dataset is not None and dataset.labels is not None:
        labels = as_frequent(dataset.labels, num, classes)
    sampler, nfe = config.default_sampler
    samples = sample_many(model, num, labels, sampler, nfe, 0, batch_size=num, device=device)
    names: tuple[str, ...] = ()
    real: Tensor | None = None
    if dataset is not None and dataset.encoder is None:
        names = column_names(config.data.shape, dataset.scaling)
        if names and config.data.shape != (2,):
            real = model.decode(dataset.samples(slice(num)).to(device)).cpu()
    write_bytes(file, png(picture(samples, columns, names, real)))
    return file


def picture_of_pairs(
    config: Config, model: FlowModel, device: torch.device, dataset: Dataset
) -> Image.Image:
    """A picture of samples for conditions of the data."""
    shape = config.data.shape
    num = POINTS if len(shape) == 1 else ROWS * PAIRS
    drawn = draw_pairs(model, dataset, num, config.default_sampler, device)
    return paired(*drawn, column_names(shape, dataset.scaling))
