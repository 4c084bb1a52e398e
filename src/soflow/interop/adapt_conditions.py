"""Weights of a network for one with other conditions, or with guidance as an input.

The same conditions are taken over. New ones begin unseen: the channels of maps at zero, and the
embedding of vectors and of guidance at zero, with a random first layer so that it can learn.
"""

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor, nn

from soflow.config import Config
from soflow.interop.adapt import channel_axes

#: Parameters that embed vectors or guidance, what they embed, and the last layer of each.
EMBEDDERS = {
    "cond.embedder.": "the vector of its condition",
    "guidance_embedder.mlp.": "its guidance scale",
}
LAST = "2."


def map_channels(of: Config | nn.Module | None) -> int:
    """How many input channels are those of a condition, in a run's network or in a network."""
    if isinstance(of, nn.Module):
        return int(getattr(getattr(of, "cond", None), "channels", 0))
    shape = () if of is None else of.data.cond_shape
    return shape[0] if len(shape) > 1 else 0


def take_map(state: MutableMapping[str, Tensor], channels: int) -> Tensor | None:
    """Removes the channels of a map from the first layer, in place, and returns their weights."""
    name = next((name for name, *_ in channel_axes(state)), None)
    if name is None or not channels or state[name].shape[1] <= channels:
        return None
    own, others = state[name].split([state[name].shape[1] - channels, channels], dim=1)
    state[name] = own
    return others


def adapt_conditions(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], theirs: Tensor | None
) -> list[str]:
    """Gives the weights the conditions of a network, in place.

    Args:
        weights: The weights, without those of maps.
        expected: The state of the network.
        theirs: The weights of maps.

    Returns:
        Notes on what was changed.
    """
    notes = []
    name = next((name for name, *_ in channel_axes(expected)), "")
    if name in weights and weights[name].ndim == expected[name].ndim:
        own = weights[name]
        missing = expected[name].shape[1] - own.shape[1]
        if missing > 0:
            same = theirs is not None and theirs.shape[1] == missing
            if not same:
                notes.append("the channels of its condition begin at zero: it is not seen")
            added = own.new_zeros(own.shape[0], missing, *own.shape[2:])
            weights[name] = torch.cat([own, theirs if theirs is not None and same else added], 1)
        elif theirs is not None:
            notes.append("the map that it was conditioned on is left out")
    for prefix, what in EMBEDDERS.items():
        notes += adapt_embedder(weights, expected, prefix, what)
    return notes


def adapt_embedder(
    weights: dict[str, Tensor], expected: Mapping[str, Tensor], prefix: str, what: str
) -> list[str]:
    """Gives the weights one embedder of a network, in place; a new one begins at zero."""
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
    return [f"{what} {'begins at zero: it is not seen' if wanted else 'is left out'}"]
