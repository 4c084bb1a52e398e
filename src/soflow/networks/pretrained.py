"""The velocity of the linear path from what a pretrained network predicts.

Here x_t = (1 - t) x_0 + t x_1 with data at t = 0 and v = E[x_1 - x_0 | x_t]. A diffusion that keeps
the variance has z_k = a_k x_0 + sigma_k x_1 with a_k^2 + sigma_k^2 = 1. Both are the same point, up
to its scale, if their ratios of signal and noise are equal:

    x_t = n(t) z_k,   n(t) = sqrt((1 - t)^2 + t^2),   a_k = (1 - t) / n,   sigma_k = t / n

From a prediction to x_0 and x_1, and to the velocity, which needs either of them:

    epsilon        x_0 = (z - sigma epsilon) / a
    sample         x_1 = (z - a x_0) / sigma
    v_prediction   x_0 = a z - sigma v,   x_1 = sigma z + a v
    velocity       v = (x - x_0) / t = (x_1 - x) / (1 - t)

Source: Progressive Distillation (arXiv 2202.00512) for v_prediction.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.networks.views import with_submodules
from soflow.symbols import Labels, Sample, Times, across

Prediction = Literal["velocity", "epsilon", "sample", "v_prediction"]

#: How networks call their class labels.
LABEL_ARGUMENTS = ("class_labels", "labels", "y")
#: What a third argument may be that is not labels.
NO_LABELS = ("cond", "augment", "return_dict")


class VelocityOf(nn.Module):
    """The velocity v(x, t, labels) of the linear path, from a network with other conventions.

    A flow network is `VelocityOf(net, time_scale=1000)` or, with data at time 1,
    `VelocityOf(net, reversed_time=True)`. A diffusion network is
    `VelocityOf(net, "epsilon", alphas_cumprod=scheduler.alphas_cumprod)`. Its input is rescaled,
    and it sees the timestep, a fractional number, of the same ratio of signal to noise.

    The network keeps its weights and is not changed. If it drops labels at random in training, this
    is off: objectives drop them.

    Epsilon says nothing about the data at t = 1, nor a predicted sample about the noise at t = 0.
    Times closer to that end than `margin` are therefore replaced by `margin` in the conversion, as
    are those beyond the first and last timestep of a diffusion. Errors of the network are amplified
    by up to 1 / margin.

    The network may return a tensor, a tuple that begins with it, or an object with `.sample`. Of
    twice as many channels as x has, the first half is the prediction (the rest is the variance of a
    DiT).

    Args:
        net: The network, called as net(x, timestep) or, with labels, by the keyword
            `class_labels`, `labels` or `y`, or as the third argument.
        prediction: What it predicts: "velocity" (of the linear path), "epsilon" (the noise),
            "sample" (the data) or "v_prediction" (a epsilon - sigma x_0, of a diffusion).
        alphas_cumprod: a_k^2 of every timestep k = 0 .. K - 1 of a diffusion, decreasing. None for
            a network of the linear path.
        time_scale: What the network calls time 1, without `alphas_cumprod`.
        reversed_time: Whether the network's time is 0 at the noise, without `alphas_cumprod`. Its
            velocity then has the other sign.
        margin: The least time from the end at which the prediction says nothing.
        null_label: The label that means "no class", used for labels=None. By default that of a
            label embedding with one row more than it has classes, as of DiT. A network without a
            null label is called without labels, if it can be: then draw with labels, and train
            without guidance.

    Raises:
        InputError: If the settings do not fit one another.

    Example:
        >>> import soflow, torch
        >>> class DataAreZero(torch.nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.zeros_like(x)
        >>> velocity = soflow.VelocityOf(DataAreZero(), "sample")
        >>> velocity(torch.ones(1, 2), torch.tensor([0.5]))
        tensor([[2., 2.]])
    """

    def __init__(
        self,
        net: nn.Module,
        prediction: str = "velocity",
        alphas_cumprod: Tensor | Sequence[float] | None = None,
        time_scale: float = 1.0,
        reversed_time: bool = False,
        margin: float = 0.02,
        null_label: int | None = None,
    ) -> None:
        super().__init__()
        if prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise InputError(f"unknown prediction '{prediction}': choose one of {known}")
        diffusion = alphas_cumprod is not None
        if diffusion and prediction == "velocity":
            raise InputError("a network with alphas_cumprod is a diffusion: it has no velocity")
        if not diffusion and prediction == "v_prediction":
            raise InputError("v_prediction is of a diffusion: give its alphas_cumprod")
        if diffusion and (time_scale != 1.0 or reversed_time):
            raise InputError("time_scale and reversed_time are for networks of the linear path")
        if not 0 < margin < 0.5:
            raise InputError(f"margin must lie between 0 and 0.5, not {margin}")
        self.net = without_label_dropout(net)
        self.prediction = prediction
        self.time_scale, self.reversed_time = time_scale, reversed_time
        self.least = margin if prediction == "sample" else 0.0
        self.most = 1 - margin if prediction == "epsilon" else 1.0
        self.label_argument, self.needs_labels, self.returns_dict = call_of(net)
        self.takes_labels = self.label_argument is not None
        self.null_label = null_label_of(net) if null_label is None else null_label
        self.register_buffer("timestep_bits", None)
        if alphas_cumprod is not None:
            times = times_of(alphas_cumprod)
            self.least = max(self.least, float(times[0]))
            self.most = min(self.most, float(times[-1]))
            # As integers, so that half precision leaves them as they are.
            self.register_buffer("timestep_bits", times.view(torch.int32), persistent=False)

    timestep_bits: Tensor | None

    def forward(self, x: Sample, t: Times, labels: Labels | None = None, **inputs: Any) -> Sample:
        """v(x, t, labels): (B, ...), (B,), (B,) or None -> (B, ...)."""
        if self.prediction == "velocity":
            v = self.predict(x, t, labels, inputs)
            return -v if self.reversed_time else v
        # z, with its variance kept, is at t and at the clamped time the same.
        full = t.float()
        near = full.clamp(self.least, self.most)
        norm, norm_near = torch.hypot(1 - full, full), torch.hypot(1 - near, near)
        coefficients = (1 / norm, norm_near, (1 - near) / norm_near, near / norm_near)
        shrink, grow, a, sigma = (across(c.to(x.dtype), x) for c in coefficients)
        z = shrink * x
        seen = z if self.timestep_bits is not None else grow * z
        predicted = self.predict(seen, near.to(t.dtype), labels, inputs)
        if self.prediction == "epsilon":
            data, noise = (z - sigma * predicted) / a, predicted
        elif self.prediction == "sample":
            data, noise = predicted, (z - a * predicted) / sigma
        else:
            data, noise = a * z - sigma * predicted, sigma * z + a * predicted
        # v = (x - x_0) / t = (x_1 - x) / (1 - t): the one whose divisor is large
        late = across(t, x) >= 0.5
        return torch.where(late, x - data, noise - x) / across(torch.maximum(t, 1 - t), x)

    def predict(self, x: Sample, t: Times, labels: Labels | None, inputs: dict[str, Any]) -> Sample:
        """What the network returns at time t, by its own conventions."""
        if labels is None and self.null_label is not None:
            labels = torch.full(x.shape[:1], self.null_label, dtype=torch.long, device=x.device)
        if labels is None and self.needs_labels:
            raise InputError(
                f"{type(self.net).__name__} needs labels: give them, or set null_label"
            )
        if labels is not None and self.label_argument is None:
            raise InputError(f"{type(self.net).__name__} takes no labels: give none")
        positional = [x, self.timestep(t)]
        if labels is not None and self.label_argument == "":
            positional.append(labels)
        elif labels is not None:
            inputs = {**inputs, str(self.label_argument): labels}
        if self.returns_dict:
            inputs = {**inputs, "return_dict": False}
        return prediction_in(self.net(*positional, **inputs), x, type(self.net).__name__)

    def timestep(self, t: Times) -> Tensor:
        """Time t as the network counts it: (B,) -> (B,)."""
        if self.timestep_bits is None:
            return self.time_scale * (1 - t if self.reversed_time else t)
        times = self.timestep_bits.view(torch.float32)
        full = t.float()
        above = torch.searchsorted(times, full.detach()).clamp(1, len(times) - 1)
        low, high = times[above - 1], times[above]
        return (above - 1 + (full - low) / (high - low)).to(t.dtype)


def times_of(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """The time t_k of the linear path with the signal-to-noise ratio of each timestep k: (K,)."""
    squares = torch.as_tensor(alphas_cumprod).detach().cpu().double()
    falling = squares.ndim == 1 and len(squares) > 1 and bool((squares.diff() < 0).all())
    if not falling or not 0 <= squares[-1] <= squares[0] <= 1:
        raise InputError("alphas_cumprod must decrease, from 1 or less to 0 or more: (K,)")
    a, sigma = squares.sqrt(), (1 - squares).sqrt()
    return (sigma / (a + sigma)).float()


def call_of(net: nn.Module) -> tuple[str | None, bool, bool]:
    """How a network is called.

    Returns:
        The argument for labels ("" for the third, None for none), whether it must be given, and
        whether the network has an option `return_dict`.
    """
    parameters = inspect.signature(net.forward).parameters
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    third = [p for p in parameters.values() if p.kind in plain and p.name not in NO_LABELS][2:3]
    name = next((name for name in LABEL_ARGUMENTS if name in parameters), None)
    if name is not None and getattr(net, "class_embedding", net) is None:
        name, third = None, []  # a UNet2DModel without classes
    if name is None and third:
        return "", third[0].default is third[0].empty, "return_dict" in parameters
    needed = name is not None and parameters[name].default is inspect.Parameter.empty
    return name, needed, "return_dict" in parameters


def without_label_dropout(net: nn.Module) -> nn.Module:
    """A view of a network that does not drop labels by itself in training, as DiT's do."""
    replaced: dict[str, nn.Module] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if getattr(module, "dropout_prob", 0) and hasattr(module, "token_drop"):
            replaced[name] = copy.copy(module)
            replaced[name].dropout_prob = 0.0  # type: ignore[assignment]
    return with_submodules(net, replaced) if replaced else net


def null_label_of(net: nn.Module) -> int | None:
    """The null label of a label embedding as DiT's, if the network has one."""
    for module in net.modules():
        table = getattr(module, "embedding_table", None)
        classes = getattr(module, "num_classes", None)
        if isinstance(table, nn.Embedding) and table.num_embeddings - 1 == classes:
            return int(classes)
    return None


def prediction_in(output: Any, like: Sample, name: str) -> Tensor:
    """The prediction in what a network returns, shaped like x."""
    found = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    if not isinstance(found, Tensor):
        raise InputError(f"{name} returns {type(output).__name__}, not a tensor")
    if found.ndim == like.ndim and found.shape[1] == 2 * like.shape[1]:
        found = found[:, : like.shape[1]]
    if found.shape != like.shape:
        raise InputError(f"{name} returns {list(found.shape)} for samples {list(like.shape)}")
    return found
