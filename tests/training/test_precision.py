"""Rounding errors in the difference quotient, which divides by t - l, and bfloat16."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import soflow
from soflow.assemble import make_model, make_network, make_objective
from soflow.config import read_recipe
from soflow.networks.dit import Attention
from soflow.objectives import passes
from soflow.symbols import Batch
from soflow.training import trainer
from soflow.training.precision import float32_products
from support.settings import TINY_DIT

COUNT = 64


def quotient_mse(dtype=torch.float32):
    """Returns mean_d(q^2) per sample (B,), at r = 0.002, the end of the recipe's schedule.

    Inputs have the same float32 values in each dtype. There are no zero weights and no guidance.
    """
    config = read_recipe("digits", [*TINY_DIT, "objective.guidance.scale=1"])
    torch.manual_seed(0)
    network, objective = make_network(config), make_objective(config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    generator = torch.Generator().manual_seed(0)
    draws = replace(objective.draw((COUNT, 1, 8, 8), generator), n_flow_matching=0)
    draws = replace(draws, s=torch.minimum(draws.s, draws.t / 2), t=draws.t.clamp(min=0.2))
    data = torch.randn(COUNT, 1, 8, 8, generator=generator).to(dtype)
    draws = replace(draws, noise=draws.noise.to(dtype), t=draws.t.to(dtype), s=draws.s.to(dtype))
    batch = Batch(data, torch.arange(COUNT) % 10)
    losses = objective(make_model(config, network.to(dtype)), batch, draws, 1.0)
    return losses.parts["consistency_mse"].double()


def error(of):
    """Returns the relative RMS error over samples compared with float64."""
    exact = quotient_mse(torch.float64)
    return float(((of - exact) / exact).square().mean().sqrt())


def test_the_error_of_the_quotient_in_float32_is_small():
    assert error(quotient_mse()) < 1e-4


def test_bfloat16_training_keeps_the_quotient_as_exact_as_float32(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        kept = quotient_mse()
        monkeypatch.setattr(passes, "float32", lambda device: nullcontext())
        rounded = quotient_mse()
    assert error(kept) < 1e-4
    assert error(rounded) > 100 * error(kept)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "bf16-tf32"])
def test_each_pass_has_its_precision_and_process_settings_are_restored(
    precision, tmp_path, monkeypatch
):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    overrides = [
        *TINY_DIT,
        "train.steps=2",
        "train.batch_size=16",
        "train.log_every=1",
        "objective.flow_matching_share=0.75",
        f"precision={precision}",
    ]
    dtypes, tf32 = set(), []
    forward = Attention.forward

    def watched(self, x, rotation):
        out = forward(self, x, rotation)
        dtypes.add((out.dtype, torch.is_grad_enabled(), len(x)))
        return out

    def asked(use, device):
        tf32.append(use)
        return float32_products(use, device)

    monkeypatch.setattr(Attention, "forward", watched)
    monkeypatch.setattr(trainer, "float32_products", asked)
    folder = soflow.train("digits", tmp_path / "run", overrides)
    assert [line["step"] for line in folder.read_metrics()] == [1, 2]
    assert tf32 == [precision in ("tf32", "bf16-tf32")] * 2
    # Rows of the passes: 16 null and 4 labels, 4 jumps, 12 velocities (separate in bf16).
    guiding, target, learning = 20, 4, 12
    if precision.startswith("bf16"):
        assert {(torch.bfloat16, False, guiding), (torch.bfloat16, True, learning)} <= dtypes
        assert {(torch.float32, False, target), (torch.float32, True, target)} <= dtypes
    else:
        assert {dtype for dtype, _, rows in dtypes if rows <= guiding} == {torch.float32}
        assert (torch.float32, True, 16) in dtypes
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("tf32", [False, True])
def test_on_a_gpu_products_and_convolutions_use_tf32_as_asked(tf32):
    """The settings are global in the process and exist without a GPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products(tf32, torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
