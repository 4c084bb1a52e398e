"""Converts samples passed from Python (tensors, arrays, items by index) to their stored form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from soflow.config.schema import DataConfig, Range
from soflow.data.dataset import Scaling
from soflow.data.labels import USUAL_NAMES
from soflow.data.rows import measure
from soflow.data.values import in_words, usual_range
from soflow.errors import InputError, in_short
from soflow.system.progress import Progress, silent

#: Usual keys of the sample in a dictionary, in lower case.
SAMPLE_NAMES = ("image", "images", "img", "pixel_values", "x", "data", "sample", "input", "inputs",
                "samples")  # fmt: skip
#: The range of samples that need no scaling.
AS_THEY_ARE: Range = (-1.0, 1.0)
#: Converts conditions (n, ...) to their stored form.
Store: TypeAlias = Callable[[Tensor], Tensor]
#: The range of images in bytes, which are stored as bytes.
BYTES: Range = (0.0, 255.0)


@dataclass(frozen=True)
class Layout:
    """The conversion of samples to their stored form: bytes (N, H, W, C) or floats (N, C, ...)."""

    channels_last: bool
    values: Range  # the values that are scaled to -1 and 1
    note: str = ""
    scaling: Scaling | None = None  # of vectors and signals

    def store(self, given: Tensor) -> Tensor:
        """Converts samples (N, ...) to their stored form."""
        if given.dtype == torch.uint8 and self.values == BYTES:
            images = given if given.ndim == 4 else given[:, None]
            return images if self.channels_last else images.permute(0, 2, 3, 1).contiguous()
        if self.scaling is not None:
            values = given.double()[:, None] if given.ndim == 1 else given.double()
            shape = (-1, *[1] * (values.ndim - 2))
            scaling = self.scaling
            mean, std = (values.new_tensor(x).view(shape) for x in (scaling.mean, scaling.std))
            return ((values - mean) / std).float()
        one_channel = given.ndim == 1 or (given.ndim == 3 and given.dtype == torch.uint8)
        rows = given.float()[:, None] if one_channel else given.float()
        if self.channels_last:
            rows = rows.permute(0, 3, 1, 2)
        low, high = self.values
        if self.values != AS_THEY_ARE:
            rows = (rows - low) * (2 / (high - low)) - 1
        return rows.contiguous()


def layout_of(given: Tensor, config: DataConfig, numpy: bool, changing: bool = False) -> Layout:
    """Chooses the conversion of samples (N, ...).

    Vectors and signals are standardized, unless they change randomly.

    Args:
        given: The samples.
        config: The settings, with the range of values that is scaled to [-1, 1].
        numpy: Whether the samples are numpy arrays.
        changing: Whether samples change randomly each time they are read. Their statistics then
            also change.

    Raises:
        InputError: If the type, the shape or the values cannot be used as samples.
    """
    found = f"data is {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
    whole = given.dtype == torch.uint8
    if whole and given.ndim not in (3, 4):
        raise InputError(f"{found}, which does not fit images: pass vectors and signals as floats")
    if not whole and not given.is_floating_point():
        raise InputError(f"{found}: pass floats, or uint8 for images")
    if given.ndim > 4:
        raise InputError(f"{found}: samples may have at most three dimensions")
    finite = given.reshape(len(given), -1).isfinite().all(1)
    if not bool(finite.all()):
        row = int(finite.int().argmin())
        raise InputError(f"data has non-finite values in row {row}: remove this row")
    last = given.ndim == 4 and channels_last(given, numpy)
    low, high = float(given.min()), float(given.max())
    picture = whole or (given.ndim == 4 and given.shape[3 if last else 1] in (1, 3))
    values: Range = AS_THEY_ARE
    if not isinstance(config.range, str):
        values = config.range
    elif picture and low >= 0:
        values = usual_range(low, high, whole, "data")
    said = f"values {in_words((low, high))}"
    if config.range == "standardize" and (given.ndim == 4 or changing):
        raise InputError(
            f"{found}: data.range=standardize needs vectors or signals without random transforms: "
            "leave it out"
        )
    if given.ndim < 4 and not whole and not changing:
        scaling, how = scaling_of(given, config)
        return Layout(last, AS_THEY_ARE, f"{said} are {how}", scaling)
    if values == AS_THEY_ARE:
        return Layout(last, values, f"{said} are used without scaling")
    if values == (low, high):
        return Layout(last, values, f"{said} are scaled to -1 to 1")
    return Layout(last, values, f"{said}: the range {in_words(values)} is scaled to -1 to 1")


def scaling_of(given: Tensor, config: DataConfig) -> tuple[Scaling, str]:
    """The scaling of vectors (N, D) and signals (N, C, L), and its description for messages."""
    values = given.double()[:, None] if given.ndim == 1 else given.double()
    axes, channels = tuple(range(values.ndim)), values.shape[1]
    if isinstance(config.range, str):
        found = measure(values.numpy(), axes, "data", silent)
        each = "column" if values.ndim == 2 else "channel"
        scaling = Scaling(tuple(found.mean.tolist()), tuple(found.std.tolist()))
        return scaling, f"standardized: mean 0, variance 1 per {each}"
    low, high = config.range
    middle, half = ((low + high) / 2,) * channels, ((high - low) / 2,) * channels
    return Scaling(middle, half), f"scaled: {in_words(config.range)} becomes -1 to 1"


def channels_last(images: Tensor, numpy: bool) -> bool:
    """Whether channels are the last axis of images (N, H, W, C) or (N, C, H, W).

    The smaller axis is chosen. If both have the same size, channels are last in arrays and first in
    tensors.
    """
    first, last = images.shape[1], images.shape[3]
    return last < first or (last == first and numpy)


def as_tensor(sample: Any) -> Tensor:
    """Converts samples to a tensor on the CPU. Raises InputError if they are not numbers."""
    try:
        values = sample if isinstance(sample, Tensor) else torch.from_numpy(native(sample))
    except (TypeError, ValueError):
        raise InputError(f"data contains {in_short(sample)}: pass arrays or tensors") from None
    if values.is_meta or values.layout != torch.strided:
        kind = "on the device meta" if values.is_meta else f"of layout {values.layout}"
        raise InputError(f"data is a tensor {kind}: pass a dense tensor with values")
    return values.detach().cpu()


def native(sample: Any) -> np.ndarray:
    """A copy of an array in native byte order."""
    values = np.array(sample)
    return values.astype(values.dtype.newbyteorder("="))


class Items:
    """The items of a dataset by index: samples before conversion, labels and conditions."""

    def __init__(self, data: Any, config: DataConfig) -> None:
        self.data, self.config = data, config
        first = parts_of(data[0], config)
        self.numpy = not isinstance(first.sample, Tensor)
        self.cond_numpy = not isinstance(first.cond, Tensor)
        self.shape = as_tensor(first.sample).shape
        self.cond_shape = None if first.cond is None else as_tensor(first.cond).shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> "Parts":
        sample, label, cond = parts_of(self.data[row], self.config)
        values = as_tensor(sample)
        if values.shape != self.shape:
            found = f"item {row} of data has shape {list(values.shape)}, item 0 {list(self.shape)}"
            raise InputError(f"{found}: crop or resize all items to one shape")
        given = None if cond is None else as_tensor(cond)
        if (shape := None if given is None else given.shape) != self.cond_shape:
            one, first = (x if x is None else list(x) for x in (shape, self.cond_shape))
            raise InputError(
                f"the condition of item {row} of data has shape {one}, that of item 0 {first}: "
                "give all conditions one shape"
            )
        return Parts(values, label, given)

    def some(
        self, rows: Sequence[int], progress: Progress = silent
    ) -> tuple[Tensor, list[Any], Tensor | None]:
        """Reads samples (n, ...), their labels, and their conditions (n, ...) if any."""
        found = []
        with progress("reading data", len(rows)) as task:
            for done, row in enumerate(rows, 1):
                found.append(self[row])
                task.update(done)
        samples, labels, conditions = zip(*found, strict=True)
        cond = None if self.cond_shape is None else torch.stack(conditions)
        return torch.stack(samples), list(labels), cond

    def labels(self, seen: Mapping[int, Any], progress: Progress) -> list[Any] | None:
        """The labels of all items; None if the items in `seen` have no labels.

        If the dataset has a list `targets`, as in torchvision, and it agrees with the labels in
        `seen`, the list is used and the other items are not read.
        """
        if all(label is None for label in seen.values()):
            return None
        listed: Any = getattr(self.data, "targets", None)
        whole = isinstance(listed, list | Tensor | np.ndarray) and len(listed) == len(self)
        if whole and all(np.array_equal(listed[row], label) for row, label in seen.items()):
            return list(listed)
        with progress("reading labels", len(self)) as task:
            found = []
            for row in range(len(self)):
                found.append(self[row].label)
                task.update(row + 1)
        return found


class ItemRows:
    """Stored samples (N, ...), read on demand.

    `changing` says whether items change randomly each time they are read. They are then neither
    kept in memory nor part of a fingerprint.
    """

    def __init__(self, items: Items, layout: Layout, like: Tensor, changing: bool) -> None:
        self.items, self.layout, self.changing = items, layout, changing
        self.shape, self.dtype = (len(items), *like.shape[1:]), like.dtype
        self.checksums = (f"{self.shape}, changing",) if changing else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, which: Tensor) -> Tensor:
        return self.layout.store(self.items.some(which.tolist())[0])


class ItemConditions:
    """Stored conditions (N, ...) of items, read together with their samples."""

    def __init__(self, rows: ItemRows, store: Store, like: Tensor) -> None:
        self.rows, self.store = rows, store
        self.shape, self.dtype = (len(rows), *like.shape[1:]), like.dtype
        self.checksums = (f"{self.shape}, changing",) if rows.changing else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor) -> Tensor:
        return self.with_samples(which)[1]

    def with_samples(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Stored samples (n, ...) and conditions (n, ...) at these indices (n,)."""
        samples, _, cond = self.rows.items.some(which.tolist())
        assert cond is not None
        return self.rows.layout.store(samples), self.store(cond)


class Parts(NamedTuple):
    """The sample, label and condition of one item or of all; None for missing parts."""

    sample: Any
    label: Any = None
    cond: Any = None


def parts_of(item: Any, config: DataConfig) -> Parts:
    """Splits an item, or a dictionary of arrays, into sample, label and condition."""
    if isinstance(item, Mapping):
        keys = {str(key).lower(): key for key in item}
        sample = config.image_column or next((keys[x] for x in SAMPLE_NAMES if x in keys), None)
        label = config.label_column or next((keys[x] for x in USUAL_NAMES if x in keys), None)
        if sample not in item or (config.label_column and label not in item):
            known = f"its keys are {', '.join(map(str, item))}"
            raise InputError(
                f"an item of data has no key for the sample or the label ({known}): set "
                "data.image_column and data.label_column"
            )
        cond = keys.get(config.cond_column.lower()) if config.cond_column else None
        return Parts(item[sample], item.get(label), item.get(cond))
    if not isinstance(item, tuple | list) or all(isinstance(one, int | float) for one in item):
        return Parts(item)
    if len(item) > 2:
        raise InputError(
            f"an item of data has {len(item)} parts: return (sample, label), or a dictionary with "
            "the keys image, label and cond"
        )
    return Parts(item[0], item[1] if len(item) == 2 else None)
