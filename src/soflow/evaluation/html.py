"""Self-contained HTML pages from Jinja2 templates. All values are escaped."""

import base64
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL.Image import Image

from soflow.evaluation.pictures import png


@cache
def environment() -> Environment:
    """The Jinja environment with the templates of all packages. They share base.html."""
    packages = ("evaluation", "comparison")
    folders = [str(files("soflow") / package / "templates") for package in packages]
    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Renders a template by its file name, such as `report.html`."""
    return environment().get_template(template).render(values)


def image(picture: Figure | Image) -> Markup:
    """Encodes a plot or an image as a data URI for the `src` of an `img` element."""
    content = base64.b64encode(png(picture)).decode()
    return Markup("data:image/png;base64,{}").format(content)


def html_table(rows: Sequence[Sequence[str]]) -> Markup:
    """An HTML table of escaped cells. The first row is the header."""
    head, *body = rows
    lines = [table_row("th", head), *(table_row("td", row) for row in body)]
    return Markup("<table>{}</table>").format(Markup("").join(lines))


def table_row(tag: str, cells: Sequence[str]) -> Markup:
    cell = Markup(f"<{tag}>{{}}</{tag}>")
    return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(text) for text in cells))


def duration(seconds: float) -> str:
    """Formats seconds as '90 s', '12.5 min' or '3.0 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
