"""Forward passes of the objectives: combined passes, their precision and their dropout masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd

from soflow.symbols import Batch, Net


def casts_keep_gradient() -> bool:
    """Whether gradients reach a weight through an autocast copy made under no_grad.

    In torch 2.6 they do not, so a pass with gradients must not reuse such a copy.
    """
    weight, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            functional.linear(x, weight)
        return functional.linear(x, weight).requires_grad


CASTS_KEEP_GRADIENT = casts_keep_gradient()


class Inputs(NamedTuple):
    """The arguments of the network, one row per sample.

    `inputs._replace(x=x_l, t=l)` are the same inputs with another point and time.

    Attributes:
        x: The points, (B, ...).
        t: Their times, (B,).
        s: The end times of the jumps, (B,).
        labels: The classes, (B,), or None.
        augment: Augmentation labels, (B, A), or None.
        cond: Conditions, (B, ...), or None.
        guidance: Guidance (omega, start, end), (B, 3), or None.

    Example:
        >>> import soflow, torch
        >>> net, x, t = soflow.MLP(shape=(2,)), torch.randn(8, 2), torch.rand(8)
        >>> inputs = soflow.Inputs(x, t, s=0 * t)
        >>> inputs.through(net).shape, inputs.rows(slice(3)).t.shape
        (torch.Size([8, 2]), torch.Size([3]))
    """

    x: Tensor
    t: Tensor
    s: Tensor
    labels: Tensor | None = None
    augment: Tensor | None = None
    cond: Tensor | None = None
    guidance: Tensor | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None,
        guidance: Tensor | None = None,
    ) -> "Inputs":
        """The arguments for a batch at the points x and times t, s, with the given labels."""
        return cls(x, t, s, labels, batch.augment, batch.cond, guidance)

    @property
    def more(self) -> dict[str, Tensor]:
        """The keyword arguments of the network."""
        more = {"augment": self.augment, "cond": self.cond, "guidance": self.guidance}
        return {name: value for name, value in more.items() if value is not None}

    def through(self, net: Net) -> Tensor:
        """F(x, t, s, labels)."""
        return net(self.x, self.t, self.s, self.labels, **self.more)

    def rows(self, which: slice) -> "Inputs":
        """The inputs of the samples selected by a slice."""
        return Inputs(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


def together(net: Net, *groups: Inputs) -> list[Tensor]:
    """F of each group of rows, computed in one pass. Groups may be empty."""
    counts = [len(group.x) for group in groups]
    if not any(counts):
        return [group.x for group in groups]
    columns = (
        None if parts[0] is None else torch.cat(parts) for parts in zip(*groups, strict=True)
    )
    rows = Inputs(*columns)  # type: ignore[arg-type]  # only optional columns can be None
    return list(rows.through(net).split(counts))


@torch.no_grad()
def without_gradient(net: Net, *groups: Inputs) -> list[Tensor]:
    """Like `together`, without gradients.

    Under bfloat16 autocast, the next passes reuse the bfloat16 copies of the weights, unless the
    copies have no gradient or the weights are sharded.
    """
    outputs = together(net, *groups)
    if not CASTS_KEEP_GRADIENT or is_sharded(net):
        torch.clear_autocast_cache()
    return outputs


def is_sharded(net: Net) -> bool:
    """Whether the network is sharded by fully_shard, which gathers its weights for each pass."""
    return isinstance(net, nn.Module) and any(hasattr(p, "device_mesh") for p in net.parameters())


def consistency_passes(
    net: Net, velocities: Inputs, jumps: Inputs, nearer: Inputs
) -> tuple[Tensor, Tensor, Tensor]:
    """F of velocities and of jumps from x_t, with gradients; F of jumps from x_l, without.

    The two jumps are computed in float32 and with the same dropout mask, since their difference is
    divided by t - l. The velocities share the pass of the jumps from x_t if this changes neither
    their precision nor the dropout masks.
    """
    device = jumps.x.device
    shared = may_share_a_pass(net, device)
    with float32(device):
        replay_dropout = same_dropout(device)
        (F_l,) = without_gradient(net, nearer)  # the same network, not an averaged copy
        replay_dropout()
        if shared:
            F_fm, F_t = together(net, velocities, jumps)
            return F_fm, F_t, F_l
        (F_t,) = together(net, jumps)
    (F_fm,) = together(net, velocities)
    return F_fm, F_t, F_l


def with_derivative(net: Net, inputs: Inputs, v: Tensor) -> tuple[Tensor, Tensor]:
    """F, and dF/dt without gradient: its derivative along (v, 1, 0) in (x, t, s)."""
    x, t, s, labels, *_ = inputs
    if len(x) == 0:
        return x, x

    # Compiled code cannot be differentiated with respect to views, and a microbatch is a view.
    at, more = (x.clone(), t.clone(), s.clone()), inputs.more
    along = (v, torch.ones_like(t), torch.zeros_like(s))
    # The fused attention kernels have no forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(  # type: ignore[misc]
            lambda x, t, s: net(x, t, s, labels, **more), at, along
        )
    return value, derivative.detach()


def uncompiled(function: Any) -> Any:
    """The function itself."""
    return function


@dataclass(frozen=True)
class TakesDerivative:
    """Base of the objectives that take Jacobian-vector products of the network.

    Args:
        compile: Compiles the function that takes the derivative. Set by `soflow.train`.
    """

    compile: Callable[[Any], Any] = field(default=uncompiled, kw_only=True, repr=False)

    @cached_property
    def with_derivative(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """`with_derivative`, compiled as a whole.

        Blocks that are compiled one by one have no forward-mode derivative.
        """
        return self.compile(with_derivative)


def may_share_a_pass(net: Net, device: torch.device) -> bool:
    """Whether velocities may share one pass with the jumps of a difference quotient.

    Under autocast they may not, since they have different precisions. With active dropout they may
    not, since dropout masks depend on the other samples in the pass.
    """
    if torch.is_autocast_enabled(device.type) or not isinstance(net, nn.Module):
        return False
    return not any(module.training and dropout_of(module) > 0 for module in net.modules())


def dropout_of(module: nn.Module) -> float:
    """The probability of dropout in a layer; 0 for layers without dropout."""
    if isinstance(module, _DropoutNd):  # the base of nn.Dropout, nn.Dropout2d, ...
        return module.p
    return module.dropout if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else 0.0


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Computes in float32 even under bfloat16 autocast.

    Difference quotients multiply rounding errors by a factor of hundreds. By default, torch uses
    TF32 for convolutions but not for matrix products. Here convolutions use TF32 only if matrix
    products do.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32 and torch.get_float32_matmul_precision() != "highest"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def same_dropout(device: torch.device) -> Callable[[], None]:
    """Saves the random state of dropout. Calling the result restores this state."""
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        return lambda: torch.cuda.set_rng_state(state, device)
    state = torch.get_rng_state()
    return lambda: torch.set_rng_state(state)
