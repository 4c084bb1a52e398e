"""examples/notebook.ipynb runs in a kernel and shows the expected output."""

from pathlib import Path

import nbclient
import nbformat
import pytest

import soflow

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


class Client(nbclient.NotebookClient):
    """Executes a notebook and records the message types of each cell."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.kinds = {}

    def process_message(self, message, cell, index):
        self.kinds.setdefault(index, []).append(message["header"]["msg_type"])
        return super().process_message(message, cell, index)


def executed(notebook, folder, monkeypatch):
    """The message types and outputs of each code cell."""
    root = Path(soflow.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("SOFLOW_EXAMPLE_STEPS", "40")
    monkeypatch.setenv("TMPDIR", str(folder))
    client = Client(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [(client.kinds[i], cell.outputs) for i, cell in cells]


def text_of(outputs, name):
    return "".join(one.text for one in outputs if one.get("name") == name)


def data_of(outputs):
    return [one.data for one in outputs if "data" in one]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    with pytest.MonkeyPatch.context() as patch:
        return executed(notebook, tmp_path_factory.mktemp("notebook"), patch)


def test_the_notebook_trains_interrupts_resumes_samples_and_evaluates(cells):
    interrupted, resumed, drawn, evaluated, other = (outputs for _, outputs in cells[1:])
    assert "SIGINT: checkpoint written" in text_of(interrupted, "stdout")
    assert "resuming from" in text_of(resumed, "stdout")
    for outputs in (resumed, drawn, other):
        assert "image/png" in data_of(outputs)[-1]
    assert "<table>" in data_of(evaluated)[-1]["text/html"]
    assert len(other) == 1  # only the picture: training was silent


def test_no_output_looks_like_an_error(cells):
    assert [text_of(outputs, "stderr") for _, outputs in cells] == [""] * len(cells)


BARS = """
import time
import soflow
with soflow.track("outer", 4) as outer:
    for i in range(4):
        with soflow.track("inner", 2) as inner:
            time.sleep(0.4)
            inner.update(1, "<half>")
        outer.update(i + 1)
---
with soflow.track("short", 2) as task:
    task.update(2)
---
with soflow.track("failing", 4) as task:
    task.update(3)
    time.sleep(0.7)
    raise KeyboardInterrupt
"""


def test_progress_bars_update_in_place_and_leave_one_line(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source) for source in BARS.split("---")]
    cells[2].metadata["tags"] = ["raises-exception"]
    long, short, failing = executed(nbformat.v4.new_notebook(cells=cells), tmp_path, monkeypatch)
    kinds, outputs = long
    assert kinds.count("display_data") == 1
    assert kinds.count("update_display_data") >= 2
    (data,) = data_of(outputs)
    assert "outer: 4 of 4" in data["text/plain"]
    assert "inner" not in data["text/plain"]
    assert "outer: 4 of 4" in data["text/html"]
    assert short[1] == []
    assert "failing: 3 of 4" in data_of(failing[1])[0]["text/plain"]
    assert failing[1][-1].ename == "KeyboardInterrupt"
