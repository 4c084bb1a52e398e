"""FlowModel: the network F as the solution function f(x_t, t, s) and the velocity field v(x_t, t).

x_s = f(x_t, t, s):   one call of the network takes a sample from time t to time s
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.guidance import AnyInterval, AnyScale, DrawnGuidance, unguided_without_label
from soflow.noising import LinearNoising, Noising
from soflow.parameterization import EulerParameterization, Parameterization
from soflow.symbols import Labels, Net, Sample, Times


def unchanged(samples: Tensor) -> Tensor:
    """The default of `FlowModel.decode`: samples need no decoding."""
    return samples


@dataclass(frozen=True)
class FlowModel:
    """A network with its noising process and its parameterization.

    Objectives, samplers and diagnostics all take a FlowModel.

    Attributes:
        net: The network F(x, t, s, labels): (B, ...), (B,), (B,), (B,) or None -> (B, ...).
        shape: The shape of one sample.
        num_classes: The number of classes; 0 without labels. The label `num_classes` is the null
            label, "no class".
        cond_shape: The shape of one condition; () without conditions. To sample with conditions,
            use `conditioned`.
        noising: The noising process used in training.
        parameterization: The coefficients that turn F into the solution function f.
        decode: Decodes samples (B, ...) into images or points, such as the decoder of latents.
        average: The network with EMA weights, during training.
        null_trained: Whether the null label was trained. If so, samples can be drawn without
            labels.
        guidance: The guidance scales that the network takes as an input; None if it takes none.
            Samples are drawn with `guidance.scale`. To choose another scale, use `guided`.

    Example:
        >>> import soflow, torch
        >>> network = soflow.MLP(shape=(2,), num_classes=3)
        >>> model = soflow.FlowModel(network, shape=(2,), num_classes=3)
        >>> x, t, s = torch.randn(4, 2), torch.ones(4), torch.zeros(4)
        >>> model.solution(x, t, s, torch.tensor([0, 1, 2, 3])).shape
        torch.Size([4, 2])
    """

    net: Net
    shape: tuple[int, ...]
    num_classes: int = 0
    cond_shape: tuple[int, ...] = ()
    noising: Noising = LinearNoising()  # noqa: RUF009 (without state)
    parameterization: Parameterization = EulerParameterization()  # noqa: RUF009
    decode: Callable[[Tensor], Tensor] = unchanged
    average: Net | None = None
    null_trained: bool = True
    guidance: DrawnGuidance | None = None

    @property
    def device(self) -> torch.device:
        """The device of the network's weights; the CPU if it has none."""
        weights = self.net.parameters() if isinstance(self.net, nn.Module) else iter(())
        return next((weight.device for weight in weights), torch.device("cpu"))

    def to(self, *args: Any, **options: Any) -> "FlowModel":
        """Moves or casts the network in place, as `nn.Module.to` does. Returns the model.

        Raises:
            InputError: If the network is not an `nn.Module`.
        """
        if not isinstance(self.net, nn.Module):
            raise InputError("the network is not an nn.Module: move or cast it without the model")
        self.net.to(*args, **options)
        return self

    def half(self) -> "FlowModel":
        """Casts the network to float16 in place, for sampling."""
        return self.to(torch.float16)

    def conditioned(self, cond: Any) -> "FlowModel":
        """Binds conditions to the model, so that samplers can use it like any other model.

        Args:
            cond: Conditions (B, ...), one per sample of the batches that the model is called with.

        Returns:
            The model bound to the conditions.

        Raises:
            InputError: If the conditions do not have the shape `cond_shape`.
        """
        cond = cond if isinstance(cond, Tensor) else torch.as_tensor(cond, device="cpu")
        if not self.cond_shape or tuple(cond.shape[1:]) != tuple(self.cond_shape):
            if not self.cond_shape:
                raise InputError("the model takes no conditions: leave out cond")
            takes = ", ".join(["B", *map(str, self.cond_shape)])
            raise InputError(f"cond has shape {list(cond.shape)}: pass conditions [{takes}]")
        return replace(self, net=Conditioned(self.net, cond.to(self.device)), cond_shape=())

    def guided(
        self, scale: AnyScale | None = None, interval: AnyInterval | None = None
    ) -> "FlowModel":
        """Binds a guidance scale to the model, so that samplers can use it like any other model.

        Samples without a class are not guided.

        Args:
            scale: One scale, or one per sample (B,) of the batches that the model is called with.
                Default: `guidance.scale`.
            interval: The interval (start, end) of t in which guidance acts. Default: (0, 1).

        Returns:
            The model bound to the scale.

        Raises:
            InputError: If the network takes no scale, or was not trained with this scale.

        Example:
            >>> import soflow, torch
            >>> network = soflow.MLP(shape=(2,), num_classes=3, takes_guidance=True)
            >>> guidance = soflow.DrawnGuidance(max_scale=4.0)
            >>> model = soflow.FlowModel(network, (2,), num_classes=3, guidance=guidance)
            >>> soflow.one_step(model.guided(2.5), torch.randn(2, 2), [0, 2]).shape
            torch.Size([2, 2])
        """
        return self.with_guidance(self.chosen_guidance(scale, interval))

    def with_guidance(self, rows: Tensor) -> "FlowModel":
        """Binds guidance (omega, start, end) to the model: (3,), or (B, 3) with one row per sample.

        `chosen_guidance` makes these rows.
        """
        net = Guided(self.net, rows.to(self.device), self.num_classes)
        return replace(self, net=net, guidance=None)

    def chosen_guidance(
        self, scale: AnyScale | None = None, interval: AnyInterval | None = None
    ) -> Tensor:
        """The guidance input of the network for sampling: (3,), or (B, 3) for one scale per sample.

        Raises:
            InputError: If the network takes no scale, or was not trained with this scale.
        """
        if any(isinstance(net, Guided) for net in self.bound()):
            raise InputError(
                "this model's guidance scale was already chosen: call guided on the original model"
            )
        if self.guidance is None:
            raise InputError(
                "this model takes no guidance scale: leave out guidance, or train a model with "
                "objective.name=jump_flow and objective.guidance.max_scale=8"
            )
        return self.guidance.chosen(scale, interval)

    def check(self, x: Tensor, labels: Tensor | None) -> None:
        """Checks a batch of samples (B, ...) and its labels (B,).

        Raises:
            InputError: If samples have another shape than `shape`, a label is out of range, or
                samples without a label are requested and the null label was never trained.
        """
        if tuple(x.shape[1:]) != tuple(self.shape):
            one, batch = list(self.shape), list(x.shape)
            raise InputError(
                f"the batch has shape {batch}: this model takes a batch of samples of shape {one}"
            )
        if self.cond_shape:
            needed = f"this model needs conditions of shape {list(self.cond_shape)}"
            raise InputError(f"{needed}: use model.conditioned(cond)")
        for net in self.bound():
            if isinstance(net, Conditioned) and net.cond.shape[:1] != x.shape[:1]:
                given = f"{len(net.cond)} conditions, but the batch has {len(x)} samples"
                raise InputError(f"cond has {given}: pass one condition per sample")
            if isinstance(net, Guided) and net.rows.shape[:-1] not in ((), x.shape[:1]):
                given = f"{len(net.rows)} scales, but the batch has {len(x)} samples"
                raise InputError(f"guidance has {given}: pass one scale per sample")
        if labels is None:
            self.require_null()
            return
        if labels.shape != x.shape[:1]:
            raise InputError(f"labels must have shape [{len(x)}], not {list(labels.shape)}")
        if torch.compiler.is_compiling():
            return  # an exported or compiled program cannot branch on tensor values
        null = self.num_classes
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= null:
            known = f"labels must be in 0 .. {null - 1}, or {null} for no class"
            raise InputError(known if null else "this model has no classes: leave out labels")
        if len(labels) and int(labels.max()) == null:
            self.require_null()

    def require_null(self) -> None:
        """Raises InputError if the model cannot draw samples without a label.

        Dropped labels and unlabeled data train the null label.
        """
        if self.num_classes and not self.null_trained:
            raise InputError(
                "this model cannot draw samples without a label, since its null label was never "
                "trained: pass labels, or train with objective.guidance.scale above 1 and "
                "label_dropout above 0, or with data.num_classes=0"
            )

    def solution(self, x: Sample, t: Times, s: Times, labels: Labels | None = None) -> Sample:
        """f(x, t, s, y), (B, ...): takes x from time t to time s in one call of the network."""
        return self.parameterization.solution(x, t, s, self.F(x, t, s, labels))

    def velocity(self, x: Sample, t: Times, labels: Labels | None = None) -> Sample:
        """v(x, t, y), (B, ...): the model's velocity field, from one call of the network."""
        return self.parameterization.velocity(self.F(x, t, t, labels))

    def F(self, x: Sample, t: Times, s: Times, labels: Labels | None = None) -> Sample:
        """F(x, t, s, y), (B, ...), with the default scale if the network takes guidance scales."""
        if self.guidance is None:
            return self.net(x, t, s, labels)
        columns = [torch.full_like(t, value) for value in (self.guidance.scale, 0.0, 1.0)]
        guidance = unguided_without_label(torch.stack(columns, dim=1), labels, self.num_classes)
        return self.net(x, t, s, labels, guidance=guidance)

    def bound(self) -> Iterator[nn.Module]:
        """The wrappers that `conditioned` and `guided` put around the network."""
        net = self.net
        while isinstance(net, Conditioned | Guided):
            yield net
            net = net.net


class Conditioned(nn.Module):
    """A network F(x, t, s, labels) bound to conditions `cond` (B, ...)."""

    cond: Tensor

    def __init__(self, net: Net, cond: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("cond", cond, persistent=False)  # moves with the network

    def forward(
        self, x: Sample, t: Times, s: Times, labels: Labels | None = None, **inputs: Any
    ) -> Sample:
        cond = self.cond.to(x.dtype) if self.cond.is_floating_point() else self.cond
        return self.net(x, t, s, labels, cond=cond, **inputs)


class Guided(nn.Module):
    """A network F(x, t, s, labels) bound to guidance `rows`, (3,) or (B, 3)."""

    rows: Tensor

    def __init__(self, net: Net, rows: Tensor, null: int) -> None:
        super().__init__()
        self.net = net
        self.null = null
        self.register_buffer("rows", rows, persistent=False)  # moves with the network

    def forward(
        self, x: Sample, t: Times, s: Times, labels: Labels | None = None, **inputs: Any
    ) -> Sample:
        rows = self.rows.expand(x.shape[0], 3)
        guidance = unguided_without_label(rows.to(x.dtype), labels, self.null)
        return self.net(x, t, s, labels, guidance=guidance, **inputs)


def require_mean_velocity(model: FlowModel) -> None:
    """Checks that F is a mean velocity, as some objectives require.

    Raises:
        InputError: For any parameterization other than `EulerParameterization`.
    """
    if not isinstance(model.parameterization, EulerParameterization):
        given = type(model.parameterization).__name__
        raise InputError(
            f"the parameterization is {given}: this objective needs F to be a mean velocity, use "
            "EulerParameterization"
        )
