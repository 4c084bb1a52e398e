"""Wrong usage gives an exit status and one line on stderr that names the problem."""

import re
import shutil

import pytest

from support.commands import assert_fails
from support.settings import TINY_DIT

TINY = [*TINY_DIT, "train.batch_size=32", "train.log_every=10"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digitz"], ["'digitz'", "did you mean digits"]),
        (["train", "digits", "train.stepz=5"], ["'train.stepz'", "train.steps"]),
        (
            ["train", "digits", "objective.flow_matching_share=2"],
            ["objective.flow_matching_share is 2", "1"],
        ),
        (["train", "digits", "objective.name=magic"], ["magic", "soflow", "--import"]),
        (["train", "digits", "data.source=imagenet"], ["imagenet", "digits, moons", "encode"]),
        (
            ["train", "digits", "evaluate.features=clasifier"],
            ["'clasifier'", "did you mean classifier?"],
        ),
        (["train", "digits", "evaluate.features=no/net.pt"], ["no/net.pt"]),
        (["train", "images"], ["data.path"]),
        (["train", "digits", "network.patch=3"], ["DiT", "size 8", "patch 3"]),
        (["recipes", "nothing"], ["nothing"]),
        (["sample", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["sample", __file__], [__file__, "soflow import"]),
        (["evaluate"], ["Missing", "soflow evaluate --help"]),
        (["fly"], ["No such command", "fly"]),
        (["train", "digits", "--fast"], ["No such option", "--fast"]),
        (["sample", "nowhere", "--num", "0"], ["--num", "1"]),
        (["sample", "nowhere", "--nfe", "0"], ["--nfe", "1"]),
        (["sample", "nowhere", "--seed", "-1"], ["--seed", "0"]),
        (["sample", "nowhere", "--num", "many"], ["--num", "integer", "soflow sample --help"]),
        (["sample", "nowhere", "--method", "ode"], ["No such option", "--method"]),
        (["evaluate", "nowhere", "--nfe", "1,0"], ["--nfe", "0"]),
        (["evaluate", "nowhere", "--nfe", "one"], ["--nfe", "one"]),
        (["evaluate", "nowhere", "--num", "1"], ["--num", "1"]),
    ],
)
def test_wrong_use_is_one_line_and_status_two(arguments, words, tmp_path, inside):
    assert_fails(inside(*arguments, cwd=tmp_path), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "cat"], ["cat", "0 to 9"]),
        (["--labels", "-1"], ["-1", "0 to 9"]),
        (["--labels", "10"], ["10", "0 to 9"]),
        (["--labels", "1", "--draw", "random"], ["--labels", "--draw"]),
        (["--sampler", "magic"], ["'magic'", "renoise, ode, euler, heun"]),
        (["--sampler", "heun", "--nfe", "3"], ["3 is odd", "4"]),
        (["--weights", "mean"], ["--weights", "mean", "ema", "raw"]),
        (["--out", "samples.gif"], ["samples.gif", ".png", ".npz"]),
        (["--out", "config.yaml/samples.png"], ["config.yaml"]),
    ],
)
def test_wrong_samples_are_rejected(arguments, words, run, inside):
    before = sorted(run.rglob("*"))
    assert_fails(inside("sample", run, *arguments, cwd=run), 2, *words)
    assert sorted(run.rglob("*")) == before


def test_an_unwritable_output_folder_is_rejected(tmp_path, run, inside):
    (tmp_path / "file").write_text("in the way")
    for command in (["train", "digits", *TINY], ["report", run]):
        place = tmp_path / "file" / "place.html"
        assert_fails(inside(*command, "--out", place), 2, str(tmp_path / "file"), "--out")


@pytest.mark.parametrize("text", ["- one\n- two\n", "words\n", "data: {\n"])
def test_a_recipe_that_is_not_a_mapping_is_rejected(text, tmp_path, inside):
    (tmp_path / "r.yaml").write_text(text)
    assert_fails(inside("train", tmp_path / "r.yaml", "--out", tmp_path / "run"), 2, "r.yaml")


def test_a_run_of_another_version_is_rejected(run, inside):
    config = run / "config.yaml"
    config.write_text(re.sub(r"version: \d+", "version: 77", config.read_text()))
    for command in ("sample", "evaluate", "report"):
        assert_fails(inside(command, run), 2, str(run), "version 77")


def test_a_damaged_checkpoint_is_rejected(run, inside):
    newest, older = (run / "checkpoints" / f"step-000000{step}" for step in (30, 15))
    file = newest / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_fails(inside("sample", newest), 1, str(file), str(older))
    sampled = inside("sample", run, "--num", "4")  # the run still has an intact checkpoint
    assert sampled.returncode == 0
    assert str(file) in sampled.stderr
    assert str(older) in sampled.stderr
    shutil.rmtree(older)
    assert_fails(inside("sample", run), 1, str(file))


def test_a_nonfinite_loss_is_one_line(tmp_path, inside):
    settings = [
        "precision=fp32",
        "compile=false",
        "train.steps=50",
        "optimizer.lr=1e30",
        "optimizer.clip=0",
        "optimizer.warmup=0",
    ]
    result = inside("train", "digits", *TINY, *settings, "--out", tmp_path / "run")
    assert_fails(result, 1, "loss", "step", "optimizer.lr")


#: The settings of `tiny_run`.
STEPS = ["train.steps=30", "checkpoint.every=15"]


def test_other_settings_for_an_existing_run_are_rejected(run, inside):
    result = inside("train", "digits", *TINY, *STEPS, "train.seed=99", "--out", run)
    assert_fails(result, 2, "train.seed=0", "99")
    # Settings that may change but were not given: the recipe's values differ from the run's.
    assert_fails(inside("train", "digits", *TINY, "--out", run), 2, "train.steps=30", "2000")
