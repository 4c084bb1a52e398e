"""The flat YAML of the reference implementation, in our words; nothing in it is dropped in silence."""

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

#: Its keys, and ours with the same meaning.
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

#: Its keys whose three entries are of flow matching, s and t.
TIMES = {
    name: [f"objective.times.{density}.{part}" for density in ("flow_matching", "s", "t")]
    for name, part in (("time_mean", "mean"), ("time_std", "std"))
}

#: Its words, where ours are others.
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

#: What the weights tell better.
READ_OFF = ("model_type", "data_size")


@dataclass(frozen=True)
class Translation:
    """Our configuration, and for people a line on each setting: what it became, or that nothing here answers to it."""

    config: Config
    recipe: str  # the shipped one that has the rest
    used: list[str]
    unused: list[str]  # names that are not known here
    assumed: list[str]  # what the file does not tell, as the recipe has it


def read_settings(file: Path) -> dict[str, Any]:
    """The flat mapping that the file holds. Raises InputError for anything else."""
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    try:
        text = read_text(file)
    except InputError as error:
        raise InputError(
            f"{error}: --config takes the YAML file, the checkpoint stands before it"
        ) from None
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict) or not values.keys() & {*KEYS, *TIMES, *READ_OFF}:
        raise InputError(
            f"{file} is no YAML of the reference implementation: it sets none of {', '.join(KEYS)}"
        )
    return {str(name): value for name, value in values.items()}


def words(value: Any) -> str:
    """A setting's value for people."""
    return shortened(str(value))


def translate(settings: Mapping[str, Any], sizes: Sizes, heads: int | None = None) -> Translation:
    """Our configuration of a run with these flat settings and a network of these sizes.

    heads: attention heads of a DiT; None takes them from the setting model_type. Raises InputError for values that cannot
    be, for a model_type that the weights are not of, and for a DiT whose heads are not known.
    """
    require_kind(settings, sizes)
    recipe = recipe_for(settings, sizes)
    values = read_recipe(recipe).model_dump(mode="json")
    told = list(in_our_words(settings))
    for _, key, value in told:
        put(values, key, value)
    values["description"] = "imported from a checkpoint of the reference implementation"
    values["data"] |= {"shape": list(sizes.shape), "num_classes": sizes.num_classes}
    values["network"] |= sizes.network
    if sizes.network["name"] == "dit":
        values["network"]["heads"] = heads_of(settings, sizes) if heads is None else heads
    elif heads is not None:
        raise InputError("--heads is for a DiT, and the weights are a UNet's: leave it out")
    if not sizes.augment_labels:
        values["data"]["augment"] = 0.0
    if not sizes.num_classes:
        values["objective"]["guidance"]["scale"] = 1.0
    config = validate(values)

    used = [
        f"{name}: {words(settings[name])} -> {key}={lookup(config, key)}" for name, key, _ in told
    ]
    used += [
        f"{name}: {words(settings[name])} (the sizes are those of the weights)"
        for name in READ_OFF
        if name in settings
    ]
    unused = [
        f"{name}: {words(value)}"
        for name, value in settings.items()
        if name not in {*KEYS, *TIMES, *READ_OFF}
    ]
    known = {key for _, key, _ in told}
    places = {
        key: name
        for name in KEYS.keys() | TIMES.keys()
        for key in (TIMES.get(name) or [KEYS[name]])
    }
    assumed = [
        f"{key}={lookup(config, key)}"
        + (f" (the YAML has {name}: null)" if name in settings else "")
        for key, name in sorted(places.items())
        if key not in known
    ]
    assumed += [f"{key}={lookup(config, key)}" for key in untold(sizes)]
    return Translation(config, recipe, used, unused, assumed)


def untold(sizes: Sizes) -> list[str]:
    """Keys that no known setting tells, nor the weights."""
    if sizes.network["name"] == "dit":
        return ["ema.every"]
    return ["ema.every", "network.dropout", *(["data.augment"] if sizes.augment_labels else [])]


def in_our_words(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(its key, our key, our value) of every setting that has a value and a place here."""
    for name, value in settings.items():
        if name == "cfg_scale" and (
            value is None or (isinstance(value, int | float) and value <= 1)
        ):
            yield name, KEYS[name], 1.0  # it guides above 1 only
        elif value is None:
            continue
        elif name in TIMES:
            if not isinstance(value, list) or len(value) != 3:
                raise InputError(
                    f"{name} is {words(value)}: it must list three numbers, of flow matching, s and t"
                )
            yield from ((name, key, number) for key, number in zip(TIMES[name], value, strict=True))
        elif name in WORDS:
            if not isinstance(value, str) or value not in WORDS[name]:
                raise InputError(f"{name} is {words(value)}: known are {', '.join(WORDS[name])}")
            yield name, KEYS[name], WORDS[name][value]
        elif name == "dataset_type":
            yield from ((name, key, ours) for key, ours in source_of(str(value)).items())
        elif name in KEYS:
            yield name, KEYS[name], value


def source_of(dataset_type: str) -> dict[str, str]:
    """Where its data are to be found, in our keys; under its own name where we know none."""
    for name, recipe in (("cifar", "cifar10"), ("imagenet", "imagenet256-b2")):
        if name in dataset_type.lower():
            data = read_recipe(recipe).data
            return {"data.source": data.source, "data.path": data.path}
    return {
        "data.source": next(
            (name for name in SOURCES if name in dataset_type.lower()), dataset_type
        )
    }


def model_type(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Size and patch that model_type names, such as ("XL", "2") for DiT-XL-2; ("", "") for any other."""
    match str(settings.get("model_type")).split("-"):
        case ["DiT", size, patch] if size in SIZES:
            return size, patch
    return "", ""


def require_kind(settings: Mapping[str, Any], sizes: Sizes) -> None:
    """Raises InputError where model_type names one kind of network and the weights are the other."""
    kind = str(settings.get("model_type")).lower()
    if kind.startswith(("dit", "unet")) and not kind.startswith(sizes.network["name"]):
        raise InputError(
            f"model_type is {settings['model_type']}, but the weights are a {sizes.network['name']}'s"
        )


def heads_of(settings: Mapping[str, Any], sizes: Sizes) -> int:
    """The attention heads of the size that model_type names; weights do not tell them."""
    size, _ = model_type(settings)
    if not size:
        raise InputError(
            f"the number of attention heads cannot be read off the weights, and model_type, {settings.get('model_type')}, "
            f"is none of DiT-{{{','.join(SIZES)}}}-PATCH: give --heads N"
        )
    heads = SIZES[size][2]
    if sizes.network["width"] % heads:
        raise InputError(
            f"the {heads} attention heads of model_type {settings['model_type']} do not divide the weights' width, "
            f"{sizes.network['width']}: give --heads N"
        )
    return heads


def recipe_for(settings: Mapping[str, Any], sizes: Sizes) -> str:
    """The shipped recipe of the paper's run that this one is most like."""
    network = sizes.network
    if network["name"] == "unet":
        return "cifar10"
    same = [
        size
        for size, (depth, width, _) in SIZES.items()
        if (depth, width) == (network["depth"], network["width"])
    ]
    for size, patch in ((same[0] if same else "", network["patch"]), model_type(settings)):
        if f"imagenet256-{size}{patch}".lower() in recipe_names():
            return f"imagenet256-{size}{patch}".lower()
    return "imagenet256-b2"
