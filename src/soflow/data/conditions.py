"""Conditions other than classes: vectors, or maps with the size of the images or signals.

Floats are used without scaling. Bytes (uint8) are images and are scaled to [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from soflow.data.dataset import Dataset, read_conditions
from soflow.data.own_items import BYTES, Layout, as_tensor
from soflow.errors import InputError

#: The advice in messages about conditions of a wrong type.
KINDS = "use floats, or uint8 for images (for classes, use labels)"


def stored_conditions(given: Tensor, shape: Sequence[int], numpy: bool, where: str) -> Tensor:
    """Converts conditions to the stored form of a dataset: float32, or bytes (N, H, W, C).

    Args:
        given: Conditions (N,), (N, D), (N, H, W), (N, C', ...) or (N, H, W, C').
        shape: The shape of one sample, which determines the channel axis of maps.
        numpy: Whether the conditions are a numpy array. If both axes are possible, channels are
            last in arrays and first in tensors.
        where: The name of the conditions in messages.

    Raises:
        InputError: If the conditions are neither floats nor uint8 images, or not finite.
    """
    found = f"{where} is {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
    if given.dtype == torch.uint8:
        if given.ndim not in (3, 4):
            raise InputError(f"{found}, which does not fit images: {KINDS}")
        return Layout(channels_last(given, shape, numpy), BYTES).store(given)
    if not given.is_floating_point():
        raise InputError(f"{found}: {KINDS}")
    values = given.float()
    finite = values.reshape(len(values), -1).isfinite().all(1)
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        raise InputError(f"{where} has non-finite values in row {row}: remove this row")
    if given.ndim == 1 or (
        given.ndim == 3 and len(shape) == 3
    ):  # one value, or maps of one channel
        values = values[:, None]
    elif channels_last(given, shape, numpy):
        values = values.movedim(-1, 1)
    return values.contiguous()


def channels_last(maps: Tensor, shape: Sequence[int], numpy: bool) -> bool:
    """Whether channels are the last axis of maps (N, H, W, C') or (N, C', H, W)."""
    if maps.ndim != 4 or len(shape) != 3:
        return False
    sizes, given = list(shape[1:]), list(maps.shape)
    last, first = given[1:3] == sizes, given[2:] == sizes
    return last and (numpy or not first)


def require_images(stored: Tensor, where: str) -> None:
    """Raises InputError for bytes of 0 and 1, such as masks.

    Scaled to [-1, 1], both values would be almost equal.
    """
    if stored.dtype == torch.uint8 and int(stored.max()) <= 1:
        raise InputError(f"{where} has only bytes 0 and 1: use floats, such as -1 and 1")


def with_conditions(dataset: Dataset, given: Tensor, numpy: bool, where: str) -> Dataset:
    """The dataset with conditions (N, ...), one per sample."""
    if given.ndim == 0 or len(given) != len(dataset):
        count = len(given) if given.ndim else 0
        raise InputError(
            f"{where} has {count} conditions for {len(dataset)} samples: pass one per sample"
        )
    stored = stored_conditions(given, dataset.shape, numpy, where)
    require_images(stored, where)
    return replace(dataset, cond=stored)


class RowsOfData:
    """The conditions of some rows of a dataset, read when they are indexed by a tensor (n,)."""

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
    """Labels (num,) and conditions for drawing `num` samples, taken from rows of a dataset.

    Sample i uses row i N / num of N rows. The rows are spread over the whole dataset, since it may
    be sorted.

    Args:
        dataset: A dataset with conditions.
        num: The number of samples.
        num_classes: The number of classes of the model.
        null_trained: Whether the model can draw samples without a label. If not, rows without a
            label are left out.
    """
    rows, labels = torch.arange(len(dataset)), dataset.labels if num_classes else None
    if labels is not None:
        known = (labels >= 0) & (labels < num_classes)
        rows = rows if null_trained else rows[known]
        labels = labels.where(known, num_classes)
    chosen = rows[torch.arange(num) * len(rows) // num]
    return None if labels is None else labels[chosen], RowsOfData(dataset, chosen)


def conditions_of(given: Any, cond_shape: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Converts conditions, in any form that training takes, for sampling: (n, *cond_shape).

    Raises:
        InputError: If the conditions do not fit the model.
    """
    if not cond_shape:
        raise InputError("this run was trained without conditions: leave out cond")
    values = as_tensor(given)
    if values.ndim == 0 or not len(values):
        raise InputError(f"cond has shape {list(values.shape)}: pass [N, ...], one row per sample")
    numpy = not isinstance(given, Tensor)
    found = read_conditions(stored_conditions(values, shape, numpy, "cond"))
    if tuple(found.shape[1:]) != tuple(cond_shape):
        needed = ", ".join(map(str, ["N", *cond_shape]))
        raise InputError(f"cond has shape {list(values.shape)}: this run needs [{needed}]")
    return found
