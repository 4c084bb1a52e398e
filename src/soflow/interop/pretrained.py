"""Initial weights: those of a DiT or a SiT, which take one time, or of a run.

A DiT has no embedding of t - s. Here that embedding starts at zero, so that the network equals the
pretrained one at every s:

    F(x, t, s, y) = DiT(x, t, y)         init_time "same"
    F(x, t, s, y) = -DiT(x, 1 - t, y)    init_time "reversed": SiT goes from noise to data

Classes, image size and channels may differ: interop/adapt.py. So may conditions:
interop/adapt_conditions.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from soflow.assemble import null_trained
from soflow.config import Config
from soflow.config.own import OWN
from soflow.data.dataset import DataRecord
from soflow.errors import InputError
from soflow.interop.adapt import adapt_channels, adapt_classes, adapt_levels, adapt_positions
from soflow.interop.adapt_conditions import adapt_conditions, map_channels, take_map
from soflow.interop.sizes import dit_options, grid_of, read_sizes
from soflow.interop.weights import named_tensors, read_file, require_fit
from soflow.networks.dit import DiT
from soflow.networks.embeddings import frequencies
from soflow.networks.in_context_dit import InContextDiT
from soflow.run.checkpoint import STATE, WEIGHTS
from soflow.run.folder import find_run

#: Names that training scripts give to weights, averaged ones first.
PLACES = ("ema_model", "ema", "model", "state_dict")


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of where they come from.

    Attributes:
        weights: The state of a network.
        note: Which weights they are.
        config: The configuration of their run; None for a file.
        class_names: Names of the classes, if they are known.
        null_trained: Whether the null label was trained. Scripts of DiT and SiT train it.
    """

    weights: dict[str, Tensor]
    note: str
    config: Config | None = None
    class_names: tuple[str, ...] = ()
    null_trained: bool = True

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.config.data.shape if self.config else None


def load_pretrained(
    network: nn.Module,
    source: Path,
    time: Literal["same", "reversed"] = "same",
    class_names: Sequence[str] = (),
    shape: Sequence[int] | None = None,
) -> list[str]:
    """Loads initial weights into a network.

    Args:
        network: The network.
        source: A file of weights, or a run, whose averaged weights are taken.
        time: "same", or "reversed" for a SiT, whose time runs from noise to data.
        class_names: Names of the network's classes, by which it takes over those of a run.
        shape: One sample's, to notice a run on samples of another size.

    Returns:
        Notes on what was loaded and what was changed.

    Raises:
        InputError: If the weights cannot be read or are of another network.
    """
    found = find_weights(source)
    require_same_kind(found.config, network, source)
    weights, expected, notes = dict(found.weights), network.state_dict(), [found.note]
    theirs = take_map(weights, map_channels(found.config))
    take_map(expected, map_channels(network))
    two_times = any(name.startswith("s_embedder.") for name in weights)
    is_dit = "x_embedder.proj.weight" in weights and isinstance(network, DiT)
    if time == "reversed" and (two_times or not is_dit):
        raise InputError(f"init_time=reversed is for a DiT or SiT of one time, unlike {source}")
    if isinstance(network, DiT) and is_dit:
        require_same_size(weights, network, source)
        notes += as_ours(weights, network)
        sizes = [tuple(one)[1:] for one in (shape, found.shape) if one is not None]
        notes += adapt_positions(
            weights, expected, len({*sizes}) > 1 or other_grid(weights, network)
        )
    notes += require_same_attention(found.config, network, source)
    notes += adapt_levels(weights, expected)
    notes += adapt_channels(weights, expected)
    notes += adapt_classes(weights, expected, found.class_names, class_names, found.null_trained)
    notes += adapt_conditions(weights, network.state_dict(), theirs)
    require_fit(weights, network.state_dict(), f"init_from={source}")
    if time == "reversed":
        reverse_time(weights)
    network.load_state_dict(weights)
    return notes


def find_weights(source: Path) -> Pretrained:
    """The weights in a file or a run. A file of weights in a run is known as well as the run."""
    which = next((name for name, file in WEIGHTS.items() if file == source.name), "ema")
    inside = source.name in WEIGHTS.values() and (source.parent / STATE).is_file()
    if source.is_dir() or inside:
        folder, checkpoint = find_run(source.parent if inside else source, which)
        config, data = folder.read_config(), DataRecord.read(folder.data)
        kind = "averaged weights" if which == "ema" else "raw weights"
        return Pretrained(
            weights=checkpoint.weights(which),
            note=f"starting from the {kind} of {checkpoint.path}",
            config=config,
            class_names=data.class_names if data else (),
            null_trained=null_trained(config, data),
        )
    content = read_file(source)
    for name in PLACES:
        found = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(found, Mapping) and found:  # some scripts leave an empty one
            what = f"'{name}' in {source}"
            return Pretrained(named_tensors(found, what), f"starting from {what}")
    return Pretrained(named_tensors(content, str(source)), f"starting from {source}")


def require_same_kind(config: Config | None, network: nn.Module, source: Path) -> None:
    """Raises InputError, with the setting to change, if a run has another kind of network."""
    if config is None or config.network.name == OWN:
        return
    made = config.network.component
    if isinstance(made, type) and not isinstance(network, made):
        name = config.network.name
        raise InputError(f"{source} is a run with network.name={name}: set network.name={name}")


def require_same_size(weights: Mapping[str, Tensor], network: DiT, source: Path) -> None:
    """Raises InputError, with the settings to change, if the sizes of two DiTs differ."""
    ours, theirs = (
        {
            **read_sizes({**state, "pos_embed": network.pos_embed}, str(source)).network,
            **dit_options(state),
        }
        for state in (network.state_dict(), weights)
    )
    other = [f"network.{name}={size}" for name, size in theirs.items() if size != ours[name]]
    if other:
        raise InputError(f"{source} is of a network of another size: set {' '.join(other)}")


def other_grid(weights: Mapping[str, Tensor], network: DiT) -> bool:
    """Whether fixed positions are of another grid, which may have as many tokens."""
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3 or len(network.grid) != 2:
        return False
    return grid_of(positions) not in (None, network.grid)  # None: learned ones


def require_same_attention(config: Config | None, network: nn.Module, source: Path) -> list[str]:
    """Raises InputError if a run's attention is another one; notes if nobody knows.

    The shapes of weights tell neither the heads nor whether positions are rotary.
    """
    if not isinstance(network, DiT | InContextDiT):
        return []
    rotary = isinstance(network, DiT) and network.rotary
    if config is None:
        notes = [f"the file does not hold the number of attention heads: {network.heads} are used"]
        return notes + ["network.rotary=true is taken to be the file's, too"] * rotary
    if (heads := getattr(config.network, "heads", network.heads)) != network.heads:
        raise InputError(f"{source} has {heads} attention heads: set network.heads={heads}")
    if getattr(config.network, "rotary", rotary) != rotary:
        word = str(not rotary).lower()
        raise InputError(f"{source} was trained with network.rotary={word}: set it, too")
    if isinstance(network, InContextDiT):
        require_same_tokens(config, network, source)
    return []


def require_same_tokens(config: Config, network: InContextDiT, source: Path) -> None:
    """Raises InputError if a run's conditions have other tokens: one table holds those of all."""
    for key in ("class_tokens", "condition_tokens"):
        now = network.settings[key]
        if (before := getattr(config.network, key, now)) != now:
            raise InputError(f"{source} was trained with network.{key}={before}: set it, too")
    if (config.drawn_guidance is not None) != (network.guidance_embedder is not None):
        how = "with" if config.drawn_guidance else "without"
        raise InputError(
            f"{source} was trained {how} guidance scales as an input, and in_context_dit has "
            "tokens for them: set objective.guidance.max_scale as there"
        )


def as_ours(weights: dict[str, Tensor], network: DiT) -> list[str]:
    """Changes the weights of a DiT or SiT to those of a network with two times, in place."""
    if not any(name.startswith("s_embedder.") for name in weights):
        for name, tensor in network.s_embedder.state_dict(prefix="s_embedder.").items():
            weights[name] = tensor.clone()
        # The embedding of t - s starts at zero. Its first layer stays random, so that it can learn.
        for name in ("s_embedder.mlp.2.weight", "s_embedder.mlp.2.bias"):
            weights[name].zero_()

    # learn_sigma: the last layer of a DiT also returns a variance, as more channels of every pixel
    notes = []
    _, channels, *patch = weights["x_embedder.proj.weight"].shape
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in weights and list(weights[name].shape[:1]) == [2 * prod(patch) * channels]:
            parts = weights[name].unflatten(0, (prod(patch), 2 * channels))
            weights[name] = parts[:, :channels].flatten(0, 1)
            if name.endswith("weight"):
                notes.append("its learned variance is left out")
    return notes


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
