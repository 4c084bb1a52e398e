"""Adapts pretrained weights to a network with other conditions, or with guidance as an input.

Weights of equal conditions are copied. The network first ignores new conditions: their input
channels (for maps) or the last layer of their embedding (for vectors and guidance) start at zero.
The first layer of the embedding is random, so that it can learn.
"""

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor, nn

from soflow.config import Config
from soflow.interop.adapt import channel_axes

#: Prefixes of embedders of vectors and guidance with their description, and their last layer.
EMBEDDERS = {
    "cond.embedder.": "the vector of its condition",
    "guidance_embedder.mlp.": "its guidance scale",
}
LAST = "2."


def map_channels(of: Config | nn.Module | None) -> int:
    """The number of condition channels in the input of a run's network, or of a network."""
    if isinstance(of, nn.Module):
        return int(getattr(getattr(of, "cond", None), "channels", 0))
    shape = () if of is None else of.data.cond_shape
    return shape[0] if len(shape) > 1 else 0


def take_map(state: MutableMapping[str, Tensor], channels: int) -> Tensor | None:
    """Removes the condition channels from the first layer, in place. Returns their weights."""
    name = next((name for name, *_ in channel_axes(state)), None)
    if name is None or not channels or state[name].shape[1] <= channels:
        return None
    own, others = state[name].split([state[name].shape[1] - channels, channels], dim=1)
    state[name] = own
    return others


def adapt_conditions(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], theirs: Tensor | None
) -> list[str]:
    """Adapts the weights to the conditions of a network, in place.

    Args:
        weights: The pretrained weights, without the condition channels of the first layer.
        expected: The state dict of the network.
        theirs: The weights of the condition channels, or None.

    Returns:
        Notes on the changes.
    """
    notes = []
    name = next((name for name, *_ in channel_axes(expected)), "")
    if name in weights and weights[name].ndim == expected[name].ndim:
        own = weights[name]
        missing = expected[name].shape[1] - own.shape[1]
        if missing > 0:
            same = theirs is not None and theirs.shape[1] == missing
            if not same:
                notes.append("its condition channels start at zero: they are ignored at first")
            added = own.new_zeros(own.shape[0], missing, *own.shape[2:])
            weights[name] = torch.cat([own, theirs if theirs is not None and same else added], 1)
        elif theirs is not None:
            notes.append("its condition channels are dropped")
    for prefix, what in EMBEDDERS.items():
        notes += adapt_embedder(weights, expected, prefix, what)
    return notes


def adapt_embedder(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], prefix: str, what: str
) -> list[str]:
    """Adapts one embedder to a network, in place. A new embedder starts at zero. Returns notes."""
    wanted = {key: tensor for key, tensor in expected.items() if key.startswith(prefix)}
    had = [key for key in weights if key.startswith(prefix)]
    if {key: weights[key].shape for key in had} == {k: one.shape for k, one in wanted.items()}:
        return []
    for key in had:
        del weights[key]
    for key, tensor in wanted.items():
        weights[key] = tensor.clone()
        if key.startswith(prefix + LAST):
            weights[key].zero_()
    return [f"{what} {'starts at zero: it is ignored at first' if wanted else 'is dropped'}"]
