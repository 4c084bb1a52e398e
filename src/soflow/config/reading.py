"""Reads recipes, YAML files and `key=value` overrides into a Config.

Every mistake becomes one InputError of one line.
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
#: Settings of guidance that another objective takes over.
COMMON = ("scale", "label_dropout")
COMMON_KEYS = tuple(f"objective.guidance.{key}=" for key in COMMON)
#: Keys that have another name since an earlier version.
RENAMED = {
    "path": "noising",
    "objective.lambda_": "objective.flow_matching_share",
    "objective.velocity_share": "objective.flow_matching_share",
    "objective.step_share": "objective.flow_matching_share = 1 - step_share",
}
#: Keys that are newer than some runs, with the value that such a run was trained with.
BEFORE: Mapping[str, Any] = {"ema.rampup": 0.0}
NO_NAMES: Mapping[str, str] = {}
#: What YAML holds, before it is validated: sections within sections, and values of any kind.
Values = dict[str, Any]


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    names = (entry.name for entry in RECIPES.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        recipe: The name of a shipped recipe, a YAML file, or a run folder.
        overrides: `key=value` texts with dotted keys, such as `train.steps=2000`.

    Returns:
        The configuration.

    Raises:
        InputError: For an unknown recipe or key, naming the nearest one, and for a value outside
            its range.

    Example:
        >>> import soflow
        >>> config = soflow.read_recipe("digits", ["train.steps=500", "optimizer.lr=5e-4"])
        >>> config.train.steps, config.optimizer.lr
        (500, 0.0005)
    """
    return with_overrides(validate(read_yaml(str(recipe))), overrides)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `key=value` texts put into it."""
    if isinstance(overrides, str):
        raise InputError(f"overrides are a list, such as ['{overrides}'], not one text")
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    override(values, overrides)
    return validate(values)


def keys_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """The keys that `key=value` texts give."""
    return tuple(text.partition("=")[0].strip() for text in overrides)


def has_guidance(name: object) -> bool:
    """Whether `name` is an objective with a section `guidance`."""
    return name in OBJECTIVES and "guidance" in section_of(OBJECTIVES[name], name).model_fields


def override(values: Values, overrides: Sequence[str]) -> None:
    """Puts `key=value` texts into plain values."""
    change(values, parsed(overrides))


def parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """The keys and values of `key=value` texts."""
    settings = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}' is not of the form key=value, e.g. train.steps=2000")
        key = key.strip()
        what = f"the value of {shortened(key)}, '{shortened(value)}',"
        settings.append((key, value if key in TEXT_KEYS else parse_yaml(value, what)))
    return settings


def change(values: Values, settings: Sequence[tuple[str, Any]]) -> None:
    """Puts dotted settings into plain values, names of network, objective and optimizer first.

    They decide which other keys there are.
    """
    names = ("network.name", "objective.name", "optimizer.name")
    for key, value in sorted(settings, key=lambda setting: setting[0] not in names):
        if key == "network.name" and value != values["network"]["name"]:
            values["network"] = {}  # another kind of network has keys of its own
        if key == "objective.name" and value != values["objective"]["name"]:
            values["objective"] = common(values["objective"], value)
        if key == "optimizer.name" and str(value).lower() != values["optimizer"]["name"].lower():
            values["optimizer"] = same_for(values["optimizer"], str(value))
        put(values, key, value)


def common(objective: Values, name: object) -> Values:
    """What another objective takes over: how strongly to guide."""
    if not has_guidance(name) or "guidance" not in objective:
        return {}
    return {"guidance": {x: y for x, y in objective["guidance"].items() if x in COMMON}}


def same_for(optimizer: Values, name: str) -> Values:
    """What another optimizer takes over: all but options, and betas if it has them."""
    left = ("options",) if has_betas(name) else ("options", "betas")
    return {key: value for key, value in optimizer.items() if key not in left}


def read_yaml(recipe: str) -> Values:
    """The plain values of a recipe by name or of a file by path."""
    path = Path(recipe).expanduser()
    if (path / "config.yaml").is_file():  # a run folder
        path = path / "config.yaml"
    known = recipe_names()
    if recipe in known:
        text = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif path.suffix not in (".yaml", ".yml"):
        raise InputError(f"there is no recipe and no run folder '{recipe}'{nearest(recipe, known)}")
    elif not path.is_file():
        raise InputError(f"there is no file {recipe}")
    else:
        text = read_text(path)
    values = parse_yaml(text, recipe)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InputError(f"{recipe} must hold sections such as data and network, not {kind}")
    if values.pop("version", None) is not None:  # a run's own config.yaml is a recipe too
        complete(values)
    return values


def complete(values: Values) -> None:
    """Adds to the plain values of a run the keys that are newer than the run."""
    for key, value in BEFORE.items():
        section, name = key.split(".")
        place = values.setdefault(section, {})
        if isinstance(place, dict):
            place.setdefault(name, value)


def put(values: Values, key: str, value: Any) -> None:
    """Sets a dotted key, making the sections on the way."""
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(unknown_key(key, values))
        place = inner
    place[last] = value


def validate(values: Values) -> Config:
    """The configuration from plain values. Raises InputError for the first mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, values)) from None


def explain(error: ValidationError, values: Values, within: tuple[str, ...] = ()) -> str:
    """The first mistake, in one line."""
    first = error.errors()[0]
    place = (*within, *map(str, first["loc"]))
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        return unknown_key(key, values)
    if first["type"] == "value_error":
        inner = first["ctx"]["error"]
        if isinstance(inner, ValidationError):  # of a section that a registry describes
            return explain(inner, values, place)
        text = str(inner)[:MESSAGE_LENGTH]  # our own checks, already a sentence
        return f"{key}.name: {text}" if text.startswith("unknown ") else text
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].replace("Input should be", "it must be")
    return f"{shortened(key)} is {in_short(first['input'])}: {message}"


def unknown_key(key: str, values: Values) -> str:
    """The message for a key that the configuration lacks: its new name, or the nearest key.

    For a key of `network` or `objective`, it says what the chosen one has, nearest first.
    """
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return f"unknown key {in_short(key)}: it is now {new}{key.removeprefix(old)}"
    section, _, setting = key.partition(".")
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
    unlike = f", unlike {' and '.join(others)}" if others else ""
    missing = f"{section}.name={names[section]} has no {shortened(setting)}{unlike}"
    question = f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else ""
    return f"unknown key {in_short(key)}: {missing}; it has {', '.join(own)}{question}"


def fields(
    model: type[BaseModel] = Config, prefix: str = "", names: Mapping[str, str] = NO_NAMES
) -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field: of the networks and objectives in `names`, or of all."""
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


#: Keys whose values are texts, such as paths: given on the command line, they are not YAML.
TEXT_KEYS = {name for name, field in fields() if field.annotation is str}


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key; None if this kind of network or objective has no such key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def known_keys(names: Mapping[str, str] = NO_NAMES) -> list[str]:
    """Every dotted key, as `fields` has them."""
    return sorted({key for key, _ in fields(names=names)})


def nearest(word: str, known: list[str]) -> str:
    """': did you mean ...?', or all known words if none is near."""
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    if not close:  # a right last word in a wrong section, or the other way round
        close = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:3]
    return f": did you mean {' or '.join(close)}?" if close else f": known are {', '.join(known)}"


def dump(config: Config) -> str:
    """The configuration as YAML, complete."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
