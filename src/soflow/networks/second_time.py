"""Adds a second time to a network: F(x, t, s, y) from a network net(x, t, y).

    e = E(t) + h(t - s)          E: the network's embedding of time;  h: initially 0

h is a sinusoidal embedding followed by an MLP whose last layer is zero. Before training,
F(x, t, s, y) = net(x, t, y) for every s. A pretrained flow can thus initialize a one-step model.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.networks.embeddings import TimeEmbedder
from soflow.networks.pretrained import VelocityOf
from soflow.networks.views import with_submodules
from soflow.symbols import Labels, Sample, Times

#: Class names of time embeddings in diffusers, DiT and SiT.
TIME_EMBEDDINGS = ("TimestepEmbedding", "TimestepEmbedder")


class WithSecondTime(nn.Module):
    """Adds a second time to a network `net(x, t)` or `net(x, t, labels)`: F(x, t, s, labels).

    Before training, F(x, t, s, labels) equals net(x, t, labels) for every s. An embedding of t - s,
    initially zero, is added to the output of the network's own time embedding. For networks of
    diffusers and networks like DiT, the time embedding is found by its class name. For other
    networks, pass its name.

    The result shares the weights of the network. To keep the original weights during training, wrap
    `copy.deepcopy(net)`.

    Args:
        net: The network. It takes times from 0 (data) to 1 (noise) and returns the velocity. If it
            has other conventions, wrap it in `VelocityOf` first.
        time_embedding: The name or names of the submodules that embed time, as in
            `net.named_modules()`. Each must return (B, width).
        width: The width of the time embedding. Default: the output width of its last linear layer.

    Raises:
        InputError: If no time embedding is found, or time embeddings have different widths.

    Example:
        >>> import soflow, torch
        >>> class Plain(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.time_mlp = torch.nn.Linear(1, 16)
        ...         self.out = torch.nn.Linear(18, 2)
        ...     def forward(self, x, t):
        ...         return self.out(torch.cat([x, self.time_mlp(t[:, None])], dim=1))
        >>> net = Plain()
        >>> network = soflow.WithSecondTime(net, time_embedding="time_mlp")
        >>> x, t, s = torch.randn(4, 2), torch.rand(4), torch.zeros(4)
        >>> bool((network(x, t, s) == net(x, t)).all())
        True
    """

    def __init__(
        self,
        net: nn.Module,
        time_embedding: str | Sequence[str] | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        velocity = net if isinstance(net, VelocityOf) else VelocityOf(net)
        if time_embedding is None:
            found = find_time_embeddings(velocity.net)
        else:
            names = [time_embedding] if isinstance(time_embedding, str) else list(time_embedding)
            found = named_submodules(velocity.net, names)
        widths = {name: width or width_of(module, name) for name, module in found.items()}
        if len(set(widths.values())) > 1:
            raise InputError(
                f"time_embedding: all must have the same width, not {widths}: name other submodules"
            )
        added = {f"net.{name}": AddedTime(module, name) for name, module in found.items()}
        self.places = tuple(added)
        self.takes_labels = velocity.takes_labels
        self.velocity = with_submodules(velocity, added)
        self.second_time = TimeEmbedder(next(iter(widths.values())))
        for parameter in self.second_time.mlp[2].parameters():
            nn.init.zeros_(parameter)
        weight = next(velocity.parameters(), None)
        if weight is not None:
            self.second_time.to(weight.device)

    def forward(
        self,
        x: Sample,
        t: Times,
        s: Times,
        labels: Labels | None = None,
        **inputs: Any,
    ) -> Sample:
        """F(x, t, s, labels): (B, ...), (B,), (B,), (B,) or None -> (B, ...).

        Further inputs, such as a condition `cond`, are passed to the network by keyword.
        """
        with torch.autocast(x.device.type, enabled=False):
            shift = self.second_time(t - s)
        places = {name: self.added_time(name) for name in self.places}
        if torch.compiler.is_compiling():  # the shift becomes a value of the graph
            for place in places.values():
                place.shift = shift
            try:
                return self.velocity(x, t, labels, **inputs)
            finally:
                for place in places.values():
                    place.shift = None
        # Each call uses its own view of the network. Calls in several threads, and blocks that the
        # backward pass recomputes, then find the right shift.
        own = {name: place.shifted(shift) for name, place in places.items()}
        out = with_submodules(self.velocity, own)(x, t, labels, **inputs)
        for place in own.values():
            place.require_reached()
        return out

    def added_time(self, name: str) -> "AddedTime":
        """The time embedding of this name, to which the second time is added."""
        place = self.velocity.get_submodule(name)
        assert isinstance(place, AddedTime)
        return place


class AddedTime(nn.Module):
    """A time embedding (B, width) to which `shift` (B, width) is added."""

    def __init__(self, embedding: nn.Module, name: str) -> None:
        super().__init__()
        self.embedding = embedding
        self.name = name
        self.shift: Tensor | None = None
        self.reached = False

    def shifted(self, shift: Tensor) -> "AddedTime":
        """A view with this shift. It shares the weights."""
        view = copy.copy(self)
        view.shift, view.reached = shift, False
        return view

    def require_reached(self) -> None:
        if not self.reached:
            raise InputError(
                f"time_embedding: the network does not call '{self.name}', so the second time has "
                "no effect: name another submodule, and compile WithSecondTime, not the network"
            )

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        embedded = self.embedding(*inputs, **options)
        shift = self.shift
        if shift is None:
            raise InputError(
                f"'{self.name}' is called outside of WithSecondTime: call the WithSecondTime module"
            )
        if not isinstance(embedded, Tensor) or embedded.shape != shift.shape:
            got = list(embedded.shape) if isinstance(embedded, Tensor) else type(embedded).__name__
            raise InputError(
                f"time_embedding: '{self.name}' must return shape {list(shift.shape)}, not {got}: "
                "name another submodule, or pass its width"
            )
        if not torch.compiler.is_compiling():
            self.reached = True
        return embedded + shift.to(embedded.dtype)


def find_time_embeddings(net: nn.Module) -> dict[str, nn.Module]:
    """The submodules with the class and the name of a time embedding."""
    found = {
        name: module
        for name, module in net.named_modules(remove_duplicate=False)
        if any(kind.__name__ in TIME_EMBEDDINGS for kind in type(module).__mro__)
        and name.rpartition(".")[2].startswith(("time", "t_"))
    }
    if not found:
        raise InputError(
            f"{type(net).__name__} has no known time embedding: pass the name of the submodule, "
            "time_embedding=NAME"
        )
    return found


def named_submodules(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules with these names."""
    known = dict(net.named_modules(remove_duplicate=False))
    for name in names:
        if not name or name not in known:
            children = ", ".join(name for name, _ in net.named_children())
            raise InputError(
                f"time_embedding: {type(net).__name__} has no submodule '{name}': its submodules "
                f"are {children}"
            )
    if not names:
        raise InputError("time_embedding is empty: name at least one submodule")
    return {name: known[name] for name in names}


def width_of(module: nn.Module, name: str) -> int:
    """The number of outputs of the last linear layer in a submodule."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise InputError(f"time_embedding: '{name}' has no linear layer: pass its width, width=N")
    return linears[-1].out_features
