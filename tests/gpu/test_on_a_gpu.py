"""Tests of what a GPU may compute differently. benchmarks/gpu_tests.sh runs them."""

import copy
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch._dynamo.utils import counters

import soflow
from soflow.assemble import make_model, make_network, make_objective
from soflow.config import read_recipe
from soflow.data.batches import seeded_generator
from soflow.drawing import class_by_class, sample_many
from soflow.run.checkpoint import checkpoints
from soflow.symbols import Batch
from soflow.system.progress import silent
from soflow.training.automatic import resolve
from soflow.training.distributed import shard_network
from soflow.training.loss_module import LossModule
from soflow.training.precision import float32_products
from soflow.training.signals import Stopped
from soflow.training.step import TrainStep
from support.devices import DEVICE, ON_GPU
from support.poison import poison
from support.watching import at_each_step, stop_at
from support.whole_runs import DIT, OBJECTIVES, SHORT, UNET, add_figures, unguided

pytestmark = pytest.mark.gpu
IN_CONTEXT = ["network.name=in_context_dit", *DIT]
NETWORKS = {"dit": DIT, "in context": IN_CONTEXT, "unet": ["data.num_classes=0", *UNET[2:]]}
#: Tolerance for the most exact arithmetic of the device.
EXACT = ["precision=fp32", "compile=false"]


@pytest.fixture(autouse=True)
def _exact():
    """Disables TF32, which torch uses for convolutions by default."""
    with float32_products(False, DEVICE):
        yield


def loss_and_gradients(network, objective, config, device):
    """Returns a loss and its gradients on a device, from draws made on the CPU."""
    generator = seeded_generator(0, "draws", 0, torch.device("cpu"))
    draws = objective.draw((16, 1, 8, 8), generator)
    parts = (draws.noise, draws.t, draws.s, draws.dropped)
    draws = type(draws)(*(x.to(device) for x in parts), draws.n_flow_matching)
    labels = torch.arange(16, device=device) % 10 if config.data.num_classes else None
    data = torch.randn(16, 1, 8, 8, generator=generator).to(device)
    losses = objective(make_model(config, network), Batch(data, labels), draws, 0.5)
    losses.total.backward()
    gradients = [p.grad.cpu() for p in network.parameters() if p.grad is not None]
    return losses, gradients


def make(settings):
    """Returns a network without zero weights, its objective and configuration."""
    config = read_recipe("digits", settings)
    torch.manual_seed(0)
    network = make_network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network, make_objective(config), config


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_losses_and_gradients_equal_those_of_a_cpu(kind, name):
    guided = unguided(name) if kind == "unet" else []
    settings = [f"objective.name={name}", *guided, *NETWORKS[kind], "network.dropout=0"]
    network, objective, config = make(
        [one for one in settings if kind == "unet" or "drop" not in one]
    )
    other = copy.deepcopy(network).to(DEVICE)
    losses, gradients = loss_and_gradients(network, objective, config, torch.device("cpu"))
    others, other_gradients = loss_and_gradients(other, objective, config, DEVICE)
    assert float(others.total) == pytest.approx(float(losses.total), rel=1e-4, abs=1e-5)
    for part, values in losses.parts.items():
        torch.testing.assert_close(others.parts[part].cpu(), values, rtol=1e-3, atol=1e-5)
    size = max(float(gradient.abs().max()) for gradient in gradients)
    off = max(
        float((one - two).abs().max()) for one, two in zip(gradients, other_gradients, strict=True)
    )
    assert off < 1e-3 * size


def weights(run):
    return checkpoints(run.checkpoints)[-1].weights("ema")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    """Bitwise equal if the device sums in a fixed order. The difference is recorded."""
    guided = ["objective.guidance.scale=1"] if kind == "unet" else []
    settings = [*guided, *NETWORKS[kind], *SHORT, *EXACT]
    whole = soflow.train("digits", tmp_path / "whole", settings, progress=silent)
    with pytest.raises(Stopped):
        soflow.train("digits", tmp_path / "stopped", settings, progress=stop_at(4))
    stopped = soflow.train("digits", tmp_path / "stopped", settings, progress=silent)
    one, two = weights(whole), weights(stopped)
    off = max(float((one[name] - two[name]).abs().max()) for name in one)
    add_figures(**{f"largest difference of a resumed {kind}": off})
    # cuDNN sums gradients of convolutions in any order, and RAdam's steps amplify this.
    assert off < (1e-4 if ON_GPU and kind == "unet" else 1e-6)


@pytest.mark.skipif(not ON_GPU, reason="a CPU has no TF32")
def test_tf32_is_on_only_where_requested():
    x = torch.randn(512, 512, device=DEVICE)
    exact = x.double() @ x.double()

    def error():
        return float((x @ x - exact).abs().max() / exact.abs().max())

    with float32_products(False, DEVICE):
        full = error()
    with float32_products(True, DEVICE):
        coarse = error()
    add_figures(**{"error of a float32 product": full, "error of a TF32 product": coarse})
    assert full < 1e-5 < coarse < 1e-2
    assert error() < 1e-5


def quotient(precision):
    """Returns mean_d(q^2) per sample at r = 0.002, the end of the schedule, for a precision."""
    network, objective, config = make([*DIT, "objective.guidance.scale=1"])
    dtype = torch.float64 if precision == "float64" else torch.float32
    network = network.to(DEVICE, dtype)
    draws = objective.draw((64, 1, 8, 8), torch.Generator().manual_seed(0))
    t, s = draws.t.clamp(min=0.2), torch.minimum(draws.s, draws.t / 2)
    draws = replace(draws, t=t, s=s, n_flow_matching=0)
    parts = (draws.noise, draws.t, draws.s)
    draws = type(draws)(*(x.to(DEVICE, dtype) for x in parts), draws.dropped.to(DEVICE), 0)
    data = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    batch = Batch(data, torch.arange(64, device=DEVICE) % 10)
    bf16 = precision.startswith("bf16")
    with (
        float32_products("tf32" in precision, DEVICE),
        torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16),
    ):
        losses = objective(make_model(config, network), batch, draws, 1.0)
    return losses.parts["consistency_mse"].double().cpu()


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 1e-3), ("bf16", 1e-3), ("bf16-tf32", 0.5 if ON_GPU else 1e-3)]
)
def test_the_error_of_the_quotient(precision, limit):
    exact = quotient("float64")
    error = float(((quotient(precision) - exact) / exact).square().mean().sqrt())
    add_figures(**{f"relative error of the quotient, {precision}": error})
    assert error < limit


def test_nothing_is_recompiled_after_the_first_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    counters.clear()
    graphs = {}
    settings = [*DIT, *SHORT, "compile=true", "precision=fp32"]

    def note(step):
        graphs[step] = counters["stats"]["unique_graphs"]

    soflow.train("digits", tmp_path, settings, progress=at_each_step(note))
    assert graphs[2] == graphs[8] > 0


def test_a_nonfinite_step_is_skipped_and_named(tmp_path, monkeypatch, caplog):
    poison(monkeypatch, step=4, rows=5)
    settings = [*DIT, *SHORT, *EXACT, "train.on_nonfinite=skip", "train.log_every=8"]
    run = soflow.train("digits", tmp_path, settings, progress=silent)
    assert any("step 5, in row 5" in note for note in caplog.messages)
    assert all(one.isfinite().all() for one in weights(run).values())


@pytest.mark.parametrize(
    "settings",
    [
        [*DIT, *EXACT],
        [*DIT, "precision=auto", "compile=false"],
        # RAdam cannot skip an update on the device.
        [*NETWORKS["unet"], *unguided("soflow"), "optimizer.name=adamw", "compile=false"],
    ],
)
def test_a_step_does_not_wait_for_the_device(settings, tmp_path, monkeypatch):
    """On a GPU, torch raises an error on synchronization."""
    step, steps = TrainStep.__call__, []

    def watched(self, number):
        steps.append(number)
        if not ON_GPU or number == 0:  # the first step allocates memory
            return step(self, number)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainStep, "__call__", watched)
    run = soflow.train("digits", tmp_path, [*settings, *SHORT], progress=silent)
    assert steps == list(range(8))
    assert checkpoints(run.checkpoints)[-1].step == 8


def test_a_network_sharded_over_one_process_gives_the_same_loss(tmp_path):
    if not ON_GPU and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch cannot shard on a CPU")
    network, objective, config = make(DIT)
    network = network.to(DEVICE)
    other = LossModule(make_model(config, copy.deepcopy(network)), objective)
    losses, _ = loss_and_gradients(network, objective, config, DEVICE)
    store = f"file://{tmp_path}/store"
    backend = "nccl" if ON_GPU else "gloo"
    torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    try:
        shard_network(other, DEVICE)
        generator = seeded_generator(0, "draws", 0, torch.device("cpu"))
        draws = objective.draw((16, 1, 8, 8), generator)
        parts = (draws.noise, draws.t, draws.s, draws.dropped)
        draws = type(draws)(*(x.to(DEVICE) for x in parts), draws.n_flow_matching)
        data = torch.randn(16, 1, 8, 8, generator=generator).to(DEVICE)
        total = other(Batch(data, torch.arange(16, device=DEVICE) % 10), draws, 0.5).total
        total.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert float(total) == pytest.approx(float(losses.total), rel=1e-4, abs=1e-5)


def test_samples_do_not_depend_on_the_batch_size():
    network, _, config = make(DIT)
    model = make_model(config, network.to(DEVICE).eval())
    labels = class_by_class(40, 10)
    one, two = (
        sample_many(model, 40, labels, "renoise", 2, 0, batch_size=size, device=DEVICE).cpu()
        for size in (40, 7)
    )
    off = float((one - two).abs().max())
    add_figures(**{"largest difference of samples by size of batches": off})
    assert off < 1e-4


def test_the_default_precision_suits_the_device():
    config, note = resolve(read_recipe("digits"), DEVICE)
    assert "precision=" in note
    add_figures(**{"precision=auto": config.precision})
    assert config.precision == ("bf16-tf32" if ON_GPU else "fp32")
