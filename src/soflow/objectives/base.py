"""What every training method has in common: it draws times, and it pulls F towards something.

Randomness stands outside the mathematics: `draw` makes all random numbers of a step, and calling the objective is then a
deterministic function of the network, the batch, the draws and the progress of training.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from soflow.data.batches import Batch
from soflow.symbols import Net, PerSample


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, one row a sample.

    The first `n_velocity` samples look at the velocity, s = t; the rest take a jump from t to s < t.
    """

    noise: Tensor  # (B, ...)
    t: Tensor  # (B,)
    s: Tensor  # (B,)
    dropped: Tensor  # (B,) bool: trained without its label
    n_velocity: int

    def rows(self, which: slice) -> "Draws":
        """The draws of the samples that a slice selects."""
        noise, t, s, dropped = (x[which] for x in (self.noise, self.t, self.s, self.dropped))
        return Draws(noise, t, s, dropped, n_velocity=len(range(self.n_velocity)[which]))


class BranchLoss(NamedTuple):
    """One branch's numbers for each of its samples: its share of the loss, mean_d of the squared error, the weight w, and
    the times at which it looked, by their symbols.
    """

    loss: PerSample
    squared: PerSample
    weight: PerSample
    times: dict[str, Tensor]  # each (n,)


class Losses(NamedTuple):
    """`total` is what training descends; `parts` are named values a sample, without gradient, for the logs; `branches` are
    what both are made of, in the order of the batch's samples.
    """

    total: Tensor  # ()
    parts: dict[str, Tensor]  # each (number of samples it concerns,)
    branches: dict[str, BranchLoss]


@runtime_checkable
class Objective(Protocol):
    """A training method. Objectives do not inherit from one another; each reads like its paper."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws: ...

    def __call__(
        self, net: Net, batch: Batch, draws: Draws, progress: float, average: Net | None = None
    ) -> Losses: ...  # `average`: the network with averaged weights, for methods whose targets come from it


class LossModule(nn.Module):
    """A network and its objective as one module whose forward is a whole loss.

    Data-parallel wrappers thus see one forward and one backward a step, and synchronize every gradient.
    """

    def __init__(self, network: nn.Module, objective: Objective, average: Net | None = None) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.average = average

    def forward(self, batch: Batch, draws: Draws, progress: float) -> Losses:
        return self.objective(self.network, batch, draws, progress, self.average)


def losses(**branches: BranchLoss) -> Losses:
    """The mean of one loss a sample over all branches, with each branch's errors and weights for the logs."""
    total = torch.cat([branch.loss for branch in branches.values()]).mean()
    mse = {f"{name}_mse": branch.squared for name, branch in branches.items()}
    weight = {f"{name}_weight": branch.weight for name, branch in branches.items()}
    return Losses(total, mse | weight, branches)


def adaptive_weight(squared: PerSample, p: float, eps: float) -> PerSample:
    """w = 1 / (squared + eps)^p, without gradient: from the plain square (p = 0) to nearly its logarithm (p = 1)."""
    return (squared.detach() + eps) ** -p


class Inputs(NamedTuple):
    """The network's arguments, one row a sample."""

    x: Tensor  # (B, ...)
    t: Tensor  # (B,)
    s: Tensor  # (B,)
    labels: Tensor | None  # (B,)
    augment: Tensor | None  # (B, A)

    def rows(self, which: slice) -> "Inputs":
        return Inputs(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


def together(net: Net, *groups: Inputs) -> list[Tensor]:
    """F of each group of rows, worked out in one pass over all of them; groups may be empty."""
    counts = [len(group.x) for group in groups]
    if not any(counts):
        return [group.x for group in groups]
    columns = (None if parts[0] is None else torch.cat(parts) for parts in zip(*groups, strict=True))
    rows = Inputs(*columns)  # type: ignore[arg-type]  # only labels and augment are ever None
    return list(net(*rows).split(counts))


@torch.no_grad()
def without_gradient(net: Net, *groups: Inputs) -> list[Tensor]:
    """As `together`, for values that nothing is to flow back through."""
    outputs = together(net, *groups)
    torch.clear_autocast_cache()  # torch 2.6 lends this pass's weights, cut off, to the next
    return outputs


def may_share_a_pass(net: Net, device: torch.device) -> bool:
    """Whether velocities and the pair of a difference quotient may go through the network together: not where autocast is
    to give them different precisions, nor where dropout might be at work, whose masks depend on what shares the pass.
    """
    if torch.is_autocast_enabled(device.type) or not isinstance(net, nn.Module):
        return False
    return not any(isinstance(module, nn.Dropout) and module.training and module.p > 0 for module in net.modules())


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Computes in float32, under bfloat16 autocast too: difference quotients multiply rounding errors by hundreds.

    Where matrix products may not use TF32 convolutions may not, either; for them it is torch's default.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32 and torch.get_float32_matmul_precision() != "highest"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def same_dropout(device: torch.device) -> Callable[[], None]:
    """Notes the state of the dropout masks; calling the result brings it back, so that a second pass draws the same."""
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        return lambda: torch.cuda.set_rng_state(state, device)
    state = torch.get_rng_state()
    return lambda: torch.set_rng_state(state)
