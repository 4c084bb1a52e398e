"""Custom networks, objectives and callbacks passed to `soflow.train`."""

import copy
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
import yaml
from torch import nn

import soflow
from soflow.config import read_recipe
from soflow.config.reading import dump, validate
from soflow.errors import InputError
from soflow.objectives import OBJECTIVES
from soflow.run.checkpoint import newest_good
from soflow.system.progress import silent
from soflow.workflows import own_parts
from support.own_parts import OwnNet, OwnObjective

QUICK = ["train.steps=6", "train.batch_size=8", "data.num_classes=0", "train.log_every=2"]


@pytest.fixture
def data():
    return torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def forgotten():
    """Clears the networks known to this process, like another process."""
    return own_parts._known.clear


def run(out, data, overrides=(), **parts):
    settings = [*QUICK, *overrides]
    return soflow.train("vectors", out, settings, silent, data=data, **parts)


def weights(folder, which="raw"):
    checkpoint, _ = newest_good(folder.checkpoints)
    return checkpoint.weights(which)


def test_a_custom_network_trains_and_samples(data, tmp_path, forgotten):
    torch.manual_seed(0)
    network = OwnNet()
    before = copy.deepcopy(network.state_dict())
    folder = run(tmp_path / "run", data, network=network, objective=soflow.SoFlow())
    after = weights(folder)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not torch.equal(before["out.weight"], after["out.weight"])

    model = soflow.load(folder.path)  # the training process knows the network
    samples = model.sample(5, seed=3, progress=silent)
    assert samples.shape == (5, 2)
    saved = model.save(tmp_path / "model")
    assert torch.equal(soflow.load(saved).sample(5, seed=3, progress=silent), samples)

    forgotten()
    with pytest.raises(InputError, match="OwnNet"):
        soflow.load(folder.path)
    again = soflow.load(folder.path, network=OwnNet()).sample(5, seed=3, progress=silent)
    assert torch.equal(again, samples)
    with pytest.raises(InputError, match="OwnNet"):
        soflow.load(folder.path, network=OwnNet(width=8))
    assert torch.equal(soflow.load(folder).sample(5, seed=3, progress=silent), samples)


@pytest.mark.parametrize("objective", [OwnObjective(), soflow.SoFlow(p=0.5)], ids=["own", "known"])
def test_a_resumed_run_equals_the_uninterrupted_one(objective, data, tmp_path):
    parts = {"network": OwnNet(), "objective": objective}
    whole = weights(run(tmp_path / "whole", data, **parts))

    class StopAtThree(soflow.Callback):
        def on_step(self, training):
            if training.step == 3:
                training.stop("enough")

    half = run(tmp_path / "half", data, **parts, callbacks=[StopAtThree()])
    assert newest_good(half.checkpoints)[0].step == 3
    resumed = weights(run(tmp_path / "half", data, **parts))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = replace(objective, **{"scale" if hasattr(objective, "scale") else "p": 2.0})
    with pytest.raises(InputError, match=r"objective\."):
        run(tmp_path / "half", data, network=OwnNet(), objective=other)


def test_a_class_of_a_script_is_the_same_class_in_a_module(data, tmp_path, monkeypatch):
    parts = {"network": OwnNet(), "objective": OwnObjective()}
    for kind in (OwnNet, OwnObjective):
        monkeypatch.setattr(kind, "__module__", "__main__")
    run(tmp_path / "run", data, **parts)
    monkeypatch.undo()
    resumed = run(tmp_path / "run", data, ["train.steps=8"], **parts)
    assert newest_good(resumed.checkpoints)[0].step == 8

    class Other(OwnNet):
        pass

    with pytest.raises(InputError, match="Other"):
        run(tmp_path / "run", data, network=Other(), objective=OwnObjective())


@pytest.mark.parametrize("part", ["network", "objective"])
def test_a_run_of_the_recipe_does_not_resume_with_a_custom_part(part, data, tmp_path):
    own = {"network": OwnNet(), "objective": OwnObjective()}[part]
    for first, second in (({}, {part: own}), ({part: own}, {})):
        folder = tmp_path / f"from-{len(first)}"
        run(folder, data, **first)
        with pytest.raises(InputError, match=rf"{part}\.name"):
            run(folder, data, **second)


def test_a_registered_objective_is_recorded_by_its_name(data, tmp_path):
    guided = soflow.MeanFlow(p=0.75, guidance=soflow.objectives.mean_flow.MeanFlowGuidance())
    folder = run(tmp_path, data, objective=guided)
    assert folder.read_config().objective.name == "mean_flow"
    assert folder.read_config().objective.build() == guided
    command = [sys.executable, "-m", "soflow", "train", str(tmp_path), "train.steps=7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # the data were passed from Python
    assert "data.source=python" in done.stderr


@pytest.mark.parametrize(
    "objective",
    [
        soflow.SoFlow(guidance=soflow.Guidance(2.0)),
        soflow.JumpFlow(flow_matching_p=0.0, guidance=soflow.DrawnGuidance(2.0, max_scale=4.0)),
        soflow.MeanFlow(),
        soflow.ImprovedMeanFlow(),
        soflow.ImprovedMeanFlow(guidance=soflow.ImprovedMeanFlowGuidance(2.0)),
        soflow.AlphaFlow(clamp=0.0),
        soflow.Shortcut(),
        soflow.Consistency(),
        soflow.FlowMatching(),
    ],
)
def test_every_objective_is_recorded_by_its_name_and_settings(objective):
    config = own_parts.with_objective(read_recipe("digits"), objective)
    assert config.objective.name in OBJECTIVES
    assert validate(yaml.safe_load(dump(config))).objective.build() == objective


def test_a_network_of_soflow_is_recorded_by_its_name(data, tmp_path, forgotten):
    torch.manual_seed(1)
    network = soflow.MLP((2,), width=16, depth=1)
    folder = run(tmp_path, data, ["optimizer.lr=1e-12"], network=network)
    forgotten()
    model = soflow.load(folder.path)
    assert (model.config.network.name, model.config.network.width) == ("mlp", 16)
    # It started with the weights of the given network.
    torch.testing.assert_close(model.model.net.state_dict(), dict(network.state_dict()))
    with pytest.raises(InputError, match="leave out network="):
        soflow.load(folder.path, network=network)


def test_data_in_python_are_a_reference(data, tmp_path):
    model = soflow.load(run(tmp_path, data, network=OwnNet()).path)
    settings = {"features": "coordinates", "num": 40, "nfe": (1,), "progress": silent}
    near = model.evaluate(**settings, reference=model.sample(400, seed=5))
    far = model.evaluate(**settings, reference=model.sample(400, seed=5) + 3)
    assert near.rows[0].distance < 0.2 * far.rows[0].distance
    with pytest.raises(InputError, match=r"\[3\]"):
        model.evaluate(**settings, reference=torch.randn(40, 3))


def test_the_command_line_says_that_a_network_is_defined_in_python(data, tmp_path, inside):
    run(tmp_path, data, network=OwnNet())
    own_parts._known.clear()
    done = inside("sample", tmp_path, "-n", 2, "--out", tmp_path / "x.png")
    assert done.returncode == 2
    assert "OwnNet" in done.stderr
    assert "\n" not in done.stderr.strip()


class NoTimes(nn.Module):
    def forward(self, x, t):
        return x


class Flat(nn.Module):
    def forward(self, x, t, s, labels=None):
        return x.flatten()


class OneTime(nn.Module):
    def forward(self, x, t, class_labels=None, mask=None):
        return x


class Complex(OwnNet):
    def __init__(self):
        super().__init__(size=8, classes=4)
        self.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (OwnNet, "network is"),
        (OneTime(), "WithSecondTime"),
        (Complex(), "complex weights, spectrum"),
        (NoTimes(), "must accept"),
        (Flat(), "[16]"),
        (OwnNet(size=8, classes=3), "no class"),  # no row for the null label
    ],
    ids=["class", "one time", "complex", "signature", "shape", "null label"],
)
def test_networks_that_violate_the_contract_are_named(network, named, tmp_path):
    data = (torch.randn(64, 8), [0, 1, 2, 3] * 16)
    settings = ["data.num_classes=-1"]
    objective = soflow.SoFlow(guidance=soflow.Guidance(scale=2.0))
    with pytest.raises(InputError, match=named.replace("[", r"\[")):
        run(tmp_path, data, settings, network=network, objective=objective)
    assert not (tmp_path / "config.yaml").exists()


class Twice(torch.autograd.Function):
    """It only has a backward derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class NoDerivative(OwnNet):
    def forward(self, x, t, s, labels=None):
        return Twice.apply(super().forward(x, t, s, labels))


def test_a_network_without_the_derivative_needed_by_the_objective_is_named(data, tmp_path):
    network = NoDerivative()
    with pytest.raises(InputError, match=r"NoDerivative has no forward-mode derivative.*mean_flow"):
        run(tmp_path, data, network=network, objective=soflow.MeanFlow())
    assert not (tmp_path / "config.yaml").exists()
    assert network.training


def test_conflicting_objectives_and_settings_are_named(data, tmp_path):
    for wrong in (soflow.SoFlow, "soflow", 3):
        with pytest.raises(InputError, match="objective is"):
            run(tmp_path, data, objective=wrong)
    with pytest.raises(InputError, match=r"objective\.p"):
        run(tmp_path, data, ["objective.p=0"], objective=soflow.SoFlow())
    with pytest.raises(InputError, match=r"network\.width"):
        run(tmp_path, data, ["network.width=32"], network=OwnNet())


class Recording(soflow.Callback):
    def __init__(self):
        self.seen = []

    def on_start(self, training):
        self.seen.append("start")

    def on_step(self, training):
        self.seen.append(training.step)
        assert training.loss > 0

    def on_evaluation(self, training, figures):
        assert figures
        assert training.state.best_step == training.step
        self.seen.append("evaluation")

    def on_sample(self, training, model, picture):
        assert picture.is_file()
        assert soflow.one_step(model, torch.randn(3, 2)).shape == (3, 2)
        self.seen.append("sample")

    def on_checkpoint(self, training, checkpoint):
        assert (checkpoint / "state.json").is_file()
        self.seen.append("checkpoint")

    def on_end(self, training):
        self.seen.append("end")


def test_callbacks_are_called_in_the_order_of_events(data, tmp_path):
    recording = Recording()
    settings = ["train.steps=3", "train.sample_every=2", "checkpoint.every=2", "evaluate.every=3"]
    settings += ["evaluate.features=coordinates", "evaluate.num_while_training=8"]
    run(tmp_path, data, settings, callbacks=[recording])
    middle = [1, 2, "checkpoint", "sample", 3, "checkpoint", "sample", "evaluation"]
    assert recording.seen == ["start", *middle, "end"]


def test_a_callback_sets_the_learning_rate(data, tmp_path):
    class Fixed(soflow.Callback):
        def on_step(self, training):
            training.learning_rate = 0.0 if training.step >= 2 else None

    seen = {}

    class Weights(soflow.Callback):
        def on_step(self, training):
            seen[training.step] = training.model.net.out.weight.detach().clone()

    run(tmp_path, data, network=OwnNet(), callbacks=[Fixed(), Weights()])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])
    assert torch.equal(seen[2], seen[6])
    lines = soflow.workflows.train.RunFolder(tmp_path).read_metrics()
    assert [line["lr"] for line in lines][1:] == [0.0, 0.0]


def test_tied_weights_are_averaged_under_all_their_names(data, tmp_path):
    class Tied(OwnNet):
        def __init__(self):
            super().__init__(width=2)
            self.second = nn.Linear(2, 2)
            self.second.weight = self.out.weight

        def forward(self, x, t, s, labels=None):
            return self.second(super().forward(x, t, s, labels))

    folder = run(tmp_path, data, network=Tied())
    averaged = weights(folder, "ema")
    assert torch.equal(averaged["out.weight"], averaged["second.weight"])
    assert not torch.equal(averaged["out.weight"], weights(folder)["out.weight"])


@dataclass(frozen=True)
class Guided(OwnObjective):
    """A custom objective with guidance and straight jumps."""

    parameterization: ClassVar[str] = "euler"
    guidance: soflow.Guidance = field(default_factory=lambda: soflow.Guidance(scale=1.5))

    def draw(self, shape, generator):
        times = soflow.LogitNormal(-0.4, 1.0)
        return soflow.draw_ordered_jumps(shape, 0.5, times, self.guidance, generator)

    def __call__(self, model, batch, draws, progress):
        jumps, v = soflow.guided_jumps(model, batch, draws, self.guidance)
        squared = ((jumps.through(model.net) - v) ** 2).flatten(1).mean(1)
        term = soflow.Term(squared, squared.detach(), torch.ones_like(squared), {"t": jumps.t})
        return soflow.losses(own=term)


def test_guidance_of_a_custom_objective_needs_labels(data, tmp_path):
    with pytest.raises(InputError, match=r"guidance=soflow\.Guidance\(\)"):
        run(tmp_path / "run", data, objective=Guided())
    run(tmp_path / "run", data, objective=Guided(guidance=soflow.Guidance()))
    model = soflow.FlowModel(soflow.MLP(shape=(2,)), (2,))
    batch, guidance = soflow.Batch(data[:8]), soflow.Guidance(scale=1.5)
    draws = Guided().draw((8, 2), torch.Generator())
    with pytest.raises(InputError, match="labels"):
        soflow.guided_jumps(model, batch, draws, guidance)


def test_the_objective_of_the_recipe_does_not_restrict_a_custom_one(tmp_path):
    """The recipe digits is guided, which needs classes."""
    settings = [*QUICK[:3], "network.width=16", "network.depth=1", "network.heads=1"]
    folder = soflow.train("digits", tmp_path / "run", settings, silent, objective=OwnObjective())
    assert folder.read_config().data.num_classes == 0


def test_a_custom_objective_can_require_a_parameterization(data, tmp_path):
    objective = Guided(guidance=soflow.Guidance())
    with pytest.raises(InputError, match=r"noising\.parameterization=euler"):
        run(tmp_path / "run", data, ["noising.parameterization=trig"], objective=objective)
