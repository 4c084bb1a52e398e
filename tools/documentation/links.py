"""Links to files of the repository, and names of the public API in the text."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

#: A link out of docs/, such as ../examples/own_data.py, and one to the repository.
RELATIVE = re.compile(r"(?<=\]\()\.\./[^)#\s]+")
#: A public name in a code span, with or without a call: `soflow.train` or `soflow.train(...)`.
NAME = re.compile(r"`soflow\.(?P<name>[A-Za-z_]\w*)(?P<rest>[^`\n]*)`")


def to_repository(markdown: str, base: str, page: str) -> str:
    """Replaces links out of docs/ by links to the repository; `page` is a path in docs/."""

    def replaced(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[0]))
        return link[0] if path.startswith("docs/") else f"{base}{path}"

    return RELATIVE.sub(replaced, markdown)


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
