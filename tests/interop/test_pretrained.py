"""`init_from` a DiT, a SiT or a run: the network equals the pretrained one at every s."""

import argparse
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import soflow as runs
from soflow.errors import InputError, RunError
from soflow.interop.pretrained import load_pretrained
from soflow.networks.dit import DiT, FinalLayer
from soflow.networks.mlp import MLP
from soflow.sampling import one_step

#: Settings for the network `Pretrained`, with a learning rate close to zero.
SETTINGS = [
    "network.width=48",
    "network.depth=2",
    "network.heads=4",
    "train.batch_size=8",
    "optimizer.lr=1e-9",
    "train.log_every=2",
    "train.sample_every=0",
    "checkpoint.every=4",
]


class Pretrained(nn.Module):
    """A DiT as its authors define it, with one time input and, optionally, a learned variance."""

    def __init__(self, learn_sigma, classes=10, size=8, channels=2, patch=4, width=48):
        super().__init__()
        self.patch, self.channels, self.size, self.learn_sigma = patch, channels, size, learn_sigma
        like = DiT((channels, size, size), classes, patch, width, depth=2, heads=4)
        for name in ("x_embedder", "t_embedder", "y_embedder", "blocks"):
            setattr(self, name, getattr(like, name))
        self.pos_embed = like.pos_embed
        self.final_layer = FinalLayer(width, patch**2 * channels * (2 if learn_sigma else 1))
        with torch.no_grad():  # make all weights nonzero
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, x, t, labels):
        condition = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        x = self.final_layer(x, condition)
        side, p = self.size // self.patch, self.patch
        image = torch.einsum("nhwpqc->nchpwq", x.reshape(len(x), side, side, p, p, -1)).reshape(
            len(x), -1, self.size, self.size
        )
        return image.chunk(2, dim=1)[0] if self.learn_sigma else image


def ours(classes=10, shape=(2, 8, 8), **settings):
    return DiT(shape, classes, **{"patch": 4, "width": 48, "depth": 2, "heads": 4} | settings)


INPUTS = torch.Generator().manual_seed(3)
X, T = torch.randn(6, 2, 8, 8, generator=INPUTS), torch.rand(6, generator=INPUTS)
LABELS = torch.tensor([0, 3, 9, 10, 10, 5])


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("save", ["plain", "training", "safetensors"])
@torch.no_grad()
def test_a_pretrained_dit_has_the_same_output_at_every_s(learn_sigma, save, tmp_path):
    pretrained, network = Pretrained(learn_sigma), ours()
    file = tmp_path / ("weights.safetensors" if save == "safetensors" else "weights.pt")
    state = pretrained.state_dict()
    if save == "training":  # the format of the training scripts
        raw = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
        torch.save(
            {"model": raw, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}, file
        )
    else:
        (save_file if save == "safetensors" else torch.save)(state, file)
    load_pretrained(network, file)
    expected = pretrained(X, T, LABELS)
    for s in (torch.zeros(6), T / 2, T):
        torch.testing.assert_close(network(X, T, s, LABELS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        network(X, T, T / 2), pretrained(X, T, torch.full((6,), 10)), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_velocity_from_noise_to_data_is_negated(tmp_path):
    pretrained, network = Pretrained(learn_sigma=True), ours()
    torch.save(pretrained.state_dict(), tmp_path / "sit.pt")
    load_pretrained(network, tmp_path / "sit.pt", time="reversed")
    for s in (torch.zeros(6), T):
        torch.testing.assert_close(
            network(X, T, s, LABELS), -pretrained(X, 1 - T, LABELS), rtol=1e-4, atol=1e-4
        )


def test_the_embedding_of_t_minus_s_has_a_gradient(tmp_path):
    network = ours()
    torch.save(Pretrained(learn_sigma=False).state_dict(), tmp_path / "dit.pt")
    load_pretrained(network, tmp_path / "dit.pt")
    network(X, T, T / 2, LABELS).square().mean().backward()
    assert float(network.s_embedder.mlp[2].weight.grad.abs().max()) > 0


def test_other_image_sizes_and_settings_to_change(tmp_path):
    torch.save(Pretrained(learn_sigma=False).state_dict(), tmp_path / "dit.pt")
    larger = ours(shape=(2, 16, 16))
    assert any("size" in note for note in load_pretrained(larger, tmp_path / "dit.pt"))
    assert torch.equal(larger.pos_embed, ours(shape=(2, 16, 16)).pos_embed)
    for settings, remedy in (
        ({"depth": 3}, "network.depth=2"),
        ({"width": 96}, "network.width=48"),
        ({"patch": 2}, "network.patch=4"),
    ):
        with pytest.raises(InputError, match=remedy):
            load_pretrained(ours(**settings), tmp_path / "dit.pt")


@pytest.mark.parametrize("learn_sigma", [False, True])
@torch.no_grad()
def test_weights_of_a_square_start_a_rectangle_with_as_many_tokens(learn_sigma, tmp_path):
    """Fixed positions are recomputed for another image size. Learned positions are kept."""
    pretrained = Pretrained(learn_sigma)
    torch.save(pretrained.state_dict(), tmp_path / "learned.pt")
    pretrained.pos_embed.copy_(ours().pos_embed)
    torch.save(pretrained.state_dict(), tmp_path / "dit.pt")
    wide = ours(shape=(2, 4, 16))
    assert any("size" in note for note in load_pretrained(wide, tmp_path / "dit.pt"))
    assert torch.equal(wide.pos_embed, ours(shape=(2, 4, 16)).pos_embed)
    square = ours()
    assert not any("size" in note for note in load_pretrained(square, tmp_path / "dit.pt"))
    torch.testing.assert_close(square(X, T, T, LABELS), pretrained(X, T, LABELS))
    load_pretrained(wide, tmp_path / "learned.pt")
    assert not torch.equal(wide.pos_embed, ours(shape=(2, 4, 16)).pos_embed)


@torch.no_grad()
def test_signals_start_from_signals_but_not_from_images(tmp_path):
    first, second = ours(shape=(2, 16)), ours(shape=(2, 16))
    first.blocks[0].mlp.fc1.bias.add_(1)
    torch.save(first.state_dict(), tmp_path / "signals.pt")
    load_pretrained(second, tmp_path / "signals.pt")
    assert torch.equal(second.blocks[0].mlp.fc1.bias, first.blocks[0].mlp.fc1.bias)
    with pytest.raises(InputError, match=r"x_embedder\.proj\.weight has shape"):
        load_pretrained(ours(), tmp_path / "signals.pt")


@torch.no_grad()
def test_a_learned_variance_is_removed_from_the_output_channels(tmp_path):
    pretrained, network = Pretrained(learn_sigma=True), ours(shape=(3, 8, 8))
    torch.save(pretrained.state_dict(), tmp_path / "dit.pt")
    load_pretrained(network, tmp_path / "dit.pt")
    x = torch.cat([X, torch.randn(6, 1, 8, 8)], dim=1)
    out = network(x, T, T, LABELS)
    torch.testing.assert_close(out[:, :2], pretrained(X, T, LABELS), rtol=1e-5, atol=1e-5)
    assert float(out[:, 2].abs().max()) == 0


def test_incomplete_weights_are_rejected(tmp_path):
    whole = Pretrained(learn_sigma=False).state_dict()
    spoiled = {
        "blocks.1.attn.qkv.bias": whole | {"blocks.1.attn.qkv.bias": torch.zeros(3)},
        "t_embedder.mlp.0.weight": {
            name: tensor for name, tensor in whole.items() if name != "t_embedder.mlp.0.weight"
        },
        "projectors.0.weight": whole
        | {"projectors.0.weight": torch.zeros(3, 3)},  # from another training method
        "final_layer.linear.bias": whole | {"final_layer.linear.bias": torch.tensor(1.0)},
        r"bad\.pt": {"epoch": 3},
    }
    for word, weights in spoiled.items():
        torch.save(weights, tmp_path / "bad.pt")
        for time in ("same", "reversed"):
            with pytest.raises(InputError, match=word):
                load_pretrained(ours(), tmp_path / "bad.pt", time)
    torch.save(whole, tmp_path / "dit.pt")
    for time in ("same", "reversed"):
        with pytest.raises(InputError, match=r"fit|DiT"):
            load_pretrained(MLP((2,)), tmp_path / "dit.pt", time)


def test_a_run_starts_from_weights_and_resumes_without_the_file(tmp_path):
    pretrained = Pretrained(learn_sigma=True, channels=1)
    torch.save(pretrained.state_dict(), tmp_path / "dit.pt")
    overrides = [*SETTINGS, f"init_from={tmp_path / 'dit.pt'}", "train.steps=2"]
    runs.train("digits", tmp_path / "run", overrides)
    model, noise = runs.load(tmp_path / "run", device="cpu").model, X[:, :1]
    velocity = pretrained(noise, torch.ones(6), LABELS).detach()
    torch.testing.assert_close(
        one_step(model, noise, LABELS), noise - velocity, rtol=1e-4, atol=1e-4
    )

    runs.train(
        "digits", tmp_path / "next", [*SETTINGS, f"init_from={tmp_path / 'run'}", "train.steps=1"]
    )  # the weights of a run
    second = runs.load(tmp_path / "next", device="cpu").model
    torch.testing.assert_close(
        one_step(second, noise, LABELS), one_step(model, noise, LABELS), rtol=1e-4, atol=1e-4
    )

    (tmp_path / "dit.pt").unlink()
    with pytest.raises(InputError, match=r"dit\.pt"):
        runs.train("digits", tmp_path / "other", overrides)
    assert not (tmp_path / "other").exists()
    runs.train("digits", tmp_path / "run", overrides)  # resuming does not need the file


def test_time_is_reversed_only_for_networks_with_one_time(tmp_path):
    torch.save(ours().state_dict(), tmp_path / "own.pt")
    load_pretrained(ours(), tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"own\.pt"):
        load_pretrained(ours(), tmp_path / "own.pt", time="reversed")
    with pytest.raises(InputError, match="init_from"):
        runs.read_recipe("digits", ["init_time=reversed"])


def test_a_run_without_its_checkpoints_starts_from_the_weights_again(tmp_path):
    torch.save(Pretrained(learn_sigma=False, channels=1).state_dict(), tmp_path / "dit.pt")
    overrides = [*SETTINGS, f"init_from={tmp_path / 'dit.pt'}", "train.steps=2"]
    runs.train("digits", tmp_path / "run", overrides)
    first = runs.load(tmp_path / "run", device="cpu").model.net.state_dict()
    damaged = tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors"):
        runs.train("digits", tmp_path / "run", overrides)
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    runs.train("digits", tmp_path / "run", overrides)
    again = runs.load(tmp_path / "run", device="cpu").model.net.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
