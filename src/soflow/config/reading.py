"""Reads recipes, YAML files and `key=value` overrides into a Config; every mistake becomes one InputError of one line."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.resources import files
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from soflow.config.schema import Config
from soflow.config.sections import ChosenFrom, section_of, sections_in
from soflow.errors import TOLD, InputError, first_line, in_short, shortened
from soflow.objectives import OBJECTIVES

RECIPES = files("soflow") / "recipes"
#: What objectives take over from one another, if they have it.
COMMON = ("scale", "label_dropout")
COMMON_KEYS = tuple(f"objective.guidance.{key}=" for key in COMMON)
#: What YAML may have: bytes, values with each alias counted as what it stands for, and digits of a number. A configuration
#: has 3,000 bytes and 150 values.
MOST_BYTES, MOST_VALUES, MOST_DIGITS = 100_000, 10_000, 100


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in RECIPES.iterdir()
        if entry.name.endswith(".yaml")
    )


def read_recipe(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a shipped recipe, a YAML file or a run folder, with `key=value` overrides in dotted keys.

    Raises InputError, naming the nearest known word, for an unknown recipe or key, and the range for a value outside it.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides are a list, such as ['{overrides}'], not one text")
    config = validate(read_yaml(recipe))
    if not overrides:
        return config
    values = config.model_dump(mode="json")
    override(values, overrides)
    return validate(values)


def read_objectives(
    recipe: str, names: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Config]:
    """The recipe once for each objective: all the same but for the section `objective`.

    An override `OBJECTIVE:key=value` is for that objective alone, one without an objective for all
    of them. Of the recipe's objective the others take over how strongly to guide; all else is their
    own default.

    Raises:
        InputError: As `read_recipe`, and for objectives named twice or overrides of others.
    """
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise InputError(f"the objectives are {', '.join(names)}: name each once")
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for text in overrides:
        objective, colon, rest = text.partition(":")
        if colon and "=" not in objective:
            if objective not in own:
                raise InputError(
                    f"'{text}' is for {objective or 'no objective'}, but the objectives are "
                    f"{', '.join(names)}"
                )
            if not rest.startswith("objective."):
                raise InputError(
                    f"'{text}' is not a setting of an objective: all else is equal, "
                    f"so write {rest} for all of them"
                )
            own[objective].append(rest)
        elif text.startswith("objective.") and not text.startswith(COMMON_KEYS):
            raise InputError(
                f"'{text}' is a setting of one objective: write OBJECTIVE:{text}, "
                f"such as {names[0]}:{text}"
            )
        else:
            shared.append(text)
    return {
        name: read_recipe(
            recipe, [*shared_with(shared, name), f"objective.name={name}", *own[name]]
        )
        for name in names
    }


def shared_with(shared: list[str], name: str) -> list[str]:
    """The overrides for all objectives that are for this one too: some know no guidance."""
    return [text for text in shared if has_guidance(name) or not text.startswith(COMMON_KEYS)]


def has_guidance(name: object) -> bool:
    """Whether an objective has the section `guidance`; an unknown one has not."""
    known = isinstance(name, str) and name in OBJECTIVES
    return known and "guidance" in section_of(OBJECTIVES[str(name)], str(name)).model_fields


def override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Puts `key=value` texts into the plain values of a configuration, names of kinds first: they decide about the keys."""
    for text in sorted(
        overrides,
        key=lambda text: not text.strip().startswith(("network.name=", "objective.name=")),
    ):
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}' is not of the form key=value, e.g. train.steps=2000")
        key = key.strip()
        parsed = parse_value(key, value)
        if key == "network.name" and parsed != values["network"]["name"]:
            values["network"] = {}  # another kind of network has keys of its own
        if key == "objective.name" and parsed != values["objective"]["name"]:
            values["objective"] = common(values["objective"], parsed)
        put(values, key, parsed)


def common(objective: dict[str, Any], name: object) -> dict[str, Any]:
    """What another objective takes over: how strongly to guide. All else is its own default."""
    if not has_guidance(name) or "guidance" not in objective:
        return {}
    return {"guidance": {key: objective["guidance"][key] for key in COMMON}}


def read_yaml(recipe: str) -> dict[str, Any]:
    """The plain values of a recipe by name or of a file by path."""
    path = Path(recipe)
    if (path / "config.yaml").is_file():  # a run folder
        path = path / "config.yaml"
    if recipe in recipe_names():
        text = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = read_text(path)
    elif path.suffix in (".yaml", ".yml"):
        raise InputError(f"there is no file {recipe}")
    else:
        raise InputError(
            f"there is no recipe and no run folder '{recipe}'{nearest(recipe, recipe_names())}"
        )
    values = parse_yaml(text, recipe)
    if not isinstance(values, dict):
        raise InputError(
            f"{recipe} must hold a mapping of sections such as data and network, not {type(values).__name__}"
        )
    values.pop("version", None)  # a run's own config.yaml is a recipe too
    return values


def read_text(file: Path) -> str:
    """The text of a YAML file. Raises InputError for what is too large to be one, or is no text."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} has more than {MOST_BYTES:,} bytes: it is no configuration")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {first_line(error)}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def parse_value(key: str, text: str) -> Any:
    """An override's value as YAML reads it."""
    return parse_yaml(text, f"the value of {shortened(key)}, '{shortened(text)}',")


def parse_yaml(text: str, what: str) -> Any:
    """What the text says, as plain values. Raises InputError, calling it `what`, where it is no YAML, or holds more than any
    configuration does.
    """
    try:
        loader = yaml.SafeLoader(text[: MOST_BYTES + 1])
        node = loader.get_single_node()
        if len(text) > MOST_BYTES or count(node, {}) > MOST_VALUES:
            raise InputError(
                f"{what} holds more than any configuration: {MOST_VALUES:,} values or {MOST_BYTES:,} letters"
            )
        return None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not valid YAML: {one_line(str(error))}") from None
    except Exception as error:  # whatever dates and numbers that cannot be, and brackets without end, make of PyYAML
        raise InputError(f"{what} is not valid YAML ({type(error).__name__})") from None


def count(node: yaml.Node | None, known: dict[yaml.Node | None, float]) -> float:
    """The values that a node stands for, every alias being what it leads to; without end where that is itself.

    Raises ValueError for a number that is too long.
    """
    if node not in known:
        known[node] = inf  # as long as it is not counted, it can only be met inside itself
        if (
            isinstance(node, yaml.ScalarNode)
            and node.tag.endswith((":int", ":float"))
            and len(node.value) > MOST_DIGITS
        ):
            raise ValueError("a number of too many digits")
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else parts
        known[node] = 1 + sum(count(part, known) for part in parts)
    return known[node]


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, making the sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"unknown key {in_short(key)}{nearest(key, known_keys())}")
        values = inner
    values[last] = value


def validate(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def explain(error: ValidationError, within: tuple[str, ...] = ()) -> str:
    """The first mistake, in one line."""
    first = error.errors()[0]
    place = (*within, *map(str, first["loc"]))
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        return f"unknown key {in_short(key)}{nearest(key, known_keys())}"
    if first["type"] == "value_error":
        inner = first["ctx"]["error"]
        if isinstance(inner, ValidationError):  # of a section that a registry describes
            return explain(inner, place)
        text = str(inner)[:TOLD]  # our own checks, already a sentence
        return f"{key}.name: {text}" if text.startswith("unknown ") else text
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].replace("Input should be", "it must be")
    return f"{shortened(key)} is {in_short(first['input'])}: {message}"


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, sections flattened, all objectives and networks included."""
    for name, field in model.model_fields.items():
        chosen = next((x for x in field.metadata if isinstance(x, ChosenFrom)), None)
        kinds = [
            kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)
        ]
        if chosen is not None:
            kinds = list(sections_in(chosen.registry))
        if not kinds:
            yield prefix + name, field
        for kind in kinds:
            yield from fields(kind, f"{prefix}{name}.")


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key; None where this kind of network has no such key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def known_keys() -> list[str]:
    return sorted({key for key, _ in fields()})


def nearest(word: str, known: list[str]) -> str:
    """': did you mean ...?', or all there is where nothing is near."""
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    if not close:  # a right last word in a wrong section, or the other way round
        close = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:3]
    return f": did you mean {' or '.join(close)}?" if close else f": known are {', '.join(known)}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def dump(config: Config) -> str:
    """The configuration as YAML, complete."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
