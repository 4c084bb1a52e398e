"""The dataset: N stored samples, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from soflow.data.labels import MOST_CLASSES, UNLABELLED
from soflow.errors import InputError, in_short
from soflow.system.fingerprints import checksum_of, fingerprint_of
from soflow.system.records import Count, Record

#: A fingerprint uses all rows up to LOOKED_THROUGH bytes, and LOOKED_AT rows of larger datasets.
LOOKED_THROUGH, LOOKED_AT = 2**26, 256

#: Means that exceed this many standard deviations need float64, since float32 has 7 digits.
FAR = 1000.0


def to_floats(pixels: Tensor) -> Tensor:
    """Scales bytes to [-1, 1]. evaluation.pictures.to_uint8 is the inverse."""
    return pixels.float().contiguous() / 127.5 - 1


def read_conditions(stored: Tensor) -> Tensor:
    """Stored conditions (B, ...) as floats. Images in bytes (B, H, W, C) are scaled to [-1, 1]."""
    return to_floats(stored.permute(0, 3, 1, 2)) if stored.dtype == torch.uint8 else stored.float()


def cropped(images: Tensor, margin: int, corners: Tensor | None) -> Tensor:
    """Crops images (B, H + margin, W + margin, C) to (B, H, W, C) at corners (B, 2) or centered."""
    height, width = (size - margin for size in images.shape[1:3])
    if corners is None:
        top = left = margin // 2
        return images[:, top : top + height, left : left + width]
    rows = corners[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = corners[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None]]


@runtime_checkable
class Rows(Protocol):
    """Stored samples (N, ...): a tensor, or memory-mapped files (shards.py)."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Tensor, /) -> Tensor: ...


class Subset:
    """The rows at some indices (n,) of other rows, without a copy."""

    def __init__(self, rows: Rows, indices: Tensor) -> None:
        self.rows = rows
        self.indices = indices
        self.shape = (len(indices), *rows.shape[1:])
        self.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, which: Tensor) -> Tensor:
        """The rows at these indices (n,), as (n, ...) in memory."""
        return self.rows[self.indices[which]]


@runtime_checkable
class ReadTogether(Protocol):
    """Conditions that are read together with their samples, so that random transforms match."""

    def with_samples(self, which: Tensor, /) -> tuple[Tensor, Tensor]: ...


def read_together(rows: Rows, cond: Rows | None, which: Tensor) -> tuple[Tensor, Tensor | None]:
    """Stored samples and conditions at these indices (n,)."""
    if cond is None:
        return rows[which], None
    if isinstance(rows, Subset) and isinstance(cond, Subset):
        return read_together(rows.rows, cond.rows, rows.indices[which])
    return (
        cond.with_samples(which) if isinstance(cond, ReadTogether) else (rows[which], cond[which])
    )


Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=0, le=2**14)]


@dataclass(frozen=True)
class Encoder:
    """The autoencoder of latents, with images (channels, size, size).

    z = (latent - shift) * scale

    `name` is a name on the Hugging Face Hub or a local folder.
    """

    name: str
    scale: Finite
    shift: Finite = 0.0
    size: Side = 0
    channels: Side = 3


@dataclass(frozen=True)
class Scaling:
    """The statistics that standardize samples, x = (value - mean) / std.

    There is one mean and one std per feature of vectors (D,), or per channel of samples (C, ...).
    """

    mean: tuple[Finite, ...]
    std: tuple[Finite, ...]
    columns: tuple[str, ...] = ()  # names of the features or channels, if any

    def restore(self, samples: Tensor) -> Tensor:
        """Converts standardized samples (B, C, ...) back to the units of the data.

        The result is float32, or float64 on the CPU if float32 is not precise enough, such as for
        Unix times.
        """
        far = any(abs(m) > FAR * s for m, s in zip(self.mean, self.std, strict=True))
        samples = samples.cpu().double() if far else samples
        shape = (-1, *[1] * (samples.ndim - 2))
        mean, std = (samples.new_tensor(x).view(shape) for x in (self.mean, self.std))
        return samples * std + mean


class DataRecord(Record):
    """A run's record of its dataset (data.json): class names, encoder, scaling and fingerprint."""

    advice: ClassVar[str] = "restore it, or train a new run"

    name: str
    count: Count
    fingerprint: str  # of stored samples, labels and conditions
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    scaling: Scaling | None = None
    unlabelled: Count = 0  # samples without a label in labeled data


def as_labels(values: Sequence[int] | None, class_names: Sequence[str], name: str) -> Tensor | None:
    """Labels as a tensor (N,), with -1 for unlabeled samples; None without labels.

    Raises InputError if a label is out of range.
    """
    if values is None or not len(values):
        return None
    most = len(class_names) or max(len(values), MOST_CLASSES)
    low, high = min(values), max(values)
    if not UNLABELLED <= low <= high < most:
        found = f"labels from {in_short(low)} to {in_short(high)}"
        raise InputError(f"{name} has {found}: labels must be in 0 .. {most - 1}")
    return torch.tensor(values, dtype=torch.int64)


@dataclass(frozen=True)
class Dataset:
    """N stored samples with their labels and conditions. `samples` reads some of them.

    Attributes:
        name: The name of the dataset in messages.
        split: The name of the split, such as "train".
        rows: The stored samples: float32 (N, ...); images as uint8 (N, H, W, C), which are read as
            floats in [-1, 1]; or, with an encoder, the mean and standard deviation of latents
            (N, 2 C, h, w), from which training draws new samples each time.
        labels: The class of each sample, (N,), with -1 for unlabeled samples; None without labels.
        class_names: The names of the classes. Without names, the number of classes is the largest
            label + 1.
        encoder: The autoencoder of latents; None for other data.
        unlabelled: The reason why there are no labels, for messages.
        scaling: The statistics that standardized the rows; None if they were not standardized.
        margin: The number of pixels by which stored images exceed samples in height and width.
            `read` crops the center, or at the given corners.
        notes: Remarks on how the data were read, which training logs.
        cond: The stored conditions: float32 (N, ...), or images as uint8 (N, H, W, C), which are
            read as floats in [-1, 1]; None without conditions.

    Example:
        >>> import soflow, torch
        >>> rows, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> data = soflow.Dataset("points", "train", rows, labels, class_names=("a", "b", "c"))
        >>> data.shape, data.num_classes, data.samples(slice(4)).shape
        ((2,), 3, torch.Size([4, 2]))
    """

    name: str
    split: str
    rows: Rows
    labels: Tensor | None
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    unlabelled: str = ""
    scaling: Scaling | None = None
    margin: int = 0
    notes: tuple[str, ...] = ()
    cond: Rows | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W) of images, (C, h, w) of latents, (D,) of vectors."""
        stored = tuple(int(n) for n in self.rows.shape[1:])
        if self.encoder is not None:
            return (stored[0] // 2, *stored[1:])
        if self.rows.dtype == torch.uint8:
            return (stored[2], stored[0] - self.margin, stored[1] - self.margin)
        return stored

    @property
    def cond_shape(self) -> tuple[int, ...]:
        """The shape of one condition; () without conditions."""
        if self.cond is None:
            return ()
        sizes = tuple(int(n) for n in self.cond.shape[1:])
        return (sizes[2], *sizes[:2]) if self.cond.dtype == torch.uint8 else sizes

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        if self.labels is None or self.class_names:
            return len(self.class_names)
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def read(
        self, stored: Tensor, noise: Tensor | None = None, corners: Tensor | None = None
    ) -> Tensor:
        """Converts stored rows (B, ...) to float32 samples (B, ...).

        Args:
            stored: Stored rows (B, ...).
            noise: Standard normal noise (B, C, h, w) that draws latents from their posteriors.
                Default: the means.
            corners: The upper left corners of crops (B, 2), from 0 to `margin`. Default: centered
                crops.
        """
        if self.encoder is not None:
            mean, std = stored.float().chunk(2, dim=1)  # (B, C, h, w) each
            latent = mean if noise is None else mean + std * noise
            return (latent - self.encoder.shift) * self.encoder.scale
        if stored.dtype == torch.uint8:
            if self.margin:
                stored = cropped(stored, self.margin, corners)
            return to_floats(stored.permute(0, 3, 1, 2))  # (B, H, W, C) -> (B, C, H, W)
        return stored

    def samples(self, which: slice | Tensor = slice(None)) -> Tensor:
        """Reads samples (n, ...) on the CPU, by a slice or by indices (n,).

        Samples of stored latents are the means of their posteriors.
        """
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        return self.read(self.rows[indices])

    def conditions(self, which: slice | Tensor = slice(None)) -> Tensor | None:
        """Reads conditions (n, ...) on the CPU, like `samples`; None without conditions."""
        if self.cond is None:
            return None
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        return read_conditions(self.cond[indices])

    def pairs(self, which: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Reads samples (n, ...) together with their conditions (n, ...), like `samples`."""
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        rows, cond = read_together(self.rows, self.cond, indices)
        return self.read(rows), None if cond is None else read_conditions(cond)

    def describe(self) -> DataRecord:
        """The record of the dataset that a run keeps."""
        labels = None if self.labels is None else checksum(self.labels)
        content = f"{fingerprint(self.rows)} {labels}"
        if self.cond is not None:
            content += f" {fingerprint(self.cond)}"
        return DataRecord(
            name=self.name,
            count=len(self),
            fingerprint=fingerprint_of(content),
            class_names=self.class_names,
            encoder=self.encoder,
            scaling=self.scaling,
            unlabelled=0 if self.labels is None else int(is_unlabelled(self).sum()),
        )

    def part(self, which: Tensor, split: str) -> "Dataset":
        """The samples selected by a mask (N,) or indices (n,), without a copy of the rows."""
        indices = torch.arange(len(self))[which]
        labels = None if self.labels is None else self.labels[indices]
        cond = None if self.cond is None else Subset(self.cond, indices)
        rows = Subset(self.rows, indices)
        return replace(self, rows=rows, labels=labels, split=split, cond=cond)


def is_unlabelled(dataset: Dataset) -> Tensor:
    """The mask (N,) of samples without a label: -1, or the null label of training."""
    assert dataset.labels is not None
    return (dataset.labels < 0) | (dataset.labels == dataset.num_classes)


def fingerprint(rows: Rows) -> str:
    """A text that identifies rows: the recorded checksums of shards, or a checksum of the rows.

    For rows of more than 64 MiB without recorded checksums, such as in HDF5 files, the checksum
    covers only 256 rows. It detects other data, but may miss changes of single rows.
    """
    recorded = getattr(rows, "checksums", None)
    if recorded is not None:
        return " ".join(recorded)
    small = rows.dtype.itemsize * prod(rows.shape) <= LOOKED_THROUGH
    count = len(rows) if small else min(LOOKED_AT, len(rows))
    indices = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()
    return f"{list(rows.shape)} {checksum(rows[indices])}"


def checksum(values: Tensor) -> str:
    """CRC-32 of the values of a tensor."""
    return checksum_of([values.contiguous().numpy().tobytes()])
