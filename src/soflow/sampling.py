"""Samplers: pure functions of a model and its noise.

All samplers take noise (B, ...) and labels (B,) and return samples (B, ...). `labels=None` draws
samples without a label; a model whose null label was never trained raises InputError. One network
evaluation (NFE) is one call of the network on the batch.

Noise may be a tensor or an array of floats of any precision. It is converted to the dtype
and moved to the device of the network's weights. Labels may be a list, an array or a tensor of
integers; -1 means no class.

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
#: Steps of the Heun integration that serves as the reference for few-step samples. One step takes
#: two network evaluations.
HEUN_STEPS = 32


def even_times(steps: int) -> list[float]:
    """1 = t_0 > t_1 > ... > t_K = 0, evenly spaced."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def jump_times(steps: int, times: Sequence[Any] | None) -> list[float]:
    """The times of a sampler's jumps: `times`, or evenly spaced times if it is None.

    Raises:
        InputError: If `times` does not decrease from 1 to 0 in `steps` steps.
    """
    if times is None:
        return even_times(steps)
    try:
        found = [] if isinstance(times, str) else [float(time) for time in times]
    except (TypeError, ValueError):
        raise InputError(f"times is {in_short(times)}: pass numbers") from None
    falls = all(t > s for t, s in pairwise(found))
    if not found or (found[0], found[-1]) != (1.0, 0.0) or not falls:
        raise InputError(f"times is {in_short(times)}: pass times that decrease from 1 to 0")
    if len(found) != steps + 1:
        raise InputError(f"times has {len(found)} times: pass {steps + 1} for {steps} steps")
    return found


def times_given(times: Sequence[Any]) -> tuple[float, ...]:
    """Checks the times of len(times) - 1 jumps, from 1 to 0, and returns them as floats."""
    return tuple(jump_times(len(times) - 1, times))


def filled(time: float, like: Tensor) -> Tensor:
    """The same time for every sample, (B,)."""
    return torch.full(like.shape[:1], time, dtype=like.dtype, device=like.device)


def as_model_takes(model: FlowModel, noise: AnyNoise) -> Tensor:
    """Converts noise to the dtype and device of the network's weights.

    Raises:
        InputError: If the noise does not consist of floats.
    """
    try:
        x = noise if isinstance(noise, Tensor) else torch.as_tensor(noise)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"noise is {in_short(noise)}: pass a tensor or an array") from None
    if not x.is_floating_point():
        raise InputError(f"noise must be floats, not {x.dtype}")
    weights = model.net.parameters() if isinstance(model.net, nn.Module) else ()
    like = next((weight for weight in weights if weight.is_floating_point()), x)
    return x.to(like.device, like.dtype)


def checked(model: FlowModel, noise: AnyNoise, labels: AnyLabels) -> tuple[Tensor, Tensor | None]:
    """Converts noise and labels for the model. Raises InputError if they do not fit the model."""
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
        noise: Standard normal noise (B, ...).
        labels: Class labels (B,), -1 or `num_classes` for no class; None draws all samples without
            a label.

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
    """Draws samples with the paper's K-step sampler: jump to data, add fresh noise, jump again.

    Step i jumps from t_i to data. Fresh noise then takes the result to t_{i+1}, and the next step
    starts there.

    Args:
        model: The model.
        noise: Standard normal noise (B, ...).
        fresh: K - 1 further noise tensors, each (B, ...). If empty, the result is `one_step`.
        labels: Class labels (B,), -1 or `num_classes` for no class; None draws all samples without
            a label.
        times: K + 1 times 1 = t_0 > t_1 > ... > t_K = 0. Default: evenly spaced, as in the paper.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise, fresh noise or labels do not fit the model, or times are invalid.

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
            shapes = f"{list(one.shape)}, but noise has shape {list(noise.shape)}"
            raise InputError(f"fresh has a tensor of shape {shapes}: pass equal shapes")
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
    """Draws samples by K jumps along the model's trajectories.

    Jump i is x = f(x, t_i, t_{i+1}), for i = 0 .. K - 1.

    Args:
        model: The model.
        noise: Standard normal noise (B, ...).
        steps: The number of jumps K, one network evaluation each. K = 1 is `one_step`.
        labels: Class labels (B,), -1 or `num_classes` for no class; None draws all samples without
            a label.
        times: K + 1 times 1 = t_0 > t_1 > ... > t_K = 0. Default: evenly spaced.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If noise or labels do not fit the model, or `steps` or `times` is invalid.

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
    """Integrates dx/dt = v(x, t) from `start` to `end` in equal steps.

    This is the sampler of flow matching.

    Args:
        model: The model.
        x: Samples (B, ...) at time `start`. At the default start t = 1, these are noise.
        steps: The number of steps.
        labels: Class labels (B,), -1 or `num_classes` for no class; None integrates without a
            label.
        scheme: "euler" (order 1, one network evaluation per step) or "heun" (order 2, two
            evaluations per step).
        start: The time to start at.
        end: The time to end at. An end greater than `start` turns data into noise.

    Returns:
        Samples (B, ...) at time `end`.

    Raises:
        InputError: If x or labels do not fit the model, `steps` is not positive, or the scheme is
            unknown.

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


def check_sampler(sampler: str, nfe: int, times: Sequence[Any] | None = None) -> Sampler:
    """Checks a sampler and its number of network evaluations. Returns the sampler.

    Raises:
        InputError: If the sampler is unknown, does not support `nfe` network evaluations, or does
            not take `times`.
    """
    known: Sampler | None = next((name for name in SAMPLERS if name == sampler), None)
    if known is None:
        raise InputError(f"unknown sampler '{sampler}': choose one of {', '.join(SAMPLERS)}")
    require_whole(1, nfe=nfe)
    if times is not None:
        if known not in ("renoise", "ode"):
            raise InputError(f"times has no effect with sampler={known}: leave it out")
        jump_times(nfe, times)
    if sampler == "heun" and nfe % 2:
        raise InputError(f"nfe is {nfe}: heun takes two evaluations per step, use {nfe + 1}")
    return known


def noise_count(sampler: Sampler, nfe: int) -> int:
    """Noise tensors that one sample needs: `renoise` adds fresh noise between its steps."""
    return nfe if sampler == "renoise" else 1


def sample(
    model: FlowModel,
    noises: AnyNoise,
    labels: AnyLabels,
    sampler: Sampler,
    nfe: int,
    times: Sequence[Any] | None = None,
) -> Sample:
    """Draws samples with the named sampler in `nfe` network evaluations.

    Args:
        model: The model.
        noises: Standard normal noise (noise_count(sampler, nfe), B, ...).
        labels: Class labels (B,), -1 or `num_classes` for no class; None draws all samples without
            a label.
        sampler: The sampler's name.
        nfe: Network evaluations per sample.
        times: 1 = t_0 > t_1 > ... > t_nfe = 0, the times of `renoise` and `ode`. Default: evenly
            spaced.

    Returns:
        Samples (B, ...).

    Raises:
        InputError: If the sampler does not support `nfe` or `times`, or noises or labels do not
            fit the model.
    """
    check_sampler(sampler, nfe, times)
    if len(noises) != noise_count(sampler, nfe):
        raise InputError(
            f"noises has {len(noises)} tensors of noise: {sampler} with nfe={nfe} takes "
            f"{noise_count(sampler, nfe)}"
        )
    noise, *fresh = noises
    if sampler == "renoise":
        return renoise(model, noise, fresh, labels, times)
    if sampler == "ode":
        return ode(model, noise, nfe, labels, times)
    steps = nfe // 2 if sampler == "heun" else nfe
    return integrate_velocity(model, noise, steps, labels, sampler)
