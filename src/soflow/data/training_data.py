"""The data that a configuration trains on, checked against the shape and classes that it states."""

import logging
from dataclasses import replace

import torch

from soflow.config import Config
from soflow.config.reading import validate
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.errors import InputError

log = logging.getLogger(__name__)

#: The types of stored rows: samples as they are, and images.
STORED = (torch.float32, torch.uint8)


def make_dataset(config: DataConfig) -> Dataset:
    """The data to train on.

    If the configuration leaves the classes to the data (-1), a note says how many there are, or why
    there are none.

    Raises:
        InputError: If the data have another shape or other classes than the configuration states.
    """
    dataset = sources.load(config, config.split)
    name = config.path or config.source
    stored = isinstance(dataset, Dataset) and (dataset.encoder or dataset.rows.dtype in STORED)
    if not stored:
        kinds = "float32 tensor (N, ...), or a uint8 tensor (N, H, W, C)"
        raise InputError(f"the data source '{config.source}' must return a Dataset with a {kinds}")
    if dataset.shape != config.shape:
        wrong = f"data.shape is {list(config.shape)}, but {name} has {list(dataset.shape)}"
        raise InputError(f"{wrong}: set data.shape=[{','.join(map(str, dataset.shape))}]")
    if config.num_classes == 0:
        return replace(dataset, labels=None, class_names=())
    # Without names, the largest classes may just not be among the data.
    named = bool(dataset.class_names) or dataset.labels is None
    found, stated = dataset.num_classes, config.num_classes
    fits = found == stated if named else found <= stated
    if stated > 0 and not fits:
        why = f" ({dataset.unlabelled})" if dataset.unlabelled and dataset.labels is None else ""
        wrong = f"data.num_classes is {stated}, but {name} has {found} classes{why}"
        raise InputError(f"{wrong}; 0 trains without labels")
    if stated < 0:
        classes = f"{found:,} classes"
        if dataset.labels is None:
            why = f": {dataset.unlabelled}" if dataset.unlabelled else ""
            classes = f"training without classes{why}"
        log.info(f"{dataset.name}: {len(dataset):,} samples, {classes}")
    return dataset


def with_classes(config: Config, dataset: Dataset) -> Config:
    """The configuration with the number of classes of the data, if it leaves that to them (-1)."""
    if config.data.num_classes >= 0:
        return config
    values = config.model_dump()
    values["data"]["num_classes"] = dataset.num_classes
    return validate(values)
