"""Samples given in Python, as a data set stores them: from tensors, arrays, and items by index."""

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

#: Usual names of the sample in an item that is a dictionary, in lower case.
SAMPLE_NAMES = ("image", "images", "img", "pixel_values", "x", "data", "sample", "input", "inputs",
                "samples")  # fmt: skip
#: The range of samples that need no scaling.
AS_THEY_ARE: Range = (-1.0, 1.0)
#: What stores conditions (n, ...).
Store: TypeAlias = Callable[[Tensor], Tensor]
#: The range of bytes that are stored as bytes.
BYTES: Range = (0.0, 255.0)


@dataclass(frozen=True)
class Layout:
    """How given samples become stored ones: images of bytes (N, H, W, C), or floats (N, C, ...)."""

    channels_last: bool
    values: Range  # those that become -1 and 1
    note: str = ""
    scaling: Scaling | None = None  # of vectors and signals

    def store(self, given: Tensor) -> Tensor:
        """Samples (N, ...) as a data set stores them."""
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
    """How samples (N, ...) are stored. Vectors and signals are standardized unless they change.

    Args:
        given: Samples.
        config: Says which range of values becomes -1 to 1.
        numpy: Whether they came as arrays.
        changing: Whether samples vary from visit to visit, and so do their statistics.

    Raises:
        InputError: If they are no samples.
    """
    found = f"data are {str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
    whole = given.dtype == torch.uint8
    if whole and given.ndim not in (3, 4):
        raise InputError(f"{found}, which are no images: give vectors and signals as floats")
    if not whole and not given.is_floating_point():
        raise InputError(f"{found}: give floats, or bytes (uint8) for images")
    if given.ndim > 4:
        raise InputError(f"{found}: samples have three dimensions at most")
    finite = given.reshape(len(given), -1).isfinite().all(1)
    if not bool(finite.all()):
        raise InputError(f"data are not finite in row {int(finite.int().argmin())}: remove it")
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
            f"{found}: data.range=standardize is for vectors and signals; leave it out"
        )
    if given.ndim < 4 and not whole and not changing:
        scaling, how = scaling_of(given, config)
        return Layout(last, AS_THEY_ARE, f"{said} are {how}", scaling)
    if values == AS_THEY_ARE:
        return Layout(last, values, f"{said} are taken as they are")
    return Layout(last, values, f"{said}: {in_words(values)} is scaled to -1 to 1")


def scaling_of(given: Tensor, config: DataConfig) -> tuple[Scaling, str]:
    """What standardizes vectors (N, D) and signals (N, C, L), or scales a range, in words, too."""
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
    """Whether images (N, H, W, C) or (N, C, H, W) have their channels last: the smaller end.

    If both ends are as long, they are last in arrays and first in tensors.
    """
    first, last = images.shape[1], images.shape[3]
    return last < first or (last == first and numpy)


def as_tensor(sample: Any) -> Tensor:
    """A sample or samples as a tensor on the CPU. Raises InputError if they are no numbers."""
    try:
        values = sample if isinstance(sample, Tensor) else torch.from_numpy(native(sample))
    except (TypeError, ValueError):
        raise InputError(f"data hold {in_short(sample)}: give arrays or tensors") from None
    if values.is_meta or values.layout != torch.strided:
        kind = "on the device meta" if values.is_meta else str(values.layout)
        raise InputError(f"data are a tensor {kind}: give one with values, not sparse")
    return values.detach().cpu()


def native(sample: Any) -> np.ndarray:
    """A copy of an array in this machine's order of bytes."""
    values = np.array(sample)
    return values.astype(values.dtype.newbyteorder("="))


class Items:
    """The items of a data set, by their numbers: samples as they are given, and labels."""

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
            found = f"item {row} of data is {list(values.shape)}, item 0 is {list(self.shape)}"
            raise InputError(f"{found}: crop or resize them to one shape")
        given = None if cond is None else as_tensor(cond)
        if (shape := None if given is None else given.shape) != self.cond_shape:
            one, first = (x if x is None else list(x) for x in (shape, self.cond_shape))
            raise InputError(
                f"the condition of item {row} of data is {one}, that of item 0 is {first}: give "
                "all items conditions of one shape"
            )
        return Parts(values, label, given)

    def some(
        self, rows: Sequence[int], progress: Progress = silent
    ) -> tuple[Tensor, list[Any], Tensor | None]:
        """Samples (n, ...), their labels, and their conditions (n, ...) if they have any."""
        found = []
        with progress("reading data", len(rows)) as task:
            for done, row in enumerate(rows, 1):
                found.append(self[row])
                task.update(done)
        samples, labels, conditions = zip(*found, strict=True)
        cond = None if self.cond_shape is None else torch.stack(conditions)
        return torch.stack(samples), list(labels), cond

    def labels(self, seen: Mapping[int, Any], progress: Progress) -> list[Any] | None:
        """The labels of all items; None if the items that were seen have none.

        The data set's own list is used, as torchvision's have it, if it agrees with what was seen.
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
    """Stored samples (N, ...), read when they are needed.

    changing: Whether items differ from visit to visit. Then they identify nothing, and no copy is
        kept.
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
    """Stored conditions (N, ...) of items, read in one visit with their samples."""

    def __init__(self, rows: ItemRows, store: Store, like: Tensor) -> None:
        self.rows, self.store = rows, store
        self.shape, self.dtype = (len(rows), *like.shape[1:]), like.dtype
        self.checksums = (f"{self.shape}, changing",) if rows.changing else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Tensor) -> Tensor:
        return self.with_samples(which)[1]

    def with_samples(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """Stored samples and conditions at these indices (n,)."""
        samples, _, cond = self.rows.items.some(which.tolist())
        assert cond is not None
        return self.rows.layout.store(samples), self.store(cond)


class Parts(NamedTuple):
    """The parts of an item, or of all of them; None for those that are not there."""

    sample: Any
    label: Any = None
    cond: Any = None


def parts_of(item: Any, config: DataConfig) -> Parts:
    """The sample, the label and the condition of an item, or of a dictionary of arrays."""
    if isinstance(item, Mapping):
        keys = {str(key).lower(): key for key in item}
        sample = config.image_column or next((keys[x] for x in SAMPLE_NAMES if x in keys), None)
        label = config.label_column or next((keys[x] for x in USUAL_NAMES if x in keys), None)
        if sample not in item or (config.label_column and label not in item):
            known = f"its keys are {', '.join(map(str, item))}"
            raise InputError(
                f"an item of data has no sample under a usual name; {known}: set "
                "data.image_column and data.label_column"
            )
        cond = keys.get(config.cond_column.lower()) if config.cond_column else None
        return Parts(item[sample], item.get(label), item.get(cond))
    if not isinstance(item, tuple | list) or all(isinstance(one, int | float) for one in item):
        return Parts(item)
    if len(item) > 2:
        raise InputError(
            f"an item of data has {len(item)} parts: give (sample, label), or a dictionary with "
            "the keys image, label and cond"
        )
    return Parts(item[0], item[1] if len(item) == 2 else None)
