"""Learning-rate schedules equal those of torch."""

import warnings

import pytest
import torch

from soflow.config.optimizer import OptimizerConfig
from soflow.training.optimizers import learning_rate

STEPS, WARMUP = 20, 5


def rates(**settings):
    config = OptimizerConfig(lr=0.3, warmup=WARMUP, **settings)
    return [learning_rate(config, step, STEPS) for step in range(STEPS)]


def torchs(make):
    """Returns the rates of a torch scheduler after a warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    falling = make(optimizer, STEPS - 1 - WARMUP)
    found = []
    for _ in range(STEPS - WARMUP):
        found.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no gradients here
            optimizer.step()
            falling.step()
    return [0.3 * (step + 1) / WARMUP for step in range(WARMUP)] + found


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_decreasing_learning_rates_equal_torch(end):
    schedulers = torch.optim.lr_scheduler
    cosine = torchs(lambda x, steps: schedulers.CosineAnnealingLR(x, steps, eta_min=0.3 * end))
    linear = torchs(lambda x, steps: schedulers.LinearLR(x, 1.0, end, steps))
    assert rates(lr_schedule="cosine", lr_end=end) == pytest.approx(cosine)
    assert rates(lr_schedule="linear", lr_end=end) == pytest.approx(linear)


def test_a_constant_rate_has_no_other_final_value():
    assert rates()[WARMUP - 1 :] == [0.3] * (STEPS - WARMUP + 1)
    with pytest.raises(ValueError, match="lr_end"):
        OptimizerConfig(lr_end=0.5)


def test_a_warm_up_longer_than_the_run_only_increases():
    config = OptimizerConfig(lr=0.3, warmup=50, lr_schedule="cosine")
    assert [learning_rate(config, step, 10) for step in range(10)] == pytest.approx(
        [0.3 * (step + 1) / 50 for step in range(10)]
    )
