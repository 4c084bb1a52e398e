"""benchmarks/long_jump.py runs on tiny runs."""

import json
import sys
from pathlib import Path
from runpy import run_path

import pytest

import soflow
from soflow.drawing import class_by_class, noise_of_samples
from soflow.evaluation.diagnostics import jump_errors
from support.settings import TINY_DIT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "long_jump.py"
SETTINGS = [*TINY_DIT, "train.steps=4", "train.batch_size=16", "train.sample_every=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("comparison")
    often = ["checkpoint.every=1", "checkpoint.keep_every=1"]
    for name in ("soflow", "mean_flow"):
        overrides = [*SETTINGS, *often, f"objective.name={name}"]
        soflow.train(
            "digits", folder / f"{name}-seed-0", overrides=overrides, progress=soflow.silent
        )
    return folder


@pytest.fixture
def run(monkeypatch):
    """Runs the script in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        run_path(str(SCRIPT), run_name="__main__")

    return run


def test_errors_of_every_run_over_training(folder, tmp_path, run, capsys):
    out = tmp_path / "jumps"
    run(folder, "--num", 20, "--checkpoints", 2, "--out", out)
    found = json.loads((tmp_path / "jumps.json").read_text())
    assert [one["folder"] for one in found["runs"]] == ["mean_flow-seed-0", "soflow-seed-0"]
    for one in found["runs"]:
        assert [point["step"] for point in one["checkpoints"]] == [2, 4]
    model = soflow.load(folder / "soflow-seed-0" / "checkpoints" / "step-00000002").model
    noise = noise_of_samples(0, 0, 20, 1, model.shape, "cpu")[0]
    errors = jump_errors(model, noise, class_by_class(20, 10))
    point = found["runs"][1]["checkpoints"][0]
    assert [one["error"] for one in point["errors"]] == pytest.approx([x.error for x in errors])
    longest = next(one for one in errors if (one.t, one.s) == (1.0, 0.0))
    table = (tmp_path / "jumps.md").read_text()
    assert f"| soflow-seed-0 | 2 | {longest.relative:.3f} |" in table
    assert capsys.readouterr().out.strip() == table.strip()
    assert (tmp_path / "jumps.png").read_bytes().startswith(b"\x89PNG")


def test_runs_can_be_selected_and_unknown_names_are_errors(folder, run, capsys):
    run(folder, "--num", 5, "--checkpoints", 1, "--only", "soflow")
    found = json.loads((folder / "long_jump.json").read_text())
    assert [one["folder"] for one in found["runs"]] == ["soflow-seed-0"]
    with pytest.raises(SystemExit, match="2"):
        run(folder, "--only", "shortcut")
    assert "mean_flow, soflow" in capsys.readouterr().err
