"""Checkpoints of others: the reference implementation's become run folders, DiT's and SiT's begin runs."""

import argparse
import errno
import os
import pickle

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from conftest import TINY_DIT
from soflow import runs
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.interop.files import read_file
from soflow.interop.pretrained import load_pretrained
from soflow.interop.reference import import_checkpoint
from soflow.interop.settings import read_settings, translate
from soflow.interop.sizes import Sizes, read_sizes
from soflow.networks.dit import DiT, FinalLayer
from soflow.networks.mlp import MLP
from soflow.networks.unet import UNet
from soflow.sampling import one_step
from soflow.training.checkpoint import Checkpoint, newest_good

DIT_YAML = {
    "noising_type": "Trig",
    "coefficient_type": "Trig",
    "model_type": "DiT-B-4",
    "dataset_type": "digits",
    "data_size": 8,
    "velocity_loss_ratio": 0.5,
    "p": 0.9,
    "eps": "2e-2",  # what a YAML reader makes of 2e-2
    "time_mean": [-0.1, -0.2, 0.3],
    "time_std": [1.1, 1.2, 1.3],
    "cfg_scale": 1.7,
    "mix_ratio": 0.4,
    "cfg_drop_rate": 0.2,
    "cfg_decay_time": 0.9,
    "l_schedule": "Cosine",
    "l_init_ratio": 0.5,
    "l_end_ratio": 0.01,
    "total_steps": 8,
    "ema_decay_rate": 0.95,
    "learning_rate": 2e-4,
    "betas": [0.8, 0.95],
    "weight_decay": 0.01,
    "batch_size": 32,
}

#: The same settings in our words, typed by hand.
DIT_OURS = [
    "path.name=trig", "path.parameterization=trig", "data.source=digits", "objective.lambda_=0.5", "objective.p=0.9",
    "objective.eps=0.02",
    "objective.times.flow_matching.mean=-0.1", "objective.times.s.mean=-0.2", "objective.times.t.mean=0.3",
    "objective.times.flow_matching.std=1.1", "objective.times.s.std=1.2", "objective.times.t.std=1.3",
    "objective.guidance.scale=1.7", "objective.guidance.mix=0.4", "objective.guidance.label_dropout=0.2",
    "objective.guidance.decay_time=0.9", "objective.middle.schedule=cosine", "objective.middle.init=0.5",
    "objective.middle.end=0.01", "train.steps=8", "ema.decay=0.95", "optimizer.lr=2e-4", "optimizer.betas=[0.8, 0.95]",
    "optimizer.weight_decay=0.01", "train.batch_size=32",
]  # fmt: skip

UNET_YAML = {
    "noising_type": "Linear", "coefficient_type": "Euler", "model_type": "UNet", "dataset_type": "digits",
    "velocity_loss_ratio": 0.0, "p": 0.75, "eps": 0.001, "time_mean": [-0.9, -4.0, -0.9], "time_std": [1.6, 1.6, 1.6],
    "cfg_scale": 1.0, "l_schedule": "Exponent", "l_init_ratio": 1.0, "l_end_ratio": 0.0003125, "total_steps": 8,
    "ema_decay_rate": 0.95, "learning_rate": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "batch_size": 16,
}  # fmt: skip
UNET_OURS = [
    "data.source=digits", "data.shape=[1, 8, 8]", "train.steps=8", "train.batch_size=16", "ema.decay=0.95",
    "optimizer.lr=1e-3",
    "network.model_channels=16", "network.channel_mult=[1, 2]", "network.blocks=1", "network.attention=[4]",
]  # fmt: skip

QUIET = ["train.log_every=4", "train.sample_every=0", "checkpoint.every=4", "checkpoint.keep_last=9"]


def as_reference(checkpoint: Checkpoint, file, order=sorted, every_parameter=False):
    """One of our checkpoints as the reference implementation would have saved it, with parameters in another order."""
    network = runs.make_network(runs.RunFolder(checkpoint.path.parents[1]).read_config())
    ours = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    weights, average = checkpoint.weights("raw"), checkpoint.weights("ema")
    names = order(weights)
    numbered = [name for name in names if name in (dict(network.named_parameters()) if every_parameter else ours)]
    optimizer = checkpoint.optimizer_state()
    state = {numbered.index(name): optimizer["state"][ours.index(name)] for name in ours}
    group = {**optimizer["param_groups"][0], "params": list(range(len(numbered)))}
    torch.save(
        {
            "model": {f"network.{name}": weights[name] for name in names},
            "ema_model": {f"network.{name}": average[name] for name in names},
            "optimizer": {"state": state, "param_groups": [group]},
            "finished_steps": checkpoint.step,
            "finished_epochs": 0,
        },
        file,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of 8 steps that were never stopped, of a DiT and of a UNet, with their checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("trained")
    runs.train("digits", folder / "dit", [*DIT_OURS, *TINY_DIT, *QUIET, "optimizer.warmup=0", "optimizer.clip=0"])
    runs.train("cifar10", folder / "unet", [*UNET_OURS, *QUIET, "ema.every=2"])
    return folder


def backwards(names):
    return sorted(names, reverse=True)


@pytest.mark.parametrize(
    ("kind", "settings", "overrides", "every_parameter"),
    [
        ("dit", DIT_YAML, [], False),
        ("dit", DIT_YAML, [], True),  # an optimizer that was given the fixed positions, too
        ("unet", UNET_YAML, ["ema.every=2"], False),
    ],
)
def test_an_imported_run_goes_on_bit_for_bit(trained, tmp_path, kind, settings, overrides, every_parameter):
    half, whole = (Checkpoint(trained / kind / "checkpoints" / f"step-0000000{step}") for step in (4, 8))
    as_reference(half, tmp_path / "reference.pt", backwards, every_parameter)
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(settings))
    heads = 2 if kind == "dit" else None
    imported = import_checkpoint(
        tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads, [*overrides, *QUIET]
    )
    assert imported.notes == []
    assert imported.step == 4
    runs.train(str(tmp_path / "run"), tmp_path / "run")
    again, _ = newest_good(tmp_path / "run" / "checkpoints")
    assert again.step == 8
    for which in ("raw", "ema"):
        ours, theirs = again.weights(which), whole.weights(which)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert {tensor.dtype for tensor in ours.values()} == {tensor.dtype for tensor in theirs.values()}
    state, straight = again.optimizer_state()["state"], whole.optimizer_state()["state"]
    assert all(torch.equal(state[i][moment], straight[i][moment]) for i in straight for moment in straight[i])


def test_every_setting_of_the_flat_yaml_arrives():
    sizes = Sizes({"name": "dit", "patch": 4, "width": 96, "depth": 2, "mlp_ratio": 4.0}, (1, 8, 8), 10, 0)
    translation = translate(DIT_YAML, sizes)
    shape = ["data.shape=[1, 8, 8]", "data.num_classes=10"]
    network = ["network.patch=4", "network.width=96", "network.depth=2", "network.heads=12"]
    expected = read_recipe("imagenet256-b4", [*DIT_OURS, *shape, *network])
    assert translation.config.model_copy(update={"description": ""}) == expected.model_copy(update={"description": ""})
    assert translation.assumed == []
    assert translation.unused == []
    for name, value in DIT_YAML.items():  # and each is accounted for by name
        assert any(line.startswith(f"{name}: {value}") for line in translation.used)


def test_settings_without_a_place_and_places_without_a_setting_are_named():
    sizes = Sizes({"name": "dit", "patch": 2, "width": 48, "depth": 1, "mlp_ratio": 4.0}, (4, 8, 8), 10, 0)
    settings = {**DIT_YAML, "model_type": "DiT-XL-2", "num_workers": 8, "grad_clip": 1.0}
    del settings["eps"], settings["time_std"]
    translation = translate(settings, sizes)
    assert translation.unused == ["num_workers: 8", "grad_clip: 1.0"]
    assert "objective.eps=0.01" in translation.assumed  # the paper's
    assert "objective.times.s.std=0.8" in translation.assumed
    assert len(translation.assumed) == 4
    assert translation.config.network.heads == 16


@pytest.mark.parametrize(
    ("name", "ours"), [("Const", "constant"), ("Linear", "linear"), ("Cosine", "cosine"), ("Exponent", "exponential")]
)
def test_the_schedules_names(name, ours):
    sizes = read_sizes(UNet(8, 3, 16, (1, 2), 1, (4,)).state_dict(), "it")
    assert translate({**UNET_YAML, "l_schedule": name}, sizes).config.objective.middle.schedule == ours


def test_guidance_that_the_reference_would_not_use_is_off():
    unet = read_sizes(UNet(8, 3, 16, (1, 2), 1, (4,)).state_dict(), "it")
    assert translate({**UNET_YAML, "cfg_scale": 3.0}, unet).config.objective.guidance.scale == 1  # no labels
    dit = read_sizes(DiT(8, 4, 10, 2, 48, 1, 4).state_dict(), "it")
    assert translate({**DIT_YAML, "cfg_scale": 0.0}, dit).config.objective.guidance.scale == 1  # not above 1


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 8, "channels": 4, "num_classes": 10, "patch": 2, "width": 48, "depth": 3},
        {"size": 32, "channels": 3, "num_classes": 0, "patch": 4, "width": 24, "depth": 1, "mlp_ratio": 2.0},
    ],
)
def test_sizes_of_a_dit_are_read_off_its_weights(settings):
    sizes = read_sizes(DiT(**settings, heads=4).state_dict(), "it")
    assert sizes.shape == (settings["channels"], settings["size"], settings["size"])
    assert sizes.num_classes == settings["num_classes"]
    assert sizes.network["mlp_ratio"] == settings.get("mlp_ratio", 4.0)
    assert all(sizes.network[key] == settings[key] for key in ("patch", "width", "depth"))


@pytest.mark.parametrize(
    "settings",
    [
        {"model_channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,), "augment_labels": 6},
        {"model_channels": 32, "channel_mult": (2, 2, 1), "blocks": 3, "attention": (), "channel_mult_emb": 2},
        {"model_channels": 16, "channel_mult": (2, 2), "blocks": 2, "attention": (8, 4), "channel_mult_noise": 1},
    ],
)
def test_sizes_of_a_unet_are_read_off_its_weights(settings):
    network = UNet(8, 3, **settings)
    sizes = read_sizes(network.state_dict(), "it")
    assert sizes.shape == (3, 8, 8)
    assert sizes.augment_labels == settings.get("augment_labels", 0)
    read = {key: value for key, value in sizes.network.items() if key != "name"}
    again = UNet(
        8, 3, **{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}, augment_labels=sizes.augment_labels
    )
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_heads_that_cannot_be_ask_for_the_right_ones():
    sizes = read_sizes(DiT(8, 1, 10, 4, 40, 1, 4).state_dict(), "it")
    with pytest.raises(InputError, match=r"12 attention heads of model_type DiT-B-4 .* width, 40: give --heads N"):
        translate(DIT_YAML, sizes)
    assert translate(DIT_YAML, sizes, heads=4).config.network.heads == 4
    with pytest.raises(InputError, match="leave it out"):
        translate(UNET_YAML, read_sizes(UNet(8, 3, 16, (1, 2), 1, (4,)).state_dict(), "it"), heads=4)


def test_a_file_that_is_no_flat_yaml_is_refused(tmp_path):
    for text in ("data: {source: digits}\ntrain: {steps: 3}\n", "- 1\n", "a: [\n", ""):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(InputError, match=r"other\.yaml"):
            read_settings(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="the checkpoint stands before it"):
        read_settings(tmp_path / "other.yaml")


# What cannot be used


class RunsCode:
    """Pickles into a call of os.system."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("place", ["model", "optimizer", "finished_epochs"])
@pytest.mark.parametrize("protocol", ["torch", 2, 5])
def test_a_pickle_that_would_run_code_is_refused(place, protocol, tmp_path):
    mark = tmp_path / "ran"
    content = {"model": {}, "ema_model": {}, "optimizer": {}, "finished_steps": 1, "finished_epochs": 0}
    content[place] = RunsCode(mark)
    file = tmp_path / "hostile.pt"
    if protocol == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match="could run code"):
        import_checkpoint(file, tmp_path / "reference.yaml", tmp_path / "run")
    with pytest.raises(InputError, match="could run code"):
        runs.train("digits", tmp_path / "run", [*TINY_DIT, f"init_from={file}"])
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
    assert pickle.loads(pickle.dumps(RunsCode(mark))) == 0  # the trap itself works
    assert mark.exists()


def reference_content(**changes):
    """A small checkpoint of the reference implementation, as a dict."""
    network = DiT(8, 1, 10, 4, 48, 1, 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    sum(p.square().sum() for p in network.parameters() if p.requires_grad).backward()
    optimizer.step()
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    content = {"model": weights, "ema_model": dict(weights), "optimizer": optimizer.state_dict(), "finished_steps": 1}
    return {**content, "finished_epochs": 0, **changes}


def changed(what, change):
    """reference_content with one part changed in place."""
    content = reference_content()
    change(content[what])
    return content


BAD_CHECKPOINTS = {
    "is no checkpoint": lambda: {"weights": 3},
    "'model' in .* holds no weights": lambda: reference_content(model=[1, 2]),
    "'finished_steps' in .* is -3": lambda: reference_content(finished_steps=-3),
    "neither a DiT": lambda: reference_content(model={"network.layer.weight": torch.zeros(3)}),
    "its weights can start a run: soflow train RECIPE init_from": lambda: {"model": {}, "ema": {}, "opt": {}},
    "lacks pos_embed": lambda: changed("model", lambda part: part.pop("network.pos_embed")),
    "has no place in the network": lambda: changed("model", lambda part: part.update({"network.extra": torch.zeros(1)})),
    "'ema_model' .* it lacks blocks.0.attn.qkv.bias": lambda: changed(
        "ema_model", lambda part: part.pop("network.blocks.0.attn.qkv.bias")
    ),
    r"final_layer.linear.bias has shape \[3\], not \[16\]": lambda: changed(
        "model", lambda part: part.update({"network.final_layer.linear.bias": torch.zeros(3)})
    ),
    "no DiT and no UNet": lambda: changed(
        "model", lambda part: part.update({"network.x_embedder.proj.weight": torch.zeros(3)})
    ),
    "no state of a torch optimizer": lambda: reference_content(optimizer={"state": 1}),
    "only AdamW and RAdam": lambda: changed("optimizer", lambda part: part["state"].update({2: {"step": 1}})),
    "is of 1 parameters": lambda: changed("optimizer", lambda part: part["param_groups"][0].update(params=[0])),
    "does not have the shape of": lambda: changed(
        "optimizer", lambda part: part["state"][3].update(exp_avg=torch.zeros(2, 2, 2))
    ),
}


@pytest.mark.parametrize("message", BAD_CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_says_why_and_leaves_nothing(message, tmp_path):
    torch.save(BAD_CHECKPOINTS[message](), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match=message) as raised:
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4)
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt", "reference.yaml"}


BAD_SETTINGS = {
    "model_type is UNet, but the weights are a dit's": {"model_type": "UNet"},
    "l_schedule is Square: known are Const, Linear, Cosine, Exponent": {"l_schedule": "Square"},
    "time_mean is .* it must list three numbers": {"time_mean": [1.0]},
    "objective.lambda_ is 3": {"velocity_loss_ratio": 3},
    "give --heads N": {"model_type": "SiT-B-4"},
    "optimizer.betas": {"betas": "fast"},
}


@pytest.mark.parametrize("message", BAD_SETTINGS)
def test_settings_that_cannot_be_used_say_why(message, tmp_path):
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump({**DIT_YAML, **BAD_SETTINGS[message]}))
    with pytest.raises(InputError, match=message):
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        (tmp_path / ".run.partial" / "begun").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("soflow.interop.reference.save_checkpoint", full)
    torch.save(reference_content(), tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    with pytest.raises(InputError, match="run: No space left"):
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4)
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt", "reference.yaml"}


def test_damaged_files_are_named(tmp_path):
    torch.save(reference_content(), tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    for name, content in {
        "cut.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "text.pt": b"hello",
        "x.safetensors": b"no",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_file(tmp_path / name)
    with pytest.raises(InputError, match="there is no file"):
        read_file(tmp_path / "nowhere.pt")


def test_what_is_missing_or_left_out_is_noted(tmp_path):
    content = reference_content(scaler={"scale": 1.0})
    del content["optimizer"], content["model"]
    torch.save(content, tmp_path / "reference.pt")
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    imported = import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run")
    for note, word in zip(imported.notes, ("'ema_model'", "'optimizer'", "'scaler'", "heads"), strict=True):
        assert word in note
    runs.train(str(tmp_path / "run"), tmp_path / "run")  # from fresh moments


def test_an_optimizer_of_other_settings_is_noted(tmp_path):
    torch.save(reference_content(), tmp_path / "reference.pt")  # AdamW's own betas and weight decay
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(DIT_YAML))
    notes = import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4).notes
    assert [note for note in notes if "betas [0.9, 0.999]; training goes on with [0.8, 0.95]" in note]
    with pytest.raises(InputError, match="is there already"):
        import_checkpoint(tmp_path / "reference.pt", tmp_path / "reference.yaml", tmp_path / "run", heads=4)


# Weights to begin with


class Pretrained(nn.Module):
    """A DiT as its authors define it: one time, labels with a null row, perhaps a learned variance."""

    def __init__(self, learn_sigma, classes=10, size=8, channels=2, patch=4, width=48):
        super().__init__()
        self.patch, self.channels, self.size, self.learn_sigma = patch, channels, size, learn_sigma
        like = DiT(size, channels, classes, patch, width, depth=2, heads=4)
        for name in ("x_embedder", "t_embedder", "y_embedder", "blocks"):
            setattr(self, name, getattr(like, name))
        self.pos_embed = like.pos_embed
        self.final_layer = FinalLayer(width, patch**2 * channels * (2 if learn_sigma else 1))
        with torch.no_grad():  # none of it zero
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


def ours(classes=10, **settings):
    return DiT(
        **{"size": 8, "channels": 2, "num_classes": classes, "patch": 4, "width": 48, "depth": 2, "heads": 4} | settings
    )


INPUTS = torch.Generator().manual_seed(3)
X, T = torch.randn(6, 2, 8, 8, generator=INPUTS), torch.rand(6, generator=INPUTS)
LABELS = torch.tensor([0, 3, 9, 10, 10, 5])


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("save", ["plain", "training", "safetensors"])
@torch.no_grad()
def test_a_dit_to_begin_with_is_the_same_at_every_s(learn_sigma, save, tmp_path):
    pretrained, network = Pretrained(learn_sigma), ours()
    file = tmp_path / ("weights.safetensors" if save == "safetensors" else "weights.pt")
    state = pretrained.state_dict()
    if save == "training":  # as their training scripts save it
        raw = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
        torch.save({"model": raw, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}, file)
    else:
        (save_file if save == "safetensors" else torch.save)(state, file)
    load_pretrained(network, file)
    expected = pretrained(X, T, LABELS)
    for s in (torch.zeros(6), T / 2, T):
        torch.testing.assert_close(network(X, T, s, LABELS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network(X, T, T / 2), pretrained(X, T, torch.full((6,), 10)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_velocity_from_noise_to_data_is_turned_around(tmp_path):
    pretrained, network = Pretrained(learn_sigma=True), ours()
    torch.save(pretrained.state_dict(), tmp_path / "sit.pt")
    load_pretrained(network, tmp_path / "sit.pt", time="reversed")
    for s in (torch.zeros(6), T):
        torch.testing.assert_close(network(X, T, s, LABELS), -pretrained(X, 1 - T, LABELS), rtol=1e-4, atol=1e-4)


def test_the_embedding_of_t_minus_s_can_learn_from_there(tmp_path):
    network = ours()
    torch.save(Pretrained(learn_sigma=False).state_dict(), tmp_path / "dit.pt")
    load_pretrained(network, tmp_path / "dit.pt")
    network(X, T, T / 2, LABELS).square().mean().backward()
    assert float(network.s_embedder.mlp[2].weight.grad.abs().max()) > 0


@torch.no_grad()
def test_other_classes_and_other_sizes_begin_where_they_can(tmp_path):
    pretrained = Pretrained(learn_sigma=False)
    torch.save(pretrained.state_dict(), tmp_path / "dit.pt")
    fewer = ours(classes=3)
    notes = load_pretrained(fewer, tmp_path / "dit.pt")
    assert any("10 classes" in note for note in notes)
    unlabelled = pretrained(X, T, torch.full((6,), 10))
    torch.testing.assert_close(fewer(X, T, T, torch.tensor([0, 1, 2, 3, 0, 1])), unlabelled, rtol=1e-5, atol=1e-5)
    larger = ours(size=16)
    assert any("size" in note for note in load_pretrained(larger, tmp_path / "dit.pt"))
    assert torch.equal(larger.pos_embed, ours(size=16).pos_embed)
    for settings, remedy in (
        ({"depth": 3}, "network.depth=2"),
        ({"width": 96}, "network.width=48"),
        ({"patch": 2}, "network.patch=4"),
        ({"channels": 1}, "for 2 channels, data.shape has 1"),
    ):
        with pytest.raises(InputError, match=remedy):
            load_pretrained(ours(**settings), tmp_path / "dit.pt")


def test_weights_that_are_no_whole_dit_are_refused(tmp_path):
    whole = Pretrained(learn_sigma=False).state_dict()
    spoiled = {
        "blocks.1.attn.qkv.bias": whole | {"blocks.1.attn.qkv.bias": torch.zeros(3)},
        "t_embedder.mlp.0.weight": {name: tensor for name, tensor in whole.items() if name != "t_embedder.mlp.0.weight"},
        "projectors.0.weight": whole | {"projectors.0.weight": torch.zeros(3, 3)},  # of a training method of its own
        "final_layer.linear.bias": whole | {"final_layer.linear.bias": torch.tensor(1.0)},
        "holds no weights": {"epoch": 3},
    }
    for word, weights in spoiled.items():
        torch.save(weights, tmp_path / "bad.pt")
        for time in ("same", "reversed"):
            with pytest.raises(InputError, match=word):
                load_pretrained(ours(), tmp_path / "bad.pt", time)
    torch.save(whole, tmp_path / "dit.pt")
    for time in ("same", "reversed"):
        with pytest.raises(InputError, match=r"does not fit|is for a DiT"):
            load_pretrained(MLP(2), tmp_path / "dit.pt", time)


def test_a_run_begins_with_the_weights_and_goes_on_without_their_file(tmp_path):
    pretrained = Pretrained(learn_sigma=True, channels=1)
    torch.save(pretrained.state_dict(), tmp_path / "dit.pt")
    settings = ["network.width=48", "network.depth=2", "network.heads=4", "train.batch_size=16", "optimizer.lr=1e-9", *QUIET]
    overrides = [*settings, f"init_from={tmp_path / 'dit.pt'}", "train.steps=4"]
    runs.train("digits", tmp_path / "run", overrides)
    model, noise = runs.load(tmp_path / "run", device="cpu").model, X[:, :1]
    velocity = pretrained(noise, torch.ones(6), LABELS).detach()
    torch.testing.assert_close(one_step(model, noise, LABELS), noise - velocity, rtol=1e-4, atol=1e-4)

    runs.train("digits", tmp_path / "next", [*settings, f"init_from={tmp_path / 'run'}", "train.steps=1"])  # from a run
    second = runs.load(tmp_path / "next", device="cpu").model
    torch.testing.assert_close(one_step(second, noise, LABELS), one_step(model, noise, LABELS), rtol=1e-4, atol=1e-4)

    (tmp_path / "dit.pt").unlink()
    with pytest.raises(InputError, match="there is no file"):
        runs.train("digits", tmp_path / "other", overrides)
    assert not (tmp_path / "other").exists()
    runs.train("digits", tmp_path / "run", overrides)  # nothing to begin with any more
