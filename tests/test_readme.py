"""What README shows must work."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_lines_run(tiny_run, tmp_path, monkeypatch):
    """Word for word, on a run that is finished already."""
    import soflow

    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "runs/digits")
    called = []
    monkeypatch.setattr(soflow, "train", lambda *arguments: called.append(arguments), raising=False)
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(lines, {})
    assert called == [("digits", "runs/digits")]
    assert Image.open("runs/ten.png").size == (10 * 34 + 2, 36)


def test_the_map_names_every_source_file_and_none_that_is_not_there():
    named = set(
        re.findall(
            r"\w+\.py", README.split("## The map of the files")[1].split("To learn the method")[0]
        )
    )
    sources = {
        file.name for file in (ROOT / "src" / "soflow").rglob("*.py") if file.parent.name != "cli"
    }
    sources = {name for name in sources if not name.startswith("__")}
    assert sources - named == {"embeddings.py"}  # "dit.py, unet.py, mlp.py and their embeddings"
    elsewhere = {
        file.name for folder in ("tests", "benchmarks") for file in (ROOT / folder).glob("*.py")
    }
    assert named <= sources | elsewhere


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_pictures_of_the_project_are_there(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_nothing_in_it_waits_to_be_filled_in():
    assert "" not in README
