"""The pages about the Python API: every name of soflow.__all__, grouped as in soflow/__init__.py.

MkDocs passes the directives `::: soflow.NAME` to mkdocstrings, which reads the docstrings.
"""

import inspect
import re
from pathlib import Path

import soflow
from documentation.text import plain, summary, table

#: One page for each group, in order.
PAGES = ("api-train.md", "api-loop.md", "api-mathematics.md", "api-networks.md", "api-own-parts.md")
INTRODUCTION = """\
# Python API

These are the public names of soflow. Everything else may change in any release.
"""
#: A comment or a name in the table of the package's names.
ENTRY = re.compile(r'^ {4}(?:# (?P<heading>.+)|"(?P<name>\w+)": ".+",)$')


def groups() -> dict[str, list[str]]:
    """The public names by group, from the comments in soflow/__init__.py."""
    source = Path(soflow.__file__).read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    heading = ""
    for line in source.partition("_HOME = {")[2].partition("}")[0].splitlines():
        entry = ENTRY.match(line)
        if entry and entry["heading"]:
            heading = entry["heading"][0].upper() + entry["heading"][1:]
        elif entry:
            found.setdefault(heading, []).append(entry["name"])
    listed = [name for names in found.values() for name in names]
    assert listed == soflow.__all__, "soflow/__init__.py lists names that this pattern misses"
    return found


def undocumented() -> list[str]:
    """Public names without a docstring of their own."""
    return [name for name in soflow.__all__ if not documented(getattr(soflow, name))]


def documented(thing: object) -> bool:
    own = inspect.isclass(thing) or inspect.isroutine(thing)
    return bool(thing.__doc__) and (own or thing.__doc__ != type(thing).__doc__)


def page(heading: str, names: list[str]) -> str:
    """One group."""
    return "\n\n".join([f"# {heading}", *map(entry, names)]) + "\n"


def entry(name: str) -> str:
    """One name. mkdocstrings reads classes and functions; registries are objects."""
    thing = getattr(soflow, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return f"::: soflow.{name}"
    heading = f"## `{name}` {{ #soflow.{name} data-toc-label='{name}' }}"
    return f"{heading}\n\n{with_fenced_examples(inspect.cleandoc(thing.__doc__ or ''))}"


def with_fenced_examples(doc: str) -> str:
    """A docstring as Markdown: its example becomes a block of code."""
    text, heading, example = doc.partition("\nExample:\n")
    if not heading:
        return doc
    return f"{text}\n**Example**\n\n```pycon\n{inspect.cleandoc(example)}\n```"


def index() -> str:
    """The page api.md: all names, each with one sentence."""
    parts = [INTRODUCTION.rstrip()]
    for file, (heading, names) in zip(PAGES, groups().items(), strict=True):
        rows = [
            (f"[`{name}`]({file}#soflow.{name})", plain(summary(getattr(soflow, name))))
            for name in names
        ]
        parts += [f"## [{heading}]({file})", table(("name", "purpose"), rows)]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """All pages by file name."""
    named = zip(PAGES, groups().items(), strict=True)
    return {"api.md": index(), **{file: page(*group) for file, group in named}}
