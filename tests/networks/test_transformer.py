"""Parts of transformers equal independent formulas, and DiT has options to use them."""

import math

import pytest
import torch
from torch.nn import functional

from soflow.networks.dit import DiT
from soflow.networks.transformer import (
    Attention,
    Mlp,
    RMSNorm,
    SwiGLU,
    rotate,
    rotation_of,
    unpatchify,
)


def turned_by_hand(x, place):
    """Multiplies channels i and i + d / 2, as one complex number, by e^(i angle). x is (d,)."""
    d, axes = len(x), len(place)
    per_axis = d // (2 * axes)
    angles = [p * 10_000 ** (-i / per_axis) for p in place for i in range(per_axis)]
    turned = torch.complex(x[: d // 2], x[d // 2 :]) * torch.exp(1j * torch.tensor(angles))
    return torch.cat([turned.real, turned.imag])


@pytest.mark.parametrize("grid", [(3, 5), (7,)])
@pytest.mark.parametrize("before", [0, 2])
def test_rotation_is_multiplication_by_complex_numbers(grid, before):
    places = list(torch.cartesian_prod(*(torch.arange(float(n)) for n in grid)).view(-1, len(grid)))
    x = torch.randn(2, 3, before + len(places), 8, dtype=torch.float64)
    found = rotate(x, rotation_of(grid, 8, before))
    torch.testing.assert_close(
        found[:, :, :before], x[:, :, :before]
    )  # these channels are not rotated
    for token, place in enumerate(places):
        expected = turned_by_hand(x[1, 2, before + token], place.tolist())
        torch.testing.assert_close(found[1, 2, before + token], expected, rtol=1e-6, atol=1e-6)


def test_products_of_rotated_vectors_depend_only_on_the_offset():
    rows, columns = 6, 7
    q, k = torch.randn(2, 16, dtype=torch.float64)
    turned = [
        rotate(x.expand(1, 1, rows * columns, -1), rotation_of((rows, columns), 16))
        .squeeze((0, 1))
        .unflatten(0, (rows, columns))
        for x in (q, k)
    ]
    products = torch.einsum("abd,efd->abef", *turned)
    torch.testing.assert_close(
        products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], rtol=1e-5, atol=1e-5
    )
    assert len(products[0, 0].flatten().round(decimals=6).unique()) == rows * columns


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_equals_a_hand_calculation(dtype):
    norm, x = RMSNorm(5).to(dtype), 100 * torch.randn(2, 3, 5, dtype=torch.float64)
    x = x.to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1, -2, 0.5, 3, 0]))
    row = x[1, 2].tolist()
    size = math.sqrt(sum(value**2 for value in row) / 5 + 1e-6)
    expected = [w * value / size for w, value in zip([1, -2, 0.5, 3, 0], row, strict=True)]
    found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found[1, 2], torch.tensor(expected, dtype=dtype))


def test_swiglu_equals_a_hand_calculation():
    swiglu = SwiGLU(6, 48).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    hidden = 32  # two thirds of 48
    gate, value = swiglu.fc1.weight[:hidden], swiglu.fc1.weight[hidden:]
    a, b = x @ gate.T + swiglu.fc1.bias[:hidden], x @ value.T + swiglu.fc1.bias[hidden:]
    products = a / (1 + torch.exp(-a)) * b
    torch.testing.assert_close(swiglu(x), products @ swiglu.fc2.weight.T + swiglu.fc2.bias)


@pytest.mark.parametrize("width", [128, 160, 384, 768, 1024, 1152])
def test_a_swiglu_has_as_many_parameters_as_an_mlp(width):
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in kind(width, 4 * width).parameters()) for kind in (SwiGLU, Mlp)
        ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.015)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_a_hand_calculation(qk_norm):
    """Per head: softmax of products of rotated, normalized queries and keys."""
    attention, x = Attention(12, 3, qk_norm).double(), torch.randn(2, 6, 12, dtype=torch.float64)
    if qk_norm:
        for norm in (attention.q_norm, attention.k_norm):
            torch.nn.init.normal_(norm.weight)
    places = [(row, column) for row in range(2) for column in range(3)]
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    heads = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        parts = []
        for part, name in ((q, "q_norm"), (k, "k_norm")):
            part = part[..., own]
            if qk_norm:
                part = functional.rms_norm(part, (4,), getattr(attention, name).weight, 1e-6)
            turned = [
                torch.stack([turned_by_hand(one, place) for one in part[:, token]])
                for token, place in enumerate(places)
            ]
            parts.append(torch.stack(turned, dim=1))
        weights = torch.softmax(parts[0] @ parts[1].mT / 4**0.5, dim=-1)
        heads.append(weights @ v[..., own])
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.T + attention.proj.bias
    found = attention(x, rotation_of((2, 3), 4))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6, 9), (5, 12)])
def test_unpatchify_inverts_patchify(shape):
    x = torch.randn(2, *shape)
    patches = x.unflatten(2, (-1, 3))  # (B, C, rows, 3, ...)
    if len(shape) == 3:
        patches = patches.unflatten(4, (-1, 3)).permute(0, 2, 4, 3, 5, 1)
    else:
        patches = patches.permute(0, 2, 3, 1)
    axes = len(shape) - 1
    grid = [size // 3 for size in shape[1:]]
    tokens = patches.flatten(1, axes).flatten(2)
    assert torch.equal(unpatchify(tokens, grid, 3), x)


OPTIONS = ("rotary", "qk_norm", "swiglu")


def dit(**options):
    torch.manual_seed(0)
    network = DiT((3, 8, 8), 5, patch=2, width=48, depth=2, heads=4, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def test_the_options_of_a_dit_are_off_by_default_and_each_has_an_effect():
    plain = dit()
    x, t, s = torch.randn(2, 3, 8, 8), torch.rand(2), torch.zeros(2)
    expected = plain(x, t, s)
    assert torch.equal(expected, dit(**dict.fromkeys(OPTIONS, False))(x, t, s))
    names = {"rotary": set(), "qk_norm": {"q_norm.weight", "k_norm.weight"}, "swiglu": set()}
    for option in OPTIONS:
        network = dit(**{option: True})
        added = {
            name.split(".", 3)[3] for name in network.state_dict() if name not in plain.state_dict()
        }
        assert added == names[option]
        shared = {
            name: tensor
            for name, tensor in plain.state_dict().items()
            if network.state_dict()[name].shape == tensor.shape
        }
        network.load_state_dict(shared, strict=False)
        assert not torch.allclose(network(x, t, s), expected, atol=1e-3), option
        assert network.settings[option]
        assert not plain.settings[option]
