"""The code example of README runs, and all links of the documentation lead somewhere."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_lines_run(tiny_run, tmp_path, monkeypatch):
    """Word for word, on a run that is already finished."""
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
def test_links_and_pictures_of_the_project_are_there(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_nothing_in_it_waits_to_be_filled_in():
    assert "@@" not in README
