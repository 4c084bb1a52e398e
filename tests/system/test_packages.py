"""Missing packages are named with an install command that keeps torch."""

import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

from soflow.errors import InputError
from soflow.system.packages import optional_package
from soflow.training.trackers import require_trackers

ROOT = Path(__file__).parents[2]


def missing_package():
    optional_package("nosuchpackage", "latents need", "latents")


def missing_tracker():
    require_trackers(("nosuchtracker",))


@pytest.mark.parametrize("missing", [missing_package, missing_tracker])
def test_install_advice_keeps_the_installed_torch(missing):
    with pytest.raises(InputError, match="pip install") as found:
        missing()
    words = shlex.split(str(found.value).partition("pip install")[2])
    assert words[0].startswith("soflow[")
    assert words[1] == f"torch=={metadata.version('torch')}"


def test_every_advice_keeps_torch():
    """Sources use one function for it. The documentation uses the constraints file."""
    sources = [file for file in (ROOT / "src").rglob("*.py") if "pip install" in file.read_text()]
    assert [file.name for file in sources] == ["packages.py"]
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        commands = re.findall(r"pip install[^`]*", page.read_text(encoding="utf-8"))
        for command in commands:
            assert re.search(r"-c\s+constraints\.txt|torch==", command), (page, command)
