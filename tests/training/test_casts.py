"""Under bfloat16 autocast, each weight is cast once, and gradients do not change."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.objectives import passes
from support.settings import TINY_DIT
from support.steps import prepare
from support.whole_runs import OBJECTIVES

DIT = [*TINY_DIT, "precision=bf16"]
UNET = [
    "network.name=unet", "network.model_channels=16", "network.blocks=1", "network.attention=[]",
    "network.channel_mult=[1]", "network.dropout=0", "data.num_classes=0", "precision=bf16",
    "objective.guidance.scale=1",
]  # fmt: skip


class Casts(TorchDispatchMode):
    """Counts casts to bfloat16 by the memory address of the tensor."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.counted[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def step(settings):
    """Returns the network, one loss with gradients, and the number of casts per weight."""
    network, loss_of = prepare(settings)
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        loss = loss_of()
    loss.backward()
    count = [casts.counted[p.data_ptr()] for p in network.parameters() if p.requires_grad]
    return network, loss.detach(), count


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("clear", [True, False])
def test_gradients_do_not_depend_on_cached_casts(name, clear, monkeypatch):
    settings = [*DIT, f"objective.name={name}"]
    network, loss, _ = step(settings)
    monkeypatch.setattr(passes, "CASTS_KEEP_GRADIENT", not clear)
    other, other_loss, _ = step(settings)
    assert loss == other_loss
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert one.grad is None or (one.grad.abs().max() > 0 and one.grad.equal(two.grad))


@pytest.mark.skipif(not passes.CASTS_KEEP_GRADIENT, reason="this torch casts for each pass")
@pytest.mark.parametrize("settings", [DIT, ["network.name=in_context_dit", *DIT], UNET])
def test_a_weight_is_cast_once_for_all_passes(settings, monkeypatch):
    *_, counts = step([*settings, "objective.flow_matching_share=0.5"])
    assert max(counts) == 1
    monkeypatch.setattr(passes, "CASTS_KEEP_GRADIENT", False)
    *_, before = step([*settings, "objective.flow_matching_share=0.5"])
    assert max(before) == (1 if settings is UNET else 2)


ROUNDED = ("blocks.0.mlp", "blocks.0.attn.qkv", "blocks.0.attn.q_norm", "final_layer.linear")
IN_CONTEXT_PARTS = (
    *("t_embedder", "s_embedder", "y_embedder", "blocks.0", "blocks.0.norm1", "blocks.0.norm2"),
    "final_layer.norm_final",
)
DIT_PARTS = ("t_embedder", "s_embedder", "y_embedder", "blocks.0.norm1", "blocks.0.norm2")


@pytest.mark.parametrize(
    ("recipe", "settings", "exact", "rounded"),
    [
        ("digits", DIT, DIT_PARTS, ("blocks.0.mlp", "blocks.0.attn.qkv")),
        ("digits", ["network.name=in_context_dit", *DIT], IN_CONTEXT_PARTS, ROUNDED),
        ("moons", [], ("t_embedder", "s_embedder", "y_embedder"), ("final_layer",)),
        ("digits", UNET, ("map_layer0", "map_layer1"), ("enc.8x8_block0.conv0",)),
    ],
)
def test_embeddings_and_norms_stay_in_float32(recipe, settings, exact, rounded):
    config = read_recipe(recipe, settings)
    network = make_network(config)
    types = {}

    def note(name):
        return lambda module, inputs, output: types.__setitem__(name, output.dtype)

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    x, t = torch.randn(2, *config.data.shape), torch.rand(2)
    labels = torch.tensor([1, 0]) if config.data.num_classes else None
    with torch.autocast("cpu", torch.bfloat16):
        network(x, t, 0 * t, labels)
    assert {types[name] for name in exact} == {torch.float32}
    assert {types[name] for name in rounded} == {torch.bfloat16}
