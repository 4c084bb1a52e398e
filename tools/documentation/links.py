"""Links to files of the repository, and names of the public API in the text."""

import re
from collections.abc import Iterator
from pathlib import Path

#: A link out of docs/, such as ../examples/own_data.py, and one to the repository.
RELATIVE = re.compile(r"(?<=\]\()(?:\.\./)+(?P<path>[^)#\s]+)")
#: A public name in a code span, with or without a call: `soflow.train` or `soflow.train(...)`.
NAME = re.compile(r"`soflow\.(?P<name>[A-Za-z_]\w*)(?P<rest>[^`\n]*)`")


def to_repository(markdown: str, base: str) -> str:
    """Replaces links out of docs/ by links to the repository."""
    return RELATIVE.sub(lambda link: f"{base}{link['path']}", markdown)


def missing_files(markdown: str, base: str, root: Path) -> Iterator[str]:
    """Files of the repository that are linked to and do not exist."""
    for path in re.findall(re.escape(base) + r"([^)#\s\"'>]+)", markdown):
        if not (root / path).exists():
            yield path


def unknown_names(markdown: str, known: set[str]) -> Iterator[str]:
    """Names `soflow.NAME` in the text that do not exist."""
    for found in NAME.finditer(without_code(markdown)):
        if found["name"] not in known:
            yield f"soflow.{found['name']}"


def without_code(markdown: str) -> str:
    """The text without blocks of code."""
    return re.sub(r"^( *)(`{3,}).*?^\1\2", "", markdown, flags=re.M | re.S)
