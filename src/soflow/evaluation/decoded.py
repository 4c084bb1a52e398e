"""Datasets of latents as datasets of images, decoded when they are read."""

from collections.abc import Callable

import torch
from torch import Tensor

from soflow.data.dataset import Dataset

#: Latents per decoding batch.
DECODED = 64

Decode = Callable[[Tensor], Tensor]


def as_images(data: Dataset, decode: Decode, num: int) -> Dataset:
    """Decodes `num` evenly spaced latents to images, lazily. Returns other data unchanged."""
    if data.encoder is None:
        return data
    which = torch.linspace(0, len(data) - 1, min(num, len(data)), dtype=torch.float64).long()
    some = data.part(which, data.split)
    rows = DecodedRows(some, decode)
    return Dataset(f"{data.name}, decoded", data.split, rows, some.labels, data.class_names)


class DecodedRows:
    """Images (n, C, H, W) that are decoded from latents each time they are read."""

    dtype = torch.float32

    def __init__(self, latents: Dataset, decode: Decode) -> None:
        self.latents, self.decode = latents, decode
        self.shape = (len(latents), *self[torch.tensor([0])].shape[1:])

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, which: Tensor, /) -> Tensor:
        parts = which.split(DECODED)
        return torch.cat([self.decode(self.latents.samples(part)) for part in parts])
