"""Initial weights from a run, or from a DiT or SiT, which have a single time input.

A DiT has no embedding of t - s. This embedding starts at zero, so that the network initially equals
the pretrained one at every s:

    F(x, t, s, y) = DiT(x, t, y)         init_time "same"
    F(x, t, s, y) = -DiT(x, 1 - t, y)    init_time "reversed": time in SiT runs from noise to data

Classes, image size and channels may differ (see interop/adapt.py), and so may conditions (see
interop/adapt_conditions.py).
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

#: Keys under which training scripts store weights, EMA weights first.
PLACES = ("ema_model", "ema", "model", "state_dict")


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights and their origin.

    Attributes:
        weights: State dict of a network.
        note: Describes the origin, for the log.
        config: Configuration of the run, or None for a file.
        class_names: Names of the classes, if known.
        null_trained: Whether the null label was trained. The scripts of DiT and SiT train it.
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
        source: A file with weights, or a run, whose EMA weights are loaded.
        time: "same", or "reversed" for a SiT, whose time runs from noise to data.
        class_names: Class names of the network, to match them with the classes of a run.
        shape: Shape of one sample, to detect a run with another sample size.

    Returns:
        Notes on the loaded weights and their changes.

    Raises:
        InputError: If the weights cannot be read or belong to another network.
    """
    found = find_weights(source)
    require_same_kind(found.config, network, source)
    weights, expected, notes = dict(found.weights), network.state_dict(), [found.note]
    theirs = take_map(weights, map_channels(found.config))
    take_map(expected, map_channels(network))
    two_times = any(name.startswith("s_embedder.") for name in weights)
    is_dit = "x_embedder.proj.weight" in weights and isinstance(network, DiT)
    if time == "reversed" and (two_times or not is_dit):
        raise InputError(
            f"init_time=reversed needs a DiT or SiT with a single time input, unlike {source}"
        )
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
    """Reads weights from a file or a run. A weights file inside a run counts as that run."""
    which = next((name for name, file in WEIGHTS.items() if file == source.name), "ema")
    inside = source.name in WEIGHTS.values() and (source.parent / STATE).is_file()
    if source.is_dir() or inside:
        folder, checkpoint = find_run(source.parent if inside else source, which)
        config, data = folder.read_config(), DataRecord.read(folder.data)
        kind = "EMA weights" if which == "ema" else "raw weights"
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
        if isinstance(found, Mapping) and found:  # some scripts store an empty dict
            what = f"'{name}' in {source}"
            return Pretrained(named_tensors(found, what), f"starting from {what}")
    return Pretrained(named_tensors(content, str(source)), f"starting from {source}")


def require_same_kind(config: Config | None, network: nn.Module, source: Path) -> None:
    """Raises InputError with the setting to change if a run has another kind of network."""
    if config is None or config.network.name == OWN:
        return
    made = config.network.component
    if isinstance(made, type) and not isinstance(network, made):
        name = config.network.name
        raise InputError(f"{source} was trained with network.name={name}: set network.name={name}")


def require_same_size(weights: Mapping[str, Tensor], network: DiT, source: Path) -> None:
    """Raises InputError with the settings to change if the sizes of two DiTs differ."""
    ours, theirs = (
        {
            **read_sizes({**state, "pos_embed": network.pos_embed}, str(source)).network,
            **dit_options(state),
        }
        for state in (network.state_dict(), weights)
    )
    other = [f"network.{name}={size}" for name, size in theirs.items() if size != ours[name]]
    if other:
        raise InputError(f"{source} has a network of another size: set {' '.join(other)}")


def other_grid(weights: Mapping[str, Tensor], network: DiT) -> bool:
    """Whether fixed positions belong to another grid, possibly with equally many tokens."""
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3 or len(network.grid) != 2:
        return False
    return grid_of(positions) not in (None, network.grid)  # None: learned positions


def require_same_attention(config: Config | None, network: nn.Module, source: Path) -> list[str]:
    """Raises InputError if the attention differs from that of a run. For a file, returns notes.

    The shapes of weights do not show the number of heads, or whether positions are rotary.
    """
    if not isinstance(network, DiT | InContextDiT):
        return []
    rotary = isinstance(network, DiT) and network.rotary
    if config is None:
        notes = [f"the file does not store the number of attention heads: {network.heads} are used"]
        return notes + ["the file does not store network.rotary: true is used"] * rotary
    if (heads := getattr(config.network, "heads", network.heads)) != network.heads:
        raise InputError(f"{source} has {heads} attention heads: set network.heads={heads}")
    if getattr(config.network, "rotary", rotary) != rotary:
        word = str(not rotary).lower()
        raise InputError(f"{source} was trained with network.rotary={word}: set it here as well")
    if isinstance(network, InContextDiT):
        require_same_tokens(config, network, source)
    return []


def require_same_tokens(config: Config, network: InContextDiT, source: Path) -> None:
    """Raises InputError if a run has other condition tokens, because all share one table."""
    for key in ("class_tokens", "condition_tokens"):
        now = network.settings[key]
        if (before := getattr(config.network, key, now)) != now:
            raise InputError(
                f"{source} was trained with network.{key}={before}: set it here as well"
            )
    if (config.drawn_guidance is not None) != (network.guidance_embedder is not None):
        how = "with" if config.drawn_guidance else "without"
        raise InputError(
            f"{source} was trained {how} guidance scales as an input, for which in_context_dit has "
            "tokens: set objective.guidance.max_scale to the value of that run"
        )


def as_ours(weights: dict[str, Tensor], network: DiT) -> list[str]:
    """Converts weights of a DiT or SiT to a network with two times, in place. Returns notes."""
    if not any(name.startswith("s_embedder.") for name in weights):
        for name, tensor in network.s_embedder.state_dict(prefix="s_embedder.").items():
            weights[name] = tensor.clone()
        # The embedding of t - s starts at zero. Its first layer is random, so that it can learn.
        for name in ("s_embedder.mlp.2.weight", "s_embedder.mlp.2.bias"):
            weights[name].zero_()

    # With learn_sigma, a DiT also returns a variance, in extra channels of the last layer.
    notes = []
    _, channels, *patch = weights["x_embedder.proj.weight"].shape
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in weights and list(weights[name].shape[:1]) == [2 * prod(patch) * channels]:
            parts = weights[name].unflatten(0, (prod(patch), 2 * channels))
            weights[name] = parts[:, :channels].flatten(0, 1)
            if name.endswith("weight"):
                notes.append("its learned variance is dropped")
    return notes


def reverse_time(weights: dict[str, Tensor]) -> None:
    """Converts the weights of G to those of -G(x, 1 - t), in place.

    Up to the first activation, the time embedding is linear in cos(w t) and sin(w t). The embedding
    of 1 - t is linear in the same functions:

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
