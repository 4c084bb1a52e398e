"""Weights to begin with: of a DiT or a SiT, which know one time, or of the very network that is trained.

A DiT has no embedding of t - s. Here it starts at zero, so that the network is the pretrained one at every s:

    F(x, t, s, y) = DiT(x, t, y)                       init_time "same"
    F(x, t, s, y) = -DiT(x, 1 - t, y)                  init_time "reversed": SiT's velocity leads from noise to data
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from soflow.errors import InputError
from soflow.interop.files import named_tensors, read_file, require_fit
from soflow.interop.sizes import read_sizes
from soflow.networks.dit import DiT
from soflow.networks.embeddings import frequencies
from soflow.run.folder import find_run

#: Where training scripts put the weights among other things, the averaged ones first.
PLACES = ("ema_model", "ema", "model", "state_dict")

TABLE = "y_embedder.embedding_table.weight"


def load_pretrained(
    network: nn.Module, source: Path, time: Literal["same", "reversed"] = "same"
) -> list[str]:
    """Gives `network` the weights that `source` holds: a file, or a run of ours, whose averaged weights are taken.

    Returns notes for people: what was taken, and what could not be as it is. Raises InputError for what cannot be read, and
    for weights of another network.
    """
    weights, notes = find_weights(source)
    if time == "reversed" and any(name.startswith("s_embedder.") for name in weights):
        raise InputError(
            f"init_time=reversed is for networks of one time; {source} knows t and t - s: leave it out"
        )
    if isinstance(network, DiT) and "x_embedder.proj.weight" in weights:
        require_same_size(weights, network, source)
        weights, remarks = as_ours(weights, network)
        notes += remarks
    elif time == "reversed":
        raise InputError("init_time=reversed is for a DiT or SiT: leave it out")
    require_fit(weights, network.state_dict(), f"init_from={source}")
    if time == "reversed":
        reverse_time(weights)
    network.load_state_dict(weights)
    return notes


def find_weights(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file or a run, and a note that says which they are."""
    if source.is_dir():
        _, checkpoint = find_run(source)
        return checkpoint.weights("ema"), [
            f"beginning with the averaged weights of {checkpoint.path}"
        ]
    content = read_file(source)
    places = [
        name
        for name in PLACES
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)
    ]
    places = [name for name in places if content[name]]  # some scripts leave an empty one
    if not places:
        return named_tensors(content, str(source)), [f"beginning with {source}"]
    return named_tensors(content[places[0]], f"'{places[0]}' in {source}"), [
        f"beginning with '{places[0]}' of {source}"
    ]


def require_same_size(weights: Mapping[str, Tensor], network: DiT, source: Path) -> None:
    """Raises InputError, naming the settings to change, unless the weights are of a DiT as large as `network`."""
    ours, theirs = (
        read_sizes({**state, "pos_embed": network.pos_embed}, str(source))
        for state in (network.state_dict(), weights)
    )
    other = [
        f"network.{key}={value}"
        for key, value in theirs.network.items()
        if value != ours.network[key]
    ]
    if other:
        raise InputError(f"{source} holds a network of another size: set {' '.join(other)}")
    if theirs.shape[0] != ours.shape[0]:
        raise InputError(
            f"{source} holds a network for {theirs.shape[0]} channels, data.shape has {ours.shape[0]}"
        )


def as_ours(weights: dict[str, Tensor], network: DiT) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a DiT or SiT as ours; what does not answer to ours is left for the comparison with the network."""
    weights, expected = dict(weights), network.state_dict()
    notes = [f"no file tells the number of attention heads: network.heads={network.heads} it is"]

    if not any(name.startswith("s_embedder.") for name in weights):
        weights |= {
            name: tensor.clone()
            for name, tensor in expected.items()
            if name.startswith("s_embedder.")
        }
        for name in ("s_embedder.mlp.2.weight", "s_embedder.mlp.2.bias"):
            weights[
                name
            ].zero_()  # the embedding of t - s; its first layer stays random, so that it can learn

    # learn_sigma: a DiT's last layer also puts out a variance, as further channels of every pixel
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in weights and list(weights[name].shape[:1]) == [2 * len(expected[name])]:
            pixels = network.patch**2
            weights[name] = (
                weights[name].unflatten(0, (pixels, -1))[:, : network.channels].flatten(0, 1)
            )
            if name.endswith("weight"):
                notes.append("its learned variance is left out")

    if TABLE in weights and weights[TABLE].ndim == 2 and weights[TABLE].shape[0] > 0:
        rows, wanted = len(weights[TABLE]), len(expected[TABLE])
        if rows == wanted - 1:
            raise InputError(
                f"its label table has {rows} rows, the last one for no label: set data.num_classes={rows - 1}"
            )
        if rows != wanted:
            weights[TABLE] = weights[TABLE][-1:].expand(wanted, -1).clone()
            notes.append(
                f"it has {rows - 1} classes, data.num_classes is {wanted - 1}: each begins as its null label"
            )

    positions = weights.get("pos_embed", expected["pos_embed"])
    like = expected["pos_embed"].shape
    if positions.ndim == 3 and positions.shape[1] != like[1] and positions.shape[2] == like[2]:
        notes.append("it is of another image size: positions are those of data.shape")
        positions = expected["pos_embed"]
    weights["pos_embed"] = positions
    return weights, notes


def reverse_time(weights: dict[str, Tensor]) -> None:
    """From G to -G(x, 1 - t), in place.

    The embedding of time is linear in cos(w t) and sin(w t) up to the first activation, and so is that of 1 - t:

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
