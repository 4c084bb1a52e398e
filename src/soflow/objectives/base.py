"""What every objective has in common: it draws times, and it trains F towards something.

Randomness stands outside the mathematics: `draw` makes all random numbers of a step, and calling
the objective is then a deterministic function of the model, the batch, the draws and the progress
of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from soflow.errors import InputError
from soflow.solution import FlowModel
from soflow.symbols import Batch, PerSample
from soflow.system.registry import Registry


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, one row per sample.

    The first `n_flow_matching` samples look at the velocity, s = t; the rest jump from t to s < t.
    """

    noise: Tensor  # (B, ...)
    t: Tensor  # (B,)
    s: Tensor  # (B,)
    dropped: Tensor  # (B,) bool: trained without its label
    n_flow_matching: int

    def rows(self, which: slice) -> "Draws":
        """The draws of the samples that a slice selects."""
        noise, t, s, dropped = (x[which] for x in (self.noise, self.t, self.s, self.dropped))
        return Draws(noise, t, s, dropped, len(range(self.n_flow_matching)[which]))


class Term(NamedTuple):
    """One term of the loss, one value per sample that it concerns."""

    loss: PerSample  # (n,) the sample's part of the loss
    squared: PerSample  # (n,) mean_d of the squared error
    weight: PerSample  # (n,) the adaptive weight w
    times: dict[str, Tensor]  # each (n,): t, s, l


class Losses(NamedTuple):
    """The loss of a batch.

    `total` is what training minimizes. `parts` are named values per sample, without gradient, for
    the logs. `terms` are what both are made of, in the order of the batch's samples.
    """

    total: Tensor  # ()
    parts: dict[str, Tensor]  # each (n,)
    terms: dict[str, Term]


@runtime_checkable
class Objective(Protocol):
    """What is trained. Objectives do not inherit from one another; each reads like its paper.

    The fields of an objective are its settings. It may also take a field `compile`: the function
    that compiles its own derivatives, if it has any. Class attributes:
        samplers: The samplers that suit what it learns, its own first.
        whole_network: Whether it does more with the network than call it, such as differentiate
            it. Data-parallel training then keeps all parameters gathered during a step.
        parameterization: Optional; the only parameterization that it works with.
        forward_derivative: Optional; True if it takes Jacobian-vector products of the network.
        trains_null: Optional, of an objective without a field `guidance`; False if it never trains
            the null label, which samplers then refuse.

    An objective may have a method `scheduled(progress) -> dict[str, float]`: what follows a
    schedule, by its symbol, at `progress` = k / K. It changes when a run is trained further.
    """

    samplers: ClassVar[tuple[str, ...]]
    whole_network: ClassVar[bool]

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws noise, times and label drops of a batch of `shape`, on the generator's device."""
        ...

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss at `progress` = k / K of training."""
        ...


#: Every objective by the name that a configuration gives it.
OBJECTIVES: Registry[type[Objective]] = Registry("objective", ("samplers", "whole_network"))


def losses(**terms: Term) -> Losses:
    """The mean of one loss per sample over all terms; errors and weights of each for the logs."""
    if not terms:
        raise InputError("a loss needs at least one term: soflow.losses(name=soflow.Term(...))")
    total = torch.cat([term.loss for term in terms.values()]).mean()
    mse = {f"{name}_mse": term.squared for name, term in terms.items()}
    weight = {f"{name}_weight": term.weight for name, term in terms.items()}
    return Losses(total, mse | weight, terms)


def adaptive_weight(squared: PerSample, p: float, eps: float) -> PerSample:
    """w = 1 / (squared + eps)^p, without gradient.

    From the plain square (p = 0) to nearly its logarithm (p = 1).
    """
    return (squared.detach() + eps) ** -p
