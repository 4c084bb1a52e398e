"""Samplers: pure functions of a model and its noise.

All take noise (B, ...) and labels (B,) or None (no condition), and return samples (B, ...). A model
whose null label was never trained refuses None. A network evaluation (NFE) is one call of the
network on the batch.

Noise may be a tensor or an array of floats of any precision; it is converted to the precision and
the device of the network's weights. Labels may be a list, an array or a tensor of integers.

Source: SoFlow (arXiv 2512.15657), sampling.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.solution import FlowModel
from soflow.symbols import AnyLabels, AnyNoise, Sample, as_labels

Sampler = Literal["renoise", "ode", "euler", "heun"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
#: Steps of the Heun integration that few-step samples are compared with; each takes two network
#: evaluations.
HEUN_STEPS = 32
#: Separates the random label of sample i from its noise, which is seeded by (seed, i).
LABEL = 1


@runtime_checkable
class Conditions(Protocol):
    """Conditions (N, ...) that are read by their indices (n,): a tensor, or those of a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, which: Tensor, /) -> Tensor: ...


def even_times(steps: int) -> list[float]:
    """1 = t_0 > t_1 > ... > t_K = 0, evenly spaced."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def filled(time: float, like: Tensor) -> Tensor:
    """One time for every sample: (B,)."""
    return torch.full(like.shape[:1], time, dtype=like.dtype, device=like.device)


def as_model_takes(model: FlowModel, noise: AnyNoise) -> Tensor:
    """Noise in the precision and on the device of the network's weights, if it has any.

    Raises:
        InputError: If it is not floats.
    """
    x = noise if isinstance(noise, Tensor) else torch.as_tensor(noise)
    if not x.is_floating_point():
        raise InputError(f"noise must be floats, not {x.dtype}")
    weights = model.net.parameters() if isinstance(model.net, nn.Module) else ()
    like = next((weight for weight in weights if weight.is_floating_point()), x)
    return x.to(like.device, like.dtype)


def checked(model: FlowModel, noise: AnyNoise, labels: AnyLabels) -> tuple[Tensor, Tensor | None]:
    """Noise and labels as the model takes them. Raises InputError if they do not fit it."""
    x = as_model_takes(model, noise)
    y = as_labels(labels, x.device)
    model.check(x, y)
    return x, y


def one_step(model: FlowModel, noise: AnyNoise, labels: AnyLabels = None) -> Sample:
    """Draws samples f(noise, 1, 0) in one network evaluation.

    Args:
        model: The model.
        noise: Standard normal, (B, ...).
        labels: (B,), or None for no condition.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise or labels do not fit the model.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> soflow.one_step(model, torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """
    noise, labels = checked(model, noise, labels)
    return model.solution(noise, filled(1.0, noise), filled(0.0, noise), labels)


def renoise(
    model: FlowModel, noise: AnyNoise, fresh: Sequence[AnyNoise], labels: AnyLabels = None
) -> Sample:
    """The paper's sampler of K steps: jumps to data, adds fresh noise up to t_{i+1}, jumps again.

    Args:
        model: The model.
        noise: (B, ...).
        fresh: K - 1 further noises, each (B, ...). Without any this is `one_step`.
        labels: (B,), or None for no condition.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise or labels do not fit the model.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> noise, *fresh = torch.randn(4, 5, 2)  # four steps
        >>> soflow.renoise(model, noise, fresh).shape
        torch.Size([5, 2])
    """
    noise, labels = checked(model, noise, labels)
    times = even_times(len(fresh) + 1)
    x = model.solution(noise, filled(1.0, noise), filled(0.0, noise), labels)
    for t, new_noise in zip(times[1:-1], fresh, strict=True):
        x_t = model.noising.add_noise(x, as_model_takes(model, new_noise), filled(t, x))
        x = model.solution(x_t, filled(t, x), filled(0.0, x), labels)
    return x


def ode(model: FlowModel, noise: AnyNoise, steps: int, labels: AnyLabels = None) -> Sample:
    """Composes jumps along the model's trajectories: x = f(x, t_i, t_{i+1}), i = 0 .. K - 1.

    Args:
        model: The model.
        noise: Standard normal, (B, ...).
        steps: The number of jumps K, one network evaluation each. One jump is `one_step`.
        labels: (B,), or None for no condition.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise or labels do not fit the model.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> soflow.ode(model, torch.randn(5, 2), steps=4).shape
        torch.Size([5, 2])
    """
    x, labels = checked(model, noise, labels)
    for t, s in pairwise(even_times(steps)):
        x = model.solution(x, filled(t, x), filled(s, x), labels)
    return x


def integrate_velocity(
    model: FlowModel,
    x: AnyNoise,
    steps: int,
    labels: AnyLabels = None,
    scheme: Literal["euler", "heun"] = "heun",
    start: float = 1.0,
    end: float = 0.0,
) -> Sample:
    """Integrates dx/dt = v(x, t) from `start` to `end` in even steps: the flow-matching sampler.

    Args:
        model: The model.
        x: Samples at time `start`, (B, ...): by default noise.
        steps: The number of steps.
        labels: (B,), or None for no condition.
        scheme: "euler", of order 1, takes one network evaluation per step; "heun", of order 2, two.
        start: The time to start at.
        end: The time to end at. It may be larger than `start`, to turn data into noise.

    Returns:
        Samples (B, ...) at time `end`.

    Raises:
        InputError: If x or labels do not fit the model.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> noise = torch.randn(5, 2)
        >>> data = soflow.integrate_velocity(model, noise, steps=8)
        >>> again = soflow.integrate_velocity(model, data, steps=8, start=0.0, end=1.0)
        >>> torch.allclose(noise, again, atol=1e-3)
        True
    """
    x, labels = checked(model, x, labels)
    for i in range(steps):
        t, s = (start + (end - start) * k / steps for k in (i, i + 1))
        v = model.velocity(x, filled(t, x), labels)
        euler = x + (s - t) * v
        if scheme == "euler":
            x = euler
        else:
            x = x + (s - t) / 2 * (v + model.velocity(euler, filled(s, x), labels))
    return x


def class_by_class(num: int, num_classes: int) -> Tensor | None:
    """Labels 0, 1, ... in turn, (num,): equally many of each; None without classes."""
    return torch.arange(num) % num_classes if num_classes else None


def random_classes(num: int, num_classes: int, seed: int) -> Tensor | None:
    """Labels drawn at random, (num,), that of sample i by (seed, i); None without classes."""
    if not num_classes:
        return None
    draws = [np.random.default_rng([seed, i, LABEL]).integers(num_classes) for i in range(num)]
    return torch.tensor(draws, dtype=torch.long)


#: How the classes of samples are chosen.
LabelDraw = Literal["balanced", "random"]


def draw_classes(how: LabelDraw, num: int, num_classes: int, seed: int) -> Tensor | None:
    """Labels (num,): balanced, each class in turn, or at random; None without classes."""
    if how == "random":
        return random_classes(num, num_classes, seed)
    return class_by_class(num, num_classes)


def noise_count(sampler: Sampler, nfe: int) -> int:
    """How many noises a sample needs: `renoise` adds fresh noise between its steps."""
    return nfe if sampler == "renoise" else 1


def check_sampler(sampler: str, nfe: int) -> Sampler:
    """The sampler itself.

    Raises:
        InputError: If it is unknown, or cannot be run in `nfe` network evaluations.
    """
    known: Sampler | None = next((name for name in SAMPLERS if name == sampler), None)
    if known is None:
        raise InputError(f"unknown sampler '{sampler}': choose one of {', '.join(SAMPLERS)}")
    if nfe < 1:
        raise InputError(f"the number of network evaluations is {nfe}: it must be 1 or more")
    if sampler == "heun" and nfe % 2:
        raise InputError(f"heun takes two evaluations per step: {nfe} is odd, use {nfe + 1}")
    return known


def sample(
    model: FlowModel, noises: AnyNoise, labels: AnyLabels, sampler: Sampler, nfe: int
) -> Sample:
    """Samples by any sampler in `nfe` network evaluations.

    Args:
        model: The model.
        noises: (noise_count(sampler, nfe), B, ...).
        labels: (B,), or None for no condition.
        sampler: The sampler's name.
        nfe: The number of network evaluations.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If the sampler cannot use `nfe`, or noises or labels do not fit the model.
    """
    check_sampler(sampler, nfe)
    noise, *fresh = noises
    if sampler == "renoise":
        return renoise(model, noise, fresh, labels)
    if sampler == "ode":
        return ode(model, noise, nfe, labels)
    steps = nfe // 2 if sampler == "heun" else nfe
    return integrate_velocity(model, noise, steps, labels, sampler)


def noise_of_samples(
    seed: int, first: int, count: int, noises: int, shape: Sequence[int], device: torch.device
) -> Tensor:
    """The noise of samples `first` .. `first + count - 1`: (noises, count, *shape).

    That of sample i depends on (seed, i) alone, so samples do not change with the batch size or
    the number of processes.
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
) -> Iterator[Sample]:
    """Draws and decodes samples `start` .. `start + num - 1`, in batches (B, ...) on the CPU.

    Each has its own label of `labels` (num,) and its own condition of `cond` (num, ...).
    """
    check_sampler(sampler, nfe)
    device, labels = torch.device(device), as_labels(labels)
    if labels is not None and labels.shape != (num,):
        raise InputError(f"labels must have shape [{num}], not {list(labels.shape)}")
    if cond is not None and len(cond) != num:
        raise InputError(f"cond holds {len(cond)} conditions for {num} samples: give one for each")
    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        per_sample = noise_count(sampler, nfe)
        noises = noise_of_samples(seed, start + first, count, per_sample, model.shape, device)
        chosen = None if labels is None else labels[first : first + count].to(device)
        one = model if cond is None else given_rows(model, cond, first, count, device)
        yield model.decode(sample(one, noises, chosen, sampler, nfe).float()).cpu()


def given_rows(
    model: FlowModel, cond: Conditions, first: int, count: int, device: torch.device
) -> FlowModel:
    """The model of samples with `count` of the conditions."""
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
) -> Sample:
    """Draws many samples, in batches, and decodes them.

    The noise of sample i depends on (seed, i) alone, not on the size of batches.

    Args:
        model: The model. Its network should be in evaluation mode.
        num: The number of samples.
        labels: Their classes, (num,), or None for no condition.
        sampler: "renoise", "ode", "euler" or "heun".
        nfe: Network evaluations per sample.
        seed: The seed of the noise.
        batch_size: How many samples are drawn at once.
        device: Where the noise goes first; the samplers move it to the network.
        on_batch: Called with the number of samples drawn so far.
        start: The number of the first sample.
        cond: Their conditions, (num, ...), for a model with conditions.

    Returns:
        Samples (num, ...) on the CPU, decoded by `model.decode`.

    Raises:
        InputError: If labels or conditions do not fit, or the sampler cannot use `nfe`.

    Example:
        >>> import soflow
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> soflow.sample_many(model, 1000, nfe=2, batch_size=400).shape
        torch.Size([1000, 2])
    """
    parts: list[Tensor] = []
    for part in draw(model, num, labels, sampler, nfe, seed, batch_size, device, start, cond):
        parts.append(part)
        on_batch(sum(map(len, parts)))
    return torch.cat(parts)
