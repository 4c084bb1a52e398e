"""Draws many samples in batches.

The noise and the random label of sample i depend only on (seed, i), so samples do not depend on the
batch size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from soflow.errors import InputError, require_whole
from soflow.guidance import AnyInterval, AnyScale
from soflow.sampling import Sampler, check_sampler, noise_count, sample
from soflow.solution import FlowModel
from soflow.symbols import AnyLabels, Sample, as_labels
from soflow.system.devices import named_device

#: Added to the seed (seed, i) of sample i to draw its label independently of its noise.
LABEL = 1

#: How the classes of samples are chosen.
LabelDraw = Literal["balanced", "random"]


@runtime_checkable
class Conditions(Protocol):
    """Conditions (N, ...) indexed by a tensor (n,): a tensor, or the conditions of a dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, which: Tensor, /) -> Tensor: ...


def class_by_class(num: int, num_classes: int) -> Tensor | None:
    """Labels (num,) that cycle through the classes; None without classes."""
    return torch.arange(num) % num_classes if num_classes else None


def random_classes(num: int, num_classes: int, seed: int) -> Tensor | None:
    """Random labels (num,), where label i depends only on (seed, i); None without classes."""
    if not num_classes:
        return None
    draws = [np.random.default_rng([seed, i, LABEL]).integers(num_classes) for i in range(num)]
    return torch.tensor(draws, dtype=torch.long)


def draw_classes(how: LabelDraw, num: int, num_classes: int, seed: int) -> Tensor | None:
    """Labels (num,), balanced or random; None without classes."""
    if how == "random":
        return random_classes(num, num_classes, seed)
    return class_by_class(num, num_classes)


def noise_of_samples(
    seed: int, first: int, count: int, noises: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """The noise of samples `first` .. `first + count - 1`: (noises, count, *shape).

    The noise of sample i depends only on (seed, i), so samples do not change with the batch size
    or the number of processes.
    """
    draws = [
        np.random.default_rng([seed, i]).standard_normal((noises, *shape), dtype=np.float32)
        for i in range(first, first + count)
    ]
    return torch.from_numpy(np.stack(draws, axis=1)).to(device)


@torch.no_grad()
def draw(
    model: FlowModel,
    num: int,
    labels: AnyLabels,
    sampler: Sampler,
    nfe: int,
    seed: int,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    start: int = 0,
    cond: Conditions | None = None,
    guidance: Tensor | None = None,
    times: Sequence[Any] | None = None,
) -> Iterator[Sample]:
    """Draws and decodes samples `start` .. `start + num - 1`, in batches (B, ...) on the CPU.

    `labels` (num,) and `cond` (num, ...) hold one row per sample. `guidance`, as returned by
    `model.chosen_guidance`, is (3,) for all samples or (num, 3) with one row per sample.
    """
    check_sampler(sampler, nfe, times)
    require_whole(0, num=num, seed=seed, start=start)
    require_whole(1, batch_size=batch_size)
    device, labels = named_device(device), as_labels(labels)
    if labels is not None and labels.shape != (num,):
        raise InputError(f"labels must have shape [{num}], not {list(labels.shape)}")
    if cond is not None and len(cond) != num:
        raise InputError(f"cond has {len(cond)} conditions for {num} samples: pass one per sample")
    if guidance is not None and labels is None:
        raise InputError("guidance needs labels: pass labels, or leave out guidance")
    own_scales = guidance is not None and guidance.ndim == 2
    if guidance is not None and own_scales and len(guidance) != num:
        held = f"guidance has {len(guidance)} scales for {num} samples"
        raise InputError(f"{held}: pass one number, or one per sample")
    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        per_sample = noise_count(sampler, nfe)
        noises = noise_of_samples(seed, start + first, count, per_sample, model.shape, device)
        chosen = None if labels is None else labels[first : first + count].to(device)
        one = model if cond is None else given_rows(model, cond, first, count, device)
        if guidance is not None:
            rows = guidance[first : first + count] if own_scales else guidance
            one = one.with_guidance(rows)
        yield model.decode(sample(one, noises, chosen, sampler, nfe, times).float()).cpu()


def asked_guidance(
    model: FlowModel, scale: AnyScale | None, interval: AnyInterval | None
) -> Tensor | None:
    """Guidance in the form that `draw` takes; None if neither argument is given."""
    return None if scale is None and interval is None else model.chosen_guidance(scale, interval)


def given_rows(
    model: FlowModel, cond: Conditions, first: int, count: int, device: torch.device
) -> FlowModel:
    """The model bound to the conditions `first` .. `first + count - 1`."""
    return model.conditioned(cond[torch.arange(first, first + count)].to(device))


def sample_many(
    model: FlowModel,
    num: int,
    labels: AnyLabels = None,
    sampler: Sampler = "renoise",
    nfe: int = 1,
    seed: int = 0,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
    start: int = 0,
    cond: Conditions | None = None,
    guidance: AnyScale | None = None,
    guidance_interval: AnyInterval | None = None,
    times: Sequence[Any] | None = None,
) -> Sample:
    """Draws and decodes many samples in batches.

    The noise of sample i depends only on (seed, i), not on the batch size.

    Args:
        model: The model. Its network should be in evaluation mode.
        num: The number of samples.
        labels: Class labels (num,); None draws samples without a label.
        sampler: "renoise", "ode", "euler" or "heun".
        nfe: Network evaluations per sample.
        seed: The seed of the noise.
        batch_size: Samples per batch.
        device: The device that noise, labels and conditions are moved to.
        on_batch: Called after each batch with the number of samples drawn so far.
        start: The index of the first sample.
        cond: Conditions (num, ...), for a model with conditions.
        guidance: The guidance scale, or one scale per sample (num,), for a model that takes scales.
            Default: `model.guidance.scale`.
        guidance_interval: The interval (start, end) of t in which guidance acts. Default: (0, 1).
        times: 1 = t_0 > t_1 > ... > t_nfe = 0, the times of `renoise` and `ode`. Default: evenly
            spaced.

    Returns:
        Samples (num, ...) on the CPU, decoded by `model.decode`.

    Raises:
        InputError: If labels, conditions or scales do not fit the model or `num`, or the sampler
            does not support `nfe` or `times`.

    Example:
        >>> import soflow
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> soflow.sample_many(model, 1000, nfe=2, batch_size=400).shape
        torch.Size([1000, 2])
    """
    require_whole(1, num=num)
    parts: list[Tensor] = []
    rows = asked_guidance(model, guidance, guidance_interval)
    for part in draw(
        model, num, labels, sampler, nfe, seed, batch_size, device, start, cond, rows, times
    ):
        parts.append(part)
        on_batch(sum(map(len, parts)))
    return torch.cat(parts)
