"""Guidance scales as network inputs: trained over a range, chosen for sampling."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import soflow
from soflow.errors import InputError
from soflow.evaluation.record import Evaluation
from support.commands import assert_fails
from support.settings import TINY_DIT
from support.watching import stop_at

CLASSES = 4
GUIDANCE = soflow.DrawnGuidance(scale=1.5, max_scale=8.0)
SETTINGS = [
    *TINY_DIT, "objective.name=jump_flow", "objective.guidance.max_scale=4",
    "objective.flow_matching_share=0.5", "train.steps=6", "train.batch_size=8",
    "checkpoint.every=100", "train.sample_every=0", "evaluate.num=20", "evaluate.nfe=[1]",
]  # fmt: skip


class Telling(nn.Module):
    """A network whose output is its guidance input."""

    def forward(self, x, t, s, labels=None, guidance=None):
        return guidance.to(x.dtype)


def telling():
    return soflow.FlowModel(Telling(), (3,), CLASSES, guidance=GUIDANCE)


def guidance_inputs(model, labels, **options):
    """Returns the guidance input of the network for each sample: f(x, 1, 0) = x - F."""
    noise = torch.zeros(len(labels), 3)
    return -soflow.one_step(model, noise, labels, **options)


def near(rows):
    return [pytest.approx(row, abs=1e-6) for row in rows]


def test_the_scale_reaches_the_network():
    model = telling()
    assert guidance_inputs(model, [0, 1]).tolist() == near([[1.5, 0, 1]] * 2)  # the default
    assert guidance_inputs(model.guided(2.5, (0.1, 0.9)), [0, 1]).tolist() == near(
        [[2.5, 0.1, 0.9]] * 2
    )
    assert guidance_inputs(model.guided([2, 3]), [0, 1]).tolist() == near([[2, 0, 1], [3, 0, 1]])
    # Samples without a class are not guided.
    for one in (model, model.guided(2.5)):
        assert guidance_inputs(one, [CLASSES, -1]).tolist() == near([[1, 0, 1]] * 2)
    with pytest.raises(InputError, match="guidance"):
        guidance_inputs(model.guided([2, 3]), [0, 1, 2])
    with pytest.raises(InputError, match="already chosen"):
        model.guided(2).guided(3)


def test_every_sampler_uses_the_scale():
    for sampler, nfe in (("renoise", 3), ("ode", 3), ("euler", 3), ("heun", 4)):
        drawn, other = (
            soflow.sample_many(telling(), 5, [0] * 5, sampler, nfe, guidance=scale)[:, 0]
            for scale in (2.0, 5.0)
        )
        difference = (drawn - other).tolist()
        assert difference == pytest.approx([3.0] * 5, abs=1e-5), sampler


def test_samples_of_many_batches_have_individual_scales():
    scales = torch.linspace(1, 8, 7)
    options = {"labels": [1] * 7, "seed": 3}
    together = soflow.sample_many(telling(), 7, guidance=scales, **options)
    parts = soflow.sample_many(telling(), 7, guidance=scales, batch_size=2, **options)
    plain = soflow.sample_many(telling(), 7, guidance=1.0, **options)
    assert torch.equal(together, parts)
    torch.testing.assert_close((plain - together)[:, 0], scales - 1)
    for wrong in (scales[:3], 9.0, "high"):
        with pytest.raises(InputError, match="guidance"):
            soflow.sample_many(telling(), 7, guidance=wrong, **options)
    with pytest.raises(InputError, match="label"):
        soflow.sample_many(telling(), 7, guidance=2.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with drawn scales. Its network is changed to depend on them."""
    return soflow.train("digits", tmp_path_factory.mktemp("runs") / "run", SETTINGS).path


@pytest.fixture
def loaded(run):
    model = soflow.load(run)
    for weight in model.model.net.parameters():
        nn.init.normal_(weight, std=0.2)
    return model


def test_a_run_samples_at_its_default_or_at_a_scale_in_its_range(loaded):
    assert loaded.model.guidance == soflow.DrawnGuidance(1.15, max_scale=4.0)
    default, same, other = (
        loaded.sample(4, [3, 7], guidance=scale, progress=soflow.silent)
        for scale in (None, 1.15, 3.0)
    )
    assert torch.equal(default, same)
    assert not torch.allclose(default, other)
    each = loaded.sample(2, [3, 7], guidance=[1.15, 3.0], progress=soflow.silent)
    torch.testing.assert_close(each[1], other[1], atol=1e-3, rtol=1e-3)
    for wrong in ({"guidance": 5.0}, {"guidance_interval": (0.7, 1.0)}, {"guidance": [2.0]}):
        with pytest.raises(InputError, match="guidance"):
            loaded.sample(2, [3, 7], progress=soflow.silent, **wrong)


def test_a_stopped_run_resumes_bitwise(run, tmp_path):
    from soflow.training.signals import Stopped

    with pytest.raises(Stopped):
        soflow.train("digits", tmp_path, SETTINGS, progress=stop_at(3, 2))
    resumed = soflow.train("digits", tmp_path, SETTINGS).path

    def weights(path):
        return load_file(max((path / "checkpoints").glob("step-*")) / "model.safetensors")

    whole, found = weights(run), weights(resumed)
    assert "guidance_embedder.mlp.2.weight" in whole
    assert float(whole["guidance_embedder.mlp.2.weight"].abs().max()) > 0
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_records_contain_the_guidance(run, tmp_path):
    evaluation = soflow.evaluate(
        run,
        soflow.EvaluationSettings(
            num=20, nfe=(1,), samplers=("ode",), weights=("ema",), features="coordinates",
            guidance=2.5, guidance_interval=(0.25, 1.0),
        ),
        soflow.silent,
    )  # fmt: skip
    assert dict(evaluation.guidance) == {"scale": 2.5, "start": 0.25, "end": 1.0}
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    loaded = soflow.load(run)
    request = soflow.SampleRequest.of(loaded, 4, guidance=[1, 2, 3, 4])
    soflow.sample_to_file(loaded, request, tmp_path / "images", soflow.silent)
    protocol = json.loads((tmp_path / "images" / "protocol.json").read_text())
    assert protocol["guidance"] == {"scale": None, "start": 0.0, "end": 1.0}
    soflow.sample_to_file(loaded, soflow.SampleRequest.of(loaded, 4), tmp_path / "b", soflow.silent)
    protocol = json.loads((tmp_path / "b" / "protocol.json").read_text())
    assert protocol["guidance"] == {"scale": 1.15, "start": 0.0, "end": 1.0}


def test_parts_at_another_scale_are_not_reused(run):
    from soflow.workflows.sample import plan_of

    loaded = soflow.load(run)
    plans = {
        repr(plan_of(loaded, soflow.SampleRequest.of(loaded, 4, **asked)))
        for asked in (
            {}, {"guidance": 2.0}, {"guidance": 3.0}, {"guidance_interval": (0.1, 1.0)},
        )
    }  # fmt: skip
    assert len(plans) == 4


def test_the_command_line_accepts_a_scale(run, inside):
    asked = ("--guidance", "2", "--guidance-interval", "0.1,0.9")
    assert inside("sample", run, "-n", "4", *asked).returncode == 0
    (file,) = (run / "samples").glob("*guidance-2-in-0.1-0.9.png")
    assert file.stat().st_size > 100
    assert_fails(inside("sample", run, "-n", "4", "--guidance", "5"), 2, "guidance", "4")
    wrong = inside("sample", run, "--guidance-interval", "0.1")
    assert_fails(wrong, 2, "--guidance-interval")
    assert_fails(inside("evaluate", run, "--guidance", "0.5"), 2, "guidance")


def test_a_request_has_one_interval_of_guidance():
    rows = torch.tensor([[2.0, 0.0, 1.0], [1.5, 0.0, 1.0]])
    soflow.SampleRequest(2, torch.tensor([0, 1]), "ode", 1, guidance=rows)
    rows[1, 1] = 0.25
    with pytest.raises(InputError, match="guidance"):
        soflow.SampleRequest(2, torch.tensor([0, 1]), "ode", 1, guidance=rows)


def test_a_fixed_scale_cannot_be_chosen(tmp_path):
    settings = [*TINY_DIT, "train.steps=1", "train.batch_size=8", "train.sample_every=0"]
    run = soflow.load(soflow.train("digits", tmp_path / "run", settings))
    assert run.model.guidance is None
    for call in (
        lambda: run.sample(2, guidance=2.0),
        lambda: run.evaluate(guidance=2.0),
        lambda: run.model.guided(2.0),
    ):
        with pytest.raises(InputError, match="max_scale"):
            call()


class Own(nn.Module):
    """A custom network with a guidance input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2 + 2 + 3 + CLASSES + 1, 2)

    def forward(self, x, t, s, labels, guidance):
        onehot = nn.functional.one_hot(labels, CLASSES + 1).to(x.dtype)
        return self.linear(torch.cat([x, t[:, None], s[:, None], guidance, onehot], dim=1))


class Blind(nn.Module):
    """A custom network without a guidance input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t, s, labels):
        return self.weight * x


def train_own(network, out, objective=None):
    data = (torch.randn(32, 2), torch.arange(32) % CLASSES)
    settings = ["train.steps=2", "train.batch_size=8", "train.sample_every=0"]
    objective = objective or soflow.JumpFlow(guidance=GUIDANCE)
    return soflow.train(
        "vectors", out, settings, soflow.silent, data=data, network=network, objective=objective
    )


def test_a_custom_network(tmp_path):
    model = soflow.load(train_own(Own(), tmp_path / "run"))
    found = [model.sample(4, [0], guidance=scale, progress=soflow.silent) for scale in (1.0, 8.0)]
    assert not torch.allclose(*found)
    for network in (Blind(), soflow.MLP((2,), CLASSES, width=16, depth=1)):
        with pytest.raises(InputError, match="guidance"):
            train_own(network, tmp_path / "blind")


class OwnJumps(soflow.JumpFlow):
    """A custom objective that is not registered."""


def test_a_custom_objective(tmp_path):
    folder = train_own(None, tmp_path / "run", OwnJumps(guidance=GUIDANCE))
    assert soflow.load(folder).model.guidance == GUIDANCE


def test_a_custom_loop_saves_its_scales(tmp_path):
    objective = soflow.JumpFlow(guidance=GUIDANCE)
    network = soflow.MLP((2,), CLASSES, width=16, depth=1, takes_guidance=True)
    model = soflow.FlowModel(network, (2,), CLASSES, guidance=objective.guidance)
    soflow.save_model(model, tmp_path / "model", objective, steps=1)
    loaded = soflow.load(tmp_path / "model", "raw")
    assert loaded.config.network.name == "mlp"
    assert loaded.model.guidance == GUIDANCE
    with pytest.raises(InputError, match="guidance"):
        soflow.save_model(model, tmp_path / "other", soflow.SoFlow(), steps=1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["objective.guidance.scale=5"], "max_scale"),
        (["objective.guidance.scale=1", "data.num_classes=0"], "max_scale"),
        (["objective.guidance.max_scale=1"], "max_scale"),
        (["objective.guidance.latest_start=0.7"], "latest_start"),
    ],
)
def test_wrong_settings_are_rejected(settings, named):
    with pytest.raises(InputError, match=named):
        soflow.read_recipe("digits", [*SETTINGS, *settings])


def test_initial_weights_from_a_run_without_scales(tmp_path, run):
    few = [*TINY_DIT, "train.steps=1", "train.batch_size=8", "train.sample_every=0"]
    plain = soflow.train("digits", tmp_path / "plain", few, soflow.silent).path
    ours = [*few, *SETTINGS[len(TINY_DIT) :][:3], "optimizer.lr=1e-12", f"init_from={plain}"]
    drawn = soflow.load(soflow.train("digits", tmp_path / "drawn", ours, soflow.silent))
    samples = [drawn.sample(2, [1], guidance=scale, progress=soflow.silent) for scale in (1.0, 4.0)]
    torch.testing.assert_close(*samples)  # no effect at first
    back = [*few, f"init_from={run}"]
    soflow.train("digits", tmp_path / "back", back, soflow.silent)
