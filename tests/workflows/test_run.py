"""A loaded run samples, evaluates and saves itself."""

import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import soflow
from soflow.errors import InputError
from soflow.evaluation.pictures import to_uint8
from soflow.run.folder import RunFolder
from soflow.system.devices import named_device


@pytest.fixture(scope="module")
def model(tiny_run):
    return soflow.load(tiny_run, device="cpu")


def test_samples_equal_those_of_the_command_bitwise(model, tiny_run, inside, tmp_path):
    out = tmp_path / "samples.npz"
    options = ("-n", 6, "--labels", "3,7", "--seed", 5, "--nfe", 2, "--out", out)
    result = inside("sample", tiny_run, *options)
    assert result.returncode == 0, result.stderr
    with np.load(out) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert labels.tolist() == [3, 7] * 3
    for classes in ([3, 7], "3,7", np.array([3, 7]), ["3", "7"]):
        assert np.array_equal(to_uint8(model.sample(6, classes, seed=5, nfe=2)), images)


def test_figures_equal_those_of_soflow_evaluate(model, tiny_run):
    settings = {"num": 40, "nfe": (1,), "features": "coordinates"}
    found = model.evaluate(**settings)
    expected = soflow.evaluate(tiny_run, soflow.EvaluationSettings(**settings, weights=("ema",)))
    assert found.rows[0].distance == expected.rows[0].distance
    with pytest.raises(TypeError, match="nums"):
        model.evaluate(nums=3)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_saved_model_is_enough_for_sampling(weights, tiny_run, tmp_path):
    run = soflow.load(tiny_run, weights, device="cpu")
    folder = run.save(tmp_path / "model")
    assert len([file for file in folder.rglob("*") if file.is_file()]) == 4
    again = soflow.load(folder, weights, device="cpu")
    assert torch.equal(again.sample(4, seed=1), run.sample(4, seed=1))
    assert again.class_names == run.class_names
    with pytest.raises(InputError, match="not empty"):
        run.save(folder)
    other = {"ema": "raw", "raw": "ema"}[weights]
    with pytest.raises((InputError, soflow.errors.RunError), match="safetensors"):
        soflow.load(folder, other)


def test_weights_and_devices_can_be_chosen(tiny_run, monkeypatch):
    with pytest.raises(
        InputError, match="best"
    ):  # no evaluation during training, so no best checkpoint
        soflow.load(tiny_run, "best")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="device is gpu"):
        soflow.load(tiny_run, device="gpu")
    with pytest.raises(InputError, match="device is fridge"):
        named_device("fridge")
    assert named_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (soflow.DiT((1, 8, 8), 3, width=16, depth=1, heads=2), (1, 8, 8)),
        (soflow.InContextDiT((1, 8, 8), 3, width=16, depth=1, heads=2), (1, 8, 8)),
        (soflow.MLP((4,), 3, width=16, depth=1), (4,)),
        (soflow.UNet((1, 8, 8), model_channels=8, channel_mult=(1,), num_classes=3), (1, 8, 8)),
    ],
    ids=["dit", "in_context_dit", "mlp", "unet"],
)
def test_models_can_be_pickled_copied_and_cast(network, shape):
    model = soflow.FlowModel(network.eval(), shape, num_classes=3)
    noise, labels = torch.randn(5, *shape), [0, 1, 2, 0, 1]
    expected = soflow.one_step(model, noise, labels)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(soflow.one_step(other, noise, labels), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = copy.deepcopy(model).to(dtype)
        found = soflow.one_step(cast, noise, labels)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    assert copy.deepcopy(model).half().net is not model.net


def test_a_notebook_shows_the_newest_samples_of_a_run(tiny_run, tmp_path):
    folder = RunFolder(tmp_path)
    loaded = replace(soflow.load(tiny_run, device="cpu"), folder=folder)
    assert folder._repr_png_() is loaded._repr_png_() is None
    folder.samples.mkdir()
    for step in (2, 10):
        (folder.samples / f"step-{step:08d}.png").write_bytes(b"%d" % step)
    assert folder._repr_png_() == loaded._repr_png_() == b"10"
    assert str(loaded.checkpoint.path) in repr(loaded)
