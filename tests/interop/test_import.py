"""Checkpoints of the reference implementation are converted to complete run folders."""

import pytest
import torch
import yaml

import soflow as runs
from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.interop.reference import import_checkpoint
from soflow.interop.settings import translate
from soflow.interop.sizes import Sizes, read_sizes
from soflow.networks.dit import DiT
from soflow.networks.unet import UNet
from soflow.run.checkpoint import Checkpoint, newest_good
from soflow.run.folder import RunFolder
from support.reference_checkpoint import DIT_YAML, UNET_YAML, imported, reference_content
from support.settings import TINY_DIT

#: The same settings as configuration keys, typed by hand.
DIT_OURS = [
    "noising.name=trig", "noising.parameterization=trig", "data.source=digits",
    "objective.flow_matching_share=0.5", "objective.p=0.9",
    "objective.eps=0.02",
    "objective.times.flow_matching.mean=-0.1", "objective.times.flow_matching.std=1.1",
    "objective.times.s.mean=-0.2", "objective.times.s.std=1.2",
    "objective.times.t.mean=0.3", "objective.times.t.std=1.3",
    "objective.guidance.scale=1.7", "objective.guidance.mix=0.4",
    "objective.guidance.label_dropout=0.2", "objective.guidance.decay_time=0.9",
    "objective.middle.schedule=cosine", "objective.middle.init=0.5", "objective.middle.end=0.01",
    "train.steps=8", "ema.decay=0.95", "optimizer.lr=2e-4", "optimizer.betas=[0.8, 0.95]",
    "optimizer.weight_decay=0.01", "train.batch_size=32", "ema.rampup=0",
]  # fmt: skip

UNET_OURS = [
    "data.source=digits", "data.shape=[1, 8, 8]", "train.steps=8", "train.batch_size=16",
    "ema.decay=0.95", "optimizer.lr=1e-3", "network.model_channels=16",
    "network.channel_mult=[1, 2]", "network.blocks=1", "network.attention=[4]",
]  # fmt: skip

#: The step after `reference_content`.
SHORT = {**DIT_YAML, "total_steps": 2, "batch_size": 8}
QUIET = [
    "train.log_every=4",
    "train.sample_every=0",
    "checkpoint.every=4",
    "checkpoint.keep_last=9",
]


def as_reference(checkpoint: Checkpoint, file, order=sorted, every_parameter=False):
    """Saves a checkpoint in the format of the reference implementation, in another order."""
    network = make_network(RunFolder(checkpoint.path.parents[1]).read_config())
    ours = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    weights, average = checkpoint.weights("raw"), checkpoint.weights("ema")
    names = order(weights)
    numbered = [
        name
        for name in names
        if name in (dict(network.named_parameters()) if every_parameter else ours)
    ]
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
    """Uninterrupted runs of a DiT and a UNet, with checkpoints at steps 4 and 8."""
    folder = tmp_path_factory.mktemp("trained")
    runs.train(
        "digits",
        folder / "dit",
        [
            "objective.name=soflow",
            *DIT_OURS,
            *TINY_DIT,
            *QUIET,
            "optimizer.warmup=0",
            "optimizer.clip=0",
        ],
    )
    runs.train("cifar10", folder / "unet", [*UNET_OURS, *QUIET, "ema.every=2"])
    return folder


def backwards(names):
    return sorted(names, reverse=True)


@pytest.mark.parametrize(
    ("kind", "settings", "overrides", "every_parameter"),
    [
        ("dit", DIT_YAML, [], False),
        ("dit", DIT_YAML, [], True),  # the optimizer also has the fixed positions
        ("unet", UNET_YAML, ["ema.every=2"], False),
    ],
)
def test_an_imported_run_resumes_bitwise(
    trained, tmp_path, kind, settings, overrides, every_parameter
):
    half, whole = (
        Checkpoint(trained / kind / "checkpoints" / f"step-0000000{step}") for step in (4, 8)
    )
    as_reference(half, tmp_path / "reference.pt", backwards, every_parameter)
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump(settings))
    run = import_checkpoint(
        tmp_path / "reference.pt",
        tmp_path / "reference.yaml",
        tmp_path / "run",
        2 if kind == "dit" else None,
        [*overrides, *QUIET],
    )
    assert all("model_type" in note for note in run.notes)  # the network is smaller than a DiT-B
    assert run.step == 4
    runs.train(str(tmp_path / "run"), tmp_path / "run")
    again, _ = newest_good(tmp_path / "run" / "checkpoints")
    assert again.step == 8
    for which in ("raw", "ema"):
        ours, theirs = again.weights(which), whole.weights(which)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert {tensor.dtype for tensor in ours.values()} == {
            tensor.dtype for tensor in theirs.values()
        }
    state, straight = again.optimizer_state()["state"], whole.optimizer_state()["state"]
    assert all(
        torch.equal(state[i][moment], straight[i][moment])
        for i in straight
        for moment in straight[i]
    )


def test_every_setting_of_the_flat_yaml_is_converted():
    sizes = Sizes(
        {"name": "dit", "patch": 4, "width": 96, "depth": 2, "mlp_ratio": 4.0}, (1, 8, 8), 10, 0
    )
    translation = translate(DIT_YAML, sizes)
    shape = ["data.shape=[1, 8, 8]", "data.num_classes=10"]
    network = ["network.patch=4", "network.width=96", "network.depth=2", "network.heads=12"]
    expected = read_recipe("imagenet256-b4", [*DIT_OURS, *shape, *network])
    assert translation.config.model_copy(update={"description": ""}) == expected.model_copy(
        update={"description": ""}
    )
    assert translation.assumed == ["ema.every=1"]
    assert translation.unused == []
    for name, value in DIT_YAML.items():  # each setting is reported by name
        assert any(line.startswith(f"{name}: {value}") for line in translation.used)


def test_unknown_and_missing_settings_are_listed():
    sizes = Sizes(
        {"name": "dit", "patch": 2, "width": 48, "depth": 1, "mlp_ratio": 4.0}, (4, 8, 8), 10, 0
    )
    settings = {**DIT_YAML, "model_type": "DiT-XL-2", "num_workers": 8, "grad_clip": 1.0}
    del settings["eps"], settings["time_std"]
    translation = translate(settings, sizes)
    assert translation.unused == ["num_workers: 8", "grad_clip: 1.0"]
    assert "objective.eps=0.01" in translation.assumed  # the value of the paper
    assert "objective.times.s.std=0.8" in translation.assumed
    assert len(translation.assumed) == 5
    assert translation.config.network.heads == 16


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Const", "constant"),
        ("Linear", "linear"),
        ("Cosine", "cosine"),
        ("Exponent", "exponential"),
    ],
)
def test_names_of_schedules(name, ours):
    sizes = read_sizes(UNet((3, 8, 8), 16, (1, 2), 1, (4,)).state_dict(), "it")
    middle = translate({**UNET_YAML, "l_schedule": name}, sizes).config.objective.middle
    assert middle.schedule == ours


def test_guidance_ignored_by_the_reference_is_off():
    unet = read_sizes(UNet((3, 8, 8), 16, (1, 2), 1, (4,)).state_dict(), "it")  # without labels
    dit = read_sizes(DiT((4, 8, 8), 10, 2, 48, 1, 4).state_dict(), "it")
    for settings, sizes in (
        ({**UNET_YAML, "cfg_scale": 3.0}, unet),
        ({**DIT_YAML, "cfg_scale": 0.0}, dit),  # not above 1
    ):
        assert translate(settings, sizes).config.objective.guidance.scale == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": (4, 8, 8), "num_classes": 10, "patch": 2, "width": 48, "depth": 3},
        {"shape": (3, 32, 32), "num_classes": 0, "patch": 4, "width": 24, "mlp_ratio": 2.0},
        {"shape": (5, 8, 18), "num_classes": 0, "patch": 2, "width": 24},
        {"shape": (2, 36), "num_classes": 3, "patch": 4, "width": 24},
        {"shape": (2, 36), "num_classes": 3, "patch": 4, "width": 48, "swiglu": True},
    ],
)
def test_sizes_of_a_dit_are_inferred_from_its_weights(settings):
    settings = {"depth": 1, "mlp_ratio": 4.0, **settings}
    sizes = read_sizes(DiT(**settings, heads=4).state_dict(), "it")
    assert (sizes.shape, sizes.num_classes) == (settings["shape"], settings["num_classes"])
    read = {key: value for key, value in sizes.network.items() if key != "name"}
    assert read.items() <= settings.items()


@pytest.mark.parametrize(
    "settings",
    [
        {"channel_mult": (1, 2), "blocks": 1, "attention": (4,), "augment_labels": 6},
        {"channel_mult": (2, 2, 1), "blocks": 3, "attention": (), "channel_mult_emb": 2},
        {"channel_mult": (2, 2), "blocks": 2, "attention": (8, 4), "channel_mult_noise": 1},
        {"channel_mult": (1, 1, 2), "blocks": 1, "attention": (4,), "shape": (2, 16, 8)},
        {"channel_mult": (1, 2), "blocks": 1, "attention": (4,), "num_classes": 7},
    ],
)
def test_sizes_of_a_unet_are_inferred_from_its_weights(settings):
    shape = settings.get("shape", (3, 8, 8))
    network = UNet(**{"shape": shape, "model_channels": 16, **settings})
    sizes = read_sizes(network.state_dict(), "it")
    assert (sizes.shape, sizes.num_classes) == (shape, settings.get("num_classes", 0))
    assert sizes.augment_labels == settings.get("augment_labels", 0)
    read = {key: value for key, value in sizes.network.items() if key != "name"}
    again = UNet(
        shape,
        num_classes=sizes.num_classes,
        **{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()},
        augment_labels=sizes.augment_labels,
    )
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_missing_and_omitted_parts_are_noted(tmp_path):
    content = reference_content(scaler={"scale": 1.0})
    del content["optimizer"], content["model"]
    notes = imported(tmp_path, content, SHORT, heads=None).notes
    for note, word in zip(notes, ("'ema_model'", "'optimizer'", "'scaler'", "heads"), strict=True):
        assert word in note
    runs.train(str(tmp_path / "run"), tmp_path / "run")  # with fresh optimizer moments


def test_an_optimizer_with_other_settings_is_noted(tmp_path):
    notes = imported(tmp_path).notes  # saved with the default betas and weight decay of AdamW
    assert [note for note in notes if "betas=[0.9, 0.999]" in note and "[0.8, 0.95]" in note]
    with pytest.raises(InputError, match=str(tmp_path / "run")):
        imported(tmp_path)


def test_half_precision_and_wrapper_prefixes_are_accepted(tmp_path):
    content = reference_content()
    weights = content["model"]
    content["model"] = {
        f"_orig_mod.module.{name}": tensor.half() for name, tensor in weights.items()
    }
    content["finished_steps"] = torch.tensor(1)
    run = imported(tmp_path, content)
    assert run.step == 1
    raw = runs.load(run.folder.path, "raw", device="cpu").model.net.state_dict()
    for name, tensor in raw.items():
        torch.testing.assert_close(
            tensor, weights[f"network.{name}"].half().float(), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("optimizer", "word"),
    [
        (lambda p: torch.optim.AdamW([{"params": p[:3]}, {"params": p[3:]}]), "2 parameter groups"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "not torch's AdamW or RAdam"),
        (lambda p: torch.optim.SGD(p, momentum=0.9), "not torch's AdamW or RAdam"),
        (lambda p: torch.optim.RAdam(p, weight_decay=0.1), "decoupled"),
    ],
)
def test_an_optimizer_that_continues_differently_is_noted(optimizer, word, tmp_path):
    network = DiT((1, 8, 8), 10, 4, 48, 1, 4)
    made = optimizer([p for p in network.parameters() if p.requires_grad])
    sum(p.square().sum() for p in network.parameters() if p.requires_grad).backward()
    made.step()
    run = imported(tmp_path, reference_content(optimizer=made.state_dict()), SHORT)
    assert any(word in note for note in run.notes), run.notes
    runs.train(str(run.folder.path), run.folder.path)


def test_another_type_of_optimizer_starts_fresh(tmp_path):
    run = imported(tmp_path, reference_content(), overrides=["optimizer.name=radam"])
    assert any("optimizer.name is radam" in note for note in run.notes)


def test_empty_settings_are_reported_and_empty_guidance_is_off():
    sizes = read_sizes(DiT((4, 8, 8), 10, 2, 48, 1, 4).state_dict(), "it")
    translation = translate({**DIT_YAML, "cfg_scale": None, "eps": None, "time_mean": None}, sizes)
    assert translation.config.objective.guidance.scale == 1
    assert "objective.eps=0.01 (the YAML has eps: null)" in translation.assumed
    assert "objective.times.t.mean=0.2 (the YAML has time_mean: null)" in translation.assumed


def test_the_recipe_is_selected_by_the_size_of_the_weights():
    sizes = Sizes(
        {"name": "dit", "patch": 2, "width": 1024, "depth": 24, "mlp_ratio": 4.0},
        (4, 32, 32),
        1000,
        0,
    )
    translation = translate({"model_type": "DiT-L-2"}, sizes)
    assert translation.recipe == "imagenet256-l2"
    assert translation.config.objective == read_recipe("imagenet256-l2").objective
