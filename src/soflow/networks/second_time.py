"""A second time for a network that knows one: F(x, t, s, y) from a network net(x, t, y).

    e = E(t) + h(t - s)          E: the network's embedding of time;  h = 0 at the start

so that F(x, t, s, y) = net(x, t, y) for every s before training. h is a sinusoidal embedding and an
MLP whose last layer is zero. A pretrained flow is thereby a start for a one-step model.
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

#: Classes that embed a time: those of diffusers, and of DiT and SiT.
TIME_EMBEDDINGS = ("TimestepEmbedding", "TimestepEmbedder")


class WithSecondTime(nn.Module):
    """A network `net(x, t)` or `net(x, t, labels)` with a second time: F(x, t, s, labels).

    At the start F(x, t, s, labels) equals net(x, t, labels) for every s. The second time enters
    where the first does: an embedding of t - s, zero at the start, is added to what the network's
    own embedding of time returns. In a network of diffusers, or one that follows DiT, this
    submodule is found by its class. In any other network, name it.

    The given network is not changed, but shares its weights with this one. To keep it as it is
    during training, wrap `copy.deepcopy(net)`.

    Args:
        net: The network, with times from 0 at the data to 1 at the noise and with the velocity as
            its output. If it has other conventions, give it as a `VelocityOf`.
        time_embedding: The name, or names, of the submodules that embed time, as in
            `net.named_modules()`. Each must return (B, width).
        width: The width of the time embedding. By default that of its last linear layer.

    Raises:
        InputError: If no submodule embeds time, or it has another width.

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
            raise InputError(f"time embeddings must have one width, not {widths}: name others")
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

        Further inputs, such as a condition `cond`, reach the network by their keywords.
        """
        with torch.autocast(x.device.type, enabled=False):
            shift = self.second_time(t - s)
        places = {name: self.added_time(name) for name in self.places}
        if torch.compiler.is_compiling():  # the shift is a value of the graph
            for place in places.values():
                place.shift = shift
            try:
                return self.velocity(x, t, labels, **inputs)
            finally:
                for place in places.values():
                    place.shift = None
        # A view of the network that belongs to this call alone: calls in several threads, and
        # blocks that are computed again in the backward pass, each find their own shift.
        own = {name: place.shifted(shift) for name, place in places.items()}
        out = with_submodules(self.velocity, own)(x, t, labels, **inputs)
        for place in own.values():
            place.require_reached()
        return out

    def added_time(self, name: str) -> "AddedTime":
        """The submodule of this name, an embedding to which the second time is added."""
        place = self.velocity.get_submodule(name)
        assert isinstance(place, AddedTime)
        return place


class AddedTime(nn.Module):
    """An embedding of time, (B, width), to which `shift`, (B, width), is added."""

    def __init__(self, embedding: nn.Module, name: str) -> None:
        super().__init__()
        self.embedding = embedding
        self.name = name
        self.shift: Tensor | None = None
        self.reached = False

    def shifted(self, shift: Tensor) -> "AddedTime":
        """A view with this shift, which shares the weights."""
        view = copy.copy(self)
        view.shift, view.reached = shift, False
        return view

    def require_reached(self) -> None:
        if not self.reached:
            raise InputError(
                f"time_embedding: the network does not call '{self.name}', so the second time has "
                "no effect; name another submodule, and compile the wrapper, not the network"
            )

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        embedded = self.embedding(*inputs, **options)
        shift = self.shift
        if shift is None:
            raise InputError(f"'{self.name}' is called outside of WithSecondTime: call the wrapper")
        if not isinstance(embedded, Tensor) or embedded.shape != shift.shape:
            got = list(embedded.shape) if isinstance(embedded, Tensor) else type(embedded).__name__
            raise InputError(
                f"time_embedding: '{self.name}' must return {list(shift.shape)}, not {got}; "
                "name another submodule, or give its width"
            )
        if not torch.compiler.is_compiling():
            self.reached = True
        return embedded + shift.to(embedded.dtype)


def find_time_embeddings(net: nn.Module) -> dict[str, nn.Module]:
    """The submodules whose class embeds a time, and whose name says that it is this time."""
    found = {
        name: module
        for name, module in net.named_modules(remove_duplicate=False)
        if any(kind.__name__ in TIME_EMBEDDINGS for kind in type(module).__mro__)
        and name.rpartition(".")[2].startswith(("time", "t_"))
    }
    if not found:
        raise InputError(
            f"{type(net).__name__} has no submodule that is known to embed time: "
            "name it, time_embedding=NAME"
        )
    return found


def named_submodules(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The submodules by their names."""
    known = dict(net.named_modules(remove_duplicate=False))
    for name in names:
        if not name or name not in known:
            children = ", ".join(name for name, _ in net.named_children())
            raise InputError(
                f"time_embedding: {type(net).__name__} has no submodule '{name}'; it has {children}"
            )
    if not names:
        raise InputError("time_embedding: give the name of at least one submodule")
    return {name: known[name] for name in names}


def width_of(module: nn.Module, name: str) -> int:
    """How many values the last linear layer in a submodule returns."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise InputError(f"time_embedding: '{name}' has no linear layer; give its width, width=N")
    return linears[-1].out_features
