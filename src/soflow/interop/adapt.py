"""Weights of a network for one with other classes, another image size or other channels.

What both networks share is taken over. What is new begins as follows:

    a class               at the mean of the trained classes
    the null label        at that mean, too, if it was never trained
    a channel             at zero: the network does not see it, and predicts 0
    positions of a DiT    computed, as always
    levels of a UNet      take the weights of the same level, counted from the top

All functions change `weights` in place and return notes. Weights that do not fit are left as they
are, for `require_fit` to name.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from math import prod, sqrt

import torch
from torch import Tensor

#: A table with one row per class and the null label's as the last one (DiT, MLP).
TABLE = "y_embedder.embedding_table.weight"
#: A linear map of sqrt(num_classes) onehot(y); no class is a vector of zeros (UNet).
MAP, MAP_BIAS = "map_label.weight", "map_label.bias"
#: The level of a UNet that a parameter belongs to.
LEVEL = re.compile(r"(?<=^enc\.)\d+x\d+(?=_)|(?<=^dec\.)\d+x\d+(?=_)")

#: A note on a null label.
UNTRAINED = "its null label was never trained: ours begins at the mean of its classes"

Weights = dict[str, Tensor]


def adapt_classes(
    weights: Weights,
    expected: Mapping[str, Tensor],
    theirs: Sequence[str] = (),
    ours: Sequence[str] = (),
    null_trained: bool = True,
) -> list[str]:
    """Gives the weights the classes of a network.

    Args:
        weights: The weights.
        expected: The state of the network.
        theirs: Names of the classes of the weights; empty if they are not known.
        ours: Names of the classes of the network.
        null_trained: Whether the null label of the weights was trained.
    """
    if TABLE in expected and TABLE in weights and weights[TABLE].ndim == 2 and len(weights[TABLE]):
        *rows, null = weights[TABLE]
        count = len(expected[TABLE]) - 1
        chosen, notes = matched(len(rows), count, theirs, ours)
        mean = torch.stack(rows).mean(0) if rows else null
        if rows and not null_trained:
            null = mean
            notes.append(UNTRAINED)
        if notes:
            classes = [mean if number is None else rows[number] for number in chosen]
            weights[TABLE] = torch.stack([*classes, null])
        return notes
    if MAP in expected and MAP not in weights:
        weights[MAP], weights[MAP_BIAS] = (torch.zeros_like(expected[x]) for x in (MAP, MAP_BIAS))
        return ["it has no classes: all begin as its samples without a class"]
    if MAP in expected and weights[MAP].ndim == 2 and weights[MAP].shape[1]:
        added = weights[MAP] * sqrt(weights[MAP].shape[1])  # what a class adds to the bias
        count = expected[MAP].shape[1]
        chosen, notes = matched(added.shape[1], count, theirs, ours)
        mean = added.mean(1)
        if not null_trained and MAP_BIAS in weights:
            # The bias alone is no class: it moves to the mean of the classes.
            weights[MAP_BIAS] = weights[MAP_BIAS] + mean
            added, mean = added - mean[:, None], torch.zeros_like(mean)
            notes.append(UNTRAINED)
        columns = added.unbind(1)
        if notes:
            classes = [mean if number is None else columns[number] for number in chosen]
            weights[MAP] = torch.stack(classes, dim=1) / sqrt(count)
        return notes
    if MAP in weights and MAP_BIAS in weights and "map_layer0.weight" in weights:
        first = weights["map_layer0.weight"]
        if first.ndim == 2 and first.shape[1:] == weights[MAP_BIAS].shape:
            # Without a class the map adds its bias to what the next layer takes.
            none, begins = weights[MAP_BIAS], "as its samples without a class"
            if not null_trained and weights[MAP].ndim == 2 and weights[MAP].shape[1]:
                none = none + weights[MAP].mean(1) * sqrt(weights[MAP].shape[1])
                begins = "at the mean of its classes: its null label was never trained"
            weights["map_layer0.bias"] = weights["map_layer0.bias"] + first @ none
            del weights[MAP], weights[MAP_BIAS]
            return [f"its classes are left out: the network begins {begins}"]
    return []


def matched(
    have: int, want: int, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[list[int | None], list[str]]:
    """Which of `have` classes each of `want` classes is, and notes if they are not the same.

    By name, if the names of both are known; else by number, unless there are more classes than are
    wanted: then nobody knows which they are.
    """
    theirs, ours = (
        [unicodedata.normalize("NFC", name) for name in names] for names in (theirs, ours)
    )
    if len(theirs) == have and len(ours) == want and theirs and ours:
        chosen = [theirs.index(name) if name in theirs else None for name in ours]
        how = "by name"
    else:
        chosen = [n if n < have <= want else None for n in range(want)]
        how = "by number"
    if chosen == list(range(have)):
        return chosen, []
    taken = sum(number is not None for number in chosen)
    what = f"it has {have} classes, data.num_classes is {want}"
    begin = f"begin at the mean of its {have}" if have else "begin as its samples without a class"
    if not taken:
        return chosen, [f"{what}: all {begin}" if want else f"{what}: they are left out"]
    others = f", new ones {begin}" if taken < want else ""
    return chosen, [f"{what}: {taken} taken over {how}{others}"]


def adapt_channels(weights: Weights, expected: Mapping[str, Tensor]) -> list[str]:
    """Gives the first and the last layer the channels of a network."""
    places = list(channel_axes(expected))
    first = next(iter(places), None)
    if first is None or first[0] not in weights or weights[first[0]].ndim < 2:
        return []
    have, want = weights[first[0]].shape[1], expected[first[0]].shape[1]
    if have == want:
        return []
    for name, axis, groups in places:
        tensor = weights.get(name)
        if tensor is None or tensor.ndim <= axis or tensor.shape[axis] != groups * have:
            continue
        parts = tensor.unflatten(axis, (groups, have))
        shape = list(parts.shape)
        shape[axis + 1] = want
        copied = parts.new_zeros(shape)
        shared = min(have, want)
        copied.narrow(axis + 1, 0, shared).copy_(parts.narrow(axis + 1, 0, shared))
        weights[name] = copied.flatten(axis, axis + 1)
    what = f"it is for {have} channels, data.shape has {want}"
    if want < have:
        return [f"{what}: its first {want} are taken"]
    new = f"{want - have} new one{'s' if want > have + 1 else ''}"
    return [f"{what}: {new} at zero, not seen and predicted as 0"]


def channel_axes(expected: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int]]:
    """The parameters with one entry per channel, the first layer's first.

    Yields:
        Its name, the axis of its channels, and how often they are repeated along that axis.
    """
    if "x_embedder.proj.weight" in expected:  # a DiT: each token holds the channels of its pixels
        yield "x_embedder.proj.weight", 1, 1
        pixels = prod(expected["x_embedder.proj.weight"].shape[2:])
        yield from ((f"final_layer.linear.{name}", 0, pixels) for name in ("weight", "bias"))
    elif "x_embedder.weight" in expected:  # an MLP
        yield "x_embedder.weight", 1, 1
        yield from ((f"final_layer.{name}", 0, 1) for name in ("weight", "bias"))
    else:  # a UNet
        names = [name for name in expected if LEVEL.search(name)]
        tops = [x for x in names if x.startswith("enc.") and x.endswith("_conv.weight")]
        yield from ((name, 1, 1) for name in tops)
        yield from ((name, 0, 1) for name in names if "_aux_conv." in name)


def adapt_positions(weights: Weights, expected: Mapping[str, Tensor], moved: bool) -> list[str]:
    """Gives a DiT the positions of its own tokens.

    Args:
        weights: The weights.
        expected: The state of the network.
        moved: Whether the samples are known to have another size.
    """
    ours, theirs = expected["pos_embed"], weights.get("pos_embed")
    if theirs is None:
        weights["pos_embed"] = ours
        return []
    same_width = theirs.ndim == 3 and theirs.shape[2] == ours.shape[2]
    if same_width and (moved or theirs.shape[1] != ours.shape[1]):
        weights["pos_embed"] = ours
        return ["it is of another image size: positions are computed for data.shape"]
    return []


def adapt_levels(weights: Weights, expected: Mapping[str, Tensor]) -> list[str]:
    """Gives the levels of a UNet, which are named by their sizes, the names of a network's."""
    theirs, ours = (levels(state) for state in (weights, expected))
    if theirs == ours or len(theirs) != len(ours):
        return []
    new = dict(zip(theirs, ours, strict=True))
    renamed = {
        LEVEL.sub(lambda match: new[match[0]], name): tensor for name, tensor in weights.items()
    }
    weights.clear()
    weights.update(renamed)
    return [f"it is of another image size: level {theirs[0]} is {ours[0]} here, and so on"]


def levels(state: Mapping[str, Tensor]) -> list[str]:
    """The levels of a UNet, such as 32x32, largest first."""
    found = {match[0] for name in state if (match := LEVEL.search(name))}
    return sorted(found, key=lambda level: prod(map(int, level.split("x"))), reverse=True)
