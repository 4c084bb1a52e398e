"""The batch of step k, which depends only on (seed, k).

Every process computes the same global batch and takes its own part. A resumed run therefore sees
the same batches as an uninterrupted run, and several processes see the same batches as one process.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from soflow.data.augment import AugmentPipe
from soflow.data.dataset import Dataset, Rows, read_conditions, read_together
from soflow.errors import InputError, in_short, require_whole
from soflow.symbols import Batch
from soflow.system.devices import named_device


def seed_of(seed: int, stream: str, step: int) -> int:
    """A seed for one purpose (`stream`) at one step. Different arguments give unrelated seeds."""
    entropy = [seed, int.from_bytes(stream.encode(), "little"), step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def seeded_generator(seed: int, stream: str, step: int, device: torch.device) -> torch.Generator:
    """A generator on `device`, seeded by `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(seed, stream, step))


def balanced_order(classes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The indices (N,) of an epoch that contains all classes equally often.

    `classes` (N,) is the class of each sample. A sample repeats only after all other samples of its
    class have been used, also across epochs.
    """
    numbers = np.unique(classes)
    each = -(-len(classes) // len(numbers))
    chosen = []
    for number in numbers:
        members = np.flatnonzero(classes == number)
        visit, place = np.divmod(epoch * each + np.arange(each), len(members))
        for one in np.unique(visit):
            order = np.random.default_rng([seed, int(number), int(one)]).permutation(members)
            chosen.append(order[place[visit == one]])
    order = np.random.default_rng([seed, epoch]).permutation(np.concatenate(chosen))
    return order[: len(classes)]


#: Rows with their conditions, if any.
Stored: TypeAlias = tuple[Tensor, Tensor | None]
#: Maximum bytes of rows and conditions that are kept in device memory.
RESIDENT = 2**31


def in_memory(rows: Rows) -> Tensor:
    """All rows as a tensor in memory."""
    return rows if isinstance(rows, Tensor) else rows[torch.arange(len(rows))]


class Batches:
    """The training batches of a dataset: `batches[k]` is the batch of step k.

    Samples are shuffled in each epoch. A batch may extend into the next epoch. Small datasets are
    kept on the device. For larger datasets, a thread reads the rows one step ahead.

    Conditions that are maps are flipped and augmented like their images. Datasets with a margin are
    cropped at random positions.

    Args:
        dataset: The dataset.
        batch_size: The number of samples per batch, over all processes.
        seed: The seed of the order and of `generator`.
        augment: Augments images, such as `soflow.data.augment.AugmentPipe`.
        device: The device of the batches.
        flip: Whether to flip each image horizontally with probability 1/2.
        balance: Whether to sample all classes equally often.

    Raises:
        InputError: If `dataset` is not a `Dataset`, or `batch_size` or `seed` is invalid.

    Example:
        >>> import soflow
        >>> batches = soflow.Batches(soflow.load_data("digits"), batch_size=128, seed=0)
        >>> batch = batches[0]
        >>> batch.data.shape, batch.labels.shape
        (torch.Size([128, 1, 8, 8]), torch.Size([128]))
        >>> generator = batches.generator("draws", 0)  # for other random numbers of step 0
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        augment: AugmentPipe | None = None,
        device: torch.device | str = "cpu",
        flip: bool = False,
        balance: bool = False,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise InputError(f"data is {in_short(dataset)}: pass soflow.load_data(data)")
        require_whole(1, batch_size=batch_size)
        require_whole(0, seed=seed)
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = named_device(device)
        self.flip = flip
        self.classes = dataset.labels.numpy() if balance and dataset.labels is not None else None
        self.offset = (
            0  # corrects the position if an earlier part of the run had another batch size
        )
        self.labels = None if dataset.labels is None else dataset.labels.to(self.device)
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)
        rows: Rows = dataset.rows
        parts = [rows] if dataset.cond is None else [rows, dataset.cond]
        small = sum(part.dtype.itemsize * prod(part.shape) for part in parts) <= RESIDENT
        self.resident = small and not getattr(rows, "changing", False)
        self.rows, self.cond = rows, dataset.cond
        if self.resident:
            self.rows = in_memory(rows).to(self.device)
            if dataset.cond is not None:
                self.cond = in_memory(dataset.cond).to(self.device)
        else:
            self.reader = ThreadPoolExecutor(1, "rows of the next step")
            self.ahead: dict[tuple[int, int, int], Future[Stored]] = {}

    def _make_epoch_order(self, epoch: int) -> np.ndarray:
        if self.classes is not None:
            return balanced_order(self.classes, self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))

    def indices(self, step: int) -> np.ndarray:
        """The indices (batch_size,) of the samples in the global batch of `step`."""
        position = step * self.batch_size + self.offset + np.arange(self.batch_size)
        epoch, place = np.divmod(position, len(self.dataset))
        parts = [self._epoch_order(int(e))[place[epoch == e]] for e in np.unique(epoch)]
        return np.concatenate(parts)

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`. The first step is 0."""
        return self.microbatch(step)

    def microbatch(self, step: int, index: int = 0, count: int = 1) -> Batch:
        """Microbatch `index` of `count` in the batch of `step`: every count-th sample."""
        mine = slice(index, None, count)
        chosen = self.pinned(self.chosen(step, index, count)).to(self.device, non_blocking=True)
        labels = None if self.labels is None else self.labels[chosen]
        if self.resident:
            stored, given = self.rows[chosen], None if self.cond is None else self.cond[chosen]
        else:
            stored, given = self.read_ahead(step, index, count)
        cond = None if given is None else read_conditions(given)
        data = self.dataset.read(stored, self.visit_noise(step, mine), self.corners(step, mine))
        if self.flip:
            generator = self.generator("flip", step)
            tosses = torch.rand(self.batch_size, generator=generator, device=self.device)
            mirrored = tosses[mine, None, None, None] < 0.5
            data = torch.where(mirrored, data.flip(3), data)
            if cond is not None and cond.ndim == 4:
                cond = torch.where(mirrored, cond.flip(3), cond)
        if self.augment is None:
            return Batch(data, labels, cond=cond)
        draws = self.augment.draw(self.batch_size, self.generator("augment", step))[mine]
        if cond is not None and cond.ndim == 4:
            cond = self.augment(cond, draws)
        return Batch(self.augment(data, draws), labels, self.augment.labels(draws), cond)

    def chosen(self, step: int, index: int, count: int) -> Tensor:
        """The indices (n,) of the samples in a microbatch."""
        return torch.from_numpy(self.indices(step)[index::count])

    def visit_noise(self, step: int, mine: slice) -> Tensor | None:
        """Noise (B, C, h, w) that draws latents from their posteriors; None for other data.

        It is drawn for the whole batch and then split into microbatches.
        """
        if self.dataset.encoder is None:
            return None
        shape, generator = (self.batch_size, *self.dataset.shape), self.generator("latents", step)
        return torch.randn(shape, generator=generator, device=self.device)[mine]

    def corners(self, step: int, mine: slice) -> Tensor | None:
        """The corners (B, 2) of random crops; None without random crops.

        They are drawn for the whole batch and then split into microbatches.
        """
        if not self.dataset.margin:
            return None
        shape, generator = (self.batch_size, 2), self.generator("crop", step)
        most = self.dataset.margin + 1
        return torch.randint(most, shape, generator=generator, device=self.device)[mine]

    def generator(self, stream: str, step: int) -> torch.Generator:
        """A generator for one purpose at one step, seeded by (seed, stream, step)."""
        return seeded_generator(self.seed, stream, step, self.device)

    def read_ahead(self, step: int, index: int, count: int) -> Stored:
        """Rows and conditions (n, ...) of a microbatch, on the device.

        Also starts to read the microbatch of the next step in a thread.
        """
        future = self.ahead.pop((step, index, count), None)
        stored = self.fetch(step, index, count) if future is None else future.result()
        self.ahead[step + 1, index, count] = self.reader.submit(self.fetch, step + 1, index, count)
        rows, cond = (x if x is None else x.to(self.device, non_blocking=True) for x in stored)
        assert rows is not None
        return rows, cond

    def fetch(self, step: int, index: int, count: int) -> Stored:
        """Reads the rows and conditions (n, ...) of a microbatch."""
        rows, cond = read_together(self.rows, self.cond, self.chosen(step, index, count))
        return self.pinned(rows), None if cond is None else self.pinned(cond)

    def pinned(self, tensor: Tensor) -> Tensor:
        """A tensor (n, ...) in pinned memory if the device is a GPU, for asynchronous copies."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor
