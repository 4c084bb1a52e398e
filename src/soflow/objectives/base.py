"""The interface of objectives and the classes they share.

An objective keeps randomness out of the mathematics. `draw` makes all random numbers of a step.
Calling the objective is then a deterministic function of the model, the batch, the draws and the
progress of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from soflow.errors import InputError, in_short
from soflow.solution import FlowModel
from soflow.symbols import Batch, PerSample
from soflow.system.registry import Registry, Setting
from soflow.times import LogitNormal

#: Settings that several objectives have.
Power = Annotated[
    float,
    Setting("power of the adaptive weight 1 / (squared error + eps)^p; 0: no weighting", ge=0),
]
Eps = Annotated[float, Setting("constant added to the squared error in the adaptive weight", gt=0)]
OrderedTimes = Annotated[
    LogitNormal, Setting("density of two independent times: the larger is t, the smaller is s")
]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, one row per sample.

    The first `n_flow_matching` samples train the velocity, s = t. The other samples jump from t to
    s < t. The last `n_composed` of them jump twice, from t to l and from l to s.

    Attributes:
        noise: Standard normal noise (B, ...).
        t: The times of the noised samples, (B,).
        s: The end times of the jumps, (B,).
        dropped: Mask of the samples trained without their label, (B,) bool.
        n_flow_matching: The number of samples with s = t.
        n_composed: The number of composed jumps.
        l: The middle times of composed jumps, (B,); None without composed jumps.
        guidance: Guidance (omega, start, end) per sample, (B, 3), if drawn: see `DrawnGuidance`.

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
        """The draws of the samples selected by a slice."""
        noise, t, s, dropped = (x[which] for x in (self.noise, self.t, self.s, self.dropped))
        selected = range(len(self.t))[which]
        n_fm = sum(i < self.n_flow_matching for i in selected)
        n_composed = sum(i >= len(self.t) - self.n_composed for i in selected)
        more = (x if x is None else x[which] for x in (self.l, self.guidance))
        return Draws(noise, t, s, dropped, n_fm, n_composed, *more)


class Term(NamedTuple):
    """One term of the loss, with one value per sample.

    Attributes:
        loss: The loss per sample, (n,).
        squared: The mean squared error per sample, (n,), without gradient.
        weight: The adaptive weight per sample, (n,), without gradient.
        times: The times per sample by symbol (t, s or l), each (n,).

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
    """The loss of a batch, returned by an objective.

    Attributes:
        total: The value that training minimizes, ().
        parts: Further values per sample by name, each (n,), without gradient. Training logs their
            means.
        terms: The terms by name, in the order of the samples in the batch.

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
    """The interface of training objectives. A class with these members needs no base class.

    The fields of an objective are its settings. An optional field `compile` is a function that
    compiles the objective's derivatives. Class attributes:
        samplers: The samplers that work with the trained model. The first one is the default.
        whole_network: Whether the objective does more with the network than call it, such as
            differentiate it. Data-parallel training then keeps all parameters gathered during a
            step.
        parameterization: Optional. The only parameterization that the objective works with.
        forward_derivative: Optional. True if it takes Jacobian-vector products of the network.
        trains_null: Optional, for objectives without a field `guidance`. False if the objective
            never trains the null label. Samplers then require labels.

    An optional method `scheduled(progress) -> dict[str, float]` returns the scheduled values at
    `progress` = k / K, by symbol. They change if the run is extended.
    """

    samplers: ClassVar[tuple[str, ...]]
    whole_network: ClassVar[bool]

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draws the noise, times and dropped labels for a batch, on the generator's device."""
        ...

    def __call__(self, model: FlowModel, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch after the fraction `progress` of training, in [0, 1).

        Raises:
            InputError: If the batch has no labels although guidance is active, or the model has
                another parameterization than the objective needs.
        """
        ...


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    ("samplers", "whole_network"),
    """The registry of objectives by name, as used in `objective.name`.

    A registered objective can be used in recipes and on the command line. Its fields are its
    settings.

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
        terms: The terms by name, each with one loss per sample, (n,).

    Returns:
        The losses. `total` is the sum of all losses per sample, divided by their number: of two
        terms over the whole batch, each counts half. Multiply the loss of a term to weight it.
        `parts` holds the squared errors and the weights of each term.

    Raises:
        InputError: If there are no terms, or a term does not have one value per sample.

    Example:
        >>> import soflow, torch
        >>> ones = torch.ones(3)
        >>> losses = soflow.losses(mine=soflow.Term(2 * ones, ones, ones, {}))
        >>> losses.total, list(losses.parts)
        (tensor(2.), ['mine_mse', 'mine_weight'])
    """
    if not terms:
        raise InputError("a loss needs at least one term: soflow.losses(name=soflow.Term(...))")
    for name, term in terms.items():
        for part in ("loss", "squared", "weight"):
            value = getattr(term, part)
            if not isinstance(value, Tensor) or value.ndim != 1 or len(value) != len(term.loss):
                raise InputError(
                    f"{part} of the term '{name}' is {shown(value)}: return one value per "
                    "sample, a tensor (n,)"
                )
    total = torch.cat([term.loss for term in terms.values()]).mean()
    mse = {f"{name}_mse": term.squared for name, term in terms.items()}
    weight = {f"{name}_weight": term.weight for name, term in terms.items()}
    return Losses(total, mse | weight, terms)


def shown(value: object) -> str:
    """A value in an error message: the shape of a tensor, or the value itself."""
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else in_short(value)


def adaptive_weight(squared: PerSample, p: float, eps: float) -> PerSample:
    """The adaptive weight of each sample, 1 / (squared + eps)^p.

    The gradient of the weighted loss is that of the squared error for p = 0, and that of
    log(squared + eps) for p = 1.

    Args:
        squared: The mean squared error per sample, (B,).
        p: The power.
        eps: A small constant, which limits the weight of samples with a small error.

    Returns:
        The weights (B,), without gradient.

    Example:
        >>> import soflow, torch
        >>> soflow.adaptive_weight(torch.tensor([0.09, 0.99]), p=1.0, eps=0.01)
        tensor([10.,  1.])
    """
    return (squared.detach() + eps) ** -p
