"""The batch of step k, as a function of (seed, k) and nothing else.

Every process works out the same global batch and takes its share of it, so a resumed run sees what the uninterrupted one
saw, and two processes see what one would.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from soflow.data.augment import AugmentPipe
from soflow.data.sources import Dataset


@dataclass(frozen=True)
class Batch:
    """Clean samples (B, ...), with labels (B,) and augmentation labels (B, A) where there are any."""

    data: Tensor
    labels: Tensor | None = None
    augment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, which: slice) -> "Batch":
        """The samples that a slice selects."""
        labels, augment = (None if x is None else x[which] for x in (self.labels, self.augment))
        return Batch(self.data[which], labels, augment)


def seed_of(seed: int, stream: str, step: int) -> int:
    """A seed for one purpose (`stream`) at one step: equal arguments give equal seeds, others unrelated ones."""
    entropy = [seed, int.from_bytes(stream.encode(), "little"), step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def seeded_generator(seed: int, stream: str, step: int, device: torch.device) -> torch.Generator:
    """A generator on `device`, seeded by `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(seed, stream, step))


class Batches:
    """The batches of a run over a dataset that lies on the device as one tensor.

    Samples come in a fresh random order each epoch; a batch may reach over the end of one epoch into the next.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        augment: AugmentPipe | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = torch.device(device)
        self.data = dataset.data.to(self.device)
        self.labels = None if dataset.labels is None else dataset.labels.to(self.device)
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)

    def _make_epoch_order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.data))

    def indices(self, step: int) -> np.ndarray:
        """Which samples make up the global batch of `step`, (batch_size,)."""
        position = step * self.batch_size + np.arange(self.batch_size)
        epoch, place = np.divmod(position, len(self.data))
        return np.concatenate([self._epoch_order(int(e))[place[epoch == e]] for e in np.unique(epoch)])

    def share(self, step: int, index: int = 0, count: int = 1) -> Batch:
        """Share `index` of `count` of the batch of `step`: every count-th sample of it."""
        chosen = torch.from_numpy(self.indices(step)[index::count]).to(self.device)
        data = self.data[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        if self.augment is None:
            return Batch(data, labels)
        generator = seeded_generator(self.seed, "augment", step, self.device)
        draws = self.augment.draw(self.batch_size, generator)[index::count]
        return Batch(self.augment(data, draws), labels, self.augment.labels(draws))
