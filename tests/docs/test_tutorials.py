"""The tutorials run, and are stored with the outputs of a full run.

Executing them takes some time, so `make test-processes` does it, with few steps. To store new
outputs after a change: `python tests/support/notebooks.py`.
"""

import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from support import notebooks

#: Small values of the parameters of each tutorial.
SHORT = {
    "method": {"STEPS": 20, "BATCH": 64, "POINTS": 100},
    "your_images": {"STEPS": 4, "TOTAL_STEPS": 6, "SAMPLES": 100},
    "compare": {"STEPS": 8, "SEEDS": 2, "SAMPLES": 50},
    "own_parts": {"STEPS": 100, "POINTS": 100},
}
ALL = pytest.mark.parametrize("name", notebooks.NAMES)


def test_every_tutorial_is_tested():
    files = {file.stem for file in notebooks.TUTORIALS.glob("*.ipynb")}
    assert files == set(notebooks.NAMES) == set(SHORT)


@pytest.mark.processes
@ALL
def test_it_runs(name, tmp_path):
    short = notebooks.with_parameters(notebooks.read(name), SHORT[name])
    outputs = [cell.outputs for cell in notebooks.code_cells(notebooks.executed(short, tmp_path))]
    errors = [one.text for cell in outputs for one in cell if one.get("name") == "stderr"]
    assert errors == []


@pytest.mark.processes
def test_a_broken_cell_fails(tmp_path):
    cells = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("assert x == 2")]
    with pytest.raises(CellExecutionError, match="AssertionError"):
        notebooks.executed(nbformat.v4.new_notebook(cells=cells), tmp_path)


def test_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(KeyError, match="STEP"):
        notebooks.with_parameters(notebooks.read("method"), {"STEP": 1})


@ALL
def test_it_is_stored_with_the_outputs_of_one_full_run(name):
    cells = notebooks.code_cells(notebooks.read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"]
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 2
    assert (notebooks.TUTORIALS / f"{name}.ipynb").stat().st_size < 1_000_000


@ALL
def test_its_outputs_name_no_machine(name):
    stored = notebooks.read(name)
    assert notebooks.without_machine(stored) == stored
    paths = re.compile(r"(?<![\w./])/(?!>)\w+/\w+|[A-Z]:\\|at 0x[0-9a-f]+")
    without_markup = [re.sub(r"<[^>]*>", "", text) for text in notebooks.texts(stored)]
    assert [text for text in without_markup if paths.search(text)] == []


@ALL
def test_its_links_lead_somewhere(name):
    text = "\n".join(
        cell.source for cell in notebooks.read(name).cells if cell.cell_type == "markdown"
    )
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (notebooks.TUTORIALS / link).exists()] == []


@ALL
def test_its_equations_become_mathml(name):
    converter = pytest.importorskip("latex2mathml.converter")
    text = "\n".join(
        re.sub(r"(?s)```.*?```|`[^`]*`", "", cell.source)
        for cell in notebooks.read(name).cells
        if cell.cell_type == "markdown"
    )
    blocks = re.findall(r"(?s)\$\$(.+?)\$\$", text)
    lines = re.findall(r"\$([^$\n]+)\$", re.sub(r"(?s)\$\$.+?\$\$", "", text))
    for equation in blocks + lines:
        assert "\\" not in re.sub(r"<annotation.*", "", converter.convert(equation)), equation
