"""Data for a training loop of one's own, read as `soflow.train` reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from soflow.config.reading import explain
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.data.own import own_dataset
from soflow.data.training_data import with_null_labels
from soflow.errors import InputError


def load_data(data: Any, **settings: Any) -> Dataset:
    """Loads data by name, or takes your own, as `soflow.train` does.

    Args:
        data: SOURCE[:SPLIT], such as "digits:test", a path or a name on the Hub; or data of your
            own: a tensor or an array (N, ...), samples and labels as (x, y), a data set of torch or
            a `datasets.Dataset`.
        settings: Keys of the section `data` of a configuration, such as `range=(0, 255)`. Image
            files need `shape=(C, H, W)`, which they are cropped to. `num_classes=0` leaves out
            labels.

    Returns:
        The data set: `data.samples()` are tensors (N, ...), `data.labels` (N,) or None. Samples
        without a label have the label `num_classes`.

    Raises:
        InputError: If there are no such data, or they cannot be used.

    Example:
        >>> import soflow, torch
        >>> data = soflow.load_data("digits")
        >>> len(data), data.shape, data.num_classes
        (1437, (1, 8, 8), 10)
        >>> own = soflow.load_data((torch.randn(100, 2), torch.arange(100) % 3))
        >>> own.shape, own.num_classes
        ((2,), 3)
    """
    config = data_config({"num_classes": -1, **settings})
    if isinstance(data, str | Path):
        data = str(data)
        config, split = sources.find(data, config)
        if config.source in sources.IMAGES and "shape" not in settings and "size" not in settings:
            raise InputError(f"{data} holds images: give the shape to crop to, shape=(3, H, W)")
        dataset = sources.load(config, split or config.split)
    else:
        dataset = own_dataset(data, config)
    if config.num_classes == 0:
        return replace(dataset, labels=None, class_names=())
    return with_null_labels(dataset, max(dataset.num_classes, config.num_classes))


def data_config(settings: dict[str, Any]) -> DataConfig:
    """The section `data` with these keys. Raises InputError for the first mistake."""
    try:
        return DataConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError(explain(error, {"data": settings}, within=("data",))) from None
