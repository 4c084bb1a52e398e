"""The registry of networks, and what a network may say of itself.

A network is an `nn.Module` whose constructor takes `shape` (one sample's), `num_classes` (0: no
labels) and, if it wants them, `augment_labels` (how many augmentation labels a sample has),
`cond_shape` (one condition's shape, () for none) and `takes_guidance` (whether guidance scales are
an input). All other constructor parameters are settings.
Class attributes, all optional:

    dimensions             how many dimensions a sample must have: 1 for vectors [D], 2 for signals
                           [C, L], 3 for images [C, H, W]; several as a tuple (default: any)
    takes_labels: bool     whether it takes class labels (default True)

An attribute `settings`, a dict with the values of these settings, lets `soflow.save_model` save it.

A network with augmentation labels has a parameter `augment` of `forward`, one with conditions a
parameter `cond`, one with guidance scales a parameter `guidance`, (B, 3). All are given by keyword,
and only if there is something to give.

A module marked `repeated = True` is one of many alike: it is compiled and sharded on its own.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import nn

from soflow.system.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry(
    "network",
    doc="""Networks by the names that configurations give them.

    A registered network can be trained by name, in recipes and on the command line. Its constructor
    takes `shape` and `num_classes`; its other parameters are settings. The module
    soflow.networks.registry says what else a network may have.

    Example:
        >>> import soflow
        >>> @soflow.NETWORKS.register("small_mlp")
        ... class SmallMLP(soflow.MLP):
        ...     def __init__(self, shape, num_classes):
        ...         super().__init__(shape, num_classes, width=16, depth=1)
        >>> soflow.read_recipe("moons", ["network.name=small_mlp"]).network.name
        'small_mlp'
    """,
)

#: What samples are called by their number of dimensions.
KINDS = {1: "vectors [D]", 2: "signals [C, L]", 3: "images [C, H, W]"}


def fits(network: object, shape: Sequence[int]) -> bool:
    """Whether a network, or its class, takes samples with as many dimensions."""
    dimensions = getattr(network, "dimensions", len(shape))
    return len(shape) in (dimensions if isinstance(dimensions, tuple) else (dimensions,))


def takes(network: type[Any], name: str) -> bool:
    """Whether a network's `forward` has a parameter of this name."""
    parameters = signature(network.forward).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def what_fits() -> str:
    """The networks for each kind of samples, in words."""
    found = {kind: [x for x in NETWORKS if fits(NETWORKS[x], [1] * n)] for n, kind in KINDS.items()}
    return ", ".join(f"{' or '.join(names)} for {kind}" for kind, names in found.items() if names)


def require_fit(network: nn.Module, shape: Sequence[int]) -> None:
    """Raises ValueError, with the networks that fit, for samples of other dimensions."""
    if not fits(network, shape):
        name = type(network).__name__
        raise ValueError(f"{name} does not fit data.shape={list(shape)}: use {what_fits()}")
