"""Translates the flat YAML settings of the reference implementation, and reports on each one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soflow.config import Config, read_recipe, recipe_names
from soflow.config.reading import lookup, parse_yaml, put, read_text, validate
from soflow.data.sources import SOURCES
from soflow.errors import InputError, shortened
from soflow.interop.sizes import Sizes
from soflow.networks.dit import SIZES

#: Keys of the reference implementation, and the keys here with the same meaning.
KEYS = {
    "noising_type": "noising.name",
    "coefficient_type": "noising.parameterization",
    "velocity_loss_ratio": "objective.flow_matching_share",
    "p": "objective.p",
    "eps": "objective.eps",
    "l_schedule": "objective.middle.schedule",
    "l_init_ratio": "objective.middle.init",
    "l_end_ratio": "objective.middle.end",
    "cfg_scale": "objective.guidance.scale",
    "mix_ratio": "objective.guidance.mix",
    "cfg_drop_rate": "objective.guidance.label_dropout",
    "cfg_decay_time": "objective.guidance.decay_time",
    "total_steps": "train.steps",
    "batch_size": "train.batch_size",
    "ema_decay_rate": "ema.decay",
    "learning_rate": "optimizer.lr",
    "betas": "optimizer.betas",
    "weight_decay": "optimizer.weight_decay",
    "dataset_type": "data.source",
}

#: Keys with a list of three values: for flow matching, s and t.
TIMES = {
    name: [f"objective.times.{density}.{part}" for density in ("flow_matching", "s", "t")]
    for name, part in (("time_mean", "mean"), ("time_std", "std"))
}

#: Values that are named differently.
WORDS = {
    "noising_type": {"Linear": "linear", "Trig": "trig"},
    "coefficient_type": {"Euler": "euler", "Trig": "trig"},
    "l_schedule": {
        "Const": "constant",
        "Linear": "linear",
        "Cosine": "cosine",
        "Exponent": "exponential",
    },
}

#: Settings that are read from the weights instead.
READ_OFF = ("model_type", "data_size")
KNOWN = {*KEYS, *TIMES, *READ_OFF}

#: (key of the reference, key here) of each setting that can be translated.
PAIRS = [*KEYS.items(), *((name, key) for name, keys in TIMES.items() for key in keys)]


@dataclass(frozen=True)
class Translation:
    """A translated configuration, and a readable line on each setting.

    Attributes:
        config: The configuration.
        recipe: The included recipe that provides the missing settings.
        used: How each known setting was translated.
        unused: Settings with unknown names.
        assumed: Settings that the file lacks, with their values from the recipe.
    """

    config: Config
    recipe: str
    used: list[str]
    unused: list[str]
    assumed: list[str]


def read_settings(file: Path) -> dict[str, Any]:
    """Reads the YAML file. Raises InputError if it has no settings of the reference."""
    if not file.is_file():
        raise InputError(f"{file} does not exist: check the path")
    try:
        text = read_text(file)
    except InputError as error:
        raise InputError(
            f"{error}: pass the YAML file with --config, and the checkpoint as the argument"
        ) from None
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict) or not values.keys() & KNOWN:
        raise InputError(
            f"{file} is not a YAML file of the reference implementation: it has none of the keys "
            f"{', '.join(KEYS)}"
        )
    return {str(name): value for name, value in values.items()}


def translate(settings: Mapping[str, Any], sizes: Sizes, heads: int | None = None) -> Translation:
    """Translates flat settings to a configuration.

    Args:
        settings: The flat settings.
        sizes: Sizes of the network.
        heads: Number of attention heads of a DiT. By default, derived from `model_type`.

    Returns:
        The configuration, and how each setting was translated.

    Raises:
        InputError: If a value is invalid, if model_type contradicts the weights, or if the number
            of heads is unknown.
    """
    require_kind(settings, sizes)
    recipe = recipe_for(settings, sizes)
    values = read_recipe(recipe).model_dump(mode="json")
    translated = list(in_our_words(settings))
    for _, key, value in translated:
        put(values, key, value)
    values["description"] = "imported from a checkpoint of the reference implementation"
    values["data"] |= {"shape": list(sizes.shape), "num_classes": sizes.num_classes}
    values["network"] |= sizes.network
    free = ["ema.every"]  # keys that neither settings nor weights determine
    if sizes.network["name"] == "dit":
        values["network"]["heads"] = heads_of(settings, sizes) if heads is None else heads
    elif heads is not None:
        raise InputError(
            "heads is for a DiT, but the weights are of a UNet: leave out heads (--heads)"
        )
    else:
        free.append("network.dropout")
    if sizes.augment_labels:
        free.append("data.augment")
    else:
        values["data"]["augment"] = 0.0
    if not sizes.num_classes:
        values["objective"]["guidance"]["scale"] = 1.0
    config = validate(values)

    lines = {name: f"{name}: {shortened(str(value))}" for name, value in settings.items()}
    used = [f"{lines[name]} -> {key}={lookup(config, key)}" for name, key, _ in translated]
    used += [f"{lines[x]} (sizes are read from the weights)" for x in READ_OFF if x in lines]
    unused = [line for name, line in lines.items() if name not in KNOWN]
    known = {key for _, key, _ in translated}
    missing = sorted((key, name) for name, key in PAIRS if key not in known)
    assumed = [
        f"{key}={lookup(config, key)}" + f" (the YAML has {name}: null)" * (name in settings)
        for key, name in missing
    ]
    assumed += [f"{key}={lookup(config, key)}" for key in free]
    return Translation(config, recipe, used, unused, assumed)


def in_our_words(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yields (key of the reference, key here, value here) for each translatable setting."""
    for name, value in settings.items():
        if name == "cfg_scale" and (
            value is None or (isinstance(value, int | float) and value <= 1)
        ):
            yield name, KEYS[name], 1.0  # the reference only uses guidance above 1
        elif value is None:
            continue
        elif name in TIMES:
            if not isinstance(value, list) or len(value) != 3:
                given = shortened(str(value))
                what = "three numbers, for flow matching, s and t"
                raise InputError(f"{name} is {given}: it must be {what}")
            yield from ((name, key, number) for key, number in zip(TIMES[name], value, strict=True))
        elif name in WORDS:
            if not isinstance(value, str) or value not in WORDS[name]:
                given = shortened(str(value))
                raise InputError(f"{name} is {given}: it must be one of {', '.join(WORDS[name])}")
            yield name, KEYS[name], WORDS[name][value]
        elif name == "dataset_type":
            yield from ((name, key, ours) for key, ours in source_of(str(value)).items())
        elif name in KEYS:
            yield name, KEYS[name], value


def source_of(dataset_type: str) -> dict[str, str]:
    """The data settings for a dataset type. An unknown type keeps its name."""
    for name, recipe in (("cifar", "cifar10"), ("imagenet", "imagenet256-b2")):
        if name in dataset_type.lower():
            data = read_recipe(recipe).data
            return {"data.source": data.source, "data.path": data.path}
    known = (name for name in SOURCES if name in dataset_type.lower())
    return {"data.source": next(known, dataset_type)}


def model_type(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Size and patch of a DiT, such as ("XL", "2") for DiT-XL-2. ("", "") for other names."""
    match str(settings.get("model_type")).split("-"):
        case ["DiT", size, patch] if size in SIZES:
            return size, patch
    return "", ""


def require_kind(settings: Mapping[str, Any], sizes: Sizes) -> None:
    """Raises InputError if model_type names another kind of network than the weights have."""
    kind = str(settings.get("model_type")).lower()
    if kind.startswith(("dit", "unet")) and not kind.startswith(sizes.network["name"]):
        found = sizes.network["name"]
        raise InputError(
            f"model_type is {settings['model_type']}, but the weights are of a {found}: pass the "
            "settings of this checkpoint"
        )


def heads_of(settings: Mapping[str, Any], sizes: Sizes) -> int:
    """The number of attention heads of a DiT, which follows only from model_type."""
    given, (size, _) = shortened(str(settings.get("model_type"))), model_type(settings)
    if not size:
        raise InputError(
            f"the number of attention heads is unknown, because model_type {given} is not "
            f"DiT-{{{','.join(SIZES)}}}-PATCH: pass heads (--heads N)"
        )
    heads, width = SIZES[size][2], sizes.network["width"]
    if width % heads:
        raise InputError(
            f"the width {width} of the weights is not a multiple of the {heads} attention heads of "
            f"model_type {given}: pass heads (--heads N)"
        )
    return heads


def recipe_for(settings: Mapping[str, Any], sizes: Sizes) -> str:
    """The name of the included recipe that is most similar to this run."""
    network = sizes.network
    if network["name"] == "unet":
        return "cifar10"
    found = {(depth, width): size for size, (depth, width, _) in SIZES.items()}
    size = found.get((network["depth"], network["width"]), "")
    names = [
        f"imagenet256-{size}{network['patch']}",
        "imagenet256-" + "".join(model_type(settings)),
    ]
    fitting = (name.lower() for name in names if name.lower() in recipe_names())
    return next(fitting, "imagenet256-b2")
