"""`init_from` with other classes, another image size or other channels."""

from functools import partial
from math import sqrt

import pytest
import torch

import soflow
from soflow.errors import InputError
from soflow.interop.adapt import MAP, MAP_BIAS, TABLE, adapt_classes
from soflow.interop.pretrained import load_pretrained
from soflow.networks.dit import DiT
from soflow.networks.mlp import MLP
from soflow.networks.unet import UNet
from support.small_data import pixels, write_folder

make_dit = partial(DiT, num_classes=0, patch=4, width=48, depth=2, heads=4)
make_unet = partial(
    UNet, model_channels=16, channel_mult=(1, 1), blocks=1, attention=(), dropout=0.0
)
SMALL = [
    "network.width=32", "network.depth=1", "network.heads=2", "network.patch=4",
    "train.batch_size=8", "train.sample_every=0", "optimizer.warmup=0", "data.flip=false",
]  # fmt: skip


def saved(network, tmp_path):
    """Saves the weights of a network, after making all of them nonzero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def rows(*numbers):
    """A label table whose rows repeat these numbers."""
    return {TABLE: torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 2)}


@pytest.mark.parametrize(
    ("table", "count", "names", "null_trained", "expected"),
    [
        ((1, 3, 9), 2, ("ab", "ab"), True, (1, 3, 9)),  # equal classes
        ((1, 3, 9), 2, ("ab", "ab"), False, (1, 3, 2)),
        ((1, 3, 9), 3, ("ab", "abc"), True, (1, 3, 2, 9)),
        ((1, 3, 9), 3, ("ab", "cba"), False, (2, 3, 1, 2)),
        ((1, 3, 9), 1, ("ab", "b"), True, (3, 9)),
        ((1, 3, 9), 2, ("ab", "xy"), False, (2, 2, 2)),
        ((1, 3, 9), 3, ("", ""), True, (1, 3, 2, 9)),  # matched by number
        ((1, 3, 9), 3, ("", "abc"), False, (1, 3, 2, 2)),
        ((1, 3, 8, 9), 2, ("", ""), True, (4, 4, 9)),  # unknown which two of the three
        ((1, 3, 9), 0, ("ab", ""), True, (9,)),
        ((1, 3, 9), 0, ("ab", ""), False, (2,)),
        ((9,), 2, ("", "ab"), True, (9, 9, 9)),  # without classes, all samples use the null label
        ((9,), 0, ("", ""), True, (9,)),
    ],
)
def test_classes_are_matched_and_new_ones_start_at_the_mean(
    table, count, names, null_trained, expected
):
    weights = rows(*table)
    notes = adapt_classes(weights, rows(*range(count + 1)), *names, null_trained)
    assert weights[TABLE][:, 0].tolist() == list(expected)
    same = weights[TABLE][:, 0].tolist() == list(table)
    assert bool(notes) == (not same)


def test_names_match_in_both_unicode_forms():
    weights = rows(1, 3, 9)
    adapt_classes(weights, rows(0, 0, 0), ("cafe\u0301", "the"), ("the", "caf\u00e9"))
    assert weights[TABLE][:, 0].tolist() == [3, 1, 9]


def embedded(weights, label):
    """The label embedding of a UNet for a class, or for None."""
    count = weights[MAP].shape[1]
    one_hot = torch.zeros(count) if label is None else torch.eye(count)[label]
    return weights[MAP] @ (sqrt(count) * one_hot) + weights[MAP_BIAS]


def test_the_classes_of_a_linear_map_keep_their_embedding():
    old = {MAP: torch.randn(4, 2), MAP_BIAS: torch.randn(4)}
    new = dict(old)
    adapt_classes(new, {MAP: torch.zeros(4, 3)}, ("a", "b"), ("b", "c", "a"))
    for label, former in ((0, 1), (2, 0), (None, None)):
        torch.testing.assert_close(embedded(new, label), embedded(old, former))
    mean = (embedded(old, 0) + embedded(old, 1)) / 2
    torch.testing.assert_close(embedded(new, 1), mean)

    none = {"map_layer0.weight": torch.randn(3, 4), "map_layer0.bias": torch.randn(3)}
    first = none["map_layer0.weight"] @ embedded(old, None) + none["map_layer0.bias"]
    gone = {**old, **none}
    adapt_classes(gone, none)  # without classes, the network equals the old one without a label
    assert gone.keys() == none.keys()
    torch.testing.assert_close(gone["map_layer0.bias"], first)

    kept = dict(old)  # an untrained bias is never copied
    adapt_classes(kept, {MAP: torch.zeros(4, 3)}, ("a", "b"), ("b", "c", "a"), null_trained=False)
    for label, former in ((0, 1), (2, 0)):
        torch.testing.assert_close(embedded(kept, label), embedded(old, former))
    for label in (1, None):
        torch.testing.assert_close(embedded(kept, label), mean)
    gone = {**old, **none}
    adapt_classes(gone, none, null_trained=False)
    first = none["map_layer0.weight"] @ mean + none["map_layer0.bias"]
    torch.testing.assert_close(gone["map_layer0.bias"], first)

    got = dict(none)
    adapt_classes(got, {MAP: torch.ones(4, 2), MAP_BIAS: torch.ones(4)})
    assert all(embedded(got, label).eq(0).all() for label in (0, 1, None))


@torch.no_grad()
@pytest.mark.parametrize(("make", "shape"), [(make_dit, (3, 8, 8)), (make_unet, (3, 8, 8))])
def test_shared_channels_are_kept_and_new_ones_start_without_effect(make, shape, tmp_path):
    old, t = make(shape), torch.rand(2)
    old.eval()
    file = saved(old, tmp_path)
    x = torch.randn(2, 5, *shape[1:])
    more = make((5, *shape[1:])).eval()
    (note,) = [note for note in load_pretrained(more, file) if "channels, data.shape" in note]
    assert all(number in note for number in "35")
    out = more(x, t, t / 2)
    torch.testing.assert_close(out[:, :3], old(x[:, :3], t, t / 2))
    assert float(out[:, 3:].abs().max()) == 0
    fewer = make((1, *shape[1:])).eval()
    load_pretrained(fewer, file)
    only = torch.cat([x[:, :1], torch.zeros(2, 2, *shape[1:])], dim=1)
    expected = old(only, t, t / 2)[:, :1]
    torch.testing.assert_close(fewer(x[:, :1], t, t / 2), expected)


@torch.no_grad()
def test_vectors_with_more_dimensions(tmp_path):
    old, t = MLP((2,), width=8, depth=1), torch.rand(3)
    file = saved(old, tmp_path)
    new, x = MLP((3,), width=8, depth=1), torch.randn(3, 3)
    load_pretrained(new, file)
    torch.testing.assert_close(new(x, t, t)[:, :2], old(x[:, :2], t, t))


@torch.no_grad()
def test_a_unet_of_another_image_size_keeps_its_weights_level_by_level(tmp_path):
    old, t = make_unet((1, 8, 8)).eval(), torch.rand(2)
    file = saved(old, tmp_path)
    new = make_unet((1, 16, 16)).eval()
    assert any("8x8 becomes 16x16" in note for note in load_pretrained(new, file))
    tensors = [dict(network.named_parameters()) for network in (old, new)]
    assert len(tensors[0]) == len(tensors[1])
    for name, tensor in tensors[0].items():
        moved = name.replace("8x8", "16x16").replace("4x4", "8x8")
        assert torch.equal(tensor, tensors[1][moved])
    # Convolutions accept any image size.
    assert new(torch.randn(2, 1, 16, 16), t, t).shape == (2, 1, 16, 16)
    other = make_unet((1, 16, 16), attention=(8,))
    with pytest.raises(InputError, match=r"lacks enc\.8x8_block0"):
        load_pretrained(other, file)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run on photographs of cats and dogs, and its data folder."""
    folder = tmp_path_factory.mktemp("two")
    write_folder(folder / "photos", pixels(16))
    settings = [*SMALL, "data.size=8", f"data.path={folder / 'photos'}", "train.steps=1"]
    return soflow.train("images", folder / "run", settings).path


def test_a_run_starts_from_one_with_other_classes_size_and_channels(two, tmp_path, caplog):
    caplog.set_level("INFO", "soflow")
    photos = write_folder(tmp_path / "photos", pixels(18), names=("bird", "cat", "dog"))
    settings = [
        *SMALL, f"data.path={photos}", f"init_from={two}", "train.steps=1", "optimizer.lr=1e-12",
        "data.shape=[1,16,16]",
    ]  # fmt: skip
    run = soflow.train("images", tmp_path / "run", settings)
    old, new = (
        soflow.load(folder, device="cpu").checkpoint.weights("ema")[TABLE]
        for folder in (two, run.path)
    )
    assert soflow.load(run.path).class_names == ("bird", "cat", "dog")
    mean = old[:2].mean(0)  # a run without guidance never trains its null label
    torch.testing.assert_close(new, torch.stack([mean, old[0], old[1], mean]))
    said = " ".join(caplog.messages)
    for word in ("2 copied by name", "null label", "another image size", "channels"):
        assert word in said


def test_another_number_of_heads_is_an_error(two, tmp_path):
    network = DiT((3, 8, 8), 2, patch=4, width=32, depth=1, heads=4)
    with pytest.raises(InputError, match=r"network\.heads=2"):
        load_pretrained(network, two)


@pytest.mark.parametrize(("file", "kind"), [("ema", "EMA"), ("model", "raw")])
def test_a_file_in_a_run_is_known_as_well_as_the_run(file, kind, two):
    """The null label was never trained, so a network without classes starts at their mean."""
    (checkpoint,) = (two / "checkpoints").iterdir()
    network = DiT((3, 8, 8), 0, patch=4, width=32, depth=1, heads=2)
    notes = load_pretrained(network, checkpoint / f"{file}.safetensors")
    assert kind in notes[0]
    assert not any("heads" in note for note in notes)
    old = soflow.load(two, "raw" if kind == "raw" else "ema").checkpoint
    table = old.weights("raw" if kind == "raw" else "ema")[TABLE]
    torch.testing.assert_close(network.state_dict()[TABLE], table[:2].mean(0, keepdim=True))


def test_another_type_of_network_is_an_error(two):
    with pytest.raises(InputError, match=r"network\.name=dit"):
        load_pretrained(make_unet((3, 8, 8)), two)
