"""Conditions other than classes: vectors, or maps beside images and signals.

Floats are taken as they are. Bytes (uint8) are images, which become -1 to 1 as samples do.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, read_conditions
from soflow.data.own_items import BYTES, Layout, as_tensor
from soflow.errors import InputError

#: What conditions may be.
KINDS = "give floats, or bytes (uint8) of images; classes are labels"


def stored_conditions(given: Tensor, shape: Sequence[int], numpy: bool, where: str) -> Tensor:
    """Conditions (N, ...) as a data set stores them: float32, or bytes (N, H, W, C).

    Args:
        given: Conditions (N,), (N, D), (N, H, W), (N, C', ...) or (N, H, W, C').
        shape: One sample's, which says where the channels of maps are.
        numpy: Whether they came as arrays, whose channels are last if both ends fit.
        where: What messages call them.

    Raises:
        InputError: If they are neither floats nor bytes of images, or not finite.
    """
    found = f"{where} is {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
    if given.dtype == torch.uint8:
        if given.ndim not in (3, 4):
            raise InputError(f"{found}, which are no images: {KINDS}")
        return Layout(channels_last(given, shape, numpy), BYTES).store(given)
    if not given.is_floating_point():
        raise InputError(f"{found}: {KINDS}")
    values = given.float()
    finite = values.reshape(len(values), -1).isfinite().all(1)
    if not bool(finite.all()):
        raise InputError(f"{where} is not finite in row {int(finite.int().argmin())}: remove it")
    if given.ndim == 1 or (
        given.ndim == 3 and len(shape) == 3
    ):  # one value, or maps of one channel
        values = values[:, None]
    elif channels_last(given, shape, numpy):
        values = values.movedim(-1, 1)
    return values.contiguous()


def channels_last(maps: Tensor, shape: Sequence[int], numpy: bool) -> bool:
    """Whether the channels of maps (N, H, W, C') or (N, C', H, W) are last."""
    if maps.ndim != 4 or len(shape) != 3:
        return False
    sizes, given = list(shape[1:]), list(maps.shape)
    last, first = given[1:3] == sizes, given[2:] == sizes
    return last and (numpy or not first)


def require_images(stored: Tensor, where: str) -> None:
    """Raises InputError for bytes of 0 and 1, such as masks, which would look alike."""
    if stored.dtype == torch.uint8 and int(stored.max()) <= 1:
        raise InputError(f"{where} holds bytes of 0 and 1: give floats such as -1 and 1")


def with_conditions(dataset: Dataset, given: Tensor, numpy: bool, where: str) -> Dataset:
    """The data set with conditions (N, ...), one per sample."""
    if given.ndim == 0 or len(given) != len(dataset):
        count = len(given) if given.ndim else 0
        raise InputError(f"{where} holds {count} conditions for {len(dataset)} samples")
    stored = stored_conditions(given, dataset.shape, numpy, where)
    require_images(stored, where)
    return replace(dataset, cond=stored)


class RowsOfData:
    """Conditions of some rows of a data set, by their indices (n,). They are read when needed."""

    def __init__(self, dataset: Dataset, rows: Tensor) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor, /) -> Tensor:
        found = self.dataset.conditions(self.rows[which])
        assert found is not None, "the data have no conditions"
        return found


def rows_for(
    dataset: Dataset, num: int, num_classes: int, null_trained: bool = True
) -> tuple[Tensor | None, RowsOfData]:
    """What `num` samples are drawn for: labels (num,) and conditions of rows of a data set.

    Sample i has those of row i N / num of N rows, so all data count if they are sorted.

    Args:
        dataset: Data with conditions.
        num: The number of samples.
        num_classes: Of the model.
        null_trained: Whether the model draws samples without a label; else such rows are left out.
    """
    rows, labels = torch.arange(len(dataset)), dataset.labels if num_classes else None
    if labels is not None:
        known = (labels >= 0) & (labels < num_classes)
        rows = rows if null_trained else rows[known]
        labels = labels.where(known, num_classes)
    chosen = rows[torch.arange(num) * len(rows) // num]
    return None if labels is None else labels[chosen], RowsOfData(dataset, chosen)


def conditions_of(given: Any, cond_shape: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Conditions to sample with, (n, *cond_shape), from what training takes as conditions.

    Raises:
        InputError: If they do not fit the model.
    """
    if not cond_shape:
        raise InputError("cond is given, but this run was trained without conditions: leave it out")
    values = as_tensor(given)
    if values.ndim == 0 or not len(values):
        raise InputError(f"cond is {list(values.shape)}: give [N, ...], one row per condition")
    numpy = not isinstance(given, Tensor)
    found = read_conditions(stored_conditions(values, shape, numpy, "cond"))
    if tuple(found.shape[1:]) != tuple(cond_shape):
        one = f"this run was trained with conditions of {list(cond_shape)}"
        raise InputError(f"cond is {list(values.shape)}, and {one}: give [N, ...] of that shape")
    return found
