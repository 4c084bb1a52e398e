"""Parses YAML safely: limits on size protect the memory, and files cannot create Python objects."""

from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

import yaml

from soflow.errors import InputError, first_line

#: Maximum bytes and values of a YAML text (aliases count in full), and digits of a number.
#: A typical configuration has 3,000 bytes and 150 values.
MOST_BYTES, MOST_VALUES, MOST_DIGITS = 100_000, 10_000, 100


def read_text(file: Path) -> str:
    """Reads the text of a YAML file. Raises InputError if it is too large or not UTF-8 text."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{file} has more than {MOST_BYTES:,} bytes, too many for a configuration: choose "
                "another file"
            )
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {first_line(error)}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None


def parse_yaml(text: str, what: str) -> Any:
    """Parses a YAML text into plain values. Error messages refer to it as `what`.

    Raises:
        InputError: If the text is not valid YAML or is too large.
    """
    try:
        loader = yaml.SafeLoader(text[: MOST_BYTES + 1])
        node = loader.get_single_node()
        if len(text) > MOST_BYTES or count(node, {}) > MOST_VALUES:
            raise InputError(
                f"{what} is too large for a configuration: at most {MOST_VALUES:,} values and "
                f"{MOST_BYTES:,} characters are allowed"
            )
        return None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark
        where = f" in line {place.line + 1}, column {place.column + 1}" if place else ""
        raise InputError(f"{what} is not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # PyYAML raises many types for invalid dates, numbers and nesting
        raise InputError(f"{what} is not valid YAML ({type(error).__name__})") from None


def require_unique_keys(text: str, what: str) -> None:
    """Raises InputError if a mapping in a YAML text has a duplicate key. PyYAML allows duplicates.

    The text must be valid YAML that has passed `parse_yaml`.
    """
    nodes = [yaml.compose(text, yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if repeated := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise InputError(f"{what} has the key '{repeated[0]}' twice: rename one")
            nodes.extend(value for _, value in node.value)


def count(node: yaml.Node | None, known: dict[yaml.Node | None, float]) -> float:
    """The number of values in a node, with aliases resolved; infinite if it contains itself.

    Raises ValueError for a number with too many digits.
    """
    if node not in known:
        known[node] = inf  # a node that is reached again during its own count contains itself
        number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if number and len(node.value) > MOST_DIGITS:  # type: ignore[union-attr]
            raise ValueError("a number has too many digits")
        parts = node.value if isinstance(node, yaml.SequenceNode) else ()
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else parts
        known[node] = 1 + sum(count(part, known) for part in parts)
    return known[node]
