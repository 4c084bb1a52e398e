import math

import pytest
import torch

from soflow.guidance import Guidance


def guidance(**settings):
    return Guidance(**{"scale": 3.0} | settings)


def test_the_decay_is_one_up_to_its_time_then_falls_smoothly_to_zero_at_noise():
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    decay = guidance().decay(t)
    assert bool((decay[t <= 0.8] == 1).all())
    assert float(decay[-1]) == 0
    assert bool((decay.diff() <= 1e-15).all())
    assert float(decay.diff().abs().max()) < 0.01  # steep, but continuous


def test_the_decay_half_way_to_noise():
    # u = (1 - 0.9) / (1 - 0.8) = 1/2, u / (1 - u) = 1, so the decay is 1 - exp(-1/40).
    assert float(guidance().decay(torch.tensor([0.9], dtype=torch.float64))) == pytest.approx(
        -math.expm1(-1 / 40)
    )


def test_a_decay_time_of_one_turns_the_decay_off():
    assert guidance(decay_time=1.0).decay(torch.tensor([0.0, 0.99, 1.0])).tolist() == [1, 1, 1]


def test_the_target_equals_a_hand_calculation():
    v_t, v_null, v_label = torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([[10.0]])
    t, kept, dropped = torch.tensor([0.5]), torch.tensor([False]), torch.tensor([True])
    # guided = 2 + (3 - 1) (2 - 1) = 4; a quarter of it and three quarters of 10 make 8.5
    assert float(guidance().target(v_t, v_null, v_label, t, kept)) == 8.5
    assert float(guidance(mix=1.0).target(v_t, v_null, v_label, t, kept)) == 4
    assert float(guidance(mix=0.0).target(v_t, v_null, v_label, t, kept)) == 10
    assert float(guidance().target(v_t, v_null, v_label, t, dropped)) == 2
    at_noise = torch.ones(1)  # here guidance has decayed to zero
    assert float(guidance(mix=1.0).target(v_t, v_null, v_label, at_noise, kept)) == 2


def test_guidance_is_active_above_scale_one():
    assert guidance().active
    assert not guidance(scale=1.0).active
    assert not Guidance().active
