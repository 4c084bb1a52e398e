"""Optimizers by name: updates, state, and rejected settings."""

import shutil
from math import prod

import pytest
import torch
from torch import nn

import soflow
from soflow.assemble import make_network
from soflow.comparison.estimate import estimate
from soflow.config import optimizer_classes, read_recipe
from soflow.config.optimizer import OptimizerConfig
from soflow.config.reading import with_overrides
from soflow.errors import InputError
from soflow.system.progress import silent
from soflow.training.muon import hidden_matrices
from soflow.training.optimizers import (
    kept_shapes,
    make_optimizer,
    require_optimizer,
    small_muon_share,
)
from soflow.training.signals import Stopped
from support.poison import poison
from support.watching import stop_at
from support.whole_runs import DIT, MLP, SHORT, assert_same_run

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has Muon")
NAMES = [
    *("adamw", "radam", "Adafactor", "Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam"),
    *("RMSprop", "Rprop", "SGD", pytest.param("muon", marks=needs_muon)),
]
#: Optimizers with all kinds of state: moments, three moments, factors, a product, none.
STATEFUL = [
    ["optimizer.name=SGD", "optimizer.options={momentum: 0.9, nesterov: true}"],
    ["optimizer.name=Adafactor"],
    ["optimizer.name=nadam", "optimizer.betas=[0.8, 0.9]"],
    ["optimizer.options.amsgrad=true", "optimizer.weight_decay=0.1"],
    pytest.param(["optimizer.name=muon", "optimizer.weight_decay=0.1"], marks=needs_muon),
]


class Small(nn.Module):
    """Parameters with 0 to 4 dimensions of different sizes."""

    def __init__(self):
        super().__init__()
        shapes = [(), (7,), (5, 9), (11, 13), (3, 8), (4, 5, 6), (6, 2, 3, 4)]
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList(torch.randn(shape, generator=generator) for shape in shapes)
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(3))
        for layer, index in zip(self.layers, (2, 3, 4), strict=True):
            layer.weight = self.all[index]
        self.register_parameter("fixed", nn.Parameter(torch.ones(2, 2), requires_grad=False))


def settings(name, **values):
    return OptimizerConfig(name=name, **values)


def give_gradients(network, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.all:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("given", STATEFUL)
def test_a_resumed_run_repeats_the_uninterrupted_one(given, tmp_path):
    given = [*MLP, *SHORT, *given]
    soflow.train("moons", tmp_path / "one", given, progress=silent)
    with pytest.raises(Stopped):
        soflow.train("moons", tmp_path / "two", given, progress=stop_at(4))
    soflow.train("moons", tmp_path / "two", given, progress=silent)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("given", STATEFUL)
def test_a_nonfinite_update_is_skipped(given, tmp_path, monkeypatch):
    """Weights and optimizer state do not change."""
    poison(monkeypatch, step=4, rows=1)
    keep = ["checkpoint.every=1", "checkpoint.keep_last=9", "train.on_nonfinite=skip"]
    run = soflow.train("digits", tmp_path, [*DIT, *SHORT, *given, *keep], progress=silent)
    found = [
        (run.checkpoints / f"step-{step:08d}" / "model.safetensors").read_bytes()
        for step in (4, 5, 6)
    ]
    assert found[0] == found[1] != found[2]
    states = [
        torch.load(run.checkpoints / f"step-{step:08d}" / "optimizer.pt")["state"]
        for step in (4, 5)
    ]
    for index, kept in states[0].items():
        assert all(value.equal(states[1][index][name]) for name, value in kept.items())


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_states_have_the_expected_shapes(name):
    network = Small()
    config = settings(name, **({"options": {"momentum": 0.9}} if name == "SGD" else {}))
    optimizer = make_optimizer(config, network)
    give_gradients(network)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    found = [
        {key: tuple(value.shape) for key, value in state[i].items()} for i in range(len(state))
    ]
    assert found == kept_shapes(config, network)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Rprop"])
def test_the_learning_rate_of_each_step_applies(name):
    """A step with learning rate 0 changes nothing. Rprop has its own step sizes."""
    network = Small()
    optimizer = make_optimizer(settings(name, lr=0.1), network)
    moved = []
    for step, lr in enumerate((0.1, 0.0, 0.0, 0.1)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        give_gradients(network, step)
        before = [parameter.detach().clone() for parameter in network.all]
        optimizer.step()
        optimizer.zero_grad()
        pairs = zip(before, network.all, strict=True)
        moved.append([not a.equal(b) for a, b in pairs])
    lag = name == "ASGD"  # uses the learning rate of the previous step
    assert all(moved[0])
    assert not any(moved[2])
    assert lag or not any(moved[1])
    assert lag or all(moved[3])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Rprop"])
def test_weight_decay_applies(name):
    found = []
    for decay in (0.0, 0.5):
        network = Small()
        optimizer = make_optimizer(settings(name, weight_decay=decay), network)
        for seed in range(2):
            give_gradients(network, seed)
            optimizer.step()
        found.append([parameter.detach() for parameter in network.all])
    assert not all(a.equal(b) for a, b in zip(*found, strict=True))


# Muon


@needs_muon
def test_muon_updates_hidden_matrices_by_orthogonal_steps_with_the_size_of_adamws():
    """lr 0.2 sqrt(max side) U V^T, with singular values from the iteration of 0.5 to 1.5."""
    network, lr = Small(), 0.1
    optimizer = make_optimizer(settings("muon", lr=lr), network)
    give_gradients(network)
    before = network.all[3].detach().clone()
    gradient = network.all[3].grad.clone()
    optimizer.step()
    step = (before - network.all[3].detach()) / (lr * 0.2 * 13**0.5)
    singular = torch.linalg.svdvals(step)
    assert 0.5 < singular.min() <= singular.max() < 1.5
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.linalg.svdvals(u.T @ step @ v.T).allclose(singular, atol=1e-2)
    cosine = (step * (u @ v)).sum() / step.norm() / (u @ v).norm()
    assert cosine > 0.95


@needs_muon
def test_muon_updates_all_other_parameters_by_adamw():
    one, two = Small(), Small()
    ours = make_optimizer(settings("muon", lr=0.1, betas=(0.8, 0.9), weight_decay=0.3), one)
    theirs = torch.optim.AdamW(two.all, 0.1, (0.8, 0.9), weight_decay=0.3)
    for seed in range(3):
        for network, optimizer in ((one, ours), (two, theirs)):
            give_gradients(network, seed)
            optimizer.step()
            optimizer.zero_grad()
    for index, (a, b) in enumerate(zip(one.all, two.all, strict=True)):
        assert a.grad is None
        assert torch.allclose(a, b, atol=1e-6) is (index != 3), index


def named(network, parameters):
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {names[parameter] for parameter in parameters}


def test_hidden_matrices_of_a_network_with_marked_blocks():
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    for name, own in (("dit", layers), ("in_context_dit", layers[:-1])):
        network = make_network(read_recipe("digits", [f"network.name={name}", "network.depth=1"]))
        expected = {f"blocks.0.{layer}.weight" for layer in own}
        assert named(network, hidden_matrices(network)) == expected


def test_muon_on_a_network_of_convolutions_is_a_warning():
    muon = ["optimizer.name=muon"]
    dit, unet = (
        read_recipe("digits", [*muon, *network])
        for network in (DIT, ["network.name=unet", "network.model_channels=16"])
    )
    assert small_muon_share(dit.optimizer, make_network(dit)) == ""
    assert "UNet" in small_muon_share(unet.optimizer, make_network(unet))
    plain = read_recipe("digits", ["network.name=unet", "network.model_channels=16"])
    assert small_muon_share(plain.optimizer, make_network(plain)) == ""


def test_hidden_matrices_of_a_network_without_marked_blocks():
    network = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 6), nn.Conv1d(6, 6, 1), nn.Linear(6, 7),
        nn.MultiheadAttention(7, 1), nn.Linear(7, 2),
    )  # fmt: skip
    inner = {"5.in_proj_weight", "5.out_proj.weight"}
    assert named(network, hidden_matrices(network)) == {"2.weight", "4.weight", *inner}
    network[2].weight.requires_grad_(False)
    assert named(network, hidden_matrices(network)) == {"4.weight", *inner}


@needs_muon
def test_muon_needs_hidden_matrices():
    with pytest.raises(InputError, match=r"optimizer\.name=muon.*Conv2d has none"):
        make_optimizer(settings("muon"), nn.Conv2d(1, 1, 3))


def test_a_torch_without_muon_reads_the_settings_and_refuses_to_train(monkeypatch):
    without = {name: one for name, one in optimizer_classes.CLASSES.items() if name != "muon"}
    monkeypatch.setattr(optimizer_classes, "CLASSES", without)
    config = read_recipe("digits", ["optimizer.name=muon", "optimizer.options.momentum=0.9"])
    with pytest.raises(InputError, match=r"optimizer\.name=muon needs torch 2\.9"):
        require_optimizer(config)


# Settings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["optimizer.name=sgdd"], r"optimizer\.name=sgdd is unknown.*SGD"),
        (["optimizer.name=zzzzzz"], r"zzzzzz is unknown: choose one of adamw, radam, muon, Adaf"),
        (["optimizer.name=LBFGS"], r"LBFGS is not supported.*several times"),
        (["optimizer.name=SparseAdam"], r"SparseAdam is not supported.*sparse gradients"),
        (["optimizer.name=Optimizer"], r"Optimizer is unknown"),
        (["optimizer.name=SGD", "optimizer.options.momentm=1"], r"options\.momentm.*momentum\?"),
        (["optimizer.options.lr=1"], r"options\.lr .*optimizer\.lr"),
        (["optimizer.options.params=1"], r"options\.params is unknown"),
        (["optimizer.options=3"], r"optimizer\.options is 3"),
        (["optimizer.name=SGD", "optimizer.betas=[0.9, 0.9]"], r"optimizer\.betas .*SGD"),
        (["optimizer.name=Rprop"], r"optimizer\.warmup does not apply.*Rprop"),
        (["optimizer.name=SGD", "optimizer.options.momentum=a"], r"SGD .*'momentum': 'a'"),
        (["optimizer.name=SGD", "optimizer.options.nesterov=true"], r"SGD .*[Nn]esterov"),
        (["optimizer.name=SGD", "optimizer.options.nesterov=flase"], r"options\.nesterov .*SGD"),
        (["optimizer.options.foreach=1"], r"options\.foreach .*adamw"),
        (["optimizer.name=Adafactor", "parallel=fsdp"], r"parallel=fsdp .*Adafactor"),
        (
            ["optimizer.name=Rprop", "optimizer.warmup=0", "parallel=fsdp"],
            r"parallel=fsdp .*Rprop",
        ),
        pytest.param(
            ["optimizer.name=muon", "parallel=fsdp"], r"parallel=fsdp .*muon", marks=needs_muon
        ),
    ],
)
def test_unusable_settings_of_an_optimizer_are_one_line(given, named, tmp_path):
    with pytest.raises(InputError, match=named) as error:
        soflow.train("digits", tmp_path / "run", given, progress=silent)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["optimizer.weight_decay=0.1", "optimizer.warmup=0"],
        ["optimizer.lr_schedule=cosine", "optimizer.warmup=0"],
    ],
)
def test_rprop_rejects_weight_decay_and_schedules(given):
    with pytest.raises(InputError, match=given[0].partition("=")[0]):
        read_recipe("digits", ["optimizer.name=Rprop", *given])


def test_names_ignore_case_and_are_stored_as_in_torch():
    assert settings("sgd").name == "SGD"
    assert settings("AdamW").name == "adamw"
    assert settings("AdamW") == OptimizerConfig()


def test_another_optimizer_takes_over_the_settings_it_has():
    radam = read_recipe("cifar10", ["optimizer.options.eps=1e-6"])
    assert radam.optimizer.betas == (0.9, 0.999)
    adamw = with_overrides(radam, ["optimizer.name=adamw"])
    assert (adamw.optimizer.betas, adamw.optimizer.options) == ((0.9, 0.999), {})
    sgd = with_overrides(radam, ["optimizer.options.momentum=0.9", "optimizer.name=SGD"])
    assert (sgd.optimizer.betas, sgd.optimizer.options) == (None, {"momentum": 0.9})
    assert with_overrides(sgd, ["optimizer.name=adamw"]).optimizer.betas == (0.9, 0.99)


def test_the_optimizer_of_a_run_cannot_change(tmp_path):
    soflow.train("moons", tmp_path, [*MLP, *SHORT], progress=silent)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000008")
    with pytest.raises(InputError, match=r"optimizer\.name=adamw, not SGD"):
        soflow.train("moons", tmp_path, [*MLP, *SHORT, "optimizer.name=SGD"], progress=silent)


def test_memory_estimates_include_the_optimizer_state():
    def bytes_of(*given):
        return estimate(read_recipe("moons", [*MLP, *given])).memory

    gradients = bytes_of().gradients
    assert bytes_of().moments == 2 * gradients
    assert bytes_of("optimizer.name=SGD").moments == 0
    assert bytes_of("optimizer.name=SGD", "optimizer.options.momentum=0.9").moments == gradients
    network = make_network(read_recipe("moons", MLP))
    factors = [sum(p.shape) if p.ndim == 2 else prod(p.shape) for p in network.parameters()]
    assert bytes_of("optimizer.name=Adafactor").moments == 4 * sum(factors)
