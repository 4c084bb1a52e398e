"""The registry of networks, and the interface of a registered network.

A network is an `nn.Module`. Its constructor takes `shape` (of one sample) and `num_classes` (0: no
labels). It may also take `augment_labels` (the number of augmentation labels per sample),
`cond_shape` (the shape of one condition, () for none) and `takes_guidance` (whether guidance scales
are an input). All other constructor parameters are settings.
Class attributes, all optional:

    dimensions             number of dimensions of a sample: 1 for vectors [D], 2 for signals
                           [C, L], 3 for images [C, H, W]; or a tuple of several (default: any)
    takes_labels: bool     whether the network takes class labels (default True)

With an attribute `settings` (a dict with the values of all settings), a saved model can be loaded
without passing the network again.

`forward` has a parameter `augment` if the network takes augmentation labels, `cond` if it takes
conditions, and `guidance` (B, 3) if it takes guidance scales. They are passed by keyword, and only
if the batch has them.

A submodule with the attribute `repeated = True` is one of several identical blocks. Each block is
compiled and sharded separately.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import nn

from soflow.system.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry(
    "network",
    doc="""The registry of networks by name, as used in `network.name`.

    A registered network can be used in recipes and on the command line. Its constructor takes
    `shape` and `num_classes`; its other parameters are settings. The module
    soflow.networks.registry describes the full interface.

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

#: Kinds of samples by number of dimensions.
KINDS = {1: "vectors [D]", 2: "signals [C, L]", 3: "images [C, H, W]"}


def fits(network: object, shape: Sequence[int]) -> bool:
    """Whether a network or its class takes samples with this number of dimensions."""
    dimensions = getattr(network, "dimensions", len(shape))
    return len(shape) in (dimensions if isinstance(dimensions, tuple) else (dimensions,))


def takes(network: type[Any], name: str) -> bool:
    """Whether a network's `forward` has a parameter of this name."""
    parameters = signature(network.forward).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def what_fits() -> str:
    """Lists the networks for each kind of sample, for messages."""
    found = {kind: [x for x in NETWORKS if fits(NETWORKS[x], [1] * n)] for n, kind in KINDS.items()}
    return ", ".join(f"{' or '.join(names)} for {kind}" for kind, names in found.items() if names)


def require_fit(network: nn.Module, shape: Sequence[int]) -> None:
    """Raises ValueError, naming suitable networks, if a network does not take such samples."""
    if not fits(network, shape):
        name = type(network).__name__
        raise ValueError(f"{name} does not fit data.shape={list(shape)}: use {what_fits()}")
