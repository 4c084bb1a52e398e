"""Initial weights: those of a DiT or a SiT, which take one time, or of the same network.

A DiT has no embedding of t - s. Here that embedding starts at zero, so that the network equals the
pretrained one at every s:

    F(x, t, s, y) = DiT(x, t, y)         init_time "same"
    F(x, t, s, y) = -DiT(x, 1 - t, y)    init_time "reversed": SiT goes from noise to data
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.interop.sizes import grid_of, read_sizes
from soflow.interop.weights import named_tensors, read_file, require_fit
from soflow.networks.dit import DiT
from soflow.networks.embeddings import frequencies
from soflow.run.folder import find_run

#: Names that training scripts give to weights, averaged ones first.
PLACES = ("ema_model", "ema", "model", "state_dict")

TABLE = "y_embedder.embedding_table.weight"


def load_pretrained(
    network: nn.Module, source: Path, time: Literal["same", "reversed"] = "same"
) -> list[str]:
    """Loads initial weights into a network.

    Args:
        network: The network.
        source: A file of weights, or a run, whose averaged weights are taken.
        time: "same", or "reversed" for a SiT, whose time runs from noise to data.

    Returns:
        Notes on what was loaded and what was changed.

    Raises:
        InputError: If the weights cannot be read or are of another network.
    """
    weights, notes = find_weights(source)
    two_times = any(name.startswith("s_embedder.") for name in weights)
    is_dit = "x_embedder.proj.weight" in weights and isinstance(network, DiT)
    if time == "reversed" and (two_times or not is_dit):
        raise InputError(f"init_time=reversed is for a DiT or SiT of one time, unlike {source}")
    if isinstance(network, DiT) and is_dit:
        require_same_size(weights, network, source)
        weights, remarks = as_ours(weights, network)
        notes += remarks
    require_fit(weights, network.state_dict(), f"init_from={source}")
    if time == "reversed":
        reverse_time(weights)
    network.load_state_dict(weights)
    return notes


def find_weights(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file or a run, and a note on which they are."""
    if source.is_dir():
        _, checkpoint = find_run(source)
        note = f"starting from the averaged weights of {checkpoint.path}"
        return checkpoint.weights("ema"), [note]
    content = read_file(source)
    for name in PLACES:
        found = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(found, Mapping) and found:  # some scripts leave an empty one
            what = f"'{name}' in {source}"
            return named_tensors(found, what), [f"starting from {what}"]
    return named_tensors(content, str(source)), [f"starting from {source}"]


def require_same_size(weights: Mapping[str, Tensor], network: DiT, source: Path) -> None:
    """Raises InputError, with the settings to change, if the sizes of two DiTs differ."""
    ours, theirs = (
        read_sizes({**state, "pos_embed": network.pos_embed}, str(source))
        for state in (network.state_dict(), weights)
    )
    other = [f"network.{x}={y}" for x, y in theirs.network.items() if y != ours.network[x]]
    if other:
        raise InputError(f"{source} is of a network of another size: set {' '.join(other)}")
    if theirs.shape[0] != ours.shape[0]:
        channels = theirs.shape[0]
        raise InputError(f"{source} is for {channels} channels, data.shape has {ours.shape[0]}")


def as_ours(weights: dict[str, Tensor], network: DiT) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a DiT or SiT, changed to fit our network where that is possible."""
    weights, expected = dict(weights), network.state_dict()
    notes = [f"the file does not hold the number of attention heads: {network.heads} are used"]

    if not any(name.startswith("s_embedder.") for name in weights):
        for name, tensor in network.s_embedder.state_dict(prefix="s_embedder.").items():
            weights[name] = tensor.clone()
        # The embedding of t - s starts at zero. Its first layer stays random, so that it can learn.
        for name in ("s_embedder.mlp.2.weight", "s_embedder.mlp.2.bias"):
            weights[name].zero_()

    # learn_sigma: the last layer of a DiT also returns a variance, as more channels of every pixel
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in weights and list(weights[name].shape[:1]) == [2 * len(expected[name])]:
            parts = weights[name].unflatten(0, (network.patch ** len(network.grid), -1))
            weights[name] = parts[:, : network.channels].flatten(0, 1)
            if name.endswith("weight"):
                notes.append("its learned variance is left out")

    if TABLE in weights and weights[TABLE].ndim == 2 and weights[TABLE].shape[0] > 0:
        rows, wanted = len(weights[TABLE]), len(expected[TABLE])
        if rows == wanted - 1:
            raise InputError(
                f"its label table has {rows} rows, the last one for no label: "
                f"set data.num_classes={rows - 1}"
            )
        if rows != wanted:
            weights[TABLE] = weights[TABLE][-1:].expand(wanted, -1).clone()
            notes.append(
                f"it has {rows - 1} classes, data.num_classes is {wanted - 1}: "
                "each starts as its null label"
            )

    positions = weights.get("pos_embed", expected["pos_embed"])
    like = expected["pos_embed"].shape
    fits = positions.ndim == 3 and positions.shape[2] == like[2]
    ours = (None, network.grid)  # None: learned ones; another grid may have as many tokens
    if fits and (positions.shape[1] != like[1] or grid_of(positions) not in ours):
        notes.append("it is of another image size: positions are computed for data.shape")
        positions = expected["pos_embed"]
    weights["pos_embed"] = positions
    return weights, notes


def reverse_time(weights: dict[str, Tensor]) -> None:
    """From G to -G(x, 1 - t), in place.

    The embedding of time is linear in cos(w t) and sin(w t) up to the first activation, and so is
    the embedding of 1 - t:

        cos(w - w t) = cos(w) cos(w t) + sin(w) sin(w t)
        sin(w - w t) = sin(w) cos(w t) - cos(w) sin(w t)
    """
    first = weights["t_embedder.mlp.0.weight"]
    w = frequencies(first.shape[1]).double()
    cosines, sines = first.double().chunk(2, dim=1)
    turned = [cosines * w.cos() + sines * w.sin(), cosines * w.sin() - sines * w.cos()]
    weights["t_embedder.mlp.0.weight"] = torch.cat(turned, dim=1).to(first.dtype)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        weights[name] = -weights[name]
