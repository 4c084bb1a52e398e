"""Rectangles, signals and vectors give the results of square images with the same numbers."""

import pytest
import torch

from soflow.errors import InputError
from soflow.networks.dit import DiT
from soflow.networks.embeddings import grid_positions
from soflow.networks.in_context_dit import InContextDiT
from soflow.networks.mlp import MLP
from soflow.networks.unet import UNet

TIMES = torch.tensor([0.9, 0.4, 0.7]), torch.tensor([0.1, 0.4, 0.0])
LABELS = torch.tensor([0, 4, 5])


def dit(shape, patch):
    return DiT(shape, num_classes=5, patch=patch, width=32, depth=2, heads=4)


def in_context(shape, **settings):
    sizes = {"num_classes": 5, "patch": 4, "width": 32, "depth": 1, "heads": 4}
    return InContextDiT(shape, **{**sizes, **settings})


def unet(shape, **settings):
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
    return UNet(shape, **{**sizes, "dropout": 0.0, **settings})


def shaken(network):
    """Returns the network with perturbed weights, so that outputs depend on all inputs."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def patches(images, patch):
    """Returns patches of images (B, C, H, W), row by row: (B, tokens, C, patch, patch)."""
    rows = images.split(patch, dim=2)
    return torch.stack([part for row in rows for part in row.split(patch, dim=3)], dim=1)


def laid_out(parts, rows):
    """Arranges patches into images with this number of rows."""
    lines = [torch.cat(line.unbind(1), dim=3) for line in parts.chunk(rows, dim=1)]
    return torch.cat(lines, dim=2)


@torch.no_grad()
def test_a_dit_treats_a_rectangle_like_a_square_of_the_same_patches():
    square, wide = shaken(dit((5, 8, 8), 2)), dit((5, 4, 16), 2)
    wide.load_state_dict(square.state_dict())  # including positions
    image = torch.randn(3, 5, 8, 8)
    strip = laid_out(patches(image, 2), rows=2)
    assert strip.shape == (3, 5, 4, 16)
    expected = laid_out(patches(square(image, *TIMES, LABELS), 2), rows=2)
    torch.testing.assert_close(wide(strip, *TIMES, LABELS), expected)


@torch.no_grad()
def test_a_dit_treats_a_signal_like_an_image_with_channels_as_rows():
    """A patch of either holds the same 4 x 4 numbers, with values or channels first."""
    signals, images = shaken(dit((4, 64), 4)), dit((1, 4, 64), 4)
    weights = signals.state_dict()
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"][:, None]
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        by_value = weights[name].unflatten(0, (4, 4))
        weights[name] = by_value.transpose(0, 1).flatten(0, 1)
    images.load_state_dict(weights)
    x = torch.randn(3, 4, 64)
    expected = images(x[:, None], *TIMES, LABELS)[:, 0]
    torch.testing.assert_close(signals(x, *TIMES, LABELS), expected)


def test_positions_of_a_rectangle_and_of_a_line_equal_hand_calculations():
    positions = grid_positions((2, 3), 8)[0].unflatten(0, (2, 3))
    w = torch.tensor([1.0, 0.01])
    for row in range(2):
        for column in range(3):
            parts = [(column * w).sin(), (column * w).cos(), (row * w).sin(), (row * w).cos()]
            torch.testing.assert_close(positions[row, column], torch.cat(parts))
    line = grid_positions((5,), 4)[0]
    for place in range(5):
        parts = [(place * w).sin(), (place * w).cos()]
        torch.testing.assert_close(line[place], torch.cat(parts))


@torch.no_grad()
def test_a_unet_commutes_with_transposition():
    """With transposed kernels, the network for tall images is that for wide ones."""
    tall, wide = shaken(unet((5, 16, 8))), unet((5, 8, 16))
    names = {"16x8": "8x16", "8x4": "4x8"}
    turned = {}
    for name, tensor in tall.state_dict().items():
        for old, new in names.items():
            name = name.replace(f".{old}_", f".{new}_")
        turned[name] = tensor.mT if tensor.ndim == 4 else tensor
    wide.load_state_dict(turned)
    x = torch.randn(3, 5, 16, 8)
    torch.testing.assert_close(wide(x.mT, *TIMES).mT, tall(x, *TIMES), rtol=1e-4, atol=1e-4)
    with_attention = {name.split(".")[1] for name in tall.state_dict() if ".qkv." in name}
    assert with_attention == {"8x4_block0", "8x4_in0", "8x4_block1"}  # the shorter side is 4


@torch.no_grad()
def test_classes_of_the_unet_are_a_map_of_scaled_one_hot_vectors():
    """Without labels, the output equals that with the map's term in the bias of the next layer."""
    network = shaken(unet((3, 8, 8), num_classes=5))
    x, t, s = torch.randn(3, 3, 8, 8), *TIMES
    found, behind = network(x, t, s, LABELS), network.map_layer0
    bias = behind.bias.clone()
    for i, label in enumerate(LABELS):
        one_hot = torch.zeros(5)
        one_hot[label : label + 1] = 5**0.5  # label 5 is the null label, a vector of zeros
        behind.bias.copy_(bias + behind.weight @ (network.map_label.weight @ one_hot))
        row = slice(i, i + 1)
        expected = network(x[row], t[row], s[row])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_unet_with_classes_is_initialized_as_in_edm():
    plain, classes = unet((3, 8, 8)), unet((3, 8, 8), num_classes=5)
    added = classes.state_dict().keys() - plain.state_dict().keys()
    assert added == {"map_label.weight", "map_label.bias"}
    assert classes.map_label.weight.shape == (2 * 32, 5)
    bound = (6 / (64 + 5)) ** 0.5  # Xavier initialization
    assert 0.9 * bound < float(classes.map_label.weight.detach().abs().max()) <= bound
    assert not classes.map_label.bias.any()
    with pytest.raises(IndexError):
        classes(torch.randn(1, 3, 8, 8), torch.ones(1), torch.zeros(1), torch.tensor([6]))
    with pytest.raises(InputError, match="classes"):
        plain(torch.randn(1, 3, 8, 8), torch.ones(1), torch.zeros(1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: dit((3, 8, 6), 4), r"size 6 of .*\[3, 8, 6\].* multiple of network\.patch=4"),
        (lambda: dit((3, 10), 4), r"size 10 of .*\[3, 10\].* multiple of network\.patch=4"),
        (lambda: DiT((3, 8), 0, width=30, heads=2, patch=4), None),
        (lambda: DiT((3, 8, 8), 0, width=30, heads=2), "width=30 .* multiple of 4"),
        (lambda: DiT((3, 8), 0, width=3, heads=1), "width=3 .* multiple of 2"),
        (lambda: in_context((3, 8, 6)), r"size 6 of .*\[3, 8, 6\].* multiple of network\.patch=4"),
        (lambda: in_context((3, 8, 8), heads=5), r"width=32 .* multiple of network\.heads=5"),
        (lambda: in_context((3, 8, 8), heads=16), "have 2 channels, .* rotary .* multiple of 4"),
        (lambda: in_context((3, 8), heads=16), None),
        (lambda: in_context((8,)), r"InContextDiT .*\[8\].* mlp for vectors"),
        (lambda: DiT((3, 8, 8), 0, width=32, heads=16), None),
        (lambda: DiT((3, 8, 8), 0, width=32, heads=16, rotary=True), "rotary .* multiple of 4"),
        (lambda: unet((3, 8, 9)), r"size 9 of .*\[3, 8, 9\].* multiple of 2"),
        (lambda: unet((3, 12, 8), channel_mult=(1, 1, 1, 1)), "size 12 .* multiple of 8"),
        (lambda: dit((8,), 2), r"DiT .*\[8\].* mlp for vectors"),
        (lambda: unet((3, 8)), r"UNet .*\[3, 8\].* dit or in_context_dit for signals"),
        (lambda: MLP((3, 8)), r"MLP .*\[3, 8\].* dit or in_context_dit for signals"),
        (lambda: MLP((1,)), None),
    ],
)
def test_wrong_sizes_are_errors_that_name_valid_sizes(make, named):
    if named is None:
        make()
    else:
        with pytest.raises(ValueError, match=named):
            make()
