"""Samplers: pure functions of a model and its noise.

All take noise (B, ...) and labels (B,) or None (no condition), and return samples (B, ...). A model
whose null label was never trained refuses None. A network evaluation (NFE) is one call of the
network on the batch.

Noise may be a tensor or an array of floats of any precision; it is converted to the precision and
the device of the network's weights. Labels may be a list, an array or a tensor of integers; -1 is
no class.

Source: SoFlow (arXiv 2512.15657), sampling.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from soflow.errors import InputError, in_short, require_whole
from soflow.solution import FlowModel
from soflow.symbols import AnyLabels, AnyNoise, Sample, as_labels

Sampler = Literal["renoise", "ode", "euler", "heun"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
#: Steps of the Heun integration that few-step samples are compared with; each takes two network
#: evaluations.
HEUN_STEPS = 32


def even_times(steps: int) -> list[float]:
    """1 = t_0 > t_1 > ... > t_K = 0, evenly spaced."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def jump_times(steps: int, times: Sequence[Any] | None) -> list[float]:
    """The times of a sampler's jumps: even ones, or those given.

    Raises:
        InputError: If those given do not fall from 1 to 0 in as many steps.
    """
    if times is None:
        return even_times(steps)
    try:
        found = [] if isinstance(times, str) else [float(time) for time in times]
    except (TypeError, ValueError):
        raise InputError(f"times is {in_short(times)}: give numbers") from None
    falls = all(t > s for t, s in pairwise(found))
    if not found or (found[0], found[-1]) != (1.0, 0.0) or not falls:
        raise InputError(f"times is {in_short(times)}: give times that fall from 1 to 0")
    if len(found) != steps + 1:
        raise InputError(f"times has {len(found)} times: give {steps + 1} for {steps} steps")
    return found


def filled(time: float, like: Tensor) -> Tensor:
    """One time for every sample: (B,)."""
    return torch.full(like.shape[:1], time, dtype=like.dtype, device=like.device)


def as_model_takes(model: FlowModel, noise: AnyNoise) -> Tensor:
    """Noise in the precision and on the device of the network's weights, if it has any.

    Raises:
        InputError: If it is not floats.
    """
    try:
        x = noise if isinstance(noise, Tensor) else torch.as_tensor(noise)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"noise is {in_short(noise)}: give a tensor or an array") from None
    if not x.is_floating_point():
        raise InputError(f"noise must be floats, not {x.dtype}")
    weights = model.net.parameters() if isinstance(model.net, nn.Module) else ()
    like = next((weight for weight in weights if weight.is_floating_point()), x)
    return x.to(like.device, like.dtype)


def checked(model: FlowModel, noise: AnyNoise, labels: AnyLabels) -> tuple[Tensor, Tensor | None]:
    """Noise and labels as the model takes them. Raises InputError if they do not fit it."""
    x = as_model_takes(model, noise)
    y = as_labels(labels, x.device)
    if y is not None and model.num_classes:
        y = torch.where(y == -1, model.num_classes, y)
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
    model: FlowModel,
    noise: AnyNoise,
    fresh: Sequence[AnyNoise],
    labels: AnyLabels = None,
    times: Sequence[Any] | None = None,
) -> Sample:
    """The paper's sampler of K steps: jumps to data, adds fresh noise up to t_{i+1}, jumps again.

    Args:
        model: The model.
        noise: (B, ...).
        fresh: K - 1 further noises, each (B, ...). Without any this is `one_step`.
        labels: (B,), or None for no condition.
        times: 1 = t_0 > t_1 > ... > t_K = 0; even times by default, as in the paper.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise, labels or times do not fit.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> noise, *fresh = torch.randn(4, 5, 2)  # four steps
        >>> soflow.renoise(model, noise, fresh).shape
        torch.Size([5, 2])
        >>> soflow.renoise(model, noise, fresh[:1], times=[1, 0.9, 0]).shape
        torch.Size([5, 2])
    """
    noise, labels = checked(model, noise, labels)
    noises = [as_model_takes(model, one) for one in fresh]
    for one in noises:
        if one.shape != noise.shape:
            shapes = f"{list(one.shape)}, and noise {list(noise.shape)}"
            raise InputError(f"fresh holds a noise of shape {shapes}: give a list of equal shapes")
    times = jump_times(len(noises) + 1, times)
    x = model.solution(noise, filled(1.0, noise), filled(0.0, noise), labels)
    for t, new_noise in zip(times[1:-1], noises, strict=True):
        x_t = model.noising.add_noise(x, new_noise, filled(t, x))
        x = model.solution(x_t, filled(t, x), filled(0.0, x), labels)
    return x


def ode(
    model: FlowModel,
    noise: AnyNoise,
    steps: int,
    labels: AnyLabels = None,
    times: Sequence[Any] | None = None,
) -> Sample:
    """Composes jumps along the model's trajectories: x = f(x, t_i, t_{i+1}), i = 0 .. K - 1.

    Args:
        model: The model.
        noise: Standard normal, (B, ...).
        steps: The number of jumps K, one network evaluation each. One jump is `one_step`.
        labels: (B,), or None for no condition.
        times: 1 = t_0 > t_1 > ... > t_K = 0; even times by default.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise, labels or times do not fit.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> soflow.ode(model, torch.randn(5, 2), steps=4).shape
        torch.Size([5, 2])
    """
    require_whole(1, steps=steps)
    x, labels = checked(model, noise, labels)
    for t, s in pairwise(jump_times(steps, times)):
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
    require_whole(1, steps=steps)
    if scheme not in ("euler", "heun"):
        raise InputError(f"unknown scheme {in_short(scheme)}: choose euler or heun")
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


def check_sampler(sampler: str, nfe: int) -> Sampler:
    """The sampler itself.

    Raises:
        InputError: If it is unknown, or cannot be run in `nfe` network evaluations.
    """
    known: Sampler | None = next((name for name in SAMPLERS if name == sampler), None)
    if known is None:
        raise InputError(f"unknown sampler '{sampler}': choose one of {', '.join(SAMPLERS)}")
    require_whole(1, nfe=nfe)
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
