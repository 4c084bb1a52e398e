"""Notebooks, equations and links of the documentation."""

import base64
import json
import logging

import pytest

from documentation import links, notebooks

PIXEL = base64.b64encode(b"a picture").decode()
BASE = "https://example.org/blob/main/"


def notebook(*cells):
    return json.dumps({"cells": cells})


def code_cell(source, *outputs):
    return {"cell_type": "code", "source": [source], "outputs": outputs}


def shown(**data):
    return {
        "output_type": "display_data",
        "data": {k.replace("_", "/"): v for k, v in data.items()},
    }


def test_text_and_code_of_a_notebook_follow_each_other():
    text = {"cell_type": "markdown", "source": ["# Title\n", "\n", "An equation $x_t$."]}
    page = notebooks.page(notebook(text, code_cell("1 + 1"), code_cell("")), "tutorials/a.ipynb")
    assert page.markdown == "# Title\n\nAn equation $x_t$.\n\n```python\n1 + 1\n```\n"


def test_a_picture_becomes_a_file_next_to_the_page():
    cell = code_cell("plot()", shown(image_png=PIXEL, text_plain=["<Figure>"]))
    page = notebooks.page(notebook(cell, cell), "tutorials/a.ipynb")
    assert page.pictures == {"a-1.png": b"a picture", "a-2.png": b"a picture"}
    assert "![<Figure>](a-1.png)" in page.markdown


@pytest.mark.parametrize(
    ("output", "written"),
    [
        ({"output_type": "stream", "text": ["one\n", "two\n"]}, "one\ntwo\n```"),
        (shown(text_plain="tensor(1)"), "tensor(1)\n```"),
        (shown(text_markdown="**bold**", text_plain="bold"), "\n**bold**\n"),
        (shown(text_html="<p>\n\nbold</p>"), '<div class="output">\n<p>\nbold</p>\n</div>'),
        ({"output_type": "error", "ename": "ValueError", "evalue": "no"}, "ValueError: no\n```"),
    ],
)
def test_an_output_is_shown(output, written):
    assert written in notebooks.page(notebook(code_cell("f()", output)), "a.ipynb").markdown


def test_a_block_of_code_may_contain_fences():
    assert notebooks.fenced("print('```')", "python").startswith("````python\n")


def test_a_link_out_of_the_folder_leads_to_the_repository():
    text = "[a](../examples/a.py), [b](b.md), ![c](../c.png)"
    found = links.to_repository(text, BASE, "page.md")
    assert found == f"[a]({BASE}examples/a.py), [b](b.md), ![c]({BASE}c.png)"


def test_a_link_from_a_folder_in_docs_stays_there():
    text = "[a](../../examples/a.py), [b](../b.md)"
    found = links.to_repository(text, BASE, "tutorials/page.ipynb")
    assert found == f"[a]({BASE}examples/a.py), [b](../b.md)"


def test_a_link_to_a_missing_file_of_the_repository_is_found(tmp_path):
    (tmp_path / "a.py").touch()
    text = f"[a]({BASE}a.py), [again]({BASE}a.py#L3), [b]({BASE}b.py)"
    assert list(links.missing_files(text, BASE, tmp_path)) == ["b.py"]


def test_an_unknown_public_name_is_found():
    text = "`soflow.train(...)`, `soflow.trian`\n\n```python\n`soflow.gone`\n```\n"
    assert list(links.unknown_names(text, {"train"})) == ["soflow.trian"]


@pytest.fixture
def converted():
    """Converts Markdown with the extensions of mkdocs.yml that equations need."""
    markdown = pytest.importorskip("markdown")
    equations = pytest.importorskip("documentation.equations")
    arithmatex = {"pymdownx.arithmatex": {"generic": True}}
    extensions = ["pymdownx.arithmatex", "tables", "toc", equations.Equations()]
    return lambda text: markdown.markdown(text, extensions=extensions, extension_configs=arithmatex)


def test_equations_become_mathml(converted):
    html = converted("Inline $x_t$.\n\n$$\nF(x_t, t, s) = \\frac{a}{b}\n$$\n")
    assert '<math display="inline"><mrow><msub><mi>x</mi><mi>t</mi></msub></mrow></math>' in html
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in html
    assert "\\" not in html
    assert "$" not in html


def test_lines_of_an_equation_are_aligned(converted):
    html = converted("$$\n\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}\n$$\n")
    assert html.count("<mtr>") == 2
    assert "amp" not in html


def test_signs_of_html_may_stand_in_equations(converted):
    assert "<mo>&lt;</mo>" in converted("$s < t$")


@pytest.mark.parametrize("wrong", [r"\nosuchcommand x", r"\begin{nosuch} a \end{nosuch}", "a & b"])
def test_an_unknown_command_is_a_warning(wrong, converted, caplog):
    with caplog.at_level(logging.WARNING, "mkdocs.hooks.equations"):
        converted(f"${wrong}$")
    assert len(caplog.records) == 1
