"""Adapts pretrained weights to a network with other classes, image size or channels.

Weights that both networks share are copied. New parts are initialized as follows:

    a new class             mean of the trained classes
    an untrained null label mean of the trained classes
    a new channel           zero: the network ignores it, and predicts 0 for it
    positions of a DiT      computed for the new size
    levels of a UNet        weights of the same level, counted from the highest resolution

All functions change `weights` in place and return notes. They leave weights that do not fit
unchanged; `require_fit` reports them.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from math import prod, sqrt

import torch
from torch import Tensor

#: Label embeddings of DiT and MLP: one row per class, with the null label as the last row.
TABLE = "y_embedder.embedding_table.weight"
#: Label embedding of a UNet: a linear map of sqrt(num_classes) onehot(y), or of zeros without a
#: label.
MAP, MAP_BIAS = "map_label.weight", "map_label.bias"
#: The level in the name of a UNet parameter.
LEVEL = re.compile(r"(?<=^enc\.)\d+x\d+(?=_)|(?<=^dec\.)\d+x\d+(?=_)")

#: The note on an untrained null label.
UNTRAINED = "its null label was never trained: it starts at the mean of its classes"

Weights = dict[str, Tensor]


def adapt_classes(
    weights: Weights,
    expected: Mapping[str, Tensor],
    theirs: Sequence[str] = (),
    ours: Sequence[str] = (),
    null_trained: bool = True,
) -> list[str]:
    """Adapts the weights to the classes of a network.

    Args:
        weights: The pretrained weights.
        expected: The state dict of the network.
        theirs: Class names of the weights. Empty if unknown.
        ours: Class names of the network.
        null_trained: Whether the null label of the weights was trained.

    Returns:
        Notes on the changes.
    """
    if TABLE in expected:
        has_rows = TABLE in weights and weights[TABLE].ndim == 2 and len(weights[TABLE])
        count = len(expected[TABLE]) - 1
        return adapt_table(weights, count, theirs, ours, null_trained) if has_rows else []
    if MAP in expected and MAP not in weights:
        weights[MAP], weights[MAP_BIAS] = (torch.zeros_like(expected[x]) for x in (MAP, MAP_BIAS))
        return ["it has no classes: all classes start as its unconditional model"]
    if MAP in expected:
        has_columns = weights[MAP].ndim == 2 and weights[MAP].shape[1]
        count = expected[MAP].shape[1]
        return adapt_map(weights, count, theirs, ours, null_trained) if has_columns else []
    if MAP in weights and MAP_BIAS in weights and "map_layer0.weight" in weights:
        return drop_map(weights, null_trained)
    return []


def adapt_table(
    weights: Weights, count: int, theirs: Sequence[str], ours: Sequence[str], null_trained: bool
) -> list[str]:
    """Adapts a label table (classes + 1, width) to `count` classes. Returns notes."""
    *rows, null = weights[TABLE]
    chosen, notes = matched(len(rows), count, theirs, ours)
    mean = torch.stack(rows).mean(0) if rows else null
    if rows and not null_trained:
        null = mean
        notes.append(UNTRAINED)
    if notes:
        classes = [mean if number is None else rows[number] for number in chosen]
        weights[TABLE] = torch.stack([*classes, null])
    return notes


def adapt_map(
    weights: Weights, count: int, theirs: Sequence[str], ours: Sequence[str], null_trained: bool
) -> list[str]:
    """Adapts the label map (width, classes) of a UNet to `count` classes. Returns notes."""
    added = weights[MAP] * sqrt(weights[MAP].shape[1])  # the contribution of each class
    chosen, notes = matched(added.shape[1], count, theirs, ours)
    mean = added.mean(1)
    if not null_trained and MAP_BIAS in weights:
        # The bias alone is the embedding without a label. Move it to the mean of the classes.
        weights[MAP_BIAS] = weights[MAP_BIAS] + mean
        added, mean = added - mean[:, None], torch.zeros_like(mean)
        notes.append(UNTRAINED)
    columns = added.unbind(1)
    if notes:
        classes = [mean if number is None else columns[number] for number in chosen]
        weights[MAP] = torch.stack(classes, dim=1) / sqrt(count)
    return notes


def drop_map(weights: Weights, null_trained: bool) -> list[str]:
    """Removes the label map of a UNet and keeps its unconditional model. Returns notes."""
    first = weights["map_layer0.weight"]
    if first.ndim != 2 or first.shape[1:] != weights[MAP_BIAS].shape:
        return []
    # Without a label, the map only adds its bias to the input of the next layer.
    none, begins = weights[MAP_BIAS], "as its unconditional model"
    if not null_trained and weights[MAP].ndim == 2 and weights[MAP].shape[1]:
        none = none + weights[MAP].mean(1) * sqrt(weights[MAP].shape[1])
        begins = "at the mean of its classes: its null label was never trained"
    weights["map_layer0.bias"] = weights["map_layer0.bias"] + first @ none
    del weights[MAP], weights[MAP_BIAS]
    return [f"its classes are dropped: the network starts {begins}"]


def matched(
    have: int, want: int, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[list[int | None], list[str]]:
    """Matches the `want` classes of a network to the `have` classes of the weights.

    Classes are matched by name if both lists of names are known. Otherwise they are matched by
    number, but only if the weights do not have more classes than the network.

    Returns:
        For each class of the network, the number of the class in the weights or None, and notes if
        the classes differ.
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
    begin = f"start at the mean of its {have}" if have else "start as its unconditional model"
    if not taken:
        return chosen, [f"{what}: all {begin}" if want else f"{what}: its classes are dropped"]
    others = f", new classes {begin}" if taken < want else ""
    return chosen, [f"{what}: {taken} copied {how}{others}"]


def adapt_channels(weights: Weights, expected: Mapping[str, Tensor]) -> list[str]:
    """Adapts the first and the last layer to the channels of a network. Returns notes."""
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
    what = f"it has {have} channels, data.shape has {want}"
    if want < have:
        return [f"{what}: its first {want} are copied"]
    if want == have + 1:
        return [f"{what}: the new channel starts at zero, so it is ignored and predicted as 0"]
    return [
        f"{what}: the {want - have} new channels start at zero, so they are ignored and predicted "
        "as 0"
    ]


def channel_axes(expected: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int]]:
    """Finds the parameters with one entry per channel. The first layer comes first.

    Yields:
        The name of the parameter, its axis of channels, and how often the channels repeat along
        that axis.
    """
    if "x_embedder.proj.weight" in expected:  # a DiT, whose tokens have the channels of each pixel
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
    """Replaces the positions of a DiT if its tokens form another grid. Returns notes.

    Args:
        weights: The pretrained weights.
        expected: The state dict of the network.
        moved: Whether the samples are known to have another size.
    """
    ours, theirs = expected["pos_embed"], weights.get("pos_embed")
    if theirs is None:
        weights["pos_embed"] = ours
        return []
    same_width = theirs.ndim == 3 and theirs.shape[2] == ours.shape[2]
    if same_width and (moved or theirs.shape[1] != ours.shape[1]):
        weights["pos_embed"] = ours
        return ["it has another image size: positions are computed for data.shape"]
    return []


def adapt_levels(weights: Weights, expected: Mapping[str, Tensor]) -> list[str]:
    """Renames the levels of a UNet, which are named by their sizes. Returns notes."""
    theirs, ours = (levels(state) for state in (weights, expected))
    if theirs == ours or len(theirs) != len(ours):
        return []
    new = dict(zip(theirs, ours, strict=True))
    renamed = {
        LEVEL.sub(lambda match: new[match[0]], name): tensor for name, tensor in weights.items()
    }
    weights.clear()
    weights.update(renamed)
    return [f"it has another image size: level {theirs[0]} becomes {ours[0]}, and so on"]


def levels(state: Mapping[str, Tensor]) -> list[str]:
    """The levels of a UNet, such as 32x32, from large to small."""
    found = {match[0] for name in state if (match := LEVEL.search(name))}
    return sorted(found, key=lambda level: prod(map(int, level.split("x"))), reverse=True)
