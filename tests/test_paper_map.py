"""docs/paper_map.md points at things that exist, and leaves out no number of the method."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from soflow.config import recipe_names
from soflow.config.reading import known_keys
from soflow.interop.settings import KEYS, READ_OFF, TIMES

TEXT = (Path(__file__).parents[1] / "docs" / "paper_map.md").read_text()
QUOTED = re.findall(r"`([^`\s]+)`", TEXT)
TARGETS = sorted({word for word in QUOTED if ".py:" in word})
PLACES = sorted({word for word in QUOTED if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", word) and not word.endswith(".py")})


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exists(target):
    file, name = target.split(":")
    found = import_module("soflow." + file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        assert hasattr(found, part), target
        found = getattr(found, part)


def test_every_key_exists():
    assert len(PLACES) > 30
    assert [key for key in PLACES if key not in known_keys()] == []


def test_every_number_of_the_method_has_its_place():
    """Whatever the sections of the paper set: the path, the objective, the optimizer, the average."""
    told = [key for key in known_keys() if key.startswith(("path.", "objective.", "optimizer.", "ema."))]
    beyond_the_paper = {"objective.name", "optimizer.warmup", "optimizer.clip"}
    assert set(told) - set(PLACES) == beyond_the_paper


def test_every_setting_of_the_reference_is_in_the_table():
    table = TEXT.split("| theirs | ours |")[1]
    assert [name for name in (*KEYS, *TIMES, *READ_OFF) if not re.search(rf"\b{name}\b", table)] == []


def test_the_recipes_have_the_numbers_of_the_table():
    """The table's numbers, read from its text, against the recipes that ship."""
    from soflow.config import read_recipe

    row = next(line for line in TEXT.splitlines() if line.startswith("| guidance scale"))
    scales = dict(re.findall(r"(\w+/\d) ([\d.]+)", row))
    assert len(scales) == 5
    for size, scale in scales.items():
        assert read_recipe(f"imagenet256-{size.replace('/', '').lower()}").objective.guidance.scale == float(scale)
    imagenet = [read_recipe(name) for name in recipe_names() if name.startswith("imagenet256")]
    for line, read in (
        ("| share of flow matching", lambda c: [c.objective.lambda_]),
        ("| adaptive weight", lambda c: [c.objective.p, c.objective.eps]),
        ("| t of flow matching", lambda c: [c.objective.times.flow_matching.mean, c.objective.times.flow_matching.std]),
        ("| s (mean", lambda c: [c.objective.times.s.mean, c.objective.times.s.std]),
        ("| t (mean", lambda c: [c.objective.times.t.mean, c.objective.times.t.std]),
    ):
        _, _, of_imagenet, of_cifar, *_ = next(row for row in TEXT.splitlines() if row.startswith(line)).split("|")
        for configs, cell in ((imagenet, of_imagenet), ([read_recipe("cifar10")], of_cifar)):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", cell)]
            assert all(read(config) == numbers for config in configs), line
