"""The code blocks of docs/contributing.md run, and their parts can be trained."""

import re
from pathlib import Path

import pytest

import soflow

TEXT = (Path(__file__).parents[1] / "docs" / "contributing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture
def _registries(monkeypatch):
    """Registries that are restored after the test."""
    for registry in (soflow.OBJECTIVES, soflow.NETWORKS, soflow.SOURCES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


@pytest.mark.usefixtures("_registries")
def test_an_objective_a_network_and_a_data_source_of_the_page_train(tmp_path):
    for block in BLOCKS:
        exec(block, {"__name__": "my_module"})
    settings = ["data.source=my_source", "data.shape=[2]", "network.name=my_network"]
    settings += ["objective.name=my_objective", "train.steps=2", "train.batch_size=8"]
    run = soflow.train("vectors", tmp_path, settings, progress=soflow.silent)
    assert [line["step"] for line in run.read_metrics()][-1] == 2
    assert soflow.load(tmp_path).sample(3, progress=soflow.silent).shape == (3, 2)
