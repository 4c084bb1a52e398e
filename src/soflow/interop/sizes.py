"""Reads the sizes of a network off the names and shapes of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from soflow.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network.

    Attributes:
        network: Keys of the section `network` with their values, without heads and dropout, which
            weights do not reveal.
        shape: One sample's shape.
        num_classes: 0 without labels.
        augment_labels: 0 without augmentation labels.
    """

    network: Mapping[str, Any]
    shape: tuple[int, int, int]
    num_classes: int
    augment_labels: int


def read_sizes(weights: Mapping[str, Tensor], what: str) -> Sizes:
    """The sizes of a DiT or of EDM's UNet.

    Args:
        weights: A state dict.
        what: Its name in error messages.

    Raises:
        InputError: If the weights are of another network.
    """
    try:
        if "x_embedder.proj.weight" in weights:
            return dit_sizes(weights)
        if any(name.startswith("enc.") for name in weights):
            return unet_sizes(weights)
    except KeyError as error:
        raise InputError(f"{what} is incomplete: it lacks {error.args[0]}") from None
    except (ValueError, IndexError, ZeroDivisionError):  # dimensions that are missing or empty
        raise InputError(f"{what} has tensors of shapes that no DiT and no UNet has") from None
    raise InputError(f"{what} is neither a DiT (x_embedder.proj.weight) nor EDM's UNet (enc.*)")


def dit_sizes(weights: Mapping[str, Tensor]) -> Sizes:
    width, channels, patch, *_ = weights["x_embedder.proj.weight"].shape
    side = isqrt(weights["pos_embed"].shape[1]) * patch
    rows, _ = weights["y_embedder.embedding_table.weight"].shape
    hidden, _ = weights["blocks.0.mlp.fc1.weight"].shape
    depth = len(numbers(weights, r"blocks\.(\d+)\."))
    network = {"patch": patch, "width": width, "depth": depth, "mlp_ratio": hidden / width}
    return Sizes({"name": "dit", **network}, (channels, side, side), rows - 1, augment_labels=0)


def unet_sizes(weights: Mapping[str, Tensor]) -> Sizes:
    sides = sorted(numbers(weights, r"enc\.(\d+)x"), reverse=True)
    top = sides[0]
    model_channels, channels, _, _ = weights[f"enc.{top}x{top}_conv.weight"].shape
    embedding, frequencies = weights["map_layer0.weight"].shape
    widths = [weights[f"enc.{side}x{side}_block0.conv1.weight"].shape[0] for side in sides]
    network = {
        "name": "unet",
        "model_channels": model_channels,
        "channel_mult": [width // model_channels for width in widths],
        "blocks": len(numbers(weights, rf"enc\.{top}x{top}_block(\d+)\.")),
        "attention": [side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in weights],
        "channel_mult_noise": frequencies // 2 // model_channels,
        "channel_mult_emb": embedding // model_channels,
    }
    augment = weights["map_augment.weight"].shape[1] if "map_augment.weight" in weights else 0
    return Sizes(network, (channels, top, top), num_classes=0, augment_labels=augment)


def numbers(weights: Mapping[str, Tensor], pattern: str) -> set[int]:
    """The numbers that the group of `pattern` matches in the names."""
    return {int(match[1]) for name in weights if (match := re.match(pattern, name))}
