"""Parts of custom training loops: data by name, samples in memory, saved models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import soflow
from soflow.errors import InputError, RunError
from soflow.workflows import own_parts

SHAPE = (4,)


def make(**options):
    torch.manual_seed(0)
    network = soflow.MLP(SHAPE, width=8, depth=1, **options)
    return soflow.FlowModel(network.eval(), SHAPE, options.get("num_classes", 0))


NETWORKS = {
    "dit": lambda: soflow.DiT((1, 8, 8), 3, patch=4, width=16, depth=1, heads=1, mlp_ratio=2.0),
    "dit with options": lambda: soflow.DiT(
        (1, 8, 8), 3, 4, 16, 1, 1, rotary=True, qk_norm=True, swiglu=True
    ),
    "in context": lambda: soflow.InContextDiT((1, 8, 8), 3, 4, 16, 1, 2, 2.0, 3, 2),
    "unet": lambda: soflow.UNet(
        (1, 8, 8), 8, (1,), blocks=1, attention=(8,), dropout=0.1, num_classes=3
    ),
    "mlp": lambda: soflow.MLP((4,), 3, width=8, depth=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_model_equals_the_saved_one(name, tmp_path):
    network = NETWORKS[name]().eval()
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    shape = (4,) if name == "mlp" else (1, 8, 8)
    model = soflow.FlowModel(
        network,
        shape,
        3,
        noising=soflow.TrigNoising(),
        parameterization=soflow.TrigParameterization(),
    )
    objective = soflow.SoFlow(p=0.5, guidance=soflow.Guidance(scale=2.0))
    soflow.save_model(model, tmp_path / "model", objective, steps=7)
    run = soflow.load(tmp_path / "model", "raw", device="cpu")
    assert run.config.objective.build() == objective
    assert (run.checkpoint.step, run.config.train.steps) == (7, 7)
    assert type(run.model.noising) is soflow.TrigNoising
    assert run.model.null_trained  # guidance drops labels
    drawn = run.sample(3, labels=[0, 1, 2], seed=4)
    assert torch.equal(drawn, soflow.sample_many(model, 3, [0, 1, 2], seed=4))
    with pytest.raises((InputError, RunError), match=r"ema\.safetensors"):
        soflow.load(tmp_path / "model")
    with pytest.raises(InputError, match="not empty"):
        soflow.save_model(model, tmp_path / "model", objective, steps=7)


class Unknown(nn.Module):
    def forward(self, x, t, s, labels=None):
        return x


def test_an_unregistered_network_must_be_given_for_loading(tmp_path):
    changed = make()
    changed.net.final_layer = nn.Linear(8, 4, bias=False)
    for name, model in (("unknown", soflow.FlowModel(Unknown(), SHAPE)), ("changed", changed)):
        folder = soflow.save_model(model, tmp_path / name, soflow.SoFlow(), steps=1)
        drawn = soflow.load(folder, "raw", network=model.net).sample(3)
        assert torch.equal(drawn, soflow.sample_many(model, 3))
        own_parts._known.clear()
        with pytest.raises(InputError, match=type(model.net).__name__):
            soflow.load(folder, "raw")


def test_parts_that_cannot_be_saved_are_named(tmp_path):
    class Path(soflow.LinearNoising):
        pass

    out, model = tmp_path / "model", make()
    with pytest.raises(InputError, match="Path"):
        soflow.save_model(replace(model, noising=Path()), out, soflow.SoFlow(), steps=1)
    with torch.no_grad():
        model.net.x_embedder.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"x_embedder\.weight"):
        soflow.save_model(model, out, soflow.SoFlow(), steps=1)
    assert not out.exists()


def test_standardized_data_are_returned_in_their_units(tmp_path):
    data = soflow.load_data(torch.randn(50, *SHAPE) * 100 + 1000)
    model = make()
    ema = soflow.Ema(model.net, decay=0.5, float64=True)
    folder = soflow.save_model(
        model, tmp_path / "model", soflow.SoFlow(), steps=1, ema=ema, data=data
    )
    drawn = soflow.load(folder, device="cpu").sample(20)
    assert torch.allclose(drawn, data.scaling.restore(soflow.sample_many(model, 20)))
    assert drawn.mean() > 500
    assert soflow.read_recipe(str(folder)).ema.float64


def test_an_averaged_network_has_the_ema_weights_and_is_a_copy():
    model = make()
    ema = soflow.Ema(model.net, decay=0.5, rampup=0)
    before = model.net.x_embedder.weight.detach().clone()
    with torch.no_grad():
        model.net.x_embedder.weight.add_(1)
    ema.update(0)
    average = ema.averaged_network()
    torch.testing.assert_close(average.x_embedder.weight, before + 0.5)
    assert not average.training
    assert not average.x_embedder.weight.requires_grad
    torch.testing.assert_close(model.net.x_embedder.weight, before + 1)


def test_data_can_be_loaded_by_name_and_from_python():
    test = soflow.load_data("digits:test")
    assert (test.split, len(test), test.num_classes) == ("test", 360, 10)
    assert soflow.load_data("digits", num_classes=0).labels is None
    x, labels = torch.rand(6, 1, 8, 8) * 2 - 1, [0, 1, 0, 1, -1, -1]
    own = soflow.load_data((x, labels))
    assert torch.equal(own.samples(), x)
    assert own.labels.tolist() == [0, 1, 0, 1, 2, 2]  # the null label of two classes
    with pytest.raises(InputError, match="shapes"):
        soflow.load_data("digits", shapes=(1, 8, 8))
    with pytest.raises(InputError, match="nothing"):
        soflow.load_data("./nothing.npz")


def test_samples_in_memory_have_the_same_figures_as_in_a_file(tmp_path):
    real = soflow.load_data("digits")
    images = real.samples(slice(60)).flip(3)
    pixels = ((images * 127.5 + 128).clamp(0, 255)).byte()
    np.savez(tmp_path / "samples.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    expected = soflow.evaluate_samples(tmp_path / "samples.npz", "coordinates", "digits")
    for given in (pixels, pixels.numpy()):
        found = soflow.evaluate_samples(given, "coordinates", real)
        assert found.rows[0].distance == expected.rows[0].distance
    for wrong, named in (("no", "no"), (torch.zeros(3, 1, 8, 8).long(), "int64")):
        with pytest.raises(InputError, match=named):
            soflow.evaluate_samples(wrong, "coordinates", real)
    with pytest.raises(InputError, match=r"\[3\].*\[60\]"):
        soflow.evaluate_samples(pixels, "coordinates", real, labels=[1, 2, 3])
