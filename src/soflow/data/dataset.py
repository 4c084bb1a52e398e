"""A data set: N samples as they are stored, and as they are read."""

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

#: Rows of at most LOOKED_THROUGH bytes enter a fingerprint; of more, LOOKED_AT rows do.
LOOKED_THROUGH, LOOKED_AT = 2**26, 256

#: Means of more standard deviations need float64: float32 has 7 digits.
FAR = 1000.0


def to_floats(pixels: Tensor) -> Tensor:
    """Bytes as [-1, 1]. The opposite is evaluation.pictures.to_uint8."""
    return pixels.float().contiguous() / 127.5 - 1


def read_conditions(stored: Tensor) -> Tensor:
    """Stored conditions (B, ...) as floats; bytes of images (B, H, W, C) become [-1, 1]."""
    return to_floats(stored.permute(0, 3, 1, 2)) if stored.dtype == torch.uint8 else stored.float()


def cropped(images: Tensor, margin: int, corners: Tensor | None) -> Tensor:
    """Images (B, H + margin, W + margin, C) cropped to (B, H, W, C) at their corners (B, 2)."""
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
    """Stored samples, (N, ...): a Tensor, or memory-mapped files (shards.py)."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Tensor, /) -> Tensor: ...


class Subset:
    """Some of the rows of another collection, by their indices (n,). They are not copied."""

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
    """Stored conditions that are read in one visit with their samples: random changes fit."""

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
    """The autoencoder of latents, for images (channels, size, size); `name` is on the Hub or local.

    z = (latent - shift) * scale
    """

    name: str
    scale: Finite
    shift: Finite = 0.0
    size: Side = 0
    channels: Side = 3


@dataclass(frozen=True)
class Scaling:
    """Statistics that standardized samples. Drawn samples get the data's own units back.

        x = (value - mean) / std

    One value for each feature of vectors (D,), or for each channel of samples (C, ...).
    """

    mean: tuple[Finite, ...]
    std: tuple[Finite, ...]
    columns: tuple[str, ...] = ()  # names of the features or channels, if they have any

    def restore(self, samples: Tensor) -> Tensor:
        """Standardized samples (B, C, ...) in the data's own units.

        They are float32, or float64 on the CPU if float32 is too coarse, as for times in seconds.
        """
        far = any(abs(m) > FAR * s for m, s in zip(self.mean, self.std, strict=True))
        samples = samples.cpu().double() if far else samples
        shape = (-1, *[1] * (samples.ndim - 2))
        mean, std = (samples.new_tensor(x).view(shape) for x in (self.mean, self.std))
        return samples * std + mean


class DataRecord(Record):
    """What a run keeps of its data (data.json): to name classes, decode latents, notice changes."""

    advice: ClassVar[str] = "restore it, or train a new run"

    name: str
    count: Count
    fingerprint: str  # of stored samples, labels and conditions
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    scaling: Scaling | None = None
    unlabelled: Count = 0  # samples of labelled data without a label of their own


def as_labels(values: Sequence[int] | None, class_names: Sequence[str], name: str) -> Tensor | None:
    """Stored labels (N,), -1 for unlabelled ones. Raises InputError if they cannot be classes."""
    if values is None or not len(values):
        return None
    most = len(class_names) or max(len(values), MOST_CLASSES)
    low, high = min(values), max(values)
    if not UNLABELLED <= low <= high < most:
        found = f"labels from {in_short(low)} to {in_short(high)}"
        raise InputError(f"{name} has {found}: they must be 0 to {most - 1}")
    return torch.tensor(values, dtype=torch.int64)


@dataclass(frozen=True)
class Dataset:
    """N stored samples; `samples` reads some of them.

    Attributes:
        name: What messages call the data set.
        split: The part of the data that it is, such as "train".
        rows: Samples, float32 (N, ...); or images as bytes, uint8 (N, H, W, C), which become
            [-1, 1]; or, with an encoder, mean and standard deviation of latents, (N, 2 C, h, w), of
            which every visit draws one.
        labels: The class of each sample, (N,), -1 for unlabelled samples; or None.
        class_names: Names of the classes. Without names, the largest label says how many there are.
        encoder: The autoencoder of latents; None for other data.
        unlabelled: Why there are no labels.
        scaling: What standardized the rows; None for images and for rows in their own units.
        margin: By how much stored images are larger than samples in both directions: `read` crops
            the middle, or another place if it is given one.
        notes: What was found, and what was left out; see `summary`.
        cond: What samples are conditioned on besides classes, float32 (N, ...), or images as bytes,
            uint8 (N, H, W, C), which become [-1, 1]; None for nothing.

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
        """One sample's shape: (C, H, W) for images, (C, h, w) for latents, (D,) for vectors."""
        stored = tuple(int(n) for n in self.rows.shape[1:])
        if self.encoder is not None:
            return (stored[0] // 2, *stored[1:])
        if self.rows.dtype == torch.uint8:
            return (stored[2], stored[0] - self.margin, stored[1] - self.margin)
        return stored

    @property
    def cond_shape(self) -> tuple[int, ...]:
        """One condition's shape; () without conditions."""
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
        """Stored rows (B, ...) as float32 samples.

        Args:
            stored: Rows, (B, ...).
            noise: (B, C, h, w), draws latents from their posteriors; without it they are the means.
            corners: (B, 2), the upper left corners of crops, from 0 to `margin`; by default the
                middle is cropped.
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
        """Samples (n, ...) on the CPU: a slice, or those at indices (n,). Of latents, the means."""
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        return self.read(self.rows[indices])

    def conditions(self, which: slice | Tensor = slice(None)) -> Tensor | None:
        """Conditions (n, ...) on the CPU, like `samples`; None without conditions."""
        if self.cond is None:
            return None
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        return read_conditions(self.cond[indices])

    def pairs(self, which: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Samples and their conditions, read in one visit."""
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        rows, cond = read_together(self.rows, self.cond, indices)
        return self.read(rows), None if cond is None else read_conditions(cond)

    def describe(self) -> DataRecord:
        """What a run keeps of its data."""
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
        """The samples selected by a mask (N,) or indices (n,). Rows are not copied."""
        indices = torch.arange(len(self))[which]
        labels = None if self.labels is None else self.labels[indices]
        cond = None if self.cond is None else Subset(self.cond, indices)
        rows = Subset(self.rows, indices)
        return replace(self, rows=rows, labels=labels, split=split, cond=cond)


def is_unlabelled(dataset: Dataset) -> Tensor:
    """Which samples of labelled data have no label, (N,): -1, or the null label of training."""
    assert dataset.labels is not None
    return (dataset.labels < 0) | (dataset.labels == dataset.num_classes)


def fingerprint(rows: Rows) -> str:
    """A text that identifies rows: recorded checksums of shards, or a checksum of up to 64 MiB.

    For larger rows without recorded checksums, as in HDF5 files, it depends on 256 rows alone. It
    then notices other data, but not the change of a few rows.
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
