"""SoFlow equals closed forms and the paper's form of the loss."""

import dataclasses

import pytest
import torch
from torch import nn

from soflow.guidance import Guidance
from soflow.noising import LinearNoising, TrigNoising
from soflow.objectives.base import Draws
from soflow.objectives.soflow import SoFlow
from soflow.parameterization import EulerParameterization, TrigParameterization
from soflow.solution import FlowModel
from soflow.symbols import Batch, across, mean_d
from soflow.times import middle_time
from support.exact import Exact

EVERY = [
    (p, q)
    for p in (LinearNoising(), TrigNoising())
    for q in (EulerParameterization(), TrigParameterization())
]


def model(net, noising=None, parameterization=None, shape=(3,)):
    noising, parameterization = (
        noising or LinearNoising(),
        parameterization or EulerParameterization(),
    )
    return FlowModel(
        net, noising=noising, parameterization=parameterization, shape=shape, num_classes=4
    )


def hand_made(count, shape=(3,), data=None):
    """Draws in float64, half of them jumps, with matching data."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    t = 0.2 + 0.75 * torch.rand(count, generator=generator, dtype=torch.float64)
    s = t * torch.rand(count, generator=generator, dtype=torch.float64) * 0.9
    if data is None:
        data = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return Batch(data), Draws(noise, t, s, torch.zeros(count).bool(), count // 2)


def labelled(batch, draws, **changes):
    """The same with labels 0 to 3, and changes to the draws."""
    labels = torch.arange(len(batch)) % 4
    return dataclasses.replace(batch, labels=labels), dataclasses.replace(draws, **changes)


class Small(nn.Module):
    """A smooth float64 network of x, t, s and the label."""

    def __init__(self, dimensions=3, classes=4):
        super().__init__()
        self.table = nn.Embedding(classes + 1, 8)
        self.inner = nn.Linear(dimensions + 2, 8)
        self.outer = nn.Linear(8, dimensions)
        self.classes = classes
        self.double()

    def forward(self, x, t, s, labels=None):
        labels = torch.full((len(x),), self.classes) if labels is None else labels
        hidden = self.inner(torch.cat([x, t[:, None], s[:, None]], dim=1)) + self.table(labels)
        return self.outer(torch.tanh(hidden))


def flow_matching(objective, flow_model, batch, draws):
    """Returns the flow-matching term for all samples."""
    draws = dataclasses.replace(draws, n_flow_matching=len(batch))
    return objective.terms(flow_model, batch, draws, draws.t[:0])["flow_matching"]


def consistency(objective, flow_model, batch, draws, l):
    """Returns the consistency term for all samples."""
    draws = dataclasses.replace(draws, n_flow_matching=0)
    return objective.terms(flow_model, batch, draws, l)["consistency"]


@pytest.mark.parametrize("parameterization", [EulerParameterization(), TrigParameterization()])
def test_both_losses_are_zero_at_the_exact_map_of_a_point_and_positive_near_it(parameterization):
    noising, a = LinearNoising(), 0.7
    batch, draws = hand_made(64, data=torch.full((64, 3), a, dtype=torch.float64))
    exact = Exact(noising, parameterization, a=a)
    parts = SoFlow()(model(exact, noising, parameterization), batch, draws, 0.5).parts
    assert float(parts["flow_matching_mse"].max()) < 1e-20
    assert float(parts["consistency_mse"].max()) < 1e-20
    near = model(lambda *inputs: exact(*inputs) + 0.1, noising, parameterization)
    near = SoFlow()(near, batch, draws, 0.5).parts
    assert float(near["flow_matching_mse"].min()) > 5e-3
    assert float(near["consistency_mse"].min()) > 1e-3


@pytest.mark.parametrize("parameterization", [EulerParameterization(), TrigParameterization()])
def test_on_curved_trajectories_the_quotient_at_the_exact_map_is_proportional_to_r(
    parameterization,
):
    batch, draws = hand_made(64, data=torch.full((64, 3), 0.7, dtype=torch.float64))
    noising = TrigNoising()
    exact = model(Exact(noising, parameterization, a=0.7), noising, parameterization)

    def quotient(r):
        term = consistency(SoFlow(), exact, batch, draws, middle_time(draws.t, draws.s, r))
        return float(term.squared.mean().sqrt())

    assert quotient(0.02) / quotient(0.01) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("c", [0.3, 1.5])
def test_the_mean_consistency_gradient_of_a_gaussian_vanishes_with_r(c):
    """At the exact map, q averages to zero up to a term in r: the map is a fixed point.

    Antithetic pairs, with equal x_t and with v_t mirrored at its mean, reduce the noise.
    """
    generator = torch.Generator().manual_seed(0)
    count = 400_000
    data, noise = (
        torch.randn(count, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    half = count // 2
    t, s = (torch.full((count,), time, dtype=torch.float64) for time in (0.6, 0.1))
    noising, parameterization = LinearNoising(), EulerParameterization()
    point = noising.sample(c * data, noise, t)
    exact = Exact(noising, parameterization, c=c)
    mirrored = 2 * exact.velocity(point.x_t, t) - point.v_t
    data = torch.cat([(point.x_t - t[:, None] * v)[:half] for v in (point.v_t, mirrored)])
    noise = torch.cat([(point.x_t + (1 - t)[:, None] * v)[:half] for v in (point.v_t, mirrored)])
    batch, draws = Batch(data), Draws(noise, t, s, torch.zeros(count).bool(), 0)

    def mean_q(r):
        outputs = []

        def net(x, t, s, labels=None):
            outputs.append(exact(x, t, s).requires_grad_())
            return outputs[-1]

        flow_model = model(net, noising, parameterization, shape=(1,))
        loss = consistency(SoFlow(p=0.0), flow_model, batch, draws, middle_time(t, s, r)).loss
        (gradient,) = torch.autograd.grad(loss.sum(), outputs[-1])
        weight = point.x_t[:half].repeat(2, 1)  # project on a function of x_t
        return abs(float((gradient * weight).mean()))

    assert mean_q(0.2) > 1e-4
    assert mean_q(0.002) < 0.03 * mean_q(0.2)


@pytest.mark.parametrize(("noising", "parameterization"), EVERY)
def test_the_surrogate_has_half_the_gradient_of_the_papers_squared_form(noising, parameterization):
    net = Small()
    batch, draws = hand_made(16)
    l = middle_time(draws.t, draws.s, 0.05)
    term = consistency(SoFlow(), model(net, noising, parameterization), batch, draws, l)
    ours = torch.autograd.grad(term.loss.mean(), list(net.inner.parameters()))

    # The paper: w / ((t - l) |b(t, s)|) mean_d (f(x_t, t, s) - sg f(x_l, l, s))^2, with w constant.
    point = noising.sample(batch.data, draws.noise, draws.t)
    x_l = point.x_t + point.v_t * across(l - draws.t, point.x_t)
    f_l = parameterization.solution(x_l, l, draws.s, net(x_l, l, draws.s)).detach()
    f_t = parameterization.solution(point.x_t, draws.t, draws.s, net(point.x_t, draws.t, draws.s))
    scale = term.weight / ((draws.t - l) * parameterization.b(draws.t, draws.s).abs())
    paper = torch.autograd.grad(
        (scale * mean_d((f_t - f_l) ** 2)).mean(), list(net.inner.parameters())
    )
    for half, whole in zip(ours, paper, strict=True):
        torch.testing.assert_close(2 * half, whole, rtol=1e-9, atol=1e-12)


def test_adaptive_weights_interpolate_between_the_square_and_its_logarithm():
    """The gradient is that of the mean square at p = 0, and of log(square + eps) at p = 1."""
    net = Small()
    batch, draws = hand_made(16)
    point = LinearNoising().sample(batch.data, draws.noise, draws.t)
    parameters = list(net.parameters())[1:]

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    squared = mean_d((net(point.x_t, draws.t, draws.t) - point.v_t) ** 2)
    plain = flow_matching(SoFlow(p=0.0), model(net), batch, draws).loss.mean()
    torch.testing.assert_close(gradient(plain), gradient(squared.mean()))
    squared = mean_d((net(point.x_t, draws.t, draws.t) - point.v_t) ** 2)
    weighted = flow_matching(SoFlow(eps=0.3), model(net), batch, draws).loss.mean()
    torch.testing.assert_close(gradient(weighted), gradient(torch.log(squared + 0.3).mean()))


def test_the_flow_matching_weight_is_divided_by_the_slope_of_b():
    """At p = 0, the error counts 2 / pi times for trigonometric networks, once for Euler ones."""
    batch, draws = hand_made(8)
    slopes = {EulerParameterization(): 1.0, TrigParameterization(): 0.6366197723675814}
    for parameterization, expected in slopes.items():
        flow_model = model(Small(), None, parameterization)
        term = flow_matching(SoFlow(p=0.0), flow_model, batch, draws)
        torch.testing.assert_close(term.loss, expected * term.squared)


def test_the_total_is_the_mean_over_samples_of_both_terms():
    net = Small()
    batch, draws = hand_made(16)
    draws = dataclasses.replace(draws, n_flow_matching=12)
    objective, flow_model, fm, scm = SoFlow(), model(net), slice(12), slice(12, None)
    l = objective.middle(draws.t[scm], draws.s[scm], 0.3)
    first = flow_matching(objective, flow_model, batch.rows(fm), draws.rows(fm))
    second = consistency(objective, flow_model, batch.rows(scm), draws.rows(scm), l)
    expected = 12 / 16 * first.loss.mean() + 4 / 16 * second.loss.mean()
    torch.testing.assert_close(objective(flow_model, batch, draws, 0.3).total, expected)


@pytest.mark.parametrize("n_flow_matching", [0, 16])
def test_one_term_alone(n_flow_matching):
    batch, draws = hand_made(16)
    draws = dataclasses.replace(draws, n_flow_matching=n_flow_matching)
    losses = SoFlow()(model(Small()), batch, draws, 0.3)
    assert len(losses.parts["flow_matching_mse"]) == n_flow_matching
    assert len(losses.parts["consistency_mse"]) == 16 - n_flow_matching
    assert losses.total.isfinite()


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_guided_flow_matching_has_the_residual_m_times_prediction_minus_guided(mix):
    net, guidance = Small(), Guidance(scale=2.5, mix=mix, label_dropout=0.5, decay_time=1.0)
    dropped = torch.arange(16) % 3 == 0
    batch, draws = labelled(*hand_made(16), dropped=dropped)
    squared = flow_matching(SoFlow(guidance=guidance), model(net), batch, draws).squared
    for i in range(16):  # sample by sample
        x0, x1, t = batch.data[i], draws.noise[i], draws.t[i]
        x, v = ((1 - t) * x0 + t * x1)[None], x1 - x0
        null = net(x, t[None], t[None], torch.tensor([4]))[0]
        if dropped[i]:
            residual = null - v
        else:
            own = net(x, t[None], t[None], batch.labels[i : i + 1])[0]
            residual = mix * (own - (v + 1.5 * (v - null)))
        expected = float((residual**2).mean().detach())
        assert float(squared[i]) == pytest.approx(expected, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_guided_consistency_steps_along_the_mixed_velocity(mix):
    net, guidance = Small(), Guidance(scale=2.5, mix=mix, label_dropout=0.5, decay_time=1.0)
    dropped = torch.arange(16) % 3 == 0
    batch, draws = labelled(*hand_made(16), dropped=dropped)
    l = middle_time(draws.t, draws.s, 0.1)
    squared = consistency(SoFlow(guidance=guidance), model(net), batch, draws, l).squared
    for i in range(16):
        t, s, m = draws.t[i], draws.s[i], l[i]
        x, v = ((1 - t) * batch.data[i] + t * draws.noise[i])[None], draws.noise[i] - batch.data[i]
        label = int(batch.labels[i])
        shown = torch.tensor([4 if dropped[i] else label])
        if not dropped[i]:
            null, own = (net(x, t[None], t[None], torch.tensor([y]))[0] for y in (4, label))
            v = mix * (v + 1.5 * (v - null)) + (1 - mix) * own
        y = x - (t - m) * v
        f_t = x - (t - s) * net(x, t[None], s[None], shown)
        f_l = y - (m - s) * net(y, m[None], s[None], shown)
        expected = float((((f_t - f_l) / (t - m)) ** 2).mean().detach())
        assert float(squared[i]) == pytest.approx(expected, rel=1e-6)


def test_both_passes_of_the_consistency_pair_share_their_dropout_mask():
    """With dropout alone, q = v_t - F under one mask, and in the hundreds under two masks."""
    dropout, outputs = nn.Dropout(0.5), []

    def net(x, t, s, labels=None):
        outputs.append(dropout(torch.ones_like(x)).requires_grad_())
        return outputs[-1]

    batch, draws = hand_made(32, shape=(50,))
    l = middle_time(draws.t, draws.s, 0.002)
    term = consistency(SoFlow(), model(net, shape=(50,)), batch, draws, l)
    assert torch.equal(*outputs)
    v_t = draws.noise - batch.data
    torch.testing.assert_close(term.squared, mean_d((v_t - outputs[0].detach()) ** 2))


def test_draws_depend_on_the_generator_and_keep_their_order_in_microbatches():
    objective = SoFlow(guidance=Guidance(2.0, label_dropout=0.3))
    draws = objective.draw((64, 3), torch.Generator().manual_seed(5))
    again = objective.draw((64, 3), torch.Generator().manual_seed(5))
    assert torch.equal(draws.noise, again.noise)
    assert draws.n_flow_matching == 48
    assert torch.equal(draws.t[:48], draws.s[:48])
    assert bool((draws.s[48:] < draws.t[48:]).all())
    parts = [draws.rows(slice(i, None, 3)) for i in range(3)]
    assert sum(part.n_flow_matching for part in parts) == 48
    for i, part in enumerate(parts):
        assert torch.equal(part.t, draws.t[i::3])
        assert torch.equal(part.t[: part.n_flow_matching], part.s[: part.n_flow_matching])
    assert 5 < int(draws.dropped.sum()) < 35


def test_without_guidance_labels_are_not_dropped():
    assert not SoFlow().draw((1000, 3), torch.Generator()).dropped.any()


def test_bfloat16_autocast_keeps_the_gradient_direction_of_every_parameter():
    torch.manual_seed(0)
    net = Small().float()
    objective = SoFlow(guidance=Guidance(2.0, label_dropout=0.2))
    batch = Batch(torch.randn(256, 3), torch.arange(256) % 4)
    draws = objective.draw((256, 3), torch.Generator().manual_seed(0))

    def gradients():
        total = objective(model(net), batch, draws, 0.5).total
        return torch.autograd.grad(total, list(net.parameters()))

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients()
    for one, two in zip(exact, rounded, strict=True):
        assert float(torch.cosine_similarity(one.flatten(), two.flatten(), dim=0)) > 0.98


def test_bfloat16_autocast_leaves_the_consistency_pair_in_float32():
    seen = []

    class Linear(nn.Linear):
        def forward(self, x, t, s, labels=None):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    draws = SoFlow().draw((8, 3), torch.Generator())
    with torch.autocast("cpu", torch.bfloat16):
        SoFlow()(model(Linear(3, 3)), Batch(torch.randn(8, 3)), draws, 0.5)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_one_pass_for_both_terms_equals_two_passes(scale):
    """Modules get the rows of both terms together, plain functions get them separately."""
    net = Small()
    batch, draws = labelled(*hand_made(16), n_flow_matching=11)
    objective = SoFlow(guidance=Guidance(scale))
    apart = objective(model(lambda *inputs: net(*inputs)), batch, draws, 0.3)
    as_one = objective(model(net), batch, draws, 0.3)
    for name, value in apart.parts.items():
        torch.testing.assert_close(as_one.parts[name], value)
    parameters = list(net.parameters())
    gradients = (
        torch.autograd.grad(losses.total, parameters, allow_unused=True)
        for losses in (as_one, apart)
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("layer", "rows"),
    [
        (nn.Dropout(0.0), [20, 4, 16]),
        (nn.Dropout(0.3), [20, 4, 4, 12]),
        (nn.Dropout2d(0.3), [20, 4, 4, 12]),
        (nn.AlphaDropout(0.3), [20, 4, 4, 12]),
        (nn.MultiheadAttention(4, 1, dropout=0.3), [20, 4, 4, 12]),
        (nn.MultiheadAttention(4, 1, dropout=0.3).eval(), [20, 4, 16]),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.3), [20, 4, 4, 12]),
    ],
)
def test_passes_are_shared_unless_dropout_masks_would_differ(layer, rows):
    """Guiding velocities (16 null, 4 with label), targets of 4 jumps, then passes with gradient."""
    seen, learning = [], []

    class Dropping(Small):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t, s, labels=None):
            seen.append(len(x))
            learning.append(torch.is_grad_enabled())
            return super().forward(x, t, s, labels)

    batch, draws = labelled(*hand_made(16), n_flow_matching=12)
    SoFlow(guidance=Guidance(2.5))(model(Dropping()), batch, draws, 0.3)
    assert seen == rows
    assert learning == [False, False, *[True] * (len(rows) - 2)]
