"""`init_from` with other conditions or other attention."""

from pathlib import Path

import pytest
import torch

from soflow.assemble import make_network
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.interop import pretrained
from soflow.interop.pretrained import Pretrained
from support.settings import TINY_DIT


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("theirs", [(), (3, 8, 8), (5,)])
@pytest.mark.parametrize("ours", [(), (3, 8, 8), (2, 8, 8), (5,)])
def test_initial_weights_for_other_conditions(network, theirs, ours, monkeypatch):
    """New conditions are ignored at first, and equal conditions are copied."""
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


IN_CONTEXT = "network.name=in_context_dit"


@pytest.mark.parametrize(
    ("theirs", "ours", "remedy"),
    [
        (["network.rotary=true"], [], r"network\.rotary=true"),
        ([], ["network.rotary=true"], r"network\.rotary=false"),
        (["network.swiglu=true"], [], r"network\.swiglu=True"),
        (["network.qk_norm=true"], [], r"network\.qk_norm=True"),
        (["network.heads=4"], [], r"network\.heads=4"),
        ([IN_CONTEXT, "network.heads=4"], [IN_CONTEXT], r"network\.heads=4"),
        ([IN_CONTEXT], [], "network.name=in_context_dit"),
    ],
)
def test_a_run_with_other_attention_is_rejected_and_the_setting_is_named(
    theirs, ours, remedy, monkeypatch
):
    configs = [read_recipe("digits", [*TINY_DIT, *settings]) for settings in (theirs, ours)]
    first, second = map(make_network, configs)
    found = Pretrained(first.state_dict(), "a run", configs[0])
    monkeypatch.setattr(pretrained, "find_weights", lambda source: found)
    with pytest.raises(InputError, match=remedy):
        pretrained.load_pretrained(second, Path("run"))
    pretrained.load_pretrained(make_network(configs[0]), Path("run"))


def test_an_in_context_run_with_other_channels_is_accepted(monkeypatch):
    config = read_recipe("digits", [IN_CONTEXT, *TINY_DIT])
    other = read_recipe("digits", [IN_CONTEXT, *TINY_DIT, "data.shape=[2,8,8]"])
    first, second = make_network(config), make_network(other)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = Pretrained(first.state_dict(), "a run", config)
    monkeypatch.setattr(pretrained, "find_weights", lambda source: found)
    pretrained.load_pretrained(second, Path("run"))
    x, t, s = torch.randn(2, 2, 8, 8), torch.rand(2), torch.zeros(2)
    with torch.no_grad():
        expected, found = first(x[:, :1], t, s), second(x, t, s)
    torch.testing.assert_close(found[:, :1], expected)
    assert not found[:, 1].any()
