"""Every objective passes each sample's own condition to the network, in every pass."""

import pytest
import torch
from torch import nn

from soflow.guidance import Guidance
from soflow.objectives.consistency import Consistency
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.mean_flow import MeanFlow, MeanFlowGuidance
from soflow.objectives.shortcut import Shortcut
from soflow.objectives.soflow import SoFlow
from soflow.solution import FlowModel
from soflow.symbols import Batch

COUNT = 8
OBJECTIVES = {
    "soflow": SoFlow(guidance=Guidance(2.0, mix=0.5)),
    "flow_matching": FlowMatching(guidance=Guidance(2.0)),
    "mean_flow": MeanFlow(guidance=MeanFlowGuidance(2.0)),
    "shortcut": Shortcut(0.5, guidance=Guidance(2.0)),
    "consistency": Consistency(),
}


class Recorder(nn.Module):
    """A smooth network that records labels and conditions.

    The label of each sample, unless dropped, and its condition are both the number of the sample.
    """

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, x, t, s, labels=None, cond=None):
        self.seen.append((labels.tolist(), cond[:, 0].tolist()))
        bump = torch.sin(cond + labels[:, None]) * torch.cos(3 * t + s)[:, None]
        return self.weight * (0.5 * x + bump)


def losses(name, cond, rows=slice(None)):
    """Returns losses per sample of all terms, and their network."""
    objective, net = OBJECTIVES[name], Recorder()
    generator = torch.Generator().manual_seed(0)
    draws = objective.draw((COUNT, 3), generator)
    data = torch.randn(COUNT, 3, generator=generator)
    model = FlowModel(net, (3,), num_classes=COUNT, cond_shape=(1,), average=net)
    batch = Batch(data, torch.arange(COUNT), cond=cond)
    found = objective(model, batch.rows(rows), draws.rows(rows), 0.5)
    return torch.cat([term.squared for term in found.terms.values()]), net


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("rows", [slice(None), slice(1, None, 2)])
def test_passes_pair_labels_with_their_conditions(name, rows):
    _, net = losses(name, torch.arange(COUNT)[:, None].float(), rows)
    pairs = {pair for labels, conds in net.seen for pair in zip(labels, conds, strict=True)}
    own = {(label, cond) for label, cond in pairs if label != COUNT}
    assert own
    assert all(label == cond for label, cond in own)
    assert {cond for _, cond in pairs} <= set(range(COUNT)[rows])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_depends_only_on_the_condition_of_its_sample(name):
    """This includes guided passes with dropped labels."""
    cond = torch.arange(COUNT)[:, None].float()
    before, _ = losses(name, cond)
    moved = []
    for row in range(COUNT):
        changed = cond.clone()
        changed[row] += 0.5
        moved += (losses(name, changed)[0] != before).nonzero()[:, 0].tolist()
    assert sorted(moved) == list(range(len(before)))
