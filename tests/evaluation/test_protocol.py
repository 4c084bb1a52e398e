"""`soflow evaluate` for runs: table, seeds, weights, batches, labels, evaluation in training."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import soflow as runs
from soflow.config import read_recipe
from soflow.drawing import class_by_class, random_classes
from soflow.errors import InputError
from soflow.evaluation.evaluate import rows_of
from soflow.evaluation.record import Evaluation
from soflow.evaluation.tables import table
from soflow.run.checkpoint import checkpoints
from soflow.run.folder import RunFolder
from soflow.system.progress import silent
from support.commands import assert_fails
from support.settings import TINY_DIT


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


def evaluated(inside, run, *options, file="evaluation.json", heun=False):
    """Runs the command. Returns the results and the output, without Heun unless requested."""
    if not heun and "--samplers" not in options:
        options = (*options, "--samplers", "renoise,ode")
    done = inside("evaluate", run, "--num", "60", *options)
    assert done.returncode == 0, done.stderr
    return json.loads((run / file).read_text()), done.stdout


def test_a_run_can_be_evaluated_from_its_own_folder(run, inside):
    assert (
        inside(
            "evaluate", ".", "--num", "20", "--nfe", "1", "--samplers", "ode", cwd=run
        ).returncode
        == 0
    )


def test_every_weights_sampler_and_count_has_a_row():
    few = [("renoise", 1), ("renoise", 4), ("ode", 4)]
    assert rows_of(["renoise", "ode", "heun"], [1, 4], ["ema", "raw"]) == [
        *(("ema", *one) for one in few), *(("raw", *one) for one in few), ("ema", "heun", 64)
    ]  # fmt: skip
    assert rows_of(["euler", "heun"], [2], ["raw"]) == [("raw", "euler", 2), ("raw", "heun", 64)]


def test_figures_do_not_depend_on_the_batch_size(run, inside):
    asked = ["--nfe", "1,2", "--weights", "ema"]
    one, _ = evaluated(inside, run, *asked, "--batch", "60")
    two, _ = evaluated(inside, run, *asked, "--batch", "7")
    strip = [
        [{k: v for k, v in row.items() if k != "milliseconds_per_sample"} for row in x["rows"]]
        for x in (one, two)
    ]
    assert strip[0] == strip[1]


def test_raw_weights_differ_and_real_data_are_one_row(run, inside):
    results, shown = evaluated(inside, run, "--nfe", "1", heun=True)
    rows = results["rows"]
    assert [(row["weights"], row["sampler"]) for row in rows] == [
        ("ema", "ode"),
        ("raw", "ode"),
        ("ema", "heun"),
    ]
    assert rows[0]["distance"] != rows[1]["distance"]
    assert rows[0]["milliseconds_per_sample"] == rows[1]["milliseconds_per_sample"] > 0
    assert results["real"]["split"] == "test"
    for column in (
        "weights",
        "sampler",
        "NFE",
        "FD",
        "precision",
        "recall",
        "density",
        "coverage",
        "recognized",
        "ms",
    ):
        assert column in shown
    header, *body = table(Evaluation.read(run / "evaluation.json"))
    assert len({len(row) for row in [header, *body]}) == 1
    assert "sFD" not in header  # this network has no spatial features


def test_samplers_can_be_chosen(run, inside):
    results, _ = evaluated(inside, run, "--nfe", "1,2", "--samplers", "ode", "--weights", "ema")
    assert [(row["sampler"], row["nfe"]) for row in results["rows"]] == [("ode", 1), ("ode", 2)]


def test_euler_can_be_evaluated_wherever_heun_can(run, inside):
    results, _ = evaluated(
        inside, run, "--nfe", "1,2", "--samplers", "euler,ode", "--weights", "ema"
    )
    rows = [(row["sampler"], row["nfe"]) for row in results["rows"]]
    assert rows == [("ode", 1), ("euler", 1), ("ode", 2), ("euler", 2)]


def test_samplers_that_do_not_work_with_the_objective_are_rejected():
    config = read_recipe("digits", ["objective.name=flow_matching"])
    for name in ("euler", "heun"):
        config.require_sampler(name)
        read_recipe("digits").require_sampler(name)
    for name in ("ode", "renoise"):
        with pytest.raises(InputError, match=f"'{name}'.*flow_matching"):
            config.require_sampler(name)


def test_a_request_for_another_sampler_is_rejected(run, tmp_path):
    loaded = runs.load(run)
    config = loaded.config.model_copy(
        update={"objective": read_recipe("digits", ["objective.name=consistency"]).objective}
    )
    other = replace(loaded, config=config)
    request = runs.SampleRequest(2, torch.tensor([0, 1]), "ode", 1)
    with pytest.raises(InputError, match=r"'ode'.*consistency"):
        runs.sample(other, request, silent)
    with pytest.raises(InputError, match=r"'ode'.*consistency"):
        runs.sample_to_file(other, request, tmp_path / "x.npz", silent)


def test_a_loaded_run_has_its_weights_and_autoencoder(run):
    loaded = runs.load(run, "ema")
    for settings in ({"weights": ("raw",)}, {"vae": "vae"}):
        with pytest.raises(InputError, match=r"soflow\.load"):
            loaded.evaluate(num=20, progress=silent, **settings)


def test_the_protocol_is_stored_with_the_figures(run, inside):
    results, _ = evaluated(
        inside, run, "--nfe", "1", "--weights", "raw", "--seed", "5", "--draw", "random"
    )
    assert results["metric"] == "FD-digits"
    assert results["num"] == 60
    assert results["seeds"] == [5]
    assert results["labels"] == "random"
    assert results["features"]["checksum"]
    assert (results["features"]["name"], results["features"]["dimensions"]) == ("digits", 32)
    assert results["reference"] == {
        "dataset": "digits",
        "split": "train",
        "count": 1437,
        "points": 1437,
        "file": "",
    }
    assert results["checkpoint"] == "step-00000030"
    assert {"soflow", "torch", "torchmetrics", "numpy", "python"} == results["versions"].keys()


def test_several_seeds_give_means_and_deviations(run, inside):
    asked = ["--nfe", "1", "--weights", "ema", "--no-baseline"]
    single = [evaluated(inside, run, *asked, "--seed", str(seed))[0]["rows"][0] for seed in (3, 4)]
    results, shown = evaluated(inside, run, *asked, "--seed", "3", "--seeds", "2")
    assert results["real"] is None
    both = results["rows"][0]
    for name in ("distance", "kernel_distance", "precision", "recognized"):
        values = [row[name] for row in single]
        assert both[name] == pytest.approx(np.mean(values))
        assert both["spread"][name] == pytest.approx(np.std(values, ddof=1))
    assert both["distance_spread"] == both["spread"]["distance"]
    assert "over seeds" in " ".join(shown.split())


def test_random_labels_are_uniform_and_independent_per_sample():
    labels = random_classes(5000, 10, seed=3)
    assert chisquare(torch.bincount(labels, minlength=10).numpy()).pvalue > 0.01
    assert torch.equal(random_classes(100, 10, seed=3), labels[:100])
    assert not torch.equal(random_classes(100, 10, seed=4), labels[:100])
    assert random_classes(5, 0, seed=3) is None
    assert torch.bincount(class_by_class(5000, 10)).tolist() == [500] * 10


def test_samples_store_their_protocol_and_can_be_evaluated(run, tmp_path, inside):
    asked = ["--num", "60", "--draw", "random", "--seed", "2"]
    assert inside("sample", run, *asked, "--out", tmp_path / "s.npz").returncode == 0
    with np.load(tmp_path / "s.npz") as drawn:
        assert np.array_equal(drawn["arr_1"], random_classes(60, 10, 2).numpy())
        protocol = json.loads(str(drawn["protocol"]))
    assert (protocol["labels"], protocol["seed"], protocol["nfe"], protocol["weights"]) == (
        "random",
        2,
        1,
        "ema",
    )
    asked = ["--reference", "digits", "--features", "digits"]
    assert inside("evaluate", tmp_path / "s.npz", *asked).returncode == 0
    of_file = json.loads((tmp_path / "s.npz.evaluation.json").read_text())
    assert of_file["samples"]["seed"] == 2
    of_run, _ = evaluated(
        inside, run, "--nfe", "1", "--seed", "2", "--draw", "random", "--weights", "ema"
    )
    for name in ("distance", "precision", "coverage", "recognized"):
        assert of_file["rows"][0][name] == of_run["rows"][0][name]
    assert_fails(
        inside("sample", run, "--draw", "random", "--labels", "1"), 2, "--labels", "--draw"
    )


def test_an_older_checkpoint_has_its_own_file(run, inside):
    evaluated(inside, run, "--nfe", "1", "--weights", "ema")
    newest = (run / "evaluation.json").read_text()
    older = run / "checkpoints" / "step-00000015"
    asked = ["--num", "60", "--nfe", "1", "--samplers", "ode"]
    assert inside("evaluate", older, *asked).returncode == 0
    assert (run / "evaluation.json").read_text() == newest
    assert (
        json.loads((run / "evaluation-step-00000015.json").read_text())["checkpoint"]
        == "step-00000015"
    )


def test_a_run_is_compared_with_a_file_of_statistics(run, tmp_path, inside):
    made = inside("reference", "digits", "--features", "digits", "--out", tmp_path / "r.npz")
    assert made.returncode == 0, made.stderr
    by_data, _ = evaluated(inside, run, "--nfe", "1", "--weights", "ema")
    by_file, _ = evaluated(
        inside, run, "--nfe", "1", "--weights", "ema", "--reference", tmp_path / "r.npz"
    )
    assert by_file["reference"]["file"] == "r.npz"
    for name in ("distance", "kernel_distance", "precision", "coverage", "recognized"):
        assert by_file["rows"][0][name] == pytest.approx(by_data["rows"][0][name], rel=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "mean"], ["--weights is 'mean'", "ema or raw"]),
        (["--samplers", "heun", "--nfe", "3"], ["nfe", "heun"]),
        (["--samplers", "renoise,x"], ["--samplers", "'x'"]),
        (["--draw", "even"], ["--draw", "even", "balanced", "random"]),
        (["--seeds is 0"], ["--seeds is 0"]),
        (["--batch is 0"], ["--batch is 0"]),
        (["--reference", "moons"], ["moons"]),
        (["--features", "inception.pt"], ["features", "inception.pt"]),
        (["--out", "nowhere/x.json"], ["the folder nowhere does not exist"]),
        (["--reference", "stats.npz", "--baseline"], ["baseline", "stats.npz"]),
    ],
)
def test_wrong_options_are_one_line(options, words, run, inside):
    assert (
        inside("reference", "digits", "--features", "digits", "--out", run / "stats.npz").returncode
        == 0
    )
    assert_fails(inside("evaluate", run, *options, cwd=run), 2, *words)
    assert not (run / "evaluation.json").exists()


def test_several_processes_are_rejected_with_advice(run, inside, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_fails(inside("evaluate", run), 2, "runs in one process", "soflow sample")


EVERY = [
    *TINY_DIT,
    "train.steps=12",
    "train.batch_size=16",
    "train.log_every=5",
    "checkpoint.every=100",
    "checkpoint.keep_last=1",
    "evaluate.every=3",
    "evaluate.num_while_training=40",
    "ema.rampup=0",  # makes the last evaluation worse than the best
]


def test_training_evaluates_itself_and_keeps_the_best(tmp_path, monkeypatch, inside):
    """The checkpoint with the smallest distance, step 6, is logged and kept as checkpoints/best."""
    from soflow.evaluation.scorer import Scorer

    distances = iter([5.0, 2.0, 4.0, 3.0])
    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: next(distances))
    runs.train("digits", tmp_path / "run", EVERY)
    folder = RunFolder(tmp_path / "run")
    logged = {
        line["step"]: line["FD-digits"] for line in folder.read_metrics() if "FD-digits" in line
    }
    assert logged == {3: 5.0, 6: 2.0, 9: 4.0, 12: 3.0}
    assert [checkpoint.step for checkpoint in checkpoints(folder.checkpoints)] == [6, 12]
    assert runs.load(folder.checkpoints / "best").checkpoint.step == 6
    assert runs.load(folder.path).checkpoint.step == 12


def test_evaluation_does_not_affect_training_and_continues_after_a_stop(tmp_path):
    plain = runs.train("digits", tmp_path / "plain", [*EVERY, "evaluate.every=0"])
    whole = runs.train("digits", tmp_path / "whole", EVERY)
    for which in ("raw", "ema"):
        one, two = (checkpoints(folder.checkpoints)[-1].weights(which) for folder in (plain, whole))
        assert all(torch.equal(one[name], two[name]) for name in one)
    last = checkpoints(whole.checkpoints)[-1]
    stopped = runs.train("digits", tmp_path / "stopped", EVERY)
    kept = {checkpoint.step for checkpoint in checkpoints(stopped.checkpoints)}
    shutil.rmtree(checkpoints(stopped.checkpoints)[-1].path)
    if kept != {12}:
        runs.train("digits", tmp_path / "stopped", EVERY)
    again = checkpoints(stopped.checkpoints)[-1]
    assert (again.train_state().best, again.train_state().best_step) == (
        last.train_state().best,
        last.train_state().best_step,
    )
    assert "best" not in [path.name for path in whole.checkpoints.iterdir()]


def test_bests_of_different_metrics_are_not_compared(tmp_path, monkeypatch):
    from soflow.evaluation.scorer import Scorer

    monkeypatch.setattr(Scorer, "distance", lambda self, drawn: 60.0 if self.gaussian else 400.0)
    folder = runs.train("digits", tmp_path / "run", EVERY)
    shutil.rmtree(checkpoints(folder.checkpoints)[-1].path)
    runs.train("digits", tmp_path / "run", [*EVERY, "evaluate.features=coordinates"])
    state = checkpoints(folder.checkpoints)[-1].train_state()
    assert (state.best, state.best_of) == (400.0, "energy distance of 40")


def test_the_classifier_is_trained_on_the_training_split_for_any_reference(
    run, inside, monkeypatch
):
    monkeypatch.setattr("soflow.evaluation.classifier.STEPS", 5)
    asked = ["--features", "classifier", "--nfe", "1", "--weights", "ema"]
    checksums = {
        evaluated(inside, run, *asked, *more)[0]["features"]["checksum"]
        for more in (
            (),
            ("--no-baseline",),
            ("--reference", "digits:test"),
            ("--reference", "digits:test", "--no-baseline"),
        )
    }
    assert len(checksums) == 1


def test_real_data_beside_it_do_not_change_the_figures(tmp_path, inside):
    """With one split, every tenth real sample is compared with the others, samples with all."""
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images)
    settings = [
        *TINY_DIT,
        "data.source=arrays",
        f"data.path={tmp_path / 'set.npz'}",
        "data.num_classes=0",
        "train.steps=2",
    ]
    more = ["objective.guidance.scale=1", "train.batch_size=8", "--out", tmp_path / "run"]
    assert inside("train", "digits", *settings, *more).returncode == 0
    asked = ["--nfe", "1", "--weights", "ema"]
    beside, shown = evaluated(inside, tmp_path / "run", *asked)
    alone, _ = evaluated(inside, tmp_path / "run", *asked, "--no-baseline")
    assert beside["rows"][0]["distance"] == alone["rows"][0]["distance"]
    assert beside["reference"]["count"] == 60
    assert (beside["real"]["count"], beside["real"]["reference"]["count"]) == (6, 54)
    assert "the other 54" in " ".join(shown.split())
    assert "the column 'n=6'" in " ".join(shown.split())
    assert beside["real"]["reliable"] is False
    assert "6 samples are too few for the 32 dimensions" in " ".join(shown.split())


def test_reports_combine_runs_with_the_same_protocol(run, tmp_path, inside):
    other = shutil.copytree(run, tmp_path / "other")
    third = shutil.copytree(run, tmp_path / "third")
    for one, more in ((run, ()), (other, ()), (third, ("--reference", "digits:test"))):
        evaluated(inside, one, "--nfe", "1", *more)
    assert inside("report", run, other, third, "--out", tmp_path / "page.html").returncode == 0
    page = (tmp_path / "page.html").read_text()
    side = page[page.index("Side by side") : page.index(f"<h1>{run}")]
    assert side.count("<table") == 2
    assert "1,437 real ones (digits train)" in side
    assert "360 real ones (digits test)" in side


def test_an_evaluation_of_an_earlier_version_is_an_error(run, inside):
    (run / "evaluation.json").write_text(json.dumps({"checkpoint": "step-00000030", "rows": []}))
    assert_fails(inside("report", run), 1, "evaluation.json", "another version")


def test_without_evaluations_there_is_no_best_checkpoint(run, inside):
    assert_fails(
        inside("sample", run / "checkpoints" / "best"), 2, "no best checkpoint", "evaluate.every"
    )


def test_a_reference_needs_an_output_path_and_a_name(tmp_path, inside):
    assert_fails(
        inside("reference", "digits", "--features", "digits", "--out", tmp_path / "r.pt"),
        2,
        "must end in .npz",
    )
    assert_fails(
        inside("reference", "digits", "--features", "x", "--out", tmp_path / "r.npz"),
        2,
        "unknown features 'x'",
    )
    assert_fails(
        inside("reference", "nowhere/at/all", "--features", "digits", "--out", tmp_path / "r.npz"),
        2,
        "nowhere",
    )
    assert list(tmp_path.iterdir()) == []
