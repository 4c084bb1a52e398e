"""Reads the variants of a comparison: named sets of settings that change a recipe."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soflow.config.parsing import parse_yaml, read_text, require_unique_keys
from soflow.config.reading import COMMON_KEYS, change, has_guidance, parsed, read_recipe, validate
from soflow.config.schema import Config
from soflow.errors import InputError, in_short, shortened
from soflow.objectives import OBJECTIVES

#: Variants by name, with nested or dotted keys: a mapping, or a YAML file.
Variants = str | Path | Mapping[str, Any]
#: Settings that variants cannot change: they are the same for all, or the comparison sets them.
MEASURES_ALIKE = ("data.", "evaluate.")
SET_BY_COMPARISON = ("train.seed", "train.sample_every")
LONGEST_NAME = 60


@dataclass(frozen=True)
class Variant:
    """A configuration, and the settings (by dotted key) in which it differs from the recipe."""

    config: Config
    settings: dict[str, Any]


def read_compared(
    recipe: str,
    objectives: Sequence[str],
    variants: Variants | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> dict[str, Variant]:
    """Reads the variants, or makes one per objective if `variants` is None.

    Args:
        recipe: The name of a recipe, a YAML file or a run folder.
        objectives: Names of objectives. Used only without `variants`.
        variants: Settings by variant name, or a YAML file with them.
        only: Names of the variants to read. If empty, all are read.
        overrides: `key=value` changes all variants, `name:key=value` changes one.

    Raises:
        InputError: If `read_recipe` raises it, or a name is unknown, invalid or not unique.
    """
    if variants is None:
        if only:
            raise InputError(
                "only= selects among variants, but variants= is missing: pass it, or list the "
                "names in objectives="
            )
        return objective_variants(recipe, objectives, overrides)
    named = dict(named_settings(variants))
    if unknown := [name for name in only if name not in named]:
        raise InputError(f"unknown variant '{unknown[0]}': choose from {', '.join(named)}")
    chosen = {name: named[name] for name in named if not only or name in only}
    return make_variants(recipe, chosen, overrides)


def read_objectives(
    recipe: str, names: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Config]:
    """Reads a recipe once per objective. Only the section `objective` differs.

    An override `OBJECTIVE:key=value` applies to that objective only. All objectives use the
    guidance scale and label dropout of the recipe. Other settings of an objective have their
    defaults, unless it is the recipe's own objective.

    Raises:
        InputError: If `read_recipe` raises it, or an objective is listed twice or not listed.
    """
    variants = objective_variants(recipe, names, overrides)
    return {name: variant.config for name, variant in variants.items()}


def objective_variants(
    recipe: str, names: Sequence[str], overrides: Sequence[str]
) -> dict[str, Variant]:
    """One variant per objective."""
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise InputError(f"the objectives are {', '.join(names)}: list each one only once")
    _, own = assigned(overrides, names)
    for name, texts in own.items():
        for text in texts:
            if not text.startswith("objective."):
                raise InputError(
                    f"'{name}:{text}' is not a setting of an objective: write {text} for all "
                    "objectives, or compare variants"
                )
    return make_variants(recipe, {name: {"objective.name": name} for name in names}, overrides)


def make_variants(
    recipe: str, named: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]
) -> dict[str, Variant]:
    """Makes the variants from their settings, which have dotted keys."""
    recipe_values = read_recipe(recipe).model_dump(mode="json")
    shared, own = assigned(overrides, list(named))
    made: dict[str, Variant] = {}
    for name, given in named.items():
        settings = {**given, **dict(parsed(own[name]))}
        for key in settings:
            require_own(name, key)
        objective = settings.get("objective.name", recipe_values["objective"]["name"])
        left_out = () if has_guidance(objective) else COMMON_KEYS
        taken = [text for text in shared if not text.startswith(left_out)]
        values = json.loads(json.dumps(recipe_values))
        try:
            change(values, [*parsed(taken), *settings.items()])
            made[name] = Variant(validate(values), settings)
        except InputError as error:
            raise error if objective == name else InputError(f"{name}: {error}") from None
    return made


def assigned(
    overrides: Sequence[str], names: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Splits overrides into those for all variants and those for one (without `name:`)."""
    shared: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    for text in overrides:
        owner, colon, rest = text.partition(":")
        if colon and owner in own:
            own[owner].append(rest)
        elif colon and "=" not in owner:
            known = f"choose from {', '.join(names)}"
            raise InputError(f"'{text}': '{owner}' is not one of the compared variants: {known}")
        elif text.startswith("objective.") and not text.startswith(COMMON_KEYS):
            example = f"write NAME:{text}, such as {names[0]}:{text}"
            raise InputError(f"'{text}' does not say which objective it is for: {example}")
        elif text.partition("=")[0] == "train.sample_every":
            raise InputError(f"'{text}': the comparison sets train.sample_every: leave it out")
        else:
            shared.append(text)
    return shared, own


def require_own(name: str, key: str) -> None:
    """Raises InputError for a setting that all variants must share."""
    if f"{key}.".startswith(MEASURES_ALIKE):
        raise InputError(
            f"{name} sets {key}, which must be the same for all variants: write {key}=VALUE after "
            "the recipe instead"
        )
    if key in SET_BY_COMPARISON:
        raise InputError(f"{name} sets {key}, which the comparison sets: leave it out")


def named_settings(variants: Variants) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the settings (by dotted key) of each variant."""
    what = "variants"
    content: object = variants
    if isinstance(variants, str | Path):
        what, file = str(variants), Path(variants).expanduser()
        if not file.is_file():
            raise InputError(f"{file} does not exist: variants must be a YAML file of settings")
        text = read_text(file)
        content = parse_yaml(text, what)
        require_unique_keys(text, what)
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{what} must contain variants by name, such as 'half: {{objective: {{p: 0.5}}}}'"
        )
    folders: dict[str, str] = {}
    for name, settings in content.items():
        require_name(name, what)
        folder = folder_name(name).lower().replace("_", "-")
        if folder in folders:
            raise InputError(
                f"{what}: '{folders[folder]}' and '{name}' would have the same folder: rename one"
            )
        folders[folder] = name
        if not isinstance(settings, Mapping | None):
            raise InputError(
                f"{what}: {name} is {in_short(settings)}: write settings, such as "
                f"'{name}: {{objective: {{p: 0.5}}}}'"
            )
        pairs = list(dotted(settings or {}, name))
        if repeated := [key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])]:
            raise InputError(f"{name} sets {repeated[0]} twice: remove one of them")
        yield name, dict(pairs)


def require_name(name: object, what: str) -> None:
    """Raises InputError for a name that cannot be used on a page or as a folder."""
    if not isinstance(name, str):
        raise InputError(f"{what}: the name {in_short(name)} is not text: write it in quotes")
    if not folder_name(name) or not name.isprintable() or name != name.strip():
        raise InputError(
            f"{what}: a variant cannot be named {in_short(name)}: use ASCII letters and digits, "
            "without leading or trailing spaces"
        )
    if len(name) > LONGEST_NAME or "," in name or ":" in name:
        raise InputError(
            f"{what}: the name '{shortened(name)}' is not valid: use at most {LONGEST_NAME} "
            "characters, without commas and colons"
        )


def folder_name(name: str) -> str:
    """The folder of a variant: an objective name, or lower-case letters, digits, _, . and -."""
    if name in OBJECTIVES:
        return name
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_.]+", "-", letters.lower()).strip("-.")


def dotted(settings: Mapping[Any, Any], name: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested mappings into dotted keys with plain values."""
    for key, value in settings.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if not value:
                raise InputError(f"{name}: {full} is empty: add settings, or leave it out")
            yield from dotted(value, name, f"{full}.")
        else:
            try:
                yield full, json.loads(json.dumps(value))
            except (TypeError, ValueError):
                plain = "use a plain value, such as a number or text"
                raise InputError(f"{name}: {full} is {in_short(value)}: {plain}") from None
