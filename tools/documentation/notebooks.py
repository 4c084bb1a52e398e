"""Notebooks as pages: their text, code and stored outputs. Nothing is executed.

The text goes through MkDocs like every other page, so that its links and equations are checked.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

#: The kinds of output that are shown, the best first.
PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}


@dataclass
class Page:
    """A notebook as Markdown, and the pictures in it by file name."""

    markdown: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


def page(text: str, name: str) -> Page:
    """Converts a notebook.

    Args:
        text: The notebook file's content.
        name: A path such as tutorials/method.ipynb; pictures are named after it.
    """
    notebook, found = json.loads(text), Page()
    stem = PurePosixPath(name).stem
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(fenced(source, "python"))
            for output in cell["outputs"]:
                parts += shown(output, stem, found.pictures)
    found.markdown = "\n\n".join(parts) + "\n"
    return found


def shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """An output as Markdown. Pictures are added to `pictures`."""
    if output["output_type"] == "stream":
        yield fenced("".join(output["text"]), "text")
        return
    if output["output_type"] == "error":
        yield fenced(f"{output['ename']}: {output['evalue']}", "text")
        return
    data = {
        kind: "".join(content)  # a text, or a list of lines
        for kind, content in output["data"].items()
        if isinstance(content, str | list)
    }
    for kind, ending in PICTURES.items():
        if kind in data:
            file = f"{stem}-{len(pictures) + 1}.{ending}"
            svg = ending == "svg"
            pictures[file] = data[kind].encode() if svg else base64.b64decode(data[kind])
            yield f"![{data.get('text/plain', 'Output')}]({file})"
            return
    if "text/markdown" in data:
        yield data["text/markdown"]
    elif "text/html" in data:
        lines = [line.strip() for line in data["text/html"].splitlines() if line.strip()]
        yield '<div class="output">\n' + "\n".join(lines) + "\n</div>"
    elif "text/plain" in data:
        yield fenced(data["text/plain"], "text")


def fenced(text: str, language: str) -> str:
    """A block of code. Output gets its own class."""
    fence = "```" if "```" not in text else "````"
    header = language if language != "text" else "{ .text .output }"
    return f"{fence}{header}\n{text.rstrip()}\n{fence}"
