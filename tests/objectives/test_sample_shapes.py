"""Objectives and samplers give the same results for signals, rectangles and squares."""

import pytest
import torch
from torch import nn

from soflow.guidance import Guidance
from soflow.networks.dit import DiT
from soflow.networks.unet import UNet
from soflow.noising import LinearNoising
from soflow.objectives.mean_flow import MeanFlow, MeanFlowGuidance
from soflow.objectives.soflow import SoFlow
from soflow.parameterization import EulerParameterization
from soflow.sampling import integrate_velocity, ode, renoise
from soflow.solution import FlowModel
from soflow.symbols import Batch

OBJECTIVES = {
    "soflow": SoFlow(guidance=Guidance(2.0)),
    "mean_flow": MeanFlow(guidance=MeanFlowGuidance(2.0)),
}
UNET = {"model_channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
#: Networks, sample shapes, and squares with the same number of values.
CASES = {
    "signals": (lambda: DiT((4, 16), 3, 2, 16, 1, 2), (4, 16), (1, 8, 8)),
    "rectangles": (lambda: DiT((5, 4, 16), 3, 2, 16, 1, 2), (5, 4, 16), (5, 8, 8)),
    "rectangles, unet": (
        lambda: UNet((2, 4, 16), **UNET, dropout=0.0, num_classes=3),
        (2, 4, 16),
        (2, 8, 8),
    ),
}


class Folded(nn.Module):
    """A network with reshaped inputs and outputs."""

    def __init__(self, net, shape):
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, x, t, s, labels=None):
        return self.net(x.reshape(-1, *self.shape), t, s, labels).reshape(x.shape)


def models(case):
    """Returns the model of a case and the model of its squares."""
    make, shape, square = CASES[case]
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    settings = {"noising": LinearNoising(), "parameterization": EulerParameterization()}
    return (
        FlowModel(net, shape=shape, num_classes=3, **settings),
        FlowModel(Folded(net, shape), shape=square, num_classes=3, **settings),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_do_not_depend_on_the_shape(case, name):
    found, data = [], torch.randn(8, *CASES[case][1])
    for model in models(case):
        generator = torch.Generator().manual_seed(1)
        draws = OBJECTIVES[name].draw((8, *model.shape), generator)
        batch = Batch(data.reshape(8, *model.shape), torch.arange(8) % 3)
        model.net.zero_grad()
        losses = OBJECTIVES[name](model, batch, draws, 0.5)
        losses.total.backward()
        gradients = [p.grad.clone() for p in model.net.parameters() if p.grad is not None]
        found.append([losses.total.detach(), *losses.parts.values(), *gradients])
    assert float(found[0][0]) > 0
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_samples_do_not_depend_on_the_shape(case):
    noise, labels = torch.randn(2, 6, *CASES[case][1]), torch.arange(6) % 4
    found = []
    for model in models(case):
        first, fresh = noise.reshape(2, 6, *model.shape)
        samples = [
            renoise(model, first, [fresh], labels),
            ode(model, first, 2, labels),
            integrate_velocity(model, first, 1, labels),
        ]
        assert all(one.shape == (6, *model.shape) for one in samples)
        found.append([one.flatten() for one in samples])
    torch.testing.assert_close(*found)
