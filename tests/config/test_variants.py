"""Variants are named sets of settings, read from YAML or Python."""

import pytest

from soflow.config import read_objectives, read_recipe
from soflow.config.variants import folder_name, read_compared
from soflow.errors import InputError

FILE = """
SoFlow: {objective: {name: soflow}}
weight 4:
  objective: {name: jump_flow, consistency_weight: 4, middle.init: 0.02}
  optimizer.lr: 2.0e-3
Muon: {objective.name: jump_flow, optimizer: {name: muon}}
as the recipe:
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "variants.yaml"
    path.write_text(FILE)
    return path


def configs(*overrides, variants, recipe="digits", only=()):
    read = read_compared(recipe, (), variants, only, overrides)
    return {name: variant.config for name, variant in read.items()}


def test_a_variant_is_the_recipe_with_changed_settings(file):
    read = read_compared("digits", (), file)
    assert list(read) == ["SoFlow", "weight 4", "Muon", "as the recipe"]
    settings = [
        "objective.name=jump_flow", "objective.consistency_weight=4", "objective.middle.init=0.02",
        "optimizer.lr=2e-3",
    ]  # fmt: skip
    assert read["weight 4"].config == read_recipe("digits", settings)
    assert read["weight 4"].settings == {
        "objective.name": "jump_flow",
        "objective.consistency_weight": 4,
        "objective.middle.init": 0.02,
        "optimizer.lr": 2e-3,
    }
    assert read["Muon"].config == read_recipe(
        "digits", ["objective.name=jump_flow", "optimizer.name=muon"]
    )
    assert read["as the recipe"].config == read_recipe("digits")
    assert read["as the recipe"].settings == {}


def test_objectives_are_variants_without_other_settings():
    names = ["soflow", "mean_flow", "consistency"]
    overrides = ["train.steps=7", "objective.guidance.scale=2.5"]
    read = configs(*overrides, variants={name: {"objective": {"name": name}} for name in names})
    assert read == read_objectives("digits", names, overrides)
    assert read["mean_flow"].guidance_scale == 2.5


def test_a_variant_keeps_its_settings_when_overrides_change_the_recipe(file):
    changes = ["optimizer.lr=0.5", "train.steps=9", "weight 4:objective.p=0.5"]
    read = configs(*changes, variants=file)
    assert [one.optimizer.lr for one in read.values()] == [0.5, 2e-3, 0.5, 0.5]
    assert {one.train.steps for one in read.values()} == {9}
    assert [one.objective.p for one in read.values()] == [1, 0.5, 1, 1]


def test_an_override_can_address_one_variant_by_name():
    variants = {"p": {}, "p = 0.5": {"objective.p": 0.5}}
    read = configs("p = 0.5:optimizer.lr=0.25", "p:optimizer.lr=0.5", variants=variants)
    assert {name: one.optimizer.lr for name, one in read.items()} == {"p": 0.5, "p = 0.5": 0.25}


def test_selected_variants_keep_the_order_of_the_file(file):
    assert list(configs(variants=file, only=["Muon", "SoFlow"])) == ["SoFlow", "Muon"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("soflow", "soflow"),
        ("mean_flow", "mean_flow"),
        ("SoFlow", "soflow"),
        ("weight 4, p = 0.5", "weight-4-p-0.5"),
        ("../Straße/è", "strae-e"),
        ("p±", "p"),
    ],
)
def test_folders_have_safe_names(name, folder):
    assert folder_name(name) == folder


@pytest.mark.parametrize(
    ("variants", "word"),
    [
        ({"a b": {}, "A-b": {}}, "A-b"),
        ({"a_b": {}, "a b": {}}, "a b"),
        ({"±": {}}, "±"),
        ({" a": {}}, "' a'"),
        ({"a\nb": {}}, r"a\nb"),
        ({"a" * 61: {}}, "aaa"),
        ({"a, b": {}}, "a, b"),
        ({"a: b": {}}, "a: b"),
        ({4: {}}, "4"),
        ({}, "variants"),
        ([], "variants"),
        ({"a": 3}, "a is 3"),
        ({"a": {"objective": {}}}, "objective"),
        ({"a": {"objective": "soflow"}}, "a: objective"),
        ({"a": {"objective": {"name": ["soflow"]}}}, "a: "),
        ({"a": {"objective": {"p": 1}, "objective.p": 2}}, "objective.p"),
        ({"a": {"objective": {"q": 1}}}, "a: unknown key 'objective.q'"),
        ({"a": {"objective": {"p": object()}}}, "objective.p"),
        ({"a": {"optimizer": {"name": 3}}}, "optimizer.name"),
        ({"a": {"data": {"flip": True}}}, "data.flip"),
        ({"a": {"evaluate.num": 9}}, "evaluate.num"),
        ({"a": {"data": "digits"}}, "a sets data"),
        ({"a": {"train": {"seed": 1}}}, "train.seed"),
        ({"a": {"train.sample_every": 1}}, "train.sample_every"),
    ],
)
def test_wrong_variants_are_one_line_errors(variants, word):
    with pytest.raises(InputError) as error:
        read_compared("digits", (), variants)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("a: {objective: {p: 1}}\na: {objective: {p: 2}}", "'a' twice"),
        ("a: {objective: {p: 1, p: 2}}", "'p' twice"),
        ("a: {objective: {p: 1}", "not valid YAML"),
        ("- a", "variants by name"),
    ],
)
def test_a_wrong_file_is_named(content, word, tmp_path):
    file = tmp_path / "variants.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"variants\.yaml") as error:
        read_compared("digits", (), file)
    assert word in str(error.value)


def test_a_missing_file_an_unknown_name_and_an_unknown_owner(file, tmp_path):
    with pytest.raises(InputError, match=r"missing\.yaml"):
        read_compared("digits", (), tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="'muon'"):
        read_compared("digits", (), file, ["muon"])
    with pytest.raises(InputError, match=r"muon:optimizer\.lr=1"):
        read_compared("digits", (), file, overrides=["muon:optimizer.lr=1"])
    with pytest.raises(InputError, match=r"SoFlow:objective\.p=1"):
        read_compared("digits", (), file, overrides=["objective.p=1"])
    with pytest.raises(InputError, match=r"train\.sample_every"):
        read_compared("digits", (), file, overrides=["train.sample_every=5"])
    with pytest.raises(InputError, match="only"):
        read_compared("digits", ["soflow"], None, ["soflow"])
