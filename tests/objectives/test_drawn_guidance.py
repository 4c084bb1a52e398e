"""Guidance scales and intervals drawn per sample: distribution, target, and network inputs."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import soflow
from soflow.errors import InputError
from soflow.guidance import DrawnGuidance, Guidance

DRAWN = DrawnGuidance(scale=1.5, mix=0.3, label_dropout=0.4, decay_time=0.8, max_scale=4.0)
COUNT, CLASSES = 40, 5


def draw(guidance, count=20_000):
    return guidance.draw(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_scales_follow_the_power_law(power):
    """Kolmogorov-Smirnov test against the integral of omega^-power over [1, 8]."""
    scales = draw(DrawnGuidance(max_scale=8.0, power=power))[:, 0].double().sort().values
    assert 1 <= float(scales.min()) <= float(scales.max()) <= 8 * (1 + 1e-6)

    def integral(omega):
        return omega.log() if power == 1 else (omega ** (1 - power) - 1) / (1 - power)

    expected = integral(scales) / integral(torch.tensor(8.0).double())
    steps = torch.arange(len(scales) + 1) / len(scales)
    distance = torch.maximum(steps[1:] - expected, expected - steps[:-1]).max()
    assert float(distance) < 1.63 / math.sqrt(len(scales))  # significance level 1 %


def test_intervals_are_uniform_in_their_ranges():
    _, start, end = draw(DrawnGuidance(max_scale=2.0, latest_start=0.4, earliest_end=0.6)).unbind(1)
    for values, low, high in ((start, 0, 0.4), (end, 0.6, 1)):
        assert low <= float(values.min()) < low + 0.001
        assert high - 0.001 < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.003)
    assert abs(float(torch.corrcoef(torch.stack([start, end]))[0, 1])) < 0.03
    whole = draw(DrawnGuidance(max_scale=2.0, latest_start=0.0, earliest_end=1.0), 100)
    assert whole[:, 1:].unique(dim=0).tolist() == [[0, 1]]


def test_a_fixed_scale_draws_nothing_and_equals_the_paper():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    fixed = DrawnGuidance(scale=2.0, decay_time=0.8)
    assert fixed.draw(10, generator) is None
    assert torch.equal(generator.get_state(), state)
    columns = torch.randn(3, 10, 2).unbind()
    t, dropped = torch.linspace(0, 1, 10), torch.arange(10) % 3 == 0
    assert torch.equal(
        fixed.target(*columns, t, dropped), Guidance(2.0).target(*columns, t, dropped)
    )
    drawn, paper = (
        objective.draw((16, 2), torch.Generator().manual_seed(3))
        for objective in (
            soflow.JumpFlow(direct_share=0.0, flow_matching_share=0.75, guidance=fixed),
            soflow.SoFlow(),
        )
    )
    assert drawn.guidance is None
    assert all(
        torch.equal(getattr(drawn, name), getattr(paper, name)) for name in ("noise", "t", "s")
    )


class Classwise(nn.Module):
    """v(x, t, y) in closed form, which also depends on the guidance. Records its inputs."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, x, t, s, labels=None, guidance=None):
        self.seen.append((labels.clone(), guidance.clone(), t.clone(), s.clone()))
        return self.weight * velocity(x, t, labels, guidance)


def velocity(x, t, labels, guidance):
    pull = 0.3 * labels + guidance[:, 0] + 0.1 * guidance[:, 1] - 0.2 * guidance[:, 2]
    return x * (1 + t)[:, None] + torch.sin(pull)[:, None]


def a_step(guidance=DRAWN, **settings):
    """Returns draws, batch and losses of a step, and the network."""
    objective, net = soflow.JumpFlow(guidance=guidance, p=0.0, **settings), None
    generator, net = torch.Generator().manual_seed(1), Classwise()
    draws = objective.draw((COUNT, 2), generator)
    batch = soflow.Batch(torch.randn(COUNT, 2, generator=generator), torch.arange(COUNT) % CLASSES)
    model = soflow.FlowModel(net, (2,), CLASSES)
    return draws, batch, objective(model, batch, draws, 0.5), net


def expected_target(draws, batch, row):
    """Computes the velocity target of one sample from the formula, in plain Python."""
    x_1, x_0, t = draws.noise[row], batch.data[row], float(draws.t[row])
    v_t, x_t = x_1 - x_0, (1 - t) * x_0 + t * x_1
    if draws.dropped[row]:
        return v_t
    omega, start, end = draws.guidance[row].tolist()
    u = min((1 - t) / (1 - DRAWN.decay_time), 1 - 1e-6)
    decay = 1 if t <= DRAWN.decay_time else 1 - math.exp(-u / (1 - u) / 40)
    strength = decay * (omega - 1) if start <= t <= end else 0.0

    def v(label, guidance):
        times, labels = torch.tensor([t]), torch.tensor([label])
        return velocity(x_t[None], times, labels, torch.tensor([guidance]))[0]

    guided = v_t + strength * (v_t - v(CLASSES, [1.0, 0.0, 1.0]))
    return 0.3 * guided + 0.7 * v(int(batch.labels[row]), [omega, start, end])


def test_the_target_of_each_sample_equals_the_formula():
    draws, batch, losses, _ = a_step(flow_matching_share=1.0)
    inside = (draws.guidance[:, 1] <= draws.t) & (draws.t <= draws.guidance[:, 2])
    assert 0 < int(inside.sum()) < COUNT
    assert 0 < int(draws.dropped.sum()) < COUNT
    shown = draws.guidance.where(~draws.dropped[:, None], torch.tensor([1.0, 0.0, 1.0]))
    labels = batch.labels.where(~draws.dropped, CLASSES)
    x_t = (1 - draws.t)[:, None] * batch.data + draws.t[:, None] * draws.noise
    prediction = velocity(x_t, draws.t, labels, shown)
    targets = torch.stack([expected_target(draws, batch, row) for row in range(COUNT)])
    squared = ((prediction - targets) ** 2).mean(1)
    torch.testing.assert_close(losses.terms["flow_matching"].squared, squared)


def test_the_consistency_error_of_each_sample_equals_the_formula():
    """q = target - F_t + (s - l)/(t - l) (F_t - F(x_l)), with x_l = x_t + (l - t) target."""
    draws, batch, losses, _ = a_step(flow_matching_share=0.0, direct_share=0.2)
    t, s = draws.t, draws.s
    l = soflow.JumpFlow().middle(t, s, 0.5)
    shown = draws.guidance.where(~draws.dropped[:, None], torch.tensor([1.0, 0.0, 1.0]))
    labels = batch.labels.where(~draws.dropped, CLASSES)
    x_t = (1 - t)[:, None] * batch.data + t[:, None] * draws.noise
    target = torch.stack([expected_target(draws, batch, row) for row in range(COUNT)])
    x_l = x_t + (l - t)[:, None] * target
    F_t, F_l = velocity(x_t, t, labels, shown), velocity(x_l, l, labels, shown)
    q = target - F_t + ((s - l) / (t - l))[:, None] * (F_t - F_l)
    found = losses.terms["consistency"].squared
    torch.testing.assert_close(found, (q**2).mean(1), rtol=1e-3, atol=1e-4)


def test_every_pass_of_a_sample_uses_its_own_guidance():
    draws, batch, _, net = a_step(flow_matching_share=0.5)
    own = {
        (int(label), *row): bool(dropped)
        for label, row, dropped in zip(
            batch.labels, draws.guidance.tolist(), draws.dropped, strict=True
        )
    }
    seen = [
        (int(label), *row)
        for labels, guidance, *_ in net.seen
        for label, row in zip(labels, guidance.tolist(), strict=True)
    ]
    null = [row for label, *row in seen if label == CLASSES]
    assert {tuple(row) for row in null} == {(1, 0, 1)}
    labelled = {one for one in seen if one[0] != CLASSES}
    kept = {one for one, dropped in own.items() if not dropped}
    # The label of a sample with a dropped label only enters the pass that is mixed in.
    assert kept <= labelled
    assert {one for one in labelled if one not in own} <= {(y, 1, 0, 1) for y in range(CLASSES)}


def test_slices_of_draws_include_their_guidance():
    draws = soflow.JumpFlow(guidance=DRAWN).draw((16, 2), torch.Generator().manual_seed(0))
    half = draws.rows(slice(1, None, 2))
    assert torch.equal(half.guidance, draws.guidance[1::2])


def test_drawn_scales_do_not_change_the_other_draws():
    fixed, drawn = (
        soflow.JumpFlow(guidance=one).draw((16, 2), torch.Generator().manual_seed(0))
        for one in (dataclasses.replace(DRAWN, max_scale=None), DRAWN)
    )
    names = ("noise", "t", "s", "dropped")
    assert all(torch.equal(getattr(fixed, name), getattr(drawn, name)) for name in names)


def test_the_default_scale_is_in_the_drawn_range():
    with pytest.raises(InputError, match="max_scale"):
        DrawnGuidance(scale=3.0, max_scale=2.0)
    assert DrawnGuidance(scale=1.0, max_scale=2.0).active
    assert not DrawnGuidance().active


@pytest.mark.parametrize(
    ("scale", "interval"),
    [
        (4.5, None), (0.5, None), (float("nan"), None), ("many", None), ([[2.0]], None),
        (2.0, (0.6, 1.0)), (2.0, (0.0, 0.4)), (2.0, (0.1,)), (2.0, (0.0, 1.1)),
    ],
)  # fmt: skip
def test_guidance_outside_the_trained_range_is_rejected(scale, interval):
    with pytest.raises(InputError, match="guidance"):
        DRAWN.chosen(scale, interval)


def test_chosen_guidance():
    def near(rows):
        return pytest.approx(rows, abs=1e-6)

    assert DRAWN.chosen().tolist() == near([1.5, 0, 1])
    assert DRAWN.chosen(4, (0.1, 0.9)).tolist() == near([4, 0.1, 0.9])
    assert DRAWN.chosen([1, 2]).tolist() == [[1, 0, 1], [2, 0, 1]]


def test_a_larger_scale_moves_samples_towards_their_class():
    """Guidance separates the means of two overlapping classes as the scale predicts."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    guidance = DrawnGuidance(max_scale=4.0, mix=1.0, decay_time=1.0, label_dropout=0.2)
    objective = soflow.JumpFlow(guidance=guidance, p=0.0)
    network = soflow.MLP((1,), 2, width=32, depth=2, takes_guidance=True)
    model = soflow.FlowModel(network, (1,), 2, guidance=guidance)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(300):
        labels = torch.arange(256) % 2
        data = (labels[:, None] - 0.5) + 0.7 * torch.randn(256, 1, generator=generator)
        draws = objective.draw(data.shape, generator)
        loss = objective(model, soflow.Batch(data, labels), draws, step / 300).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = torch.arange(1000) % 2
    gaps = []
    for scale in (1.0, 2.0, 4.0):
        samples = soflow.sample_many(model, 1000, labels, guidance=scale)[:, 0].detach()
        gaps.append(float(samples[labels == 1].mean() - samples[labels == 0].mean()))
    assert gaps[0] == pytest.approx(1.0, abs=0.25)  # the distance in the data
    assert gaps[0] + 0.3 < gaps[1]
    assert gaps[1] + 0.3 < gaps[2]
