"""Executes the tutorials, and stores their outputs without what differs by machine.

python tests/support/notebooks.py             # all of them, in full
python tests/support/notebooks.py method      # docs/tutorials/method.ipynb
"""

import ast
import copy
import os
import re
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
NAMES = ("method", "your_images", "compare", "own_parts")

#: Notes and progress bars, which differ from machine to machine.
MACHINE_NOTE = re.compile(r"^(chosen for this machine: |training a classifier of ).*\n", re.M)
PROGRESS = re.compile(r"samples/s|per second|\d+:\d\d:\d\d|^\s*[^\n]*: [\d,]+ of [\d,]+")


def read(name: str) -> nbformat.NotebookNode:
    """The tutorial of this name, as it is stored."""
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


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
    if unknown := set(values) - names:
        raise KeyError(f"the notebook has no parameters {sorted(unknown)}")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    return notebook


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """A copy with outputs, executed in a kernel with one thread that works in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    notebook = copy.deepcopy(notebook)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        startup_timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return notebook


def without_machine(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without progress bars, versions, and notes about the machine."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.language_info = {"name": "python"}
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = MACHINE_NOTE.sub("", output.text)
        cell.outputs = [output for output in cell.outputs if not is_transient(output)]
    return notebook


def is_transient(output: nbformat.NotebookNode) -> bool:
    """Whether an output is empty, or a progress bar."""
    if output.output_type == "stream":
        return not output.text.strip()
    return output.output_type == "display_data" and bool(
        "image/png" not in output.data and PROGRESS.search(output.data.get("text/plain", ""))
    )


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All texts in the outputs."""
    found = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                found.append(output.text)
            else:
                data = output.get("data", {})
                found += [str(text) for kind, text in data.items() if kind.startswith("text/")]
    return found


def store(name: str) -> None:
    """Executes one tutorial in full, and stores its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        done = executed(read(name), Path(folder))
    file = TUTORIALS / f"{name}.ipynb"
    nbformat.write(without_machine(done), file)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all kernels so far
    seconds, size = used.ru_utime + used.ru_stime, file.stat().st_size / 1e6
    print(f"{file.name}: {size:.2f} MB; {seconds:.0f} s of CPU time so far", flush=True)


if __name__ == "__main__":
    for tutorial in sys.argv[1:] or NAMES:
        store(tutorial)
