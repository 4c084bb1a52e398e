"""Guidance inside training for all objectives: dropped labels, guiding velocities, shared draws."""

from collections.abc import Sequence
from math import floor

import torch
from torch import Tensor

from soflow.errors import InputError
from soflow.guidance import Guidance, draws_scales, unguided_without_label
from soflow.objectives.base import Draws
from soflow.objectives.passes import Inputs, without_gradient
from soflow.solution import FlowModel
from soflow.symbols import Batch, GuidanceRows, Labels, Mask, Sample, Times
from soflow.times import LogitNormal, draw_ordered


def draw_dropped(count: int, guidance: Guidance, generator: torch.Generator) -> Mask:
    """Draws the mask (count,) of samples trained without their label; all False if not guided."""
    share = guidance.label_dropout if guidance.active else 0.0
    return torch.rand(count, generator=generator, device=generator.device) < share


def draw_ordered_jumps(
    shape: Sequence[int],
    flow_matching_share: float,
    times: LogitNormal,
    guidance: Guidance,
    generator: torch.Generator,
) -> Draws:
    """Draws the random numbers of jumps from t to s <= t, with s = t for the first samples.

    MeanFlow, iMF and alpha-Flow use these draws.

    Args:
        shape: The shape (B, ...) of the batch.
        flow_matching_share: The share of samples with s = t. They come first.
        times: The density of both times. The larger one is t, the smaller one is s.
        guidance: Its `label_dropout` is the share of samples trained without their label. Without
            guidance, no label is dropped.
        generator: The source of all random numbers, and the device of the result.

    Returns:
        Noise (B, ...), times (B,) and the mask of dropped labels (B,).

    Example:
        >>> import soflow, torch
        >>> times, guidance = soflow.LogitNormal(-0.4, 1.0), soflow.Guidance(scale=1.5)
        >>> draws = soflow.draw_ordered_jumps((8, 2), 0.5, times, guidance, torch.Generator())
        >>> (draws.s == draws.t).tolist()[:4], bool((draws.s[4:] < draws.t[4:]).all())
        ([True, True, True, True], True)
    """
    count = shape[0]
    noise = torch.randn(*shape, generator=generator, device=generator.device)
    t, s = draw_ordered(count, times, generator)
    n_fm = floor(flow_matching_share * count)
    s = torch.cat([t[:n_fm], s[n_fm:]])
    return Draws(noise, t, s, draw_dropped(count, guidance, generator), n_fm)


def network_labels(
    model: FlowModel, batch: Batch, draws: Draws, guidance: Guidance
) -> Labels | None:
    """The labels passed to the network (B,): dropped labels become the null label."""
    if batch.labels is None or not guidance.active:
        return batch.labels
    return torch.where(draws.dropped, model.num_classes, batch.labels)


def without_label(model: FlowModel, labels: Labels | None) -> Mask:
    """The samples (B,) that the network sees without a class: dropped, or unlabeled in the data."""
    assert labels is not None, "guidance needs labels, as guiding_velocities checks"
    return labels == model.num_classes


def network_guidance(model: FlowModel, labels: Labels | None, draws: Draws) -> GuidanceRows | None:
    """The guidance passed to the network with these labels, (B, 3); None if it is not drawn.

    Samples without a class get (1, 0, 1), no guidance: guidance is relative to their velocity.
    """
    if draws.guidance is None:
        return None
    return unguided_without_label(draws.guidance, labels, model.num_classes)


def guiding_velocities(
    model: FlowModel,
    x_t: Sample,
    t: Times,
    batch: Batch,
    guidance: Guidance,
    labelled: slice,
    drawn: GuidanceRows | None = None,
) -> tuple[Tensor, Tensor]:
    """v(x_t, t, null) of all samples and v(x_t, t, y) of the samples `labelled`, in one pass.

    y is the label before dropping. v(x_t, t, y) uses the guidance `drawn`, v(x_t, t, null) uses
    none. At mix m = 1, v(x_t, t, y) has no weight and v(x_t, t, null) is returned instead.
    """
    if batch.labels is None:
        raise InputError("guidance needs classes, but the batch has no labels: use Guidance()")
    if draws_scales(guidance) and drawn is None:
        raise InputError(
            "guidance.max_scale is set, but this objective draws no scales: use JumpFlow, or leave "
            "out max_scale"
        )
    null_labels = torch.full_like(batch.labels, model.num_classes)
    none = None if drawn is None else unguided_without_label(drawn, None, model.num_classes)
    null = Inputs.of(batch, x_t, t, t, null_labels, none)
    own = Inputs.of(batch, x_t, t, t, batch.labels, drawn).rows(labelled)
    if guidance.mix == 1:
        (F_null,) = without_gradient(model.net, null)
        F_own = F_null[labelled]
    else:
        F_null, F_own = without_gradient(model.net, null, own)
    velocity = model.parameterization.velocity
    return velocity(F_null), velocity(F_own)


def guided_jumps(
    model: FlowModel, batch: Batch, draws: Draws, guidance: Guidance
) -> tuple[Inputs, Sample]:
    """The network's inputs for jumps from x_t, and the (guided) velocity at x_t.

    Without guidance, the velocity is the conditional velocity v_t.

    Args:
        model: The model in training.
        batch: The batch, with labels if guidance is active.
        draws: Noise, times and dropped labels.
        guidance: Guidance with a fixed scale.

    Returns:
        The inputs `x_t, t, s, labels, ...`, in which dropped labels are the null label, and the
        target of the velocity (B, ...), without gradient.

    Raises:
        InputError: If guidance is active and the batch has no labels, or if `guidance.max_scale` is
            set. Only JumpFlow draws guidance scales.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,), num_classes=3), (2,), num_classes=3)
        >>> batch = soflow.Batch(torch.randn(8, 2), labels=torch.arange(8) % 3)
        >>> times, guidance = soflow.LogitNormal(-0.4, 1.0), soflow.Guidance(scale=1.5)
        >>> draws = soflow.draw_ordered_jumps((8, 2), 0.5, times, guidance, torch.Generator())
        >>> inputs, v = soflow.guided_jumps(model, batch, draws, guidance)
        >>> inputs.through(model.net).shape, v.shape
        (torch.Size([8, 2]), torch.Size([8, 2]))
    """
    point = model.noising.sample(batch.data, draws.noise, draws.t)
    x_t, t, v = point.x_t, draws.t, point.v_t
    labels = network_labels(model, batch, draws, guidance)
    if guidance.active:
        v_null, v_label = guiding_velocities(model, x_t, t, batch, guidance, slice(None))
        v = guidance.target(v, v_null, v_label, t, without_label(model, labels))
    return Inputs.of(batch, x_t, t, draws.s, labels), v
