"""The Python example in README runs, and links in the documentation have targets."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_lines_run(tiny_run, tmp_path, monkeypatch):
    """The example in README runs on a finished run."""
    import soflow

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "runs/digits")
    called = []
    monkeypatch.setattr(soflow, "train", lambda *arguments: called.append(arguments), raising=False)
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(lines, {})
    assert called == [("digits", "runs/digits")]
    assert Image.open("runs/ten.png").size == (10 * 34 + 2, 36)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
)
def test_relative_links_and_pictures_exist(page):
    """`make docs` generates some pages of the navigation, and checks links to them."""
    pages = re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert [link for link in missing if link not in pages] == []


def test_no_placeholder_is_left():
    assert "@@" not in README
