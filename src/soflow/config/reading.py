"""Reads recipes, YAML files and `key=value` overrides into a Config.

Every mistake raises an InputError with a message of one line.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from soflow.config.optimizer_classes import has_betas
from soflow.config.own import OWN
from soflow.config.parsing import parse_yaml as parse_yaml
from soflow.config.parsing import read_text as read_text
from soflow.config.schema import Config
from soflow.config.sections import chosen_from, section_of
from soflow.errors import MESSAGE_LENGTH, InputError, in_short, shortened
from soflow.objectives import OBJECTIVES

RECIPES = files("soflow") / "recipes"
#: The file that only the folder of a comparison has.
COMPARISON = "cost.json"
#: Guidance settings that are kept when the objective changes.
COMMON = ("scale", "label_dropout")
COMMON_KEYS = tuple(f"objective.guidance.{key}=" for key in COMMON)
#: Keys that were renamed, with their new names.
RENAMED = {
    "path": "noising",
    "objective.lambda_": "objective.flow_matching_share",
    "objective.velocity_share": "objective.flow_matching_share",
    "objective.step_share": "objective.flow_matching_share = 1 - step_share",
}
#: Keys that older runs lack, with the values that these runs were trained with.
BEFORE: Mapping[str, Any] = {"ema.rampup": 0.0}
NO_NAMES: Mapping[str, str] = {}
#: Nested sections as read from YAML, before validation.
Values = dict[str, Any]


def recipe_names() -> list[str]:
    """The names of the recipes included in the package."""
    names = (entry.name for entry in RECIPES.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        recipe: The name of an included recipe, the path of a YAML file, or a run folder.
        overrides: `key=value` strings with dotted keys, such as `train.steps=2000`.

    Returns:
        The configuration.

    Raises:
        InputError: If the recipe or a key is unknown (the message suggests the nearest name), or a
            value is invalid.

    Example:
        >>> import soflow
        >>> config = soflow.read_recipe("digits", ["train.steps=500", "optimizer.lr=5e-4"])
        >>> config.train.steps, config.optimizer.lr
        (500, 0.0005)
    """
    return with_overrides(validate(read_yaml(str(recipe))), overrides)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `key=value` overrides applied."""
    if isinstance(overrides, str):
        raise InputError(f"overrides must be a list, such as ['{overrides}'], not a string")
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    override(values, overrides)
    return validate(values)


def keys_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """The keys of `key=value` overrides."""
    return tuple(text.partition("=")[0].strip() for text in overrides)


def has_guidance(name: object) -> bool:
    """Whether `name` is an objective with a section `guidance`."""
    return name in OBJECTIVES and "guidance" in section_of(OBJECTIVES[name], name).model_fields


def override(values: Values, overrides: Sequence[str]) -> None:
    """Applies `key=value` overrides to plain values."""
    change(values, parsed(overrides))


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """The keys and parsed values of `key=value` overrides."""
    settings = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}' is not a setting: write key=value, e.g. train.steps=2000")
        key = key.strip()
        what = f"the value '{shortened(value)}' of {shortened(key)}"
        settings.append((key, value if key in TEXT_KEYS else parse_yaml(value, what)))
    return settings


def change(values: Values, settings: Sequence[tuple[str, Any]]) -> None:
    """Applies dotted settings to plain values.

    The names of the network, objective and optimizer come first, since they determine which other
    keys exist.
    """
    names = ("network.name", "objective.name", "optimizer.name")
    for key, value in sorted(settings, key=lambda setting: setting[0] not in names):
        if key == "network.name" and value != values["network"]["name"]:
            values["network"] = {}  # each network has its own keys
        if key == "objective.name" and value != values["objective"]["name"]:
            values["objective"] = common(values["objective"], value)
        if key == "optimizer.name" and str(value).lower() != values["optimizer"]["name"].lower():
            values["optimizer"] = same_for(values["optimizer"], str(value))
        put(values, key, value)


def common(objective: Values, name: object) -> Values:
    """The settings that are kept when the objective changes: guidance scale and label dropout."""
    if not has_guidance(name) or "guidance" not in objective:
        return {}
    return {"guidance": {x: y for x, y in objective["guidance"].items() if x in COMMON}}


def same_for(optimizer: Values, name: str) -> Values:
    """The settings that are kept when the optimizer changes: all but options and unusable betas."""
    left = ("options",) if has_betas(name) else ("options", "betas")
    return {key: value for key, value in optimizer.items() if key not in left}


def read_yaml(recipe: str) -> Values:
    """The plain values of a recipe name, a YAML file or a run folder."""
    path = Path(recipe).expanduser()
    if (path / "config.yaml").is_file():  # a run folder
        path = path / "config.yaml"
    known = recipe_names()
    if recipe in known:
        text = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif path.suffix not in (".yaml", ".yml"):
        raise InputError(unknown_recipe(recipe, path, known))
    elif not path.is_file():
        raise InputError(f"{recipe} does not exist: check the path")
    else:
        text = read_text(path)
    values = parse_yaml(text, recipe)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"{recipe} must contain sections such as data and network, not {kind}")
    if values.pop("version", None) is not None:  # the config.yaml of a run
        complete(values)
    return values


def unknown_recipe(recipe: str, path: Path, known: list[str]) -> str:
    """The message for a recipe that does not exist. Data in its place may be what was meant."""
    if (path / COMPARISON).is_file():
        return f"{recipe} is a comparison: choose one of the runs in it"
    if (path / "checkpoints").is_dir():
        return f"{recipe} has checkpoints but no config.yaml: restore config.yaml"
    wrong = f"no recipe or run folder is named '{recipe}'"
    images = recipe and (path.is_dir() or path.suffix == ".zip")
    meant = "images" if images else "table" if path.suffix in (".csv", ".tsv") else ""
    if not meant or not path.exists():
        return wrong + nearest(recipe, known)
    close = get_close_matches(recipe, known, n=1)
    choice = f"choose {close[0]}, or " if close else ""
    return f"{wrong}: {choice}train on {recipe} with the recipe {meant} and data.path={recipe}"


def complete(values: Values) -> None:
    """Adds keys that older runs lack to the plain values of a run."""
    for key, value in BEFORE.items():
        section, name = key.split(".")
        place = values.setdefault(section, {})
        if isinstance(place, dict):
            place.setdefault(name, value)


def put(values: Values, key: str, value: Any) -> None:
    """Sets a dotted key and creates missing sections."""
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(unknown_key(key, values))
        place = inner
    place[last] = value


def validate(values: Values) -> Config:
    """Builds the configuration from plain values. Raises InputError for the first mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, values)) from None


def explain(error: ValidationError, values: Values, within: tuple[str, ...] = ()) -> str:
    """Describes the first mistake in one line."""
    first = error.errors()[0]
    place = (*within, *map(str, first["loc"]))
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown_key(key, values)
    if first["type"] == "value_error":
        inner = first["ctx"]["error"]
        if isinstance(inner, ValidationError):  # from the section of a registered class
            return explain(inner, values, place)
        text = str(inner)[:MESSAGE_LENGTH]  # from our own checks: a complete message
        return f"{key}.name: {text}" if text.startswith("unknown ") else text
    if first["type"] == "missing":
        return f"{key} is missing: set it"
    message = first["msg"].replace("Input should be", "it must be").partition(", unable to")[0]
    return f"{shortened(key)} is {in_short(first['input'])}: {message}"


def unknown_key(key: str, values: Values) -> str:
    """The message for an unknown key: its new name if it was renamed, or the nearest keys.

    For a key of `network` or `objective`, the message lists the keys of the chosen class, nearest
    first.
    """
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"unknown key {in_short(key)}: it is now {new}{key.removeprefix(old)}"
    section, dot, setting = key.partition(".")
    sections = list(Config.model_fields)
    if section not in sections and (meant := get_close_matches(section, sections, 1, 0.75)):
        return f"unknown key {in_short(key)}: did you mean {meant[0]}{dot}{setting}?"
    found = {name: chosen_from(field.metadata) for name, field in Config.model_fields.items()}
    choices = {name: chosen for name, chosen in found.items() if chosen is not None}
    names = {name: chosen.name(values.get(name)) for name, chosen in choices.items()}
    known = known_keys(names)
    own = [x for x in known if x.startswith(f"{section}.") and x != f"{section}.name"]
    if section not in choices or not setting or not own:
        return f"unknown key {in_short(key)}{nearest(key, known)}"
    last = setting.split(".")[-1]
    own.sort(key=lambda x: -SequenceMatcher(None, x.split(".")[-1], last).ratio())
    chosen = choices[section]
    others = [x for x in chosen.registry if setting in chosen.section(x).model_fields]
    elsewhere = [x for x in known if x.split(".")[-1] == last and x not in own]
    where = f", an option of {', '.join(others)}" if others else ""
    missing = f"{section}.name={names[section]} has no {shortened(setting)}{where}"
    question = f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else ""
    return f"unknown key {in_short(key)}: {missing}; its keys are {', '.join(own)}{question}"


def fields(
    model: type[BaseModel] = Config, prefix: str = "", names: Mapping[str, str] = NO_NAMES
) -> Iterator[tuple[str, FieldInfo]]:
    """All dotted keys with their fields, for the network and objective in `names` or for all."""
    for name, field in model.model_fields.items():
        chosen = chosen_from(field.metadata)
        kinds: list[Any] = [field.annotation]
        if chosen is not None:
            own = [OWN] if names.get(name) == OWN else []
            chosen_names = [*own, *(x for x in chosen.registry if names.get(name, x) == x)]
            kinds = [chosen.section(x) for x in chosen_names]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, f"{prefix}{name}.")
            else:
                yield prefix + name, field


#: Keys with text values, such as paths. Overrides of these keys are not parsed as YAML.
TEXT_KEYS = {name for name, field in fields() if field.annotation is str}


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key; None if the chosen network or objective does not have it."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def known_keys(names: Mapping[str, str] = NO_NAMES) -> list[str]:
    """All dotted keys, sorted: see `fields`."""
    return sorted({key for key, _ in fields(names=names)})


def nearest(word: str, known: list[str]) -> str:
    """': did you mean ...?' with the nearest names, or all known names if none is near."""
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    if not close:  # the right key in the wrong section
        close = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:3]
    if close:
        return f": did you mean {' or '.join(close)}?"
    return f": choose one of {', '.join(known)}"


def dump(config: Config) -> str:
    """The complete configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
