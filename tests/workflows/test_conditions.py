"""Runs with conditions train, resume, sample, evaluate, report and initialize others."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import soflow
from soflow.cli.main import run as soflow_command
from soflow.data.dataset import Dataset
from soflow.drawing import sample_many
from soflow.errors import InputError
from soflow.evaluation.evaluate import EvaluationSettings, evaluate
from soflow.evaluation.features import coordinates
from soflow.evaluation.references import scorer_of
from soflow.evaluation.scorer import Scoring
from soflow.sampling import one_step
from soflow.solution import FlowModel
from soflow.training.signals import Stopped
from support.settings import TINY_DIT
from support.watching import stop_at

SMALL = [
    *TINY_DIT, "train.steps=4", "train.batch_size=8", "train.sample_every=0",
    "optimizer.warmup=0", "data.num_classes=-1",
]  # fmt: skip
COUNT = 16
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(COUNT, 1, 8, 8, generator=GENERATOR) * 2 - 1
LABELS = torch.arange(COUNT) % 10
MAPS = torch.randn(COUNT, 3, 8, 8, generator=GENERATOR)
VECTORS = torch.randn(COUNT, 5, generator=GENERATOR)


def pairs(cond):
    return {"image": IMAGES, "label": LABELS, "cond": cond}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on byte maps in a file."""
    folder = tmp_path_factory.mktemp("conditions")
    pixels = ((IMAGES[:, 0] + 1) * 127).byte().numpy()
    np.savez(folder / "set.npz", images=pixels, labels=LABELS.numpy(), cond=255 - pixels)
    settings = [*SMALL, "data.source=auto", f"data.path={folder / 'set.npz'}", "data.size=8"]
    soflow.train("digits", folder / "run", [*settings, "data.shape=[1,8,8]"])
    return folder / "run", 255 - pixels


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    settings = [*SMALL, "train.accumulate=2", "checkpoint.every=1"]
    for out, stop in (("whole", None), ("stopped", 2)):
        data = pairs(MAPS)
        if stop:
            with pytest.raises(Stopped):
                soflow.train("digits", tmp_path / out, settings, stop_at(stop), data=data)
        soflow.train("digits", tmp_path / out, settings, data=data)
    whole, stopped = (
        load_file(tmp_path / out / "checkpoints/step-00000004/model.safetensors")
        for out in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    for others, named in ((MAPS.flip(0), "other data"), (None, "cond_shape")):
        with pytest.raises(InputError, match=named):
            soflow.train("digits", tmp_path / "whole", settings, data=pairs(others))


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.name=mean_flow", "precision=bf16"],
        ["objective.name=shortcut", "data.flip=true"],
        ["objective.name=consistency"],
    ],
)
@pytest.mark.parametrize("cond", [MAPS, VECTORS])
def test_every_objective_trains(settings, cond, tmp_path):
    folder = soflow.train("digits", tmp_path, [*SMALL, *settings], data=pairs(cond))
    assert folder.read_config().data.cond_shape == tuple(cond.shape[1:])
    with Image.open(folder.samples / "step-00000004.png") as picture:
        parts = 3 if cond.ndim == 4 else 2
        assert picture.width == 2 + parts * 4 * (32 + 2)
    drawn = soflow.load(tmp_path).sample(cond=cond)
    assert drawn.shape == IMAGES.shape


def test_conditions_can_be_disabled(tmp_path):
    soflow.train("digits", tmp_path, [*SMALL, "data.cond_column="], data=pairs(MAPS))
    run = soflow.load(tmp_path)
    assert run.sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="without conditions"):
        run.sample(cond=MAPS)


class Echo(nn.Module):
    """F of a map whose one-step sample is the condition: f(x, 1, 0) = x - F = cond."""

    def forward(self, x, t, s, labels=None, cond=None):
        return x - cond


def test_each_sample_uses_its_own_condition_for_any_batch_size():
    model = FlowModel(Echo(), (1, 8, 8), cond_shape=(1, 8, 8))
    for batch in (3, 16, 100):
        drawn = sample_many(model, COUNT, None, "renoise", 1, 0, batch, cond=IMAGES)
        torch.testing.assert_close(drawn, IMAGES)
    bound = model.conditioned(IMAGES[:2])
    for wrong in (lambda: one_step(bound, IMAGES), lambda: one_step(model, IMAGES)):
        with pytest.raises(InputError, match="condition"):
            wrong()
    with pytest.raises(InputError, match="conditions"):
        sample_many(model, 3, None, "renoise", 1, 0, cond=IMAGES)


def test_an_evaluation_uses_the_conditions_of_the_data():
    data = Dataset("echo", "train", IMAGES, None, cond=IMAGES)
    scorer = scorer_of(data, coordinates((1, 8, 8), None), 0)
    scoring = Scoring(scorer, points=data, conditions=data)
    model = FlowModel(Echo(), (1, 8, 8), cond_shape=(1, 8, 8))
    settings = EvaluationSettings(nfe=(1,), num=COUNT, batch_size=5)
    samplers, device = ("renoise", "ode", "heun"), torch.device("cpu")
    found = evaluate({"ema": model}, samplers, scoring, settings, device)
    same = scorer.distance(scorer.gather([IMAGES], COUNT))
    assert found.rows[0].distance == pytest.approx(same)
    assert found.rows[1].distance > same + 1
    assert found.diagnostics["one_step_error"] > 0
    with pytest.raises(InputError, match="labels"):
        scoring.draw_inputs("random", 4, model)


def test_python_and_the_command_draw_the_same_samples(run, tmp_path):
    folder, cond = run
    np.save(tmp_path / "cond.npy", cond[:6])
    loaded = soflow.load(folder, device="cpu")
    drawn = loaded.sample(cond=cond[:6], seed=3)
    assert drawn.shape == (6, 1, 8, 8)
    torch.testing.assert_close(loaded.sample(cond=cond[:6], seed=3, batch_size=2), drawn)
    assert not torch.equal(drawn, loaded.sample(cond=cond[6:12], seed=3))
    again = loaded.sample(9, cond=cond[:6], seed=3, labels=list(range(9)))
    torch.testing.assert_close(again[:6], drawn)
    command = ["sample", str(folder), "--cond", str(tmp_path / "cond.npy"), "--seed", "3"]
    assert soflow_command([*command, "--out", str(tmp_path / "out.npz")]) == 0
    pixels = np.load(tmp_path / "out.npz")["arr_0"]
    assert np.array_equal(pixels, soflow.evaluation.pictures.to_uint8(drawn))


def test_a_run_can_be_evaluated_and_reported(run):
    folder, _ = run
    options = ["--num", "16", "--nfe", "1", "--features", "coordinates"]
    assert soflow_command(["evaluate", str(folder), *options]) == 0
    assert soflow_command(["report", str(folder)]) == 0
    assert "condition" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "options",
    [[], ["--cond", "missing.npy"], ["--cond", "vectors.npy"], ["--cond", "several.npz"]],
)
def test_wrong_conditions_are_rejected(run, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", VECTORS.numpy())
    np.savez("several.npz", a=MAPS.numpy(), b=MAPS.numpy())
    assert soflow_command(["sample", str(run[0]), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cond" in line or "no array" in line


def test_evaluation_needs_data_given_in_python(tmp_path):
    soflow.train("digits", tmp_path, SMALL, data=pairs(VECTORS))
    loaded = soflow.load(tmp_path)
    settings = {"features": "coordinates", "num": 8, "nfe": (1,)}
    with pytest.raises(InputError, match="data"):
        loaded.evaluate(**settings)
    found = loaded.evaluate(data=pairs(VECTORS), **settings)
    assert "conditions" in found.labels
