import pytest
import torch

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.networks.dit import SIZES, DiT
from soflow.networks.embeddings import grid_positions, sinusoidal
from soflow.networks.in_context_dit import InContextDiT
from soflow.networks.mlp import MLP
from soflow.networks.unet import Conv, UNet
from support.settings import TINY_DIT


def parameters(network) -> float:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("imagenet256-b4", 131),
        ("imagenet256-b2", 131),
        ("imagenet256-m2", 308),
        ("imagenet256-l2", 459),
        ("imagenet256-xl2", 676),
        ("cifar10", 55.9),
    ],
)
def test_the_papers_networks_have_the_papers_parameter_counts(recipe, millions):
    with torch.device("meta"):
        network = make_network(read_recipe(recipe))
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=0.8 if millions > 100 else 0.05)


@pytest.mark.parametrize(
    ("recipe", "size"), [("b4", "B"), ("b2", "B"), ("m2", "M"), ("l2", "L"), ("xl2", "XL")]
)
def test_the_recipes_have_the_sizes_of_the_table(recipe, size):
    network = read_recipe(f"imagenet256-{recipe}").network
    assert (network.depth, network.width, network.heads) == SIZES[size]


def small_dit(shape=(3, 8, 8), **settings):
    defaults = {"num_classes": 5, "patch": 2, "width": 32, "depth": 2, "heads": 4}
    return DiT(shape, **defaults | settings)


def small_in_context(shape=(3, 8, 8), **settings):
    defaults = {"num_classes": 5, "patch": 2, "width": 32, "depth": 2, "heads": 4}
    return InContextDiT(shape, **defaults | settings)


def small_unet(shape=(3, 8, 8), **settings):
    defaults = {"model_channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
    return UNet(shape, **defaults | settings)


def shaken(network):
    """Returns the network with perturbed zero-initialized weights, so outputs depend on inputs."""
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return network.eval()


NETWORKS = {
    "dit": (small_dit, (3, 8, 8)),
    "dit of rectangles": (lambda: small_dit((5, 8, 12)), (5, 8, 12)),
    "dit of signals": (lambda: small_dit((2, 12)), (2, 12)),
    "dit with all options": (
        lambda: small_dit(rotary=True, qk_norm=True, swiglu=True),
        (3, 8, 8),
    ),
    "in context": (small_in_context, (3, 8, 8)),
    "in context of rectangles": (lambda: small_in_context((5, 8, 12)), (5, 8, 12)),
    "in context of signals": (lambda: small_in_context((2, 12)), (2, 12)),
    "unet": (lambda: small_unet(dropout=0.0, num_classes=5), (3, 8, 8)),
    "unet of rectangles": (lambda: small_unet((5, 12, 8), dropout=0.0, num_classes=5), (5, 12, 8)),
    "mlp": (lambda: MLP((2,), num_classes=5, width=16, depth=2), (2,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_satisfies_the_contract(name):
    make, shape = NETWORKS[name]
    network = shaken(make())
    x, t, s = torch.randn(4, *shape), torch.rand(4) + 0.5, torch.rand(4) * 0.5
    out = network(x, t, s)
    assert out.shape == x.shape
    rows = torch.cat([network(x[i : i + 1], t[i : i + 1], s[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(out, rows, rtol=1e-4, atol=1e-5)  # samples are independent
    assert not torch.allclose(out, network(x, t, s * 0.5), atol=1e-4)
    assert not torch.allclose(out, network(x, t * 0.9, s), atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_label_is_the_null_label(name):
    make, shape = NETWORKS[name]
    network = shaken(make())
    x, t, s = torch.randn(4, *shape), torch.rand(4), torch.zeros(4)
    torch.testing.assert_close(network(x, t, s), network(x, t, s, torch.full((4,), 5)))
    assert not torch.allclose(network(x, t, s), network(x, t, s, torch.arange(4)), atol=1e-4)


def test_networks_embed_t_minus_s_and_not_s():
    """Without the t embedding, the output depends only on the difference t - s."""
    network = shaken(small_dit())
    with torch.no_grad():
        for p in network.t_embedder.parameters():
            p.zero_()
    x = torch.randn(1, 3, 8, 8)
    one = network(x, torch.tensor([0.9]), torch.tensor([0.4]))
    torch.testing.assert_close(
        one, network(x, torch.tensor([0.6]), torch.tensor([0.1])), rtol=1e-4, atol=1e-5
    )


def test_a_new_dit_outputs_zero_and_its_blocks_are_the_identity():
    network = small_dit()
    x = torch.randn(2, 3, 8, 8)
    assert not network(x, torch.rand(2), torch.zeros(2)).any()
    tokens, condition = torch.randn(2, 16, 32), torch.randn(2, 32)
    torch.testing.assert_close(network.blocks[0](tokens, condition), tokens)


def test_dit_parameter_names_follow_the_published_dit():
    names = {name for name, _ in small_dit(depth=1).named_parameters()}
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    final = ("linear", "adaLN_modulation.1")
    assert names == {
        "pos_embed",
        *(f"x_embedder.proj.{p}" for p in ("weight", "bias")),
        *(f"{e}_embedder.mlp.{i}.{p}" for e in "ts" for i in (0, 2) for p in ("weight", "bias")),
        "y_embedder.embedding_table.weight",
        *(f"blocks.0.{m}.{p}" for m in block for p in ("weight", "bias")),
        *(f"final_layer.{m}.{p}" for m in final for p in ("weight", "bias")),
    }


def test_unet_parameter_names_follow_edm():
    names = {name.rsplit(".", 1)[0] for name, _ in small_unet(augment_labels=6).named_parameters()}
    assert {
        "map_layer0",
        "map_layer1",
        "map_augment",
        "enc.8x8_conv",
        "dec.8x8_aux_norm",
        "dec.8x8_aux_conv",
    } <= names
    blocks = {
        ".".join(name.split(".")[:2])
        for name in names
        if "block" in name or "_in" in name or "_up" in name
    }
    assert blocks == {
        *("enc.8x8_block0", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1", "dec.4x4_block0"),
        *("dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1"),
    }
    with_attention = {name.rsplit(".", 1)[0] for name in names if name.endswith(".qkv")}
    assert with_attention == {"enc.4x4_block0", "dec.4x4_in0", "dec.4x4_block1"}


def test_attention_of_the_unet_reads_interleaved_channels():
    """Compares with softmax(q k / sqrt(C)) v. Channel 3 i + j of qkv is part j of channel i."""
    network = small_unet()
    channels, pixels = 6, 4
    qkv = torch.randn(2, 3 * channels, 2, 2)
    out = network.enc["4x4_block0"].attend(qkv)
    for b in range(2):
        q, k, v = (
            torch.stack([qkv[b, 3 * i + j].flatten() for i in range(channels)]) for j in range(3)
        )
        weights = torch.softmax(q.T @ k / channels**0.5, dim=1)
        torch.testing.assert_close(out[b].flatten(1), (weights @ v.T).T.reshape(channels, pixels))


@pytest.mark.parametrize("resample", ["up", "down"])
def test_resampling_preserves_constant_images_inside(resample):
    conv = Conv(2, 2, 1, resample)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(2)[:, :, None, None])
        conv.bias.zero_()
    out = conv(torch.ones(1, 2, 8, 8))
    assert out.shape[-1] == (16 if resample == "up" else 4)
    torch.testing.assert_close(out[:, :, 1:-1, 1:-1], torch.ones_like(out[:, :, 1:-1, 1:-1]))


def test_augmentation_labels_reach_the_unet():
    network = shaken(small_unet(augment_labels=6, dropout=0.0))
    x, t, s = torch.randn(2, 3, 8, 8), torch.rand(2), torch.zeros(2)
    torch.testing.assert_close(network(x, t, s), network(x, t, s, augment=torch.zeros(2, 6)))
    assert not torch.allclose(
        network(x, t, s), network(x, t, s, augment=torch.ones(2, 6)), atol=1e-4
    )


def test_embeddings_equal_hand_calculations():
    t = torch.tensor([0.5])
    expected = [torch.cos(0.5 * w) for w in (torch.tensor(1.0), torch.tensor(0.01))]
    expected += [torch.sin(0.5 * w) for w in (torch.tensor(1.0), torch.tensor(0.01))]
    torch.testing.assert_close(sinusoidal(t, 4)[0], torch.stack(expected))
    positions = grid_positions((3, 3), 8)[0].unflatten(0, (3, 3))
    assert torch.equal(positions[0, :, :4], positions[2, :, :4])  # the first half embeds the column
    assert torch.equal(positions[:, 0, 4:], positions[:, 2, 4:])  # the second half embeds the row


def test_the_digits_recipe_builds():
    assert parameters(make_network(read_recipe("digits", TINY_DIT))) < 100_000
