"""Plain text and tables in Markdown."""

import inspect
import re
from collections.abc import Iterable, Sequence

#: Characters with a meaning in Markdown or in one of its extensions.
SPECIAL = re.compile(r"([\\`*_\[\]|$])")


def plain(text: str) -> str:
    """Escapes text that contains no Markdown besides code spans."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(
        part if part.startswith("`") else SPECIAL.sub(r"\\\1", part).replace("<", "&lt;")
        for part in parts
    )


def code(text: str) -> str:
    """Text in a code span; empty for an empty text."""
    return f"`{text}`" if text else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(thing: object) -> str:
    """The first paragraph of a docstring; empty without a docstring."""
    doc = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    return " ".join(doc.split("\n\n")[0].split())
