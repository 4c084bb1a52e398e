"""init_from: other conditions."""

from pathlib import Path

import pytest
import torch

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.interop import pretrained
from soflow.interop.pretrained import Pretrained
from support.settings import TINY_DIT


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("theirs", [(), (3, 8, 8), (5,)])
@pytest.mark.parametrize("ours", [(), (3, 8, 8), (2, 8, 8), (5,)])
def test_initial_weights_for_other_conditions(network, theirs, ours, monkeypatch):
    """New conditions begin unseen, and the same ones are taken over."""
    sizes = {
        "dit": TINY_DIT,
        "unet": ["network={name: unet, model_channels: 16, channel_mult: [1, 2], blocks: 1}"],
    }[network]

    def config(shape):
        return read_recipe("digits", [*sizes, f"data.cond_shape={list(shape)}"])

    first, second = make_network(config(theirs)), make_network(config(ours))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = Pretrained(first.state_dict(), "a run", config(theirs))
    monkeypatch.setattr(pretrained, "find_weights", lambda source: found)
    notes = pretrained.load_pretrained(second, Path("run"))
    inputs = torch.randn(2, 1, 8, 8), torch.rand(2), torch.zeros(2), torch.arange(2)
    given, other = ({"cond": torch.randn(2, *shape)} if shape else {} for shape in (theirs, ours))
    if theirs == ours:
        assert len(notes) <= 1
        other = given
    if not theirs or theirs == ours:
        with torch.no_grad():
            expected, found = first.eval()(*inputs, **given), second.eval()(*inputs, **other)
        torch.testing.assert_close(found, expected)
    else:
        assert any("condition" in note for note in notes)
