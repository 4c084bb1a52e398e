"""Determines the sizes of a network from the names and shapes of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from soflow.errors import InputError
from soflow.networks.embeddings import grid_positions


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network.

    Attributes:
        network: Settings of the section `network`, without heads and dropout, which weights do not
            show.
        shape: Shape of one sample.
        num_classes: Number of classes, 0 without labels.
        augment_labels: Number of augmentation labels, 0 without them.
    """

    network: Mapping[str, Any]
    shape: tuple[int, ...]
    num_classes: int
    augment_labels: int


def read_sizes(weights: Mapping[str, Tensor], what: str) -> Sizes:
    """Determines the sizes of a DiT or of EDM's UNet.

    Args:
        weights: A state dict.
        what: Name of the weights in error messages.

    Returns:
        The sizes.

    Raises:
        InputError: If the weights belong to another network.
    """
    try:
        if "x_embedder.proj.weight" in weights:
            return dit_sizes(weights)
        if any(name.startswith("enc.") for name in weights):
            return unet_sizes(weights)
    except KeyError as error:
        raise InputError(f"{what} is incomplete: it lacks {error.args[0]}") from None
    except (ValueError, IndexError, ZeroDivisionError):  # missing or empty dimensions
        raise InputError(f"{what} has tensors with shapes that do not fit a DiT or UNet") from None
    raise InputError(f"{what} is neither a DiT (x_embedder.proj.weight) nor EDM's UNet (enc.*)")


def dit_sizes(weights: Mapping[str, Tensor]) -> Sizes:
    width, channels, patch, *more = weights["x_embedder.proj.weight"].shape
    positions = weights["pos_embed"]
    grid = grid_of(positions) if more else (positions.shape[1],)
    if grid is None:  # learned positions, which do not show the grid
        side = isqrt(positions.shape[1])
        grid = (side, side)
    rows, _ = weights["y_embedder.embedding_table.weight"].shape
    _, hidden = weights["blocks.0.mlp.fc2.weight"].shape
    ratio = hidden / width * (1.5 if dit_options(weights)["swiglu"] else 1)  # as of a plain MLP
    depth = len(numbers(weights, r"blocks\.(\d+)\."))
    network = {"patch": patch, "width": width, "depth": depth, "mlp_ratio": ratio}
    shape = (channels, *(side * patch for side in grid))
    return Sizes({"name": "dit", **network}, shape, rows - 1, augment_labels=0)


def dit_options(weights: Mapping[str, Tensor]) -> dict[str, bool]:
    """The options of a DiT that its weights reveal."""
    rows, columns = (weights[f"blocks.0.mlp.fc{i}.weight"].shape[i - 1] for i in (1, 2))
    return {"qk_norm": "blocks.0.attn.q_norm.weight" in weights, "swiglu": rows != columns}


def grid_of(positions: Tensor) -> tuple[int, int] | None:
    """The rows and columns of the token grid of fixed positions, or None for learned positions.

    Grids with equally many tokens differ only in these positions.
    """
    _, tokens, width = positions.shape
    for rows in sorted(range(1, tokens + 1), key=lambda rows: abs(rows - isqrt(tokens))):
        if tokens % rows == 0:
            expected = grid_positions((rows, tokens // rows), width).to(positions)
            if expected.shape == positions.shape and torch.allclose(expected, positions, atol=1e-2):
                return rows, tokens // rows
    return None


def unet_sizes(weights: Mapping[str, Tensor]) -> Sizes:
    found = {match[1] for name in weights if (match := re.match(r"enc\.(\d+x\d+)_", name))}
    sizes = {level: tuple(map(int, level.split("x"))) for level in found}  # (H, W)
    levels = sorted(sizes, key=lambda level: sizes[level], reverse=True)
    top = levels[0]
    model_channels, channels, _, _ = weights[f"enc.{top}_conv.weight"].shape
    embedding, frequencies = weights["map_layer0.weight"].shape
    widths = [weights[f"enc.{level}_block0.conv1.weight"].shape[0] for level in levels]
    attention = [level for level in levels if f"enc.{level}_block0.qkv.weight" in weights]
    network = {
        "name": "unet",
        "model_channels": model_channels,
        "channel_mult": [width // model_channels for width in widths],
        "blocks": len(numbers(weights, rf"enc\.{top}_block(\d+)\.")),
        "attention": [min(sizes[level]) for level in attention],
        "channel_mult_noise": frequencies // 2 // model_channels,
        "channel_mult_emb": embedding // model_channels,
    }
    augment = weights["map_augment.weight"].shape[1] if "map_augment.weight" in weights else 0
    classes = weights["map_label.weight"].shape[1] if "map_label.weight" in weights else 0
    return Sizes(network, (channels, *sizes[top]), num_classes=classes, augment_labels=augment)


def numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    """The numbers that the first group of `pattern` matches in the names."""
    return {int(match[1]) for name in weights if (match := re.match(pattern, name))}
