"""Networks with vectors and maps as conditions."""

import pytest
import torch

from soflow.networks.dit import DiT
from soflow.networks.in_context_dit import InContextDiT
from soflow.networks.mlp import MLP
from soflow.networks.unet import UNet

UNET = {"model_channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
MAKERS = {
    "dit": (lambda **cond: DiT((2, 8, 8), 3, 4, 32, 1, 2, **cond), (2, 8, 8), [(5,), (3, 8, 8)]),
    "signals": (lambda **cond: DiT((2, 8), 3, 4, 32, 1, 2, **cond), (2, 8), [(5,), (3, 8)]),
    "in context": (
        lambda **cond: InContextDiT((2, 8, 8), 3, 4, 32, 1, 2, **cond),
        (2, 8, 8),
        [(5,), (3, 8, 8)],
    ),
    "unet": (
        lambda **cond: UNet((2, 8, 8), **UNET, dropout=0.0, num_classes=3, **cond),
        (2, 8, 8),
        [(5,), (3, 8, 8)],
    ),
    "mlp": (lambda **cond: MLP((4,), 3, 32, 1, **cond), (4,), [(5,)]),
}
CASES = [(name, cond) for name, (_, _, shapes) in MAKERS.items() for cond in shapes]


@pytest.mark.parametrize(("name", "cond_shape"), CASES)
@torch.no_grad()
def test_a_sample_depends_only_on_its_own_condition(name, cond_shape):
    make, shape, _ = MAKERS[name]
    net = make(cond_shape=cond_shape)
    for parameter in net.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = torch.randn(3, *shape), torch.rand(3), torch.zeros(3), torch.arange(3)
    cond = torch.randn(3, *cond_shape)
    before = net.eval()(*inputs, cond=cond)
    assert before.shape == (3, *shape)
    changed = cond.clone()
    changed[1] += 1
    moved = (net(*inputs, cond=changed) - before).flatten(1).abs().amax(1)
    assert (moved > 1e-4).tolist() == [False, True, False]
    with torch.autocast("cpu", torch.bfloat16):
        low = net(*inputs, cond=cond)
    assert 0 < (low - before).abs().max() < 0.2


@pytest.mark.parametrize("name", MAKERS)
def test_a_map_of_another_size_is_rejected(name):
    with pytest.raises(ValueError, match="condition"):
        MAKERS[name][0](cond_shape=(3, 4, 4))
