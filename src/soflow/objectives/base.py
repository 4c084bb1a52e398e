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
    The last `n_composed` of these are composed of two jumps, from t to l and from l to s.

    Attributes:
        noise: Standard normal, (B, ...).
        t: The times of the noised samples, (B,).
        s: The times that jumps end at, (B,).
        dropped: Which samples are trained without their label, (B,) bool.
        n_flow_matching: The number of samples with s = t.
        n_composed: The number of composed jumps.
        l: The middle times of composed jumps, (B,); None without composed jumps.
        guidance: Guidance scales, and the intervals of t in which they act, (B, 3), if they are
            drawn: see `DrawnGuidance`.

    Example:
        >>> import soflow, torch
        >>> draws = soflow.SoFlow().draw((8, 2), torch.Generator())
        >>> draws.noise.shape, draws.n_flow_matching
        (torch.Size([8, 2]), 6)
        >>> bool((draws.rows(slice(6)).t == draws.rows(slice(6)).s).all())
        True
    """

    noise: Tensor
    t: Tensor
    s: Tensor
    dropped: Tensor
    n_flow_matching: int
    n_composed: int = 0
    l: Tensor | None = None
    guidance: Tensor | None = None

    def rows(self, which: slice) -> "Draws":
        """The draws of the samples that a slice selects."""
        noise, t, s, dropped = (x[which] for x in (self.noise, self.t, self.s, self.dropped))
        selected = range(len(self.t))[which]
        n_fm = sum(i < self.n_flow_matching for i in selected)
        n_composed = sum(i >= len(self.t) - self.n_composed for i in selected)
        more = (x if x is None else x[which] for x in (self.l, self.guidance))
        return Draws(noise, t, s, dropped, n_fm, n_composed, *more)


class Term(NamedTuple):
    """One term of the loss, with one value for each of its n samples.

    Attributes:
        loss: The loss of each sample, (n,).
        squared: The mean squared error of each sample, (n,), without gradient.
        weight: The adaptive weight of each sample, (n,), without gradient.
        times: The times of each sample by their symbols t, s and l, each (n,).

    Example:
        >>> import soflow, torch
        >>> squared = torch.tensor([0.1, 0.3], requires_grad=True)
        >>> term = soflow.Term(
        ...     loss=squared, squared=squared.detach(), weight=torch.ones(2), times={}
        ... )
        >>> soflow.losses(error=term).total
        tensor(0.2000, grad_fn=<MeanBackward0>)
    """

    loss: PerSample
    squared: PerSample
    weight: PerSample
    times: dict[str, Tensor]


class Losses(NamedTuple):
    """The loss of a batch, which an objective returns.

    Attributes:
        total: What training minimizes, ().
        parts: Values of samples by name, each (n,), without gradient. Their means are logged.
        terms: The terms by name, in the order of the batch's samples.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> objective, batch = soflow.FlowMatching(), soflow.Batch(torch.randn(8, 2))
        >>> draws = objective.draw(batch.data.shape, torch.Generator())
        >>> losses = objective(model, batch, draws, progress=0.0)
        >>> {name: part.shape for name, part in losses.parts.items()}
        {'flow_matching_mse': torch.Size([8]), 'flow_matching_weight': torch.Size([8])}
    """

    total: Tensor
    parts: dict[str, Tensor]
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


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    ("samplers", "whole_network"),
    """Objectives by the names that configurations give them.

    A registered objective can be trained by name, in recipes and on the command line. Its fields
    are its settings.

    Example:
        >>> import dataclasses, soflow
        >>> @soflow.OBJECTIVES.register("plain_flow")
        ... @dataclasses.dataclass(frozen=True)
        ... class PlainFlow(soflow.FlowMatching):
        ...     pass
        >>> soflow.OBJECTIVES["plain_flow"].__name__, "soflow" in soflow.OBJECTIVES
        ('PlainFlow', True)
    """,
)


def losses(**terms: Term) -> Losses:
    """Combines terms into the loss of a batch.

    Args:
        terms: The terms by name, with one loss per sample, (n,) each.

    Returns:
        The losses. `total` is the mean over all samples, and `parts` hold the squared errors and
        the weights of each term.

    Raises:
        InputError: If there are no terms.

    Example:
        >>> import soflow, torch
        >>> ones = torch.ones(3)
        >>> losses = soflow.losses(mine=soflow.Term(2 * ones, ones, ones, {}))
        >>> losses.total, list(losses.parts)
        (tensor(2.), ['mine_mse', 'mine_weight'])
    """
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
