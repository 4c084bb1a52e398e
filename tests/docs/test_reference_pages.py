"""The generated pages of the documentation: every command, key and public name occurs."""

import re

import pytest
from typer.testing import CliRunner

import soflow
from documentation import api, commands, configuration
from soflow.cli.main import app
from soflow.config.reading import recipe_names
from soflow.config.sections import chosen_from
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def keys():
    """The first cells of all tables of configuration.md."""
    rows = [line.split(" | ") for line in configuration.page().splitlines() if line[:3] == "| `"]
    return {row[0].strip("| `"): row for row in rows}


def leaves(section, prefix=""):
    """The dotted names of all values of a configuration."""
    for name, value in section.items():
        if isinstance(value, dict) and value and name not in ("options",):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_key_of_every_recipe_is_documented(recipe, keys):
    chosen = {"network.name", "objective.name"}  # in the headings
    found = set(leaves(soflow.read_recipe(recipe).model_dump())) - chosen
    assert found - set(keys) == set()


@pytest.mark.parametrize(("kind", "registry"), [("objective", OBJECTIVES), ("network", NETWORKS)])
def test_every_objective_and_network_has_a_section(kind, registry):
    page = configuration.page()
    for name in registry:
        assert (f"### {kind}.name={name}\n" in page) == (registry[name].__module__[:7] == "soflow.")


def test_every_data_source_is_listed(keys):
    shipped = {name for name in soflow.SOURCES if soflow.SOURCES[name].__module__[:7] == "soflow."}
    assert shipped - {"python"} <= set(keys)


@pytest.mark.parametrize(
    ("key", "kind", "default", "allowed"),
    [
        ("train.steps", "integer", "`400000`", "≥ 1"),
        ("data.num_classes", "integer", "`10`", "≥ -1"),
        ("ema.decay", "number", "`0.9999`", "≥ 0, < 1"),
        ("optimizer.betas", "[number, number] or null", "`null`", "≥ 0, < 1"),
        ("train.on_nonfinite", "text", "`stop`", "`stop`, `skip`"),
        ("compile", "boolean or text", "`auto`", "`true`, `false`, `auto`"),
        ("evaluate.nfe", "list of integer", "`[1, 2, 4]`", "≥ 1, not empty"),
        ("train.seed", "integer", "`0`", "≥ 0"),
    ],
)
def test_a_key_has_its_type_default_and_range(key, kind, default, allowed, keys):
    assert keys[key][1:4] == [kind, default, allowed]


def test_every_key_has_a_meaning(keys):
    assert [key for key, row in keys.items() if not row[-1].strip(" |")] == []


def test_a_section_says_what_it_is_about():
    chosen = [name for name, field in soflow.Config.model_fields.items()
              if not chosen_from(field.metadata)]  # fmt: skip
    about = configuration.documented_attributes()
    assert {"data", "train", "ema", "evaluate", "optimizer"} <= set(about) & set(chosen)


def words(usage):
    """The words of a usage line without brackets, which differ between versions of typer."""
    return re.findall(r"[A-Z_|=]+", usage.upper())


@pytest.mark.parametrize("name", commands.commands())
def test_a_command_has_the_usage_and_the_options_of_its_help(name):
    result = CliRunner().invoke(app, [name, "--help"])
    rows = re.findall(r"^\W+?((?:-{1,2}[a-z][a-z-]*[\s,]+)+)", result.output, re.M)
    expected = {word for row in rows for word in re.findall(r"-[a-z-]+", row)} - {"--help", "-h"}
    found = list(commands.parameters(commands.commands()[name]))
    usages = " ".join(one.usage for one in found if one.is_option)
    assert set(re.findall(r"(?<!\S)--?[a-z-]+", usages)) == expected
    (line,) = re.findall(r"Usage: (.+)", result.output)
    assert words(commands.usage(name, found)) == words(line)


def test_the_page_has_every_command():
    page = commands.page()
    for name in commands.commands():
        assert f"\n## soflow {name}\n" in page


def test_a_default_in_words_moves_to_its_column():
    found = {one.usage: one for one in commands.parameters(commands.commands()["train"])}
    assert found["--out PATH"].default == "runs/RECIPE"
    assert "default" not in found["--out PATH"].help


def test_every_public_name_is_on_one_page_of_the_api():
    pages = api.pages()
    index = pages.pop("api.md")
    for name in soflow.__all__:
        places = [file for file, text in pages.items()
                  if f"::: soflow.{name}\n" in text or f"{{ #soflow.{name} " in text]  # fmt: skip
        assert len(places) == 1
        assert f"[`{name}`]({places[0]}#soflow.{name})" in index


def test_every_public_name_has_a_docstring():
    assert api.undocumented() == []


def test_an_object_shows_its_own_docstring_with_the_example_as_code():
    entry = api.entry("OBJECTIVES")
    assert "```pycon\n>>> " in entry
    assert "Example:" not in entry
