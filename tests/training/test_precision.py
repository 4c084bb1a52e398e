"""What rounding does to the difference quotient, which divides it by t - l, and that bfloat16 training spares it that."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from soflow.assemble import make_network, make_objective
from soflow.config import read_recipe
from soflow.networks.dit import Attention
from soflow.objectives import soflow as method
from soflow.symbols import Batch
from soflow.training.precision import float32_products
from support.settings import TINY_DIT

COUNT = 64


def setting():
    """A network with all its weights at work, and jumps at r = 0.002, the end of the recipe's schedule, without guidance."""
    config = read_recipe("digits", [*TINY_DIT, "objective.guidance.scale=1"])
    torch.manual_seed(0)
    network = make_network(config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    objective = make_objective(config)
    generator = torch.Generator().manual_seed(0)
    draws = replace(objective.draw((COUNT, 1, 8, 8), generator), n_flow_matching=0)
    draws = replace(draws, s=torch.minimum(draws.s, draws.t / 2), t=draws.t.clamp(min=0.2))
    return (
        network,
        objective,
        Batch(torch.randn(COUNT, 1, 8, 8, generator=generator), torch.arange(COUNT) % 10),
        draws,
    )


def quotient_mse(network, objective, batch, draws):
    """mean_d(q^2) a sample, (B,)."""
    return objective(network, batch, draws, 1.0).parts["consistency_mse"].double()


def exact():
    """The same in double precision, from the same float32 inputs."""
    network, objective, batch, draws = setting()
    draws = replace(draws, noise=draws.noise.double(), t=draws.t.double(), s=draws.s.double())
    return quotient_mse(
        network.double(), objective, replace(batch, data=batch.data.double()), draws
    )


def error(of):
    """Its relative error, root mean square over samples."""
    true = exact()
    return float(((of - true) / true).square().mean().sqrt())


def test_the_quotients_error_in_float32_is_small():
    assert error(quotient_mse(*setting())) < 1e-4


def test_bfloat16_training_leaves_the_quotient_as_exact_as_float32(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        kept = error(quotient_mse(*setting()))
        monkeypatch.setattr(method, "float32", lambda device: nullcontext())
        rounded = error(quotient_mse(*setting()))
    assert kept < 1e-4
    assert rounded > 100 * kept  # which is what keeping it spares


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "bf16-tf32"])
def test_every_precision_is_that_of_its_passes_and_leaves_the_processs_settings_alone(
    precision, tmp_path, monkeypatch
):
    from soflow.workflows import runs

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    overrides = [
        *TINY_DIT,
        "train.steps=2",
        "train.batch_size=16",
        "train.log_every=1",
        f"precision={precision}",
    ]
    dtypes, tf32 = set(), []
    forward = Attention.forward

    def watched(self, x):
        out = forward(self, x)
        dtypes.add((out.dtype, torch.is_grad_enabled(), len(x)))
        return out

    def asked(use, device):
        tf32.append(use)
        return float32_products(use, device)

    monkeypatch.setattr(Attention, "forward", watched)
    monkeypatch.setattr("soflow.training.trainer.float32_products", asked)
    folder = runs.train("digits", tmp_path / "run", overrides)
    assert [line["step"] for line in folder.read_metrics()] == [1, 2]
    assert tf32 == [precision in ("tf32", "bf16-tf32")] * 2
    guiding, target, learning = (
        20,
        4,
        12,
    )  # rows of the passes: 16 null and 4 labels; 4 jumps; 12 velocities apart in bf16
    if precision.startswith("bf16"):
        assert {(torch.bfloat16, False, guiding), (torch.bfloat16, True, learning)} <= dtypes
        assert {(torch.float32, False, target), (torch.float32, True, target)} <= dtypes
    else:
        assert {dtype for dtype, _, rows in dtypes if rows <= guiding} == {torch.float32}
        assert (torch.float32, True, 16) in dtypes
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("tf32", [False, True])
def test_on_a_gpu_products_and_convolutions_use_tf32_or_not_while_it_lasts(tf32):
    """The switches are those of the process; they can be thrown without a GPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products(tf32, torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cudnn.allow_tf32 == tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
