"""Commands as a user runs them: exit status, output and files."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from soflow import __version__
from support.commands import assert_fails
from support.reference_checkpoint import DIT_YAML, write_reference
from support.settings import TINY_DIT

TINY = [*TINY_DIT, "train.batch_size=32", "train.log_every=10"]


def test_every_command_from_training_to_report(tmp_path, inside):
    """All commands work on a run of a tiny network."""
    run = tmp_path / "run"
    train = ["train", "digits", *TINY, "train.steps=20", "--out", run]
    trained = inside(*train)
    assert trained.returncode == 0, trained.stderr
    assert "step 10 of 20" in trained.stderr
    evaluated = inside("evaluate", run, "--num", "100", "--nfe", "1,2")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "FD-digits between 100 samples" in evaluated.stdout
    results = json.loads((run / "evaluation.json").read_text())
    few = [("ode", 1), ("ode", 2), ("renoise", 2)]
    assert [(row["weights"], row["sampler"], row["nfe"]) for row in results["rows"]] == [
        *(("ema", *one) for one in few), *(("raw", *one) for one in few), ("ema", "heun", 64)
    ]  # fmt: skip
    assert results["real"]["distance"] < min(row["distance"] for row in results["rows"])
    reported = inside("report", run)
    assert reported.returncode == 0, reported.stderr
    page = (run / "report.html").read_text()
    for part in ("Samples", "Quality", "Training", "Cost", "Settings"):
        assert part in page
    assert "http" not in page.replace("http-equiv", "")  # the page loads no other files
    again = inside(*train)
    assert again.returncode == 0
    assert "step 10 of 20" not in again.stderr


def test_every_command_works_with_vectors(tmp_path, inside):
    run = tmp_path / "run"
    small = ["network.width=16", "network.depth=1", "train.steps=4", "train.batch_size=16"]
    assert inside("train", "moons", *small, "--out", run).returncode == 0
    evaluated = inside("evaluate", run, "--num", "100", "--nfe", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "energy distance between" in evaluated.stdout
    assert inside("report", run).returncode == 0
    assert inside("sample", run, "--num", "10", "--out", tmp_path / "points.npz").returncode == 0
    assert np.load(tmp_path / "points.npz")["arr_0"].shape == (10, 2)
    assert_fails(inside("sample", run, "--labels", "0"), 2, "classes 0", "without classes")
    assert_fails(inside("sample", run, "--out", tmp_path / "folder"), 2, "folder", "npz")
    assert_fails(inside("evaluate", run, "--features", "digits"), 2, "'digits'", "images")


def test_samples_as_picture_arrays_and_folder(run, tmp_path, inside):
    def sample(*arguments):
        result = inside("sample", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    sample(run, "--num", "12", "--nfe", "2", "--out", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (10 * 34 + 2, 2 * 34 + 2)
    for sampler in ("ode", "euler", "heun"):
        printed = sample(run, "--num", "3", "--nfe", "2", "--sampler", sampler)
        assert (run / "samples" / f"step-00000030-{sampler}-2-seed-0.png").is_file()
        assert f"{sampler}-2-seed-0.png" in printed
    sample(run, "--num", "6", "--labels", "3,7", "--out", tmp_path / "s.npz")
    arrays = np.load(tmp_path / "s.npz")
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (6, 8, 8, 1))
    assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3, 7]
    sample(run, "--num", "6", "--labels", "3,7", "--out", tmp_path / "folder")
    first = np.array(Image.open(tmp_path / "folder" / "000000.png"))
    assert np.array_equal(first, arrays["arr_0"][0, :, :, 0])
    sample(run, "-n", "5", "--out", tmp_path / "short.npz")  # torchrun has its own option --num
    assert len(np.load(tmp_path / "short.npz")["arr_0"]) == 5
    checkpoint = run / "checkpoints" / "step-00000015"
    sample(checkpoint, "--num", "6", "--labels", "3,7", "--out", tmp_path / "old.npz")
    assert not np.array_equal(np.load(tmp_path / "old.npz")["arr_0"], arrays["arr_0"])


def test_from_a_checkpoint_of_the_reference_implementation_to_a_report(tmp_path, inside):
    """Imports a checkpoint, then samples, fine-tunes, evaluates and reports."""
    settings = {**DIT_YAML, "total_steps": 3, "num_workers": 8}
    checkpoint, config = write_reference(tmp_path, settings=settings)
    run = tmp_path / "run"
    arguments = ["import", checkpoint, "--config", config, "--out", run]
    imported = inside(*arguments, "--heads", "4", "evaluate.num=40")
    assert imported.returncode == 0, imported.stderr
    for part in (
        "cfg_scale: 1.7 -> objective.guidance.scale=1.7",
        "num_workers: 8",
        "1 of 3 steps done",
        "depth=1",
    ):
        assert part in imported.stdout
    assert (run / "reference.yaml").read_text() == config.read_text()
    assert inside("sample", run, "--num", "3").returncode == 0
    trained = inside("train", run)
    assert trained.returncode == 0, trained.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3]
    assert inside("evaluate", run, "--nfe", "1", "--features", "coordinates").returncode == 0
    assert inside("report", run).returncode == 0

    assert_fails(inside(*arguments), 2, str(run), "--out")
    assert_fails(inside("import", config, "--config", config, "--out", "x"), 2, str(config))
    assert_fails(inside("import", checkpoint, "--out", "x"), 2, "--config")
    assert_fails(
        inside("import", checkpoint, "--config", "nowhere.yaml", "--out", "x"), 2, "nowhere.yaml"
    )
    initial = f"init_from={tmp_path / 'no.pt'}"
    assert_fails(inside("train", "digits", initial, "--out", tmp_path / "y"), 2, "no.pt")
    assert not (tmp_path / "y").exists()


def test_a_run_without_labels_can_be_evaluated(tmp_path, inside):
    without = [
        "data.num_classes=0",
        "objective.guidance.scale=1",
        "train.steps=2",
        "train.batch_size=8",
        "evaluate.num=20",
    ]
    run = tmp_path / "run"
    assert inside("train", "digits", *TINY_DIT, *without, "--out", run).returncode == 0
    evaluated = inside("evaluate", run, "--nfe", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((run / "evaluation.json").read_text())["rows"][0]["recognized"] is None


def test_a_config_file_of_a_run_starts_another_run(run, tmp_path, inside):
    again = inside("train", run, "train.steps=2", "--out", tmp_path / "new")
    assert again.returncode == 0
    assert str(tmp_path / "new") in again.stderr
    assert f"init_from={run}" in again.stderr


def test_several_runs_give_one_report(run, tiny_run, tmp_path, inside):
    result = inside("report", run, tiny_run, "--out", tmp_path / "both.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "both.html").read_text()
    assert page.count("<h2>Samples</h2>") == 2
    assert "Side by side" in page


@pytest.mark.processes
def test_ctrl_c_saves_and_the_same_command_resumes(tmp_path, inside):
    run = tmp_path / "run"
    small = ["network.width=16", "network.depth=1", "train.batch_size=16", "train.log_every=10"]
    command = ["train", "moons", *small, "train.steps=200", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "soflow", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if line.startswith("step 10 of "):
            break
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, rest
    assert time.monotonic() - started < 30
    assert "Traceback" not in rest
    assert f"soflow train {run}" in rest
    (checkpoint,) = (run / "checkpoints").iterdir()
    resumed = inside("train", run)  # the command from its message
    assert resumed.returncode == 0
    assert str(checkpoint) in resumed.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(10, 201, 10))


def test_recipes_are_listed_and_explained(inside):
    assert inside().stdout == inside("--help").stdout != ""
    assert inside("--version").stdout == f"soflow {__version__}\n"
    listing = inside("recipes")
    assert "digits" in listing.stdout
    assert "imagenet256-xl2" in listing.stdout
    printed = inside("recipes", "cifar10")
    assert printed.returncode == 0
    assert re.search(r"flow_matching_share: 0\.0 +# \w", printed.stdout)


def test_a_printed_recipe_can_be_used_as_a_file(tmp_path, inside):
    (tmp_path / "mine.yaml").write_text(inside("recipes", "digits", *TINY, "train.steps=3").stdout)
    result = inside("train", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "step-00000003").is_dir()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import soflow", ["torch", "numpy", "matplotlib", "sklearn", "accelerate", "pydantic"]),
        (
            "import soflow; soflow.SoFlow, soflow.DiT, soflow.one_step",
            ["matplotlib", "sklearn", "accelerate"],
        ),
        (
            "from soflow.cli.main import run; run(['--help'])",
            ["torch", "pydantic", "matplotlib", "sklearn", "accelerate"],
        ),
        (
            "from soflow.cli.main import run; run(['train', 'digits', 'a.b=1'])",
            ["matplotlib", "sklearn", "accelerate"],
        ),
    ],
)
def test_unused_packages_are_not_imported(code, absent):
    check = f"{code}; import sys; print('IMPORTED', [m for m in {absent} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("IMPORTED []")
