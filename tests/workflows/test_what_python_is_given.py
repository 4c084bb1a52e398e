"""Unusable arguments in Python are named in an error and never give a wrong result."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import soflow
from soflow.errors import InputError
from soflow.system.progress import silent
from support.own_parts import OwnNet, OwnObjective

QUICK = ["train.steps=2", "train.batch_size=8"]
POINTS = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))


def run(out, overrides=(), recipe="vectors", data=POINTS, **parts):
    return soflow.train(recipe, out, [*QUICK, *overrides], silent, data=data, **parts)


class NoDraws(OwnObjective):
    def draw(self, shape, generator):
        return torch.randn(shape, generator=generator)


class OtherShape(OwnObjective):
    def draw(self, shape, generator):
        return super().draw((3, *shape[1:]), generator)


class Scalar(OwnObjective):
    def __call__(self, model, batch, draws, progress):
        return super().__call__(model, batch, draws, progress).total


class Constant(OwnObjective):
    def __call__(self, model, batch, draws, progress):
        found = super().__call__(model, batch, draws, progress)
        return found._replace(total=found.total.detach())


class Parts(OwnObjective):
    def __call__(self, model, batch, draws, progress):
        return super().__call__(model, batch, draws, progress)._replace(parts={"mine": 1.0})


@dataclass(frozen=True)
class Unsampled(OwnObjective):
    samplers = ("ddim",)


@pytest.mark.parametrize("objective", [NoDraws, OtherShape, Scalar, Constant, Parts, Unsampled])
def test_an_objective_that_violates_the_contract_is_named(objective, tmp_path):
    with pytest.raises(InputError, match=objective.__name__):
        run(tmp_path / "run", network=OwnNet(), objective=objective())


@dataclass(frozen=True)
class Weighted(OwnObjective):
    target: torch.Tensor = None


def test_a_run_resumes_with_the_same_tensors(tmp_path):
    run(tmp_path, objective=Weighted(target=torch.ones(3)))
    run(tmp_path, ["train.steps=3"], objective=Weighted(target=torch.ones(3)))
    with pytest.raises(InputError, match="checksum"):
        run(tmp_path, ["train.steps=4"], objective=Weighted(target=torch.zeros(3)))


def test_networks_without_trainable_weights_are_named(tmp_path):
    with torch.device("meta"):
        meta = OwnNet()
    for network in (meta, OwnNet().requires_grad_(False)):
        with pytest.raises(InputError, match="OwnNet"):
            run(tmp_path, network=network)


class Normalized(OwnNet):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x, t, s, labels=None):
        return self.norm(super().forward(x, t, s, labels))


def test_batch_normalization_is_rejected_where_it_cannot_be_differentiated(tmp_path):
    run(tmp_path / "run", network=Normalized())
    with pytest.raises(InputError, match="batch normalization"):
        run(tmp_path / "other", network=Normalized(), objective=soflow.MeanFlow())


def test_a_custom_network_can_differ_from_that_of_the_recipe(tmp_path):
    folder = run(tmp_path, ["data.flip=false"], recipe="images", network=OwnNet())
    assert soflow.load(folder).sample(3, progress=silent).shape == (3, 2)


@pytest.mark.parametrize("key", ["data.path=points", "data.source=moons", "data.split=test"])
def test_settings_that_name_other_data_are_rejected(key, tmp_path):
    with pytest.raises(InputError, match=key.partition("=")[0]):
        run(tmp_path, [key])


class Recording(soflow.Callback):
    pass


@pytest.mark.parametrize("given", [Recording, lambda training: None, object()])
def test_an_object_that_is_not_a_callback_is_named(given, tmp_path):
    with pytest.raises(InputError, match="callbacks"):
        run(tmp_path, callbacks=[given])


@pytest.mark.parametrize("rate", [-1, float("nan"), "fast"])
def test_a_callback_must_set_rates_that_are_numbers(rate, tmp_path):
    class Sets(soflow.Callback):
        def on_start(self, training):
            training.learning_rate = rate

    with pytest.raises(InputError, match="learning_rate"):
        run(tmp_path, callbacks=[Sets()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return soflow.load(run(tmp_path_factory.mktemp("runs") / "run", network=OwnNet()))


@pytest.mark.parametrize("wrong", [{"num": 0}, {"nfe": 0}, {"seed": -1}, {"batch_size": 0}])
def test_numbers_of_samples_are_checked(wrong, trained):
    with pytest.raises(InputError, match=next(iter(wrong))):
        trained.sample(**{"num": 2, "progress": silent, **wrong})


@pytest.mark.parametrize("wrong", [{"num": -1}, {"nfe": (0,)}, {"seeds": (-1,)}, {"batch_size": 0}])
def test_settings_of_evaluations_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        soflow.EvaluationSettings(**wrong)


def test_samplers_need_noise_of_one_shape_and_at_least_one_step(trained):
    noise = torch.randn(3, 2)
    with pytest.raises(InputError, match="fresh"):
        soflow.renoise(trained.model, noise, [noise[:1]])
    for sampler in (soflow.ode, soflow.integrate_velocity):
        with pytest.raises(InputError, match="steps"):
            sampler(trained.model, noise, 0)


def test_a_run_folder_is_a_path(trained):
    assert soflow.load(trained.folder).checkpoint.path == trained.checkpoint.path


def test_parts_of_a_loop_are_checked(trained, tmp_path):
    data, model = soflow.load_data(POINTS), trained.model
    for wrong in (
        lambda: soflow.Batches(data, 0, 0),
        lambda: soflow.Batches(data, 8, -1),
        lambda: soflow.Batches(data, 8, 0, device="fridge"),
        lambda: soflow.Ema(model.net, decay=2),
        lambda: soflow.save_model(
            model, tmp_path / "m", soflow.SoFlow(), steps=1, ema=soflow.Ema(OwnNet(width=4))
        ),
        lambda: soflow.losses(),
        lambda: soflow.load_data(torch.zeros(4, 2, device="meta")),
    ):
        with pytest.raises(InputError):
            wrong()


def test_arrays_can_have_another_byte_order():
    swapped = POINTS.numpy().astype(np.dtype(np.float32).newbyteorder())
    found = soflow.load_data(swapped, range=(-1, 1)).samples(torch.arange(32))
    assert torch.equal(found, POINTS)


def test_conditions_are_cast_to_the_precision_of_the_network():
    class Shifted(OwnNet):
        def forward(self, x, t, s, labels=None, cond=None):
            return super().forward(x + self.out(self.inner.weight.new_zeros(16)) * 0, t, s) + cond

    model = soflow.FlowModel(Shifted().half(), (2,), cond_shape=(2,))
    given = model.conditioned(np.ones((3, 2), dtype=np.float32))
    assert soflow.one_step(given, torch.randn(3, 2)).dtype == torch.float16
    assert model.to("meta").conditioned(np.ones((3, 2))).net.cond.device.type == "meta"


def test_a_wrong_setting_of_a_built_in_objective_is_named(tmp_path):
    with pytest.raises(InputError, match=r"objective\.p is -1"):
        run(tmp_path, objective=soflow.SoFlow(p=-1.0))


@pytest.mark.parametrize("shape", [(), (8, 2)])
def test_a_term_needs_one_loss_per_sample(shape):
    ones = torch.ones(8)
    with pytest.raises(InputError, match="loss of the term 'mine'"):
        soflow.losses(mine=soflow.Term(torch.ones(shape), ones, ones, {}))
    for weight in (1.0, torch.ones(3)):
        with pytest.raises(InputError, match="weight of the term 'mine'"):
            soflow.losses(mine=soflow.Term(ones, ones, weight, {}))


def test_a_path_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="phots does not exist"):
        soflow.load_data("phots")
    monkeypatch.setattr("soflow.data.hub.answers", lambda address: False)
    with pytest.raises(InputError, match="did you mean photos"):
        soflow.load_data("phots", shape=(3, 8, 8))


def test_a_saved_model_is_not_resumed(tmp_path):
    run(tmp_path / "run")
    soflow.load(tmp_path / "run").save(tmp_path / "model")
    with pytest.raises(InputError, match=rf"init_from={tmp_path / 'model'}$"):
        soflow.train(tmp_path / "model", tmp_path / "model", ["train.steps=4"], silent)
    soflow.load(tmp_path / "run", "raw").save(tmp_path / "raw")
    with pytest.raises(InputError, match="init_from=") as raised:
        soflow.train(tmp_path / "raw", tmp_path / "raw", ["train.steps=4"], silent)
    source = str(raised.value).partition("init_from=")[2]
    assert run(tmp_path / "next", [f"init_from={source}"]).path.is_dir()


def test_a_run_with_its_own_network_resumes_in_the_same_process(tmp_path):
    run(tmp_path, network=OwnNet())
    run(tmp_path, ["train.steps=3"], recipe=tmp_path)
    assert soflow.load(tmp_path).checkpoint.step == 3


def test_runs_and_comparisons_do_not_share_a_folder(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(InputError, match="is a run folder"):
        soflow.compare("moons", tmp_path / "run", ["soflow"])
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "cost.json").write_text("{}")
    for use in (run, soflow.load):
        with pytest.raises(InputError, match="is a comparison"):
            use(tmp_path / "compared")


def test_a_changed_field_of_an_objective_is_named_alone(tmp_path):
    @dataclass(frozen=True)
    class Smooth(OwnObjective):
        smooth: float = 0.1
        other: float = 7.0

    run(tmp_path, objective=Smooth())
    with pytest.raises(InputError, match=r"settings\.smooth=0\.1, not 0\.5") as raised:
        run(tmp_path, objective=Smooth(smooth=0.5))
    assert "other" not in str(raised.value).partition("resume")[0]


def test_a_setting_that_is_missing_on_one_side_is_named(tmp_path):
    options = ["optimizer.name=adamw", "optimizer.options={foreach: null}"]
    run(tmp_path, options)
    with pytest.raises(InputError, match=r"options\.foreach=None, not \(unset\)"):
        run(tmp_path, options[:1])


def test_sizes_that_do_not_fit_are_reported_before_data_is_read(tmp_path, monkeypatch):
    def read(config):
        raise AssertionError("the data is read")

    monkeypatch.setattr("soflow.workflows.train.make_dataset", read)
    wrong = ["network.width=65", "network.heads=4"]
    with pytest.raises(InputError, match="65"):
        soflow.train("digits", tmp_path, wrong, silent)
