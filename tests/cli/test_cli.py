"""The real commands, as a stranger runs them: exit status, what is printed where, and no traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_import import DIT_YAML, reference_content

from soflow.cli import sample
from soflow.errors import InputError
from support.commands import assert_fails
from support.settings import TINY_DIT

TINY = [*TINY_DIT, "train.batch_size=32", "train.log_every=10"]


def soflow(*arguments, cwd=None, **settings):
    command = [sys.executable, "-m", "soflow", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False, **settings
    )


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that a test may spoil."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_from_training_to_report(tmp_path, inside):
    """The whole way with a tiny network: every command, and what each leaves behind."""
    run = tmp_path / "run"
    trained = soflow("train", "digits", *TINY, "train.steps=20", "--out", run)
    assert trained.returncode == 0, trained.stderr
    assert "step 10/20" in trained.stderr
    evaluated = inside("evaluate", run, "--num", "200", "--nfe", "1,2")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "FD-digits of 200 samples" in evaluated.stdout
    results = json.loads((run / "evaluation.json").read_text())
    few = [("renoise", 1), ("renoise", 2), ("ode", 2)]
    assert [(row["weights"], row["sampler"], row["nfe"]) for row in results["rows"]] == [
        *(("ema", *one) for one in few), *(("raw", *one) for one in few), ("ema", "heun", 64)
    ]  # fmt: skip
    assert results["real"]["recognized"] >= 0.98
    assert results["real"]["distance"] < min(row["distance"] for row in results["rows"])
    assert set(results["diagnostics"]) == {"solution_residual", "composition_gap", "one_step_error"}
    reported = inside("report", run)
    assert reported.returncode == 0, reported.stderr
    page = (run / "report.html").read_text()
    for part in (
        "Samples",
        "Quality",
        "One noise on its way",
        "Training",
        "Cost",
        "Settings",
        "held-out real data",
    ):
        assert part in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    assert "not FID" in page
    again = inside("train", "digits", *TINY, "train.steps=20", "--out", run)
    assert again.returncode == 0
    assert "step 10/20" not in again.stderr


def test_vectors_go_the_whole_way_too(tmp_path, inside):
    run = tmp_path / "run"
    small = ["network.width=16", "train.steps=20", "train.batch_size=64"]
    assert inside("train", "moons", *small, "--out", run).returncode == 0
    evaluated = inside("evaluate", run, "--num", "300", "--nfe", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "energy distance of" in evaluated.stdout
    assert inside("report", run).returncode == 0
    assert inside("sample", run, "--num", "10", "--out", tmp_path / "points.npz").returncode == 0
    assert np.load(tmp_path / "points.npz")["arr_0"].shape == (10, 2)
    assert_fails(inside("sample", run, "--labels", "0"), 2, "trained without classes")
    assert_fails(inside("evaluate", run, "--features", "digits"), 2, "'digits' are for images")


def test_samples_as_picture_arrays_and_folder(run, tmp_path, inside):
    assert (
        soflow(
            "sample", run, "--num", "12", "--nfe", "2", "--out", tmp_path / "grid.png"
        ).returncode
        == 0
    )
    assert Image.open(tmp_path / "grid.png").size == (10 * 34 + 2, 2 * 34 + 2)
    for method in ("ode", "euler", "heun"):
        assert inside("sample", run, "--num", "3", "--nfe", "2", "--method", method).returncode == 0
    assert (
        inside(
            "sample", run, "--num", "6", "--labels", "3,7", "--out", tmp_path / "s.npz"
        ).returncode
        == 0
    )
    arrays = np.load(tmp_path / "s.npz")
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (6, 8, 8, 1))
    assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3, 7]
    assert (
        inside(
            "sample", run, "--num", "6", "--labels", "3,7", "--out", tmp_path / "folder"
        ).returncode
        == 0
    )
    first = np.array(Image.open(tmp_path / "folder" / "000000.png"))
    assert np.array_equal(first, arrays["arr_0"][0, :, :, 0])
    assert (
        inside("sample", run, "-n", "5", "--out", tmp_path / "short.npz").returncode == 0
    )  # torchrun takes --num
    assert len(np.load(tmp_path / "short.npz")["arr_0"]) == 5
    checkpoint = run / "checkpoints" / "step-00000015"
    assert inside("sample", checkpoint, "--num", "6", "--out", tmp_path / "old.npz").returncode == 0
    assert not np.array_equal(np.load(tmp_path / "old.npz")["arr_0"], arrays["arr_0"])


def test_from_a_checkpoint_of_the_reference_implementation_to_a_report(tmp_path, inside):
    """Import, sample, train on, evaluate and report, and what is said of the settings."""
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(
        yaml.safe_dump({**DIT_YAML, "total_steps": 3, "num_workers": 8})
    )
    run = tmp_path / "run"
    arguments = [
        "import",
        tmp_path / "reference.pt",
        "--config",
        tmp_path / "reference.yaml",
        "--out",
        run,
    ]
    imported = inside(*arguments, "--heads", "4", "evaluate.num=40")
    assert imported.returncode == 0, imported.stderr
    for line in (
        "cfg_scale: 1.7 -> objective.guidance.scale=1.7",
        "num_workers: 8",
        "1 of 3 steps done",
        "depth=1",
    ):
        assert line in imported.stdout
    assert (run / "reference.yaml").read_text() == (tmp_path / "reference.yaml").read_text()
    assert inside("sample", run, "--num", "3").returncode == 0
    trained = inside("train", run)
    assert trained.returncode == 0, trained.stderr
    assert [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [3]
    assert inside("evaluate", run, "--nfe", "1", "--features", "coordinates").returncode == 0
    assert inside("report", run).returncode == 0

    assert_fails(inside(*arguments), 2, str(run), "--out")
    assert_fails(
        inside(
            "import",
            tmp_path / "reference.yaml",
            "--config",
            tmp_path / "reference.yaml",
            "--out",
            "x",
        ),
        2,
    )
    assert_fails(inside("import", tmp_path / "reference.pt", "--out", "x"), 2, "--config")
    assert_fails(
        inside("import", tmp_path / "reference.pt", "--config", "nowhere.yaml", "--out", "x"),
        2,
        "nowhere.yaml",
    )
    assert_fails(
        inside("train", "digits", f"init_from={tmp_path / 'no.pt'}", "--out", tmp_path / "y"),
        2,
        "no.pt",
    )
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    "network",
    [
        TINY_DIT,
        [
            "network.name=unet",
            "network.model_channels=32",
            "network.channel_mult=[1]",
            "network.blocks=1",
        ],
    ],
)
def test_a_run_without_labels_is_evaluated(network, tmp_path, inside):
    without = [
        "data.num_classes=0",
        "objective.guidance.scale=1",
        "train.steps=2",
        "train.batch_size=8",
        "evaluate.num=20",
    ]
    assert inside("train", "digits", *network, *without, "--out", tmp_path / "run").returncode == 0
    evaluated = inside("evaluate", tmp_path / "run", "--nfe", "1")
    assert evaluated.returncode == 0, evaluated.stderr
    assert (
        json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"][0]["recognized"]
        is None
    )


def test_settings_of_a_run_begin_another_anew_and_say_so(run, tmp_path, inside):
    again = inside("train", run, "train.steps=2", "--out", tmp_path / "new")
    assert again.returncode == 0
    assert f"beginning anew in {tmp_path / 'new'}" in again.stderr
    assert f"init_from={run}" in again.stderr


def test_several_runs_make_one_page(run, tiny_run, tmp_path, inside):
    result = inside("report", run, tiny_run, "--out", tmp_path / "both.html")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "both.html").read_text()
    assert page.count("<h2>Samples</h2>") == 2
    assert "Side by side" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digitz"], ["no recipe and no run folder 'digitz'", "did you mean digits"]),
        (["train", "digits", "train.stepz=5"], ["unknown key 'train.stepz'", "train.steps"]),
        (
            ["train", "digits", "objective.flow_matching_share=2"],
            ["objective.flow_matching_share is 2", "less than or equal to 1"],
        ),
        (
            ["train", "digits", "data.source=imagenet"],
            ["'imagenet'", "digits, moons", "soflow encode"],
        ),
        (
            ["train", "digits", "evaluate.features=clasifier"],
            ["unknown features 'clasifier'", "did you mean classifier?"],
        ),
        (["train", "digits", "evaluate.features=no/net.pt"], ["there is no file no/net.pt"]),
        (["train", "images"], ["data.source=folder needs data.path"]),
        (["train", "digits", "network.patch=3"], ["DiT: size 8 must be a multiple of patch 3"]),
        (["recipes", "nothing"], ["no recipe"]),
        (["sample", "nowhere"], ["nowhere is not a run folder"]),
        (["report", "nowhere"], ["nowhere is not a run folder"]),
        (["sample", __file__], ["is a file, not a run folder", "soflow import"]),
        (["evaluate"], ["Missing"]),
        (["fly"], ["No such command"]),
        (["train", "digits", "--fast"], ["No such option"]),
        (["sample", "nowhere", "--num", "0"], ["--num is 0", "1 or more"]),
        (["sample", "nowhere", "--nfe", "0"], ["--nfe is 0", "1 or more"]),
        (["sample", "nowhere", "--num", "many"], ["--num", "integer", "soflow sample --help"]),
        (["evaluate", "nowhere", "--nfe", "1,0"], ["--nfe is 0"]),
        (["evaluate", "nowhere", "--nfe", "one"], ["--nfe is 'one'"]),
        (["evaluate", "nowhere", "--num", "1"], ["--num is 1", "2 or more"]),
    ],
)
def test_wrong_use_is_one_line_and_status_two(arguments, words, tmp_path, inside):
    assert_fails(inside(*arguments, cwd=tmp_path), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "cat"], ["--labels names cat: the classes are 0 to 9"]),
        (["--method", "magic"], ["unknown sampling method 'magic'", "renoise, ode"]),
        (["--method", "heun", "--nfe", "3"], ["3 is odd, use 4"]),
        (["--weights", "mean"], ["ema or raw"]),
        (["--out", "samples.gif"], [".png or .npz"]),
        (["--out", "config.yaml/samples.png"], ["cannot write to config.yaml"]),
    ],
)
def test_wrong_samples_are_refused(arguments, words, run, inside):
    before = sorted(run.rglob("*"))
    assert_fails(inside("sample", run, *arguments, cwd=run), 2, *words)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("label", ["-1", "10"])
def test_a_label_that_is_no_class(label, run, inside):
    assert_fails(
        inside("sample", run, "--labels", label),
        2,
        f"--labels names {label}",
        "the classes are 0 to 9",
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0,2", [0, 2]),
        ("cat,Cat, CAR", [2, 1, 3]),  # as it is spelled first, then in any case
        ("tench, Tinca tinca", [0]),
        ("goldfish, Carassius auratus,tench,tinca TINCA, 2,fish", [4, 0, 2, 5]),
    ],
)
def test_classes_are_named_in_lists_with_commas(text, numbers):
    names = ("tench, Tinca tinca", "Cat", "cat", "car", "goldfish,Carassius auratus", "fish")
    assert sample.choose_labels(text, len(numbers), names).tolist() == numbers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CAT", r"names CAT: the classes Cat \(0\) and cat \(1\) are called so: give the number"),
        ("crane", r"names crane: the classes crane \(2\) and crane \(3\) are called so"),
        ("²", "names ²: the classes are 0 to 4"),
        (
            "cat,tench",
            "names tench: the classes are 0 to 4: Cat, cat, crane, crane, trench; did you mean trench",
        ),
    ],
)
def test_names_of_no_class_or_of_several_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        sample.choose_labels(text, 1, ("Cat", "cat", "crane", "crane", "trench"))


def test_an_output_folder_that_cannot_be_written(tmp_path, run, inside):
    (tmp_path / "file").write_text("in the way")
    assert_fails(
        inside("train", "digits", *TINY, "--out", tmp_path / "file" / "run"),
        2,
        "cannot write",
        "--out",
    )
    assert_fails(
        inside("report", run, "--out", tmp_path / "file" / "page.html"), 2, "cannot write", "--out"
    )


@pytest.mark.parametrize("text", ["- one\n- two\n", "words\n", "data: {\n"])
def test_a_recipe_that_is_no_mapping(text, tmp_path, inside):
    (tmp_path / "r.yaml").write_text(text)
    assert_fails(inside("train", tmp_path / "r.yaml", "--out", tmp_path / "run"), 2, "r.yaml")


def test_a_run_folder_of_another_version(run, inside):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("version: 3", "version: 7"))
    assert_fails(inside("sample", run), 2, "version 7", "reads version 3")
    for command in ("evaluate", "report"):
        assert_fails(inside(command, run), 2, "version 7", "reads version 3")


def test_a_damaged_checkpoint(run, inside):
    newest, older = (run / "checkpoints" / f"step-000000{step}" for step in (30, 15))
    file = newest / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_fails(
        inside("sample", newest), 1, str(file), "damaged", f"last good checkpoint is {older}"
    )
    passed_over = inside("sample", run, "--num", "4")  # the run as a whole still has a good one
    assert passed_over.returncode == 0
    assert str(file) in passed_over.stderr
    assert f"using {older}" in passed_over.stderr
    shutil.rmtree(older)
    assert_fails(inside("sample", run), 1, str(file), "no good checkpoint")


def test_a_loss_that_is_no_number(tmp_path, inside):
    settings = ["train.steps=50", "optimizer.lr=1e30", "optimizer.clip=0", "optimizer.warmup=0"]
    result = inside("train", "digits", *TINY, *settings, "--out", tmp_path / "run")
    assert_fails(result, 1, "the loss is", "at step", "no checkpoint yet", "smaller optimizer.lr")


def test_other_settings_for_a_run_that_is_there(run, inside):
    assert_fails(
        inside("train", "digits", *TINY, "train.steps=99", "--out", run),
        2,
        "train.steps=30",
        "asks for 99",
    )


def test_ctrl_c_saves_and_the_next_call_goes_on(tmp_path, inside):
    command = ["train", "digits", *TINY, "train.steps=400", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "soflow", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if line.startswith("step 10/"):
            break
    os.kill(process.pid, signal.SIGINT)
    started = time.monotonic()
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert time.monotonic() - started < 30
    assert "Traceback" not in rest
    assert f"resume with: soflow train {tmp_path / 'run'}" in rest
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    going_on = inside(
        "train", tmp_path / "run"
    )  # what it says to type; the same command does the same
    assert going_on.returncode == 0
    assert f"resuming from {checkpoint}" in going_on.stderr
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(10, 401, 10))


def test_recipes_are_listed_and_explained(inside):
    assert soflow().stdout == soflow("--help").stdout
    assert inside("--version").stdout == "soflow 0.1.0\n"
    listing = inside("recipes")
    assert "digits" in listing.stdout
    assert "imagenet256-xl2" in listing.stdout
    printed = inside("recipes", "cifar10")
    assert printed.returncode == 0
    assert "flow_matching_share: 0.0" in printed.stdout
    assert "# share of the batch that matches the flow" in printed.stdout


def test_a_printed_recipe_can_be_used_as_a_file(tmp_path, inside):
    (tmp_path / "mine.yaml").write_text(inside("recipes", "digits", *TINY, "train.steps=3").stdout)
    result = inside("train", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "mine" / "checkpoints" / "step-00000003").is_dir()


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
            "from soflow.cli.main import run; run(['recipes'])",
            ["torch", "matplotlib", "sklearn", "accelerate"],
        ),
        (
            "from soflow.cli.main import run; run(['train', 'digits', 'a.b=1'])",
            ["torch", "accelerate"],
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    check = f"{code}; import sys; print('IMPORTED', [m for m in {absent} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("IMPORTED []")
