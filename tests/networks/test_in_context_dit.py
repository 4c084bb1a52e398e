"""The transformer with conditions as tokens."""

import pytest
import torch

from soflow.assemble import make_network
from soflow.comparison.counting import count
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.networks import transformer
from soflow.networks.dit import SIZES, DiT
from soflow.networks.in_context_dit import InContextDiT
from soflow.objectives.passes import Inputs, with_derivative

SHAPES = {"images": (3, 8, 12), "signals": (2, 12)}


def make(shape=(3, 8, 12), shake=0.2, **settings):
    sizes = {"num_classes": 5, "patch": 4, "width": 32, "depth": 2, "heads": 2}
    network = InContextDiT(shape, **{**sizes, **settings})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return network.eval()


def inputs(shape=(3, 8, 12), count=4):
    return torch.randn(count, *shape), 0.5 + 0.5 * torch.rand(count), 0.5 * torch.rand(count)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_a_new_network_outputs_zero_and_its_blocks_are_the_identity(shape):
    network = make(shape, shake=0)
    assert not network(*inputs(shape)).any()
    tokens = torch.randn(2, 5, 32)
    torch.testing.assert_close(network.blocks[0](tokens, torch.ones(2, 5, 8)), tokens)


def test_the_first_steps_change_all_trained_weights():
    """First the output layer, then the last layers of the blocks, then everything before."""
    network = make(shake=0, takes_guidance=True, cond_shape=(3,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    (x, t, s), cond = inputs(), torch.randn(4, 3)
    for _ in range(4):
        optimizer.zero_grad()
        loss = (network(x, t, s, torch.arange(4), cond) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("settings", [{}, {"class_tokens": 5, "condition_tokens": 3}])
@pytest.mark.parametrize("shape", SHAPES.values())
@torch.no_grad()
def test_every_input_affects_every_patch(shape, settings):
    network = make(shape, takes_guidance=True, cond_shape=(3,), **settings)
    x, t, s = inputs(shape)
    given = {"labels": torch.tensor([0, 1, 2, 3]), "cond": torch.randn(4, 3)}
    given["guidance"] = torch.tensor([2.0, 0.1, 0.9]).repeat(4, 1)
    before = network(x, t, s, **given)
    changes = [((x, 0.9 * t, s), {}), ((x, t, 0.5 * s), {})]
    changes += [((x, t, s), {"labels": torch.tensor([1, 2, 3, 5])})]
    changes += [((x, t, s), {"cond": given["cond"] + 1})]
    for column in range(3):
        other = given["guidance"].clone()
        other[:, column] *= 0.5
        changes.append(((x, t, s), {"guidance": other}))
    for times, change in changes:
        moved = (network(*times, **given | change) - before).abs()
        windows = moved.unflatten(2, (-1, 4))
        windows = windows.unflatten(4, (-1, 4)).amax((1, 3, 5)) if x.ndim == 4 else windows.amax(3)
        assert windows.amin() > 1e-5


@torch.no_grad()
def test_guidance_is_an_input_of_networks_with_guidance():
    """The default input is a scale of 1 at all times."""
    network, none = make(takes_guidance=True), torch.tensor([[1.0, 0.0, 1.0]]).expand(4, 3)
    given = inputs()
    torch.testing.assert_close(network(*given), network(*given, guidance=none))
    plain = make()
    assert not any("guidance" in name for name in plain.state_dict())
    with pytest.raises(InputError, match="guidance"):
        plain(*given, guidance=none)


@torch.no_grad()
def test_patches_are_distinguished_by_their_positions(monkeypatch):
    """Without rotary positions, permuting the patches permutes the output."""
    network, (x, t, s) = make((3, 12, 12)), inputs((3, 12, 12))

    def difference():
        turned = network(x.roll((4, 8), (2, 3)), t, s)
        return (turned - network(x, t, s).roll((4, 8), (2, 3))).abs().max()

    assert difference() > 1e-2
    monkeypatch.setattr(transformer, "rotate", lambda x, rotation: x)
    assert difference() < 1e-4


@pytest.mark.parametrize("shape", SHAPES.values())
def test_the_forward_derivative_equals_finite_differences(shape):
    """It also has a backward pass, which MeanFlow needs."""
    network = make(shape, takes_guidance=True).double()
    x, t, s = (one.double() for one in inputs(shape))
    v, labels = torch.randn_like(x), torch.arange(4)
    with torch.no_grad():
        h = 1e-6
        ahead, behind = (network(x + e * v, t + e, s, labels) for e in (h, -h))
    given = Inputs(x, t, s, labels)
    value, derivative = with_derivative(network, given, v)
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
    value.square().sum().backward()
    found = network.tokens.grad.clone()
    network.zero_grad()
    network(x, t, s, labels).square().sum().backward()
    torch.testing.assert_close(found, network.tokens.grad)


@torch.no_grad()
def test_bfloat16_has_a_small_effect():
    network, given = make(takes_guidance=True), inputs()
    exact = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*given)
    error = (rounded - exact).norm() / exact.norm()
    assert 0 < error < 0.02


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("recipe", ["digits", "fashion_mnist", "imagenet256-b2", "imagenet256-xl2"])
def test_with_half_as_many_more_blocks_it_has_the_parameters_of_a_dit(recipe):
    config = read_recipe(recipe, ["data.num_classes=10"])
    size = config.network
    names = ("patch", "width", "heads")
    like = [f"network.{name}={getattr(size, name)}" for name in names]
    depth = f"network.depth={size.depth * 3 // 2}"
    other = ["data.num_classes=10", "network.name=in_context_dit", *like, depth]
    with torch.device("meta"):
        dit, network = make_network(config), make_network(read_recipe(recipe, other))
    assert parameters(network) == pytest.approx(parameters(dit), rel=0.025)


def test_the_default_sizes_are_also_equal():
    networks = [kind((3, 16, 16), 10) for kind in (DiT, InContextDiT)]
    assert parameters(networks[1]) == pytest.approx(parameters(networks[0]), rel=0.02)
    assert {depth * 3 % 2 for depth, *_ in SIZES.values()} == {0}


def test_its_operations_are_counted():
    """Two operations per multiplication in every matrix product."""
    width, depth, patches, values, hidden = 32, 3, 4, 16, 88
    settings = [
        *("network.name=in_context_dit", "network.patch=4", "network.heads=2"),
        *(f"network.width={width}", f"network.depth={depth}"),
        *("network.class_tokens=3", "network.condition_tokens=2"),
        *("objective.name=flow_matching", "objective.guidance.scale=1"),
    ]
    tokens = patches + 3 + 2 * 2
    block = 2 * tokens * ((3 + 1) * width**2 + 3 * width * hidden) + 2 * 2 * tokens**2 * width
    times = 2 * 2 * (256 * width + width**2)
    ends = 2 * 2 * patches * values * width
    counted = count(read_recipe("digits", settings)).forward_flops_per_sample
    assert counted == pytest.approx(depth * block + times + ends)
