"""A second time input for networks with one time: diffusers' networks and plain ones."""

import copy
import io
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import soflow
from soflow.errors import InputError
from soflow.workflows import own_parts

B = 4


class Plain(nn.Module):
    """A minimal network of its kind, with a time embedding of an unknown class."""

    def __init__(self):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 6))
        self.inner = nn.Linear(64, 6)
        self.out = nn.Linear(6, 64)

    def forward(self, x, t):
        h = self.inner(x.flatten(1)) + self.time_mlp(t[:, None])
        return self.out(torch.tanh(h)).view_as(x)


def unet(**settings):
    from diffusers import UNet2DModel

    defaults = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8),
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4,
        "num_class_embeds": 11, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DModel(**defaults | settings)


def dit():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=2,
        sample_size=8, patch_size=4, num_embeds_ada_norm=10, norm_num_groups=1,
    )  # fmt: skip


#: The network, arguments of the wrapper, and a label for every sample.
NETS = {
    "plain": (Plain, {"time_embedding": "time_mlp"}, None),
    "unet": (unet, {}, torch.tensor([0, 3, 9, 10])),
    "dit": (dit, {}, torch.tensor([0, 3, 9, 10])),
}
EACH = pytest.mark.parametrize("name", NETS)


def made(name):
    """Returns a network with one time, and its wrapper with weights that depend on s."""
    torch.manual_seed(0)
    make, settings, labels = NETS[name]
    net = make().eval()
    network = soflow.WithSecondTime(net, **settings).eval()
    for parameter in network.second_time.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net, network, labels


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, 1, 8, 8, generator=generator, dtype=dtype)
    t = torch.rand(B, generator=generator, dtype=dtype)
    return x, t, t * torch.rand(B, generator=generator, dtype=dtype)


def output(net, x, t, labels):
    found = net(x, t) if labels is None else net(x, t, class_labels=labels)
    return getattr(found, "sample", found)[:, :1]


@EACH
@pytest.mark.parametrize("autocast", [False, True])
def test_a_new_wrapper_equals_the_given_network_at_every_s(name, autocast):
    make, settings, labels = NETS[name]
    net = make().train()
    network = soflow.WithSecondTime(net, **settings).eval()
    x, t, s = inputs()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(network(x, t, s, labels), output(net.eval(), x, t, labels))


@EACH
def test_it_learns_to_use_s_per_sample(name):
    _, network, labels = made(name)
    x, t, s = inputs()
    out = network(x, t, s, labels)
    rows = [
        network(x[i : i + 1], t[i : i + 1], s[i : i + 1], None if labels is None else labels[[i]])
        for i in range(B)
    ]
    torch.testing.assert_close(out, torch.cat(rows), rtol=1e-4, atol=1e-5)
    moved = (network(x, t, s / 2, labels) - out).flatten(1).abs().amax(1)
    assert (moved > 1e-5).all()


@EACH
def test_initial_gradients_reach_the_second_time(name):
    make, settings, labels = NETS[name]
    network = soflow.WithSecondTime(make(), **settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.zeros_(network.second_time.mlp[2].weight)
    network(*inputs(), labels).square().mean().backward()
    assert network.second_time.mlp[2].weight.grad.abs().max() > 0


@EACH
def test_the_given_network_does_not_change_and_shares_its_weights(name):
    net, network, labels = made(name)
    x, t, s = inputs()
    names = set(NETS[name][0]().state_dict())
    assert set(net.state_dict()) == names
    output(net, x, t, labels)  # still a network with one time
    before = network(x, t, s, labels)
    with torch.no_grad():
        next(iter(net.parameters())).mul_(2)
    assert not torch.equal(network(x, t, s, labels), before)
    count = sum(p.numel() for p in network.parameters())
    own = sum(p.numel() for p in network.second_time.parameters())
    assert count == own + sum(p.numel() for p in net.parameters())


@EACH
def test_copies_and_saved_files_are_the_same_network(name):
    _, network, labels = made(name)
    arguments = (*inputs(), labels)
    expected = network(*arguments)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    make, settings, _ = NETS[name]
    loaded = soflow.WithSecondTime(make(), **settings).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(copied(*arguments), expected)


@EACH
def test_ema_weights_can_be_called_instead(name):
    _, network, labels = made(name)
    arguments = (*inputs(), labels)
    expected = network(*arguments)
    ema = soflow.Ema(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(ema.net(*arguments), expected)


@pytest.mark.parametrize("name", ["plain", "dit"])  # UNets with attention have no such derivative
def test_its_derivative_along_both_times_equals_finite_differences(name):
    _, network, labels = made(name)
    network.double()
    x, t, s = inputs(torch.float64)
    along = (torch.randn_like(x), torch.ones_like(t), 0.5 * torch.ones_like(s))
    with sdpa_kernel(SDPBackend.MATH):
        _, derivative = torch.func.jvp(lambda x, t, s: network(x, t, s, labels), (x, t, s), along)

        def at(h):
            return network(*(z + h * dz for z, dz in zip((x, t, s), along, strict=True)), labels)

        # The embedding is computed in float32.
        torch.testing.assert_close(derivative, (at(0.02) - at(-0.02)) / 0.04, rtol=0.02, atol=1e-3)


@EACH
def test_threads_do_not_mix_their_times(name):
    _, network, labels = made(name)
    x, t, _ = inputs()
    times = [t * i / 8 for i in range(8)]
    expected = [network(x, t, s, labels) for s in times]
    found: list = [None] * len(times)

    def run(i):
        for _ in range(5):
            found[i] = network(x, t, times[i], labels)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(times))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def gradients(network, call):
    network.zero_grad()
    call().square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_gradients_do_not_depend_on_activation_checkpointing(name):
    _, network, labels = made(name)
    arguments = (*inputs(), labels)
    network.train()
    plain = gradients(network, lambda: network(*arguments))
    whole = gradients(network, lambda: checkpoint(network, *arguments, use_reentrant=False))
    network.velocity.net.enable_gradient_checkpointing()
    blocks = gradients(network, lambda: network(*arguments))
    for found in (whole, blocks):
        assert found.keys() == plain.keys()
        for key, gradient in plain.items():
            torch.testing.assert_close(found[key], gradient)


class OneStep(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, labels):
        one = torch.ones_like(x[:, 0, 0, 0])
        return x - self.network(x, one, 0 * one, labels)


def assert_exports(name, strict):
    _, network, labels = made(name)
    one_step = OneStep(network)
    batch = torch.export.Dim(
        "batch", min=2, max=63
    )  # diffusers' UNets behave differently from 64 on
    x, *_ = inputs()
    axes = ({0: batch}, None if labels is None else {0: batch})
    program = torch.export.export(one_step, (x, labels), dynamic_shapes=axes, strict=strict)
    more, more_labels = torch.cat([x, x + 1]), None if labels is None else labels.repeat(2)
    torch.testing.assert_close(program.module()(more, more_labels), one_step(more, more_labels))


def assert_compiles(name):
    _, network, labels = made(name)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x, t, s = inputs()
    for time in (s, s / 2):
        torch.testing.assert_close(compiled(x, t, time, labels), network(x, t, time, labels))


#: Tracing networks of diffusers takes a minute.
TRACED = pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "dit"))]
)


@TRACED
def test_one_step_is_exported_for_any_number_of_samples(name):
    assert_exports(name, strict=False)


@TRACED
def test_it_is_traced_from_its_code(name):
    """Traces in another process, because checks of annotations cannot be traced."""
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import test_second_time as test
test.assert_compiles(sys.argv[2])
test.assert_exports(sys.argv[2], strict=True)
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent), name]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_data_parallel_training_wraps_one_module(tmp_path):
    _, network, _ = made("plain")
    plain = gradients(network, lambda: network(*inputs()))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(network)
        found = gradients(network, lambda: parallel(*inputs()))
    finally:
        torch.distributed.destroy_process_group()
    for key, gradient in plain.items():
        torch.testing.assert_close(found[key], gradient)


def test_the_second_time_follows_the_device_of_the_network():
    network = soflow.WithSecondTime(Plain().to("meta"), "time_mlp")
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_other_embeddings_are_not_taken_for_a_time_embedding():
    network = soflow.WithSecondTime(unet(class_embed_type="timestep", num_class_embeds=None))
    assert network.places == ("net.time_embedding",)


def test_a_shared_embedding_is_found_in_both_modules():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Plain(), Plain()
            self.second.time_mlp = self.first.time_mlp

        def forward(self, x, t):
            return self.first(x, t) + self.second(x, t)

    net, (x, t, s) = Shared(), inputs()
    network = soflow.WithSecondTime(net, ["first.time_mlp", "second.time_mlp"])
    assert torch.equal(network(x, t, s), net(x, t))
    assert sum(p.numel() for p in network.velocity.parameters()) == sum(
        p.numel() for p in net.parameters()
    )


def test_augmentation_labels_and_conditions_reach_the_network():
    class Conditioned(Plain):
        def forward(self, x, t, cond, augment=None):
            return super().forward(x, t) + cond + augment

    network = soflow.WithSecondTime(Conditioned(), "time_mlp")
    x, t, s = inputs()
    out = network(x, t, s, None, augment=torch.tensor(2.0), cond=torch.tensor(1.0))
    torch.testing.assert_close(out, network(x, t, s, augment=torch.tensor(3.0), cond=0 * x))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "time_embedding"),  # no known time embedding
        ({"time_embedding": "time_emb"}, "time_emb"),
        ({"time_embedding": ""}, "time_embedding"),
        ({"time_embedding": []}, "time_embedding"),
        ({"time_embedding": "time_mlp.1"}, "width"),  # without a linear layer
        ({"time_embedding": ["time_mlp", "time_mlp.0"]}, "width"),
    ],
)
def test_a_missing_time_embedding_is_an_error(settings, named):
    with pytest.raises(InputError, match=named):
        soflow.WithSecondTime(Plain(), **settings)


@pytest.mark.parametrize("settings", [{"width": 7}, {"time_embedding": "out", "width": 6}])
def test_a_time_embedding_of_another_shape_is_an_error(settings):
    network = soflow.WithSecondTime(Plain(), **{"time_embedding": "time_mlp"} | settings)
    with pytest.raises(InputError, match="time_embedding"):
        network(*inputs())


def test_an_unused_time_embedding_is_an_error():
    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(1, 6)

    network = soflow.WithSecondTime(Unused(), "other")
    with pytest.raises(InputError, match="other"):
        network(*inputs())


def test_the_network_inside_cannot_be_called_without_the_second_time():
    network = soflow.WithSecondTime(Plain(), "time_mlp")
    x, t, _ = inputs()
    with pytest.raises(InputError, match="time_mlp"):
        network.velocity(x, t)


def test_a_unet_without_classes_takes_no_labels():
    network = soflow.WithSecondTime(unet(num_class_embeds=None))
    assert not network.takes_labels
    x, t, s = inputs()
    assert network(x, t, s).shape == x.shape
    with pytest.raises(InputError, match="UNet2DModel"):
        network(x, t, s, torch.zeros(B, dtype=torch.long))


def test_a_wrapped_network_trains_resumes_and_loads_with_its_code(tmp_path):
    settings = [
        "train.steps=3", "train.batch_size=4", "checkpoint.every=2", "train.sample_every=2",
        "objective.guidance.scale=1", "optimizer.warmup=0",
    ]  # fmt: skip

    def trained(out):
        # num_class_embeds=11 includes a null label, but training does not drop labels
        return soflow.train("digits", tmp_path / out, settings, soflow.silent, network=network)

    torch.manual_seed(0)
    network = soflow.WithSecondTime(unet())
    whole = soflow.load(trained("whole").path, weights="raw").model.net.state_dict()
    shutil.rmtree(trained("again").checkpoints / "step-00000003")
    again = soflow.load(trained("again").path, weights="raw").model.net.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert whole["second_time.mlp.2.weight"].any()

    samples = soflow.load(tmp_path / "whole").sample(2, nfe=1, progress=soflow.silent)
    own_parts._known.clear()  # like another process
    loaded = soflow.load(tmp_path / "whole", network=soflow.WithSecondTime(unet()))
    assert torch.equal(loaded.sample(2, nfe=1, progress=soflow.silent), samples)
