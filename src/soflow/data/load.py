"""Loads data for your own training loop in the same way as `soflow.train`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from soflow.config.reading import explain
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.data.hub import ask_similar
from soflow.data.own import own_dataset
from soflow.data.training_data import with_null_labels
from soflow.errors import InputError


def load_data(data: Any, **settings: Any) -> Dataset:
    """Loads data by name, or converts your own data, in the same way as `soflow.train`.

    Args:
        data: SOURCE[:SPLIT], such as "digits:test", a path, or a name on the Hugging Face Hub. Or
            your own data: a tensor or an array (N, ...), samples and labels as a tuple (x, y), a
            torch dataset, or a `datasets.Dataset`.
        settings: Keys of the configuration section `data`, such as `range=(0, 255)`. Image files
            need `shape=(C, H, W)`: they are resized and cropped to it. `num_classes=0` ignores
            labels.

    Returns:
        The dataset. `data.samples()` is a tensor (N, ...), and `data.labels` is a tensor (N,) or
        None. Unlabeled samples have the label `num_classes`.

    Raises:
        InputError: If the data do not exist or cannot be used.

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
            if not Path(config.path).exists():
                advice = ask_similar(config.path) or "check the path"
                raise InputError(
                    f"{config.path} does not exist: {advice}, or pass shape=(3, H, W) for "
                    "images of this name on the Hugging Face Hub"
                )
            raise InputError(f"{data} contains images: pass the shape to crop to, shape=(3, H, W)")
        dataset = sources.load(config, split or config.split)
    else:
        dataset = own_dataset(data, config)
    if config.num_classes == 0:
        return replace(dataset, labels=None, class_names=())
    return with_null_labels(dataset, max(dataset.num_classes, config.num_classes))


def data_config(settings: dict[str, Any]) -> DataConfig:
    """The configuration section `data` with these keys. Raises InputError for the first mistake."""
    try:
        return DataConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError(explain(error, {"data": settings}, within=("data",))) from None
