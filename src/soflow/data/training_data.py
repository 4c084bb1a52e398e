"""Loads the training data of a configuration and checks their shape and classes."""

from dataclasses import replace

import torch

from soflow.config import Config
from soflow.config.reading import validate
from soflow.config.schema import DataConfig
from soflow.data import sources
from soflow.data.dataset import Dataset
from soflow.errors import InputError

#: The dtypes of stored rows: float samples, and images in bytes.
STORED = (torch.float32, torch.uint8)
#: The number of classes that a summary lists.
FEW = 20


def make_dataset(config: DataConfig) -> Dataset:
    """Loads the data to train on.

    In labeled data, unlabeled samples get the null label, which is the number of classes.

    Raises:
        InputError: If the shape or the classes of the data differ from the configuration.
    """
    dataset = sources.load(config, config.split)
    name = config.path or config.source
    stored = isinstance(dataset, Dataset) and (dataset.encoder or dataset.rows.dtype in STORED)
    if not stored:
        kinds = "float32 tensor (N, ...) or a uint8 tensor (N, H, W, C)"
        raise InputError(f"the data source '{config.source}' must return a Dataset with a {kinds}")
    require_shape(dataset, config.shape, name)
    dataset = require_conditions(dataset, config, name)
    if config.num_classes == 0:
        return replace(dataset, labels=None, class_names=())
    # Without names, the data may happen to have no samples of the last classes.
    named = bool(dataset.class_names) or dataset.labels is None
    found, stated = dataset.num_classes, config.num_classes
    fits = found == stated if named else found <= stated
    if stated > 0 and not fits:
        why = f" ({dataset.unlabelled})" if dataset.unlabelled and dataset.labels is None else ""
        wrong = f"data.num_classes is {stated}, but {name} has {found} classes{why}"
        without = ", or 0 to train without labels" if found else ""
        raise InputError(f"{wrong}: set data.num_classes={found}{without}")
    return with_null_labels(dataset, max(found, stated))


def require_shape(dataset: Dataset, stated: tuple[int, ...], name: str) -> None:
    """Raises InputError if samples do not have the configured shape. -1 fits any size."""
    found = dataset.shape
    fits = len(found) == len(stated) and all(
        b in (-1, a) for a, b in zip(found, stated, strict=True)
    )
    if not fits:
        wrong = f"data.shape is {list(stated)}, but {name} has {list(found)}"
        raise InputError(f"{wrong}: set data.shape=[{','.join(map(str, found))}]")


def require_conditions(dataset: Dataset, config: DataConfig, name: str) -> Dataset:
    """The dataset, without its conditions if they are not used.

    Raises:
        InputError: If the conditions of the data do not match the configuration.
    """
    asked, found, stated = config.cond_column, dataset.cond_shape, config.cond_shape
    if not asked:
        dataset, found = replace(dataset, cond=None), ()
    elif not found and asked != DataConfig().cond_column:
        raise InputError(
            f"data.cond_column is '{asked}', but {name} has no such conditions: correct the name, "
            "or set data.cond_column= (empty)"
        )
    if stated and stated != found:
        has = f"conditions of {list(found)}" if found else "no conditions"
        raise InputError(f"data.cond_shape is {list(stated)}, but {name} has {has}: leave it out")
    if found and dataset.encoder is not None:
        raise InputError(
            f"{name} has latents, which do not support conditions: set data.cond_column= (empty)"
        )
    if dataset.cond is not None and len(dataset.cond) != len(dataset):
        count = f"{len(dataset.cond)} conditions for {len(dataset)} samples"
        raise InputError(f"{name} has {count}: there must be one per sample")
    return dataset


def with_null_labels(dataset: Dataset, num_classes: int) -> Dataset:
    """The dataset with -1 replaced by the null label, and a name for each class."""
    labels = dataset.labels
    if labels is None or int(labels.min()) >= 0:
        return dataset
    names = dataset.class_names or tuple(map(str, range(num_classes)))
    return replace(dataset, labels=labels.where(labels >= 0, num_classes), class_names=names)


def completed(config: Config, dataset: Dataset) -> Config:
    """The configuration with source, shape and number of classes filled in from the data."""
    data = sources.resolved(config.data).model_dump()
    data["shape"], data["cond_shape"] = dataset.shape, dataset.cond_shape
    if data["num_classes"] < 0:
        data["num_classes"] = dataset.num_classes
    try:
        return validate({**config.model_dump(), "data": data})
    except InputError as error:
        why = dataset.unlabelled if config.data.num_classes < 0 else ""
        raise InputError(f"{error} ({why})" if why else str(error)) from None


def summary(config: DataConfig, dataset: Dataset) -> list[str]:
    """Log lines on the training data: source, shape, values, classes and omitted parts."""
    place = config.path or config.source
    lines = [f"{place}, split {dataset.split}: {len(dataset):,} samples of {list(dataset.shape)}"]
    if dataset.cond is not None:
        lines.append(f"conditions: {list(dataset.cond_shape)} per sample")
    return [*lines, *dataset.notes, classes_in_words(dataset)]


def classes_in_words(dataset: Dataset) -> str:
    """Lists the first few classes with their numbers of samples."""
    if dataset.labels is None:
        return "no classes" + (f": {dataset.unlabelled}" if dataset.unlabelled else "")
    number = dataset.num_classes
    counts = torch.bincount(dataset.labels, minlength=number + 1).tolist()
    names = dataset.class_names or tuple(map(str, range(number)))
    pairs = zip(names[:FEW], counts[:number][:FEW], strict=True)
    first = ", ".join(f"{name} {count:,}" for name, count in pairs)
    more = ", ..." if number > FEW else ""
    null = f"; {counts[number]:,} samples without a label" if counts[number] else ""
    return f"{number:,} {'class' if number == 1 else 'classes'}: {first}{more}{null}"
