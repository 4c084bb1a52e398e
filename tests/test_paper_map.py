"""docs/paper_map.md only refers to existing targets and covers all settings of the paper."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from soflow.config import read_recipe, recipe_names
from soflow.config.reading import known_keys
from soflow.interop.settings import KEYS, READ_OFF, TIMES
from soflow.times import FLOOR

FOLDER = Path(__file__).parents[1] / "docs"
TEXT = (FOLDER / "paper_map.md").read_text()
QUOTED = re.findall(r"`([^`\s]+)`", TEXT)
TARGETS = sorted({word for word in QUOTED if ".py:" in word})
PLACES = sorted(
    {
        word
        for word in QUOTED
        if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", word) and not word.endswith(".py")
    }
)


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


def test_every_number_of_the_paper_is_in_the_map():
    """Covers all keys of the sections noising, objective, optimizer, ema and network."""
    keys = [
        key
        for key in known_keys()
        if key.startswith(("noising.", "objective.", "optimizer.", "ema.", "network."))
    ]
    ours = ("options", "warmup", "clip", "lr_schedule", "lr_end")
    beyond_the_paper = {f"optimizer.{x}" for x in ours}
    assert set(keys) - set(PLACES) == beyond_the_paper


def test_every_setting_of_the_reference_is_in_the_table():
    table = TEXT.split("| theirs | ours |")[1]
    assert [
        name for name in (*KEYS, *TIMES, *READ_OFF) if not re.search(rf"\b{name}\b", table)
    ] == []


def cells(beginning):
    """Returns the cells of ImageNet and CIFAR-10 in the row that starts with this text."""
    row = next(row for row in TEXT.splitlines() if row.startswith(beginning))
    return [cell.strip() for cell in row.split(" | ")[1:3]]


IMAGENET = [read_recipe(name) for name in recipe_names() if name.startswith("imagenet256")]
ROWS = {
    "| share of flow matching": lambda c: [c.objective.flow_matching_share],
    "| adaptive weight": lambda c: [c.objective.p, c.objective.eps],
    "| t of flow matching": lambda c: [
        c.objective.times.flow_matching.mean,
        c.objective.times.flow_matching.std,
    ],
    "| s (mean": lambda c: [c.objective.times.s.mean, c.objective.times.s.std],
    "| t (mean": lambda c: [c.objective.times.t.mean, c.objective.times.t.std],
    "| r(k, K)": lambda c: [c.objective.middle.init, c.objective.middle.end],
    "| learning rate, betas": lambda c: [
        c.optimizer.lr,
        *c.optimizer.betas,
        c.optimizer.weight_decay,
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_the_recipes_have_the_numbers_of_the_table(row):
    """Compares numbers in the table with the recipes."""
    for configs, cell in zip((IMAGENET, [read_recipe("cifar10")]), cells(row), strict=True):
        numbers = [float(number) for number in re.findall(r"-?\d[\d.]*(?:e-\d)?", cell)]
        assert all(ROWS[row](config) == numbers for config in configs)


def test_the_recipes_match_the_words_of_the_table():
    cifar = read_recipe("cifar10")
    for size, scale in re.findall(r"(\w+/\d) ([\d.]+)", cells("| guidance scale")[0]):
        assert read_recipe(
            f"imagenet256-{size.replace('/', '').lower()}"
        ).objective.guidance.scale == float(scale)
    for config in IMAGENET:
        guidance, name = config.objective.guidance, config.optimizer.name
        assert (
            cells("| mix m")[0]
            == f"{guidance.mix}, {guidance.label_dropout}, {guidance.decay_time}"
        )
        assert cells("| optimizer")[0].lower() == name
        assert (
            cells("| EMA")[0]
            == f"{config.ema.decay}, {config.ema.every}, {'yes' if config.ema.float64 else 'no'}"
        )
        assert cells("| batch")[0].startswith(f"{config.train.batch_size};")
        assert str(config.train.steps) in cells("| batch")[0]
        assert config.objective.middle.schedule in cells("| r(k, K)")[0]
    assert cells("| optimizer")[1].lower() == cifar.optimizer.name
    assert (
        cells("| EMA")[1]
        == f"{cifar.ema.decay}, {cifar.ema.every}, {'yes' if cifar.ema.float64 else 'no'}"
    )
    assert cells("| batch")[1] == f"{cifar.train.batch_size}; {cifar.train.steps}"
    assert str(cifar.data.augment) in cells("| augmentation")[1]
    assert str(cifar.network.dropout) == cells("| dropout")[1]
    assert cells("| smallest t")[0] == f"{FLOOR:g}".replace("0.0001", "1e-4").replace(
        "1e-04", "1e-4"
    )


def test_its_links_have_targets():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (FOLDER / link).exists(), link
