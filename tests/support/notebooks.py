"""Executes notebooks, with other numbers in their cell of parameters if asked."""

import ast
import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_parameters(
    notebook: nbformat.NotebookNode, values: Mapping[str, Any]
) -> nbformat.NotebookNode:
    """A copy whose cell tagged "parameters" assigns these values instead of its own."""
    notebook = copy.deepcopy(notebook)
    (cell,) = (one for one in notebook.cells if "parameters" in one.metadata.get("tags", ()))
    names = {
        target.id
        for statement in ast.parse(cell.source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    assert set(values) <= names, f"no parameters of the notebook: {set(values) - names}"
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return notebook


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """A copy with outputs, executed in a kernel of one thread whose working directory is `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    notebook = copy.deepcopy(notebook)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = nbclient.NotebookClient(
        notebook, timeout=900, startup_timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook
