import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soflow.times import FLOOR, LogitNormal, MiddleTime, draw_jumps, middle_time


def test_logit_normal_times_have_the_requested_mean_and_standard_deviation():
    times = LogitNormal(-0.4, 0.9).draw(200_000, torch.Generator().manual_seed(0)).double()
    logits = torch.log(times / (1 - times))
    assert float(logits.mean()) == pytest.approx(-0.4, abs=0.01)
    assert float(logits.std()) == pytest.approx(0.9, abs=0.01)


def test_jumps_go_down_and_keep_a_minimum_length():
    t, s = draw_jumps(
        20_000, LogitNormal(-4.0, 1.6), LogitNormal(2.0, 1.6), torch.Generator().manual_seed(0)
    )
    assert float(t.min()) >= FLOOR * (1 - 1e-6)
    assert float(s.min()) >= 0
    assert bool((t - s >= FLOOR - 1e-7).all())


@given(
    st.floats(FLOOR, 1),
    st.floats(0, 1),
    st.sampled_from(["constant", "linear", "cosine", "exponential"]),
    st.floats(0, 1),
)
def test_the_middle_time_lies_below_t_and_above_s(t, share, schedule, progress):
    s = share * (t - FLOOR)
    l = float(
        MiddleTime(schedule, 0.1, 0.002)(*torch.tensor([[t], [s]], dtype=torch.float64), progress)
    )
    assert s - 1e-9 <= l <= t - FLOOR + 1e-12


def test_the_middle_time_moves_the_share_r_towards_s():
    t, s = torch.tensor([0.9]), torch.tensor([0.1])
    torch.testing.assert_close(middle_time(t, s, 0.25), torch.tensor([0.7]))
    torch.testing.assert_close(middle_time(t, s, 1e-9), torch.tensor([0.9 - FLOOR]))


@pytest.mark.parametrize(
    ("schedule", "start", "half", "end"),
    [
        ("constant", 0.002, 0.002, 0.002),
        ("linear", 0.1, 0.051, 0.002),
        ("cosine", 0.1, 0.051, 0.002),
        ("exponential", 0.1, math.sqrt(0.1 * 0.002), 0.002),
    ],
)
def test_schedules_at_their_start_middle_and_end(schedule, start, half, end):
    middle = MiddleTime(schedule, 0.1, 0.002)
    assert [middle.r(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([start, half, end], rel=1e-12)


def test_the_cosine_schedule_is_flat_at_both_ends():
    middle = MiddleTime("cosine", 1.0, 0.0)
    assert middle.r(0.01) == pytest.approx(1, abs=1e-3)
    assert middle.r(0.99) == pytest.approx(0, abs=1e-3)
    assert middle.r(0.25) == pytest.approx((2 + math.sqrt(2)) / 4)
