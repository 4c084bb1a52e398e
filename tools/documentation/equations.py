"""Equations as MathML, so that pages need no JavaScript and no network.

pymdownx.arithmatex finds them; this extension of Python-Markdown translates them.
"""

import html
import logging
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

log = logging.getLogger("mkdocs.hooks.equations")
#: Environments that latex2mathml knows by another name.
RENAMED = {"aligned": "split", "gathered": "split"}
#: Environments that latex2mathml translates. It drops others silently.
KNOWN = {"split", "align", "align*", "cases", "matrix", "pmatrix", "bmatrix", "vmatrix", "array"}
#: A command or an alignment mark that is left in the result.
UNKNOWN = re.compile(r">(\\[A-Za-z]+|&|\\end|\\begin)<")


def mathml(latex: str, display: bool) -> str:
    """An equation as a MathML element.

    Raises:
        ValueError: If it has a command or an environment that is unknown.
    """
    for old, new in RENAMED.items():
        latex = latex.replace(f"{{{old}}}", f"{{{new}}}")
    for environment in re.findall(r"\\begin\{(.+?)\}", latex):
        if environment not in KNOWN:
            raise ValueError(f"unknown environment {environment}")
    try:
        text = convert(latex, display="block" if display else "inline")
    except Exception as error:
        raise ValueError(f"{type(error).__name__} {error}".strip()) from None
    unknown = UNKNOWN.search(text)
    if unknown:
        raise ValueError(f"unknown command {unknown[1]}")
    return text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


class ToMathML(Treeprocessor):
    """Translates the elements that arithmatex makes. A mistake is a warning, which is fatal."""

    def run(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            if element.get("class") != "arithmatex" or not element.text:
                continue
            latex = html.unescape(element.text)[2:-2]  # without \( \) and \[ \]
            try:
                equation = ElementTree.fromstring(mathml(latex, element.tag == "div"))
            except (ValueError, ElementTree.ParseError) as error:
                log.warning(f"equation {latex.strip()!r}: {error}")
                continue
            element.text = None
            element.append(equation)


class Equations(Extension):
    """The extension."""

    def extendMarkdown(self, md: Markdown) -> None:
        # After inline patterns (20), before the table of contents (5).
        md.treeprocessors.register(ToMathML(md), "equations", 15)


def makeExtension(**options: Any) -> Equations:
    return Equations(**options)
