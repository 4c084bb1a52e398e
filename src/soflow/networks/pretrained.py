"""Converts the prediction of a pretrained network to the velocity of the linear path.

The linear path is x_t = (1 - t) x_0 + t x_1, with data at t = 0 and v = E[x_1 - x_0 | x_t]. A
variance-preserving diffusion has z_k = a_k x_0 + sigma_k x_1 with a_k^2 + sigma_k^2 = 1. x_t and
z_k are the same point up to a scale if their signal-to-noise ratios are equal:

    x_t = n(t) z_k,   n(t) = sqrt((1 - t)^2 + t^2),   a_k = (1 - t) / n,   sigma_k = t / n

A prediction gives x_0 or x_1, and either of them gives the velocity:

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

#: Argument names that networks use for class labels.
LABEL_ARGUMENTS = ("class_labels", "labels", "y")
#: Names of a third argument that does not take labels.
NO_LABELS = ("cond", "augment", "return_dict")


class VelocityOf(nn.Module):
    """The velocity v(x, t, labels) of the linear path, from a pretrained network.

    Use `VelocityOf(net, time_scale=1000)` for a flow network that takes times up to 1000, and
    `VelocityOf(net, reversed_time=True)` for a flow network with data at time 1. Use
    `VelocityOf(net, "epsilon", alphas_cumprod=scheduler.alphas_cumprod)` for a diffusion network:
    its input is rescaled, and it gets the (fractional) timestep with the same signal-to-noise
    ratio.

    The result shares the weights of the network, which is not changed. Random label dropout inside
    the network is turned off, since objectives drop labels.

    A predicted epsilon does not determine the data at t = 1, and a predicted sample does not
    determine the noise at t = 0. The conversion therefore limits t to at least `margin` from this
    end, and to the range of timesteps of a diffusion. It amplifies errors of the network by up to
    1 / margin.

    The network may return a tensor, a tuple that starts with it, or an object with `.sample`. If
    the tensor has twice as many channels as x, its first half is the prediction. The second half is
    the variance that a DiT predicts.

    Args:
        net: The network, called as net(x, timestep). Labels are passed by the keyword
            `class_labels`, `labels` or `y`, or as the third argument.
        prediction: The quantity that the network predicts: "velocity" (of the linear path),
            "epsilon" (the noise), "sample" (the data) or "v_prediction" (a epsilon - sigma x_0 of a
            diffusion).
        alphas_cumprod: a_k^2 of the timesteps k = 0 .. K - 1 of a diffusion, (K,), decreasing. None
            for a network of the linear path.
        time_scale: The network's value for time 1. Only without `alphas_cumprod`.
        reversed_time: Whether the network has noise at time 0 and data at time 1. Its velocity then
            has the opposite sign. Only without `alphas_cumprod`.
        margin: The minimum distance of t from the end that the prediction does not determine,
            between 0 and 0.5.
        null_label: The label that means "no class", used for labels=None. Default: the last row of
            a label embedding with one more row than classes, as in DiT. If there is no such row,
            labels=None calls the network without labels, which some networks do not support: draw
            samples with labels and train without guidance.

    Raises:
        InputError: If the arguments contradict each other.

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
            raise InputError(
                "prediction='velocity' does not fit alphas_cumprod, which is for diffusions: leave "
                "out alphas_cumprod, or choose another prediction"
            )
        if not diffusion and prediction == "v_prediction":
            raise InputError("prediction='v_prediction' is for diffusions: pass alphas_cumprod")
        if diffusion and (time_scale != 1.0 or reversed_time):
            raise InputError(
                "time_scale and reversed_time do not apply to a diffusion (alphas_cumprod): leave "
                "them out"
            )
        if not 0 < margin < 0.5:
            raise InputError(f"margin must be between 0 and 0.5, not {margin}")
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
            # Stored as integers, so that casting to half precision does not round them.
            self.register_buffer("timestep_bits", times.view(torch.int32), persistent=False)

    timestep_bits: Tensor | None

    def forward(self, x: Sample, t: Times, labels: Labels | None = None, **inputs: Any) -> Sample:
        """v(x, t, labels): (B, ...), (B,), (B,) or None -> (B, ...)."""
        if self.prediction == "velocity":
            v = self.predict(x, t, labels, inputs)
            return -v if self.reversed_time else v
        # z, the variance-preserving form of x, is the same at t and at the clamped time.
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
        # v = (x - x_0) / t = (x_1 - x) / (1 - t): use the form with the larger divisor
        late = across(t, x) >= 0.5
        return torch.where(late, x - data, noise - x) / across(torch.maximum(t, 1 - t), x)

    def predict(self, x: Sample, t: Times, labels: Labels | None, inputs: dict[str, Any]) -> Sample:
        """The prediction of the network at time t, in its own convention: (B, ...)."""
        if labels is None and self.null_label is not None:
            labels = torch.full(x.shape[:1], self.null_label, dtype=torch.long, device=x.device)
        if labels is None and self.needs_labels:
            raise InputError(
                f"{type(self.net).__name__} needs labels: pass them, or set null_label"
            )
        if labels is not None and self.label_argument is None:
            raise InputError(f"{type(self.net).__name__} does not take labels: leave them out")
        positional = [x, self.timestep(t)]
        if labels is not None and self.label_argument == "":
            positional.append(labels)
        elif labels is not None:
            inputs = {**inputs, str(self.label_argument): labels}
        if self.returns_dict:
            inputs = {**inputs, "return_dict": False}
        return prediction_in(self.net(*positional, **inputs), x, type(self.net).__name__)

    def timestep(self, t: Times) -> Tensor:
        """Converts time t to the timestep of the network: (B,) -> (B,)."""
        if self.timestep_bits is None:
            return self.time_scale * (1 - t if self.reversed_time else t)
        times = self.timestep_bits.view(torch.float32)
        full = t.float()
        above = torch.searchsorted(times, full.detach()).clamp(1, len(times) - 1)
        low, high = times[above - 1], times[above]
        return (above - 1 + (full - low) / (high - low)).to(t.dtype)


def times_of(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """The times (K,) of the linear path with the signal-to-noise ratios of the timesteps."""
    squares = torch.as_tensor(alphas_cumprod).detach().cpu().double()
    falling = squares.ndim == 1 and len(squares) > 1 and bool((squares.diff() < 0).all())
    if not falling or not 0 <= squares[-1] <= squares[0] <= 1:
        raise InputError("alphas_cumprod must have shape (K,) and decrease within [0, 1]")
    a, sigma = squares.sqrt(), (1 - squares).sqrt()
    return (sigma / (a + sigma)).float()


def call_of(net: nn.Module) -> tuple[str | None, bool, bool]:
    """The calling convention of a network.

    Returns:
        The name of the argument for labels ("" if it is the third argument, None if there is none),
        whether it is required, and whether the network has an argument `return_dict`.
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
    """A view of a network without its own label dropout, which DiT has, for example."""
    replaced: dict[str, nn.Module] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if getattr(module, "dropout_prob", 0) and hasattr(module, "token_drop"):
            replaced[name] = copy.copy(module)
            replaced[name].dropout_prob = 0.0  # type: ignore[assignment]
    return with_submodules(net, replaced) if replaced else net


def null_label_of(net: nn.Module) -> int | None:
    """The null label of a DiT-like label embedding, if the network has one."""
    for module in net.modules():
        table = getattr(module, "embedding_table", None)
        classes = getattr(module, "num_classes", None)
        if isinstance(table, nn.Embedding) and table.num_embeddings - 1 == classes:
            return int(classes)
    return None


def prediction_in(output: Any, like: Sample, name: str) -> Tensor:
    """Extracts the prediction, shaped like x, from the output of a network."""
    found = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    if not isinstance(found, Tensor):
        raise InputError(f"{name} must return a tensor, not {type(output).__name__}")
    if found.ndim == like.ndim and found.shape[1] == 2 * like.shape[1]:
        found = found[:, : like.shape[1]]
    if found.shape != like.shape:
        raise InputError(
            f"{name} returns shape {list(found.shape)} for samples of shape {list(like.shape)}: "
            "both must be equal"
        )
    return found
