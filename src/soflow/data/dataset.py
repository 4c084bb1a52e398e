"""A data set: N samples as they are stored, and as they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from soflow.errors import InputError, in_short
from soflow.system.fingerprints import checksum_of, fingerprint_of
from soflow.system.records import Count, Record

#: Rows of at most LOOKED_THROUGH bytes enter a fingerprint; of more, LOOKED_AT rows do.
LOOKED_THROUGH, LOOKED_AT = 2**26, 256


def to_floats(pixels: Tensor) -> Tensor:
    """Bytes as [-1, 1]. The opposite is evaluation.pictures.to_uint8."""
    return pixels.float().contiguous() / 127.5 - 1


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
    """Statistics that standardize samples; samples that are drawn get the data's own units back.

        x = (stored - mean) / std

    One value for each feature of vectors (D,), or for each channel of samples (C, ...).
    """

    mean: tuple[Finite, ...]
    std: tuple[Finite, ...]
    columns: tuple[str, ...] = ()  # names of the features or channels, if they have any

    def standardize(self, stored: Tensor) -> Tensor:
        """(B, C, ...) in the data's own units -> (B, C, ...) with mean 0 and variance 1."""
        mean, std = self.like(stored)
        return (stored - mean) / std

    def restore(self, samples: Tensor) -> Tensor:
        """The opposite of `standardize`."""
        mean, std = self.like(samples)
        return samples * std + mean

    def like(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C, 1, ...) each."""
        shape = (-1, *[1] * (samples.ndim - 2))
        mean, std = (torch.tensor(x, device=samples.device) for x in (self.mean, self.std))
        return mean.view(shape), std.view(shape)


class DataRecord(Record):
    """What a run keeps of its data (data.json): to name classes, decode latents, notice changes."""

    advice: ClassVar[str] = "restore it, or train a new run"

    name: str
    count: Count
    fingerprint: str  # of stored samples and labels
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    scaling: Scaling | None = None


#: Labels from here on are times or identities, not classes, unless there are as many samples.
#: Excerpts of sets with many classes have smaller ones (ImageNet-21k has 21,841).
MOST_CLASSES = 2**16


def as_labels(values: Sequence[int] | None, class_names: Sequence[str], name: str) -> Tensor | None:
    """Stored labels (N,). Raises InputError if they cannot be classes."""
    if values is None or not len(values):
        return None
    most = len(class_names) or max(len(values), MOST_CLASSES)
    low, high = min(values), max(values)
    if not 0 <= low <= high < most:
        found = f"labels from {in_short(low)} to {in_short(high)}"
        raise InputError(f"{name} has {found}: they must be 0 to {most - 1}")
    return torch.tensor(values, dtype=torch.int64)


@dataclass(frozen=True)
class Dataset:
    """N stored samples; `samples` reads some of them.

    Attributes:
        name: What messages call the data set.
        rows: Samples, float32 (N, ...); or images as bytes, uint8 (N, H, W, C), which become
            [-1, 1]; or, with an encoder, mean and standard deviation of latents, (N, 2 C, h, w), of
            which every visit draws one.
        labels: The class of each sample, (N,), or None.
        class_names: Names of the classes. Without names, the largest label says how many there are.
        unlabelled: Why there are no labels.
        scaling: Of rows in units of their own, which `read` standardizes; None for images.
    """

    name: str
    split: str
    rows: Rows
    labels: Tensor | None
    class_names: tuple[str, ...] = ()
    encoder: Encoder | None = None
    unlabelled: str = ""
    scaling: Scaling | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape: (C, H, W) for images, (C, h, w) for latents, (D,) for vectors."""
        stored = tuple(int(n) for n in self.rows.shape[1:])
        if self.encoder is not None:
            return (stored[0] // 2, *stored[1:])
        return (stored[2], *stored[:2]) if self.rows.dtype == torch.uint8 else stored

    @property
    def num_classes(self) -> int:
        if self.labels is None or self.class_names:
            return len(self.class_names)
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored rows (B, ...) as float32 samples.

        noise (B, C, h, w) draws latents from their posteriors; without it they are the means.
        """
        if self.encoder is not None:
            mean, std = stored.float().chunk(2, dim=1)  # (B, C, h, w) each
            latent = mean if noise is None else mean + std * noise
            return (latent - self.encoder.shift) * self.encoder.scale
        if stored.dtype == torch.uint8:
            stored = stored.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
            if self.scaling is None:
                return to_floats(stored)
        return stored if self.scaling is None else self.scaling.standardize(stored.float())

    def samples(self, which: slice | Tensor = slice(None)) -> Tensor:
        """Samples (n, ...) on the CPU: a slice, or those at indices (n,). Of latents, the means."""
        indices = torch.arange(len(self))[which] if isinstance(which, slice) else which
        return self.read(self.rows[indices])

    def describe(self) -> DataRecord:
        """What a run keeps of its data."""
        labels = None if self.labels is None else checksum(self.labels)
        return DataRecord(
            name=self.name,
            count=len(self),
            fingerprint=fingerprint_of(f"{fingerprint(self.rows)} {labels}"),
            class_names=self.class_names,
            encoder=self.encoder,
            scaling=self.scaling,
        )

    def part(self, which: Tensor, split: str) -> "Dataset":
        """The samples selected by a mask (N,) or indices (n,). Rows are not copied."""
        indices = torch.arange(len(self))[which]
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=Subset(self.rows, indices), labels=labels, split=split)


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
