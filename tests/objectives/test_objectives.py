"""All objectives except SoFlow: closed forms, resuming, precision and network passes.

Each has zero error at the true map of a point and of a Gaussian, and larger errors near it.
"""

import copy
import dataclasses
import pickle
from math import exp

import jaxtyping
import pytest
import torch
from torch import nn

import soflow
from soflow.assemble import make_model, make_network, make_objective
from soflow.config import read_recipe
from soflow.data.batches import seeded_generator
from soflow.errors import InputError
from soflow.guidance import Guidance
from soflow.noising import LinearNoising, TrigNoising
from soflow.objectives import OBJECTIVES
from soflow.objectives.alpha_flow import AlphaFlow
from soflow.objectives.consistency import Consistency
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.guided import network_labels
from soflow.objectives.imf import ImprovedMeanFlow, ImprovedMeanFlowGuidance
from soflow.objectives.mean_flow import MeanFlow, MeanFlowGuidance
from soflow.objectives.shortcut import HALVINGS, Shortcut
from soflow.parameterization import EulerParameterization, TrigParameterization
from soflow.solution import FlowModel
from soflow.symbols import Batch, mean_d
from soflow.times import LogitNormal, MiddleTime
from soflow.training.ema import Ema
from support.exact import Exact
from support.objectives import random_dit
from support.resuming import train_and_resume
from support.settings import TINY_DIT

PEERS = ["flow_matching", "mean_flow", "imf", "alpha_flow", "shortcut", "consistency"]
GUIDANCE = {
    "mean_flow": MeanFlowGuidance,
    "imf": ImprovedMeanFlowGuidance,
    "alpha_flow": MeanFlowGuidance,
}
TIMES = LogitNormal(0.0, 1.0)
EULER = EulerParameterization()


def peer(name, middle=None, **settings):
    """An objective with p = 0 and half of the batch for each of its terms."""
    middle = middle or MiddleTime("constant", 0.01, 0.01)
    return {
        "flow_matching": lambda: FlowMatching(times=TIMES, **settings),
        "mean_flow": lambda: MeanFlow(0.5, p=0.0, times=TIMES, **settings),
        "imf": lambda: ImprovedMeanFlow(0.5, p=0.0, times=TIMES, **settings),
        "alpha_flow": lambda: AlphaFlow(0.5, times=TIMES, **settings),
        "shortcut": lambda: Shortcut(0.5, times=TIMES, **settings),
        "consistency": lambda: Consistency(p=0.0, times=TIMES, middle=middle, **settings),
    }[name]()


def model(net, noising=None, parameterization=EULER, num_classes=0, shape=(3,), average=None):
    noising = noising or LinearNoising()
    return FlowModel(
        net,
        noising=noising,
        parameterization=parameterization,
        shape=shape,
        num_classes=num_classes,
        average=average,
    )


def dit_model(network):
    return model(network, num_classes=10, shape=(1, 8, 8), average=network)


def float64(draws):
    """Converts the draws to float64."""
    noise, t, s = (x.double() for x in (draws.noise, draws.t, draws.s))
    return dataclasses.replace(draws, noise=noise, t=t, s=s)


def drawn(objective, count=64, seed=0):
    return float64(objective.draw((count, 3), torch.Generator().manual_seed(seed)))


def errors(objective, flow_model, data, draws):
    """Returns the squared errors of each term."""
    losses = objective(flow_model, Batch(data), draws, 0.5)
    return {name: value for name, value in losses.parts.items() if name.endswith("_mse")}


@pytest.mark.parametrize("name", PEERS)
def test_the_error_is_zero_at_the_exact_map_of_a_point_and_positive_near_it(name):
    objective, a = peer(name), 0.7
    draws, exact = drawn(objective), Exact(LinearNoising(), EULER, a=a)
    data = torch.full((64, 3), a, dtype=torch.float64)
    for squared in errors(objective, model(exact), data, draws).values():
        assert float(squared.max()) < 1e-18

    def near(x, t, s, labels=None):
        return exact(x, t, s) + 0.1 * torch.cos(3 * t + s)[:, None] * x

    for squared in errors(objective, model(near), data, draws).values():
        assert float(squared.mean()) > 1e-5


@pytest.mark.parametrize("noising", [LinearNoising(), TrigNoising()])
@pytest.mark.parametrize("c", [0.4, 1.6])
def test_two_half_steps_of_a_shortcut_are_exact_for_a_gaussian(noising, c):
    objective = peer("shortcut")
    draws = drawn(objective)
    data = c * torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = Exact(noising, EULER, c=c)
    squared = errors(objective, model(exact, noising), data, draws)["shortcut_mse"]
    x_t, t, s = noising.sample(data, draws.noise, draws.t).x_t[32:], draws.t[32:], draws.s[32:]
    shortest = t - s == 2.0**-HALVINGS
    assert 0 < int(shortest.sum()) < 32
    assert float(squared[~shortest].max()) < 1e-20
    # The shortest steps are trained towards two Euler steps of the velocity.
    d = 0.5 ** (HALVINGS + 1)
    first = exact.velocity(x_t, t)
    second = exact.velocity(x_t - d * first, t - d)
    expected = mean_d(((first + second) / 2 - exact(x_t, t, s)) ** 2)
    torch.testing.assert_close(squared[shortest], expected[shortest])


class Moved(nn.Module):
    """The exact map plus theta times a bump.

    The gradient at theta = 0 is the mean gradient of the loss at the exact map.
    """

    def __init__(self, exact):
        super().__init__()
        self.exact, self.theta = exact, nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x, t, s, labels=None):
        bump = self.theta[0] * x + self.theta[1] * torch.sin(2 * t + s)[:, None] * x
        return self.exact(x, t, s) + bump


@pytest.mark.parametrize("noising", [LinearNoising(), TrigNoising()])
@pytest.mark.parametrize("name", ["flow_matching", "mean_flow", "imf"])
def test_the_mean_gradient_at_the_exact_map_of_a_gaussian_vanishes(name, noising):
    """Velocity noise cancels over pairs with equal x_t and with v_t mirrored at its mean."""
    c, count = 0.6, 200
    objective = peer(name)
    draws = drawn(objective, count)
    t = draws.t
    exact, module = Exact(noising, EULER, c=c), Moved(Exact(noising, EULER, c=c))
    generator = torch.Generator().manual_seed(2)
    data = c * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    point = noising.sample(data, draws.noise, t)
    mean = exact.velocity(point.x_t, t)
    gradient = torch.zeros(2, dtype=torch.float64)
    size = 0.0
    for v in (point.v_t, 2 * mean - point.v_t):
        # solve [alpha beta; alpha' beta'] (data, noise) = (x_t, v) for data and noise
        functions = (noising.alpha, noising.beta, noising.d_alpha, noising.d_beta)
        alpha, beta, d_alpha, d_beta = (f(t)[:, None] for f in functions)
        determinant = alpha * d_beta - beta * d_alpha
        data = (d_beta * point.x_t - beta * v) / determinant
        noise = (alpha * v - d_alpha * point.x_t) / determinant
        same = dataclasses.replace(draws, noise=noise)
        total = objective(model(module, noising), Batch(data), same, 0.5).total
        (part,) = torch.autograd.grad(total, module.theta)
        gradient, size = gradient + part, size + float(part.abs().max())
    assert float(gradient.abs().max()) < 1e-10 * max(size, 1)
    assert size > 1e-3  # only the sum over a pair vanishes


def test_the_gradient_of_consistency_training_on_a_gaussian_vanishes_with_r():
    c, count, exact = 0.6, 100_000, Exact(LinearNoising(), EULER, c=0.6)
    generator = torch.Generator().manual_seed(3)
    data, noise = (
        torch.randn(count, 1, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    t = torch.full((count,), 0.6, dtype=torch.float64)

    def pull(r):
        objective = peer("consistency", middle=MiddleTime("constant", r, r))
        draws = objective.draw((count, 1), torch.Generator())
        x = 0.4 * c * data + 0.6 * noise
        mean = exact.velocity(x, t)
        gradients = []
        for v in (noise - c * data, 2 * mean - (noise - c * data)):
            module = Moved(exact)
            same = dataclasses.replace(draws, noise=x + 0.4 * v, t=t, s=torch.zeros_like(t))
            total = objective(model(module, shape=(1,)), Batch(x - 0.6 * v), same, 0.5).total
            gradients.append(torch.autograd.grad(total, module.theta)[0])
        return float((gradients[0] + gradients[1]).abs().max())

    assert pull(0.3) > 1e-3
    assert pull(0.003) < 0.02 * pull(0.3)


@pytest.mark.parametrize("flow_matching_share", [0.0, 0.6, 1.0])
def test_mean_flow_needs_no_derivative_where_s_equals_t(flow_matching_share):
    """Without it, loss and gradient are equal, and these rows cost less."""
    network = random_dit()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(10, 1, 8, 8, generator=generator, dtype=torch.float64)
    batch = Batch(data, torch.arange(10))
    guidance = MeanFlowGuidance(2.0, 0.5, 0.2)
    totals, gradients = [], []
    for derivative in ("all", "jumps"):
        objective = MeanFlow(flow_matching_share, derivative, times=TIMES, guidance=guidance)
        draws = float64(objective.draw(data.shape, torch.Generator().manual_seed(1)))
        totals.append(objective(dit_model(network), batch, draws, 0.5).total)
        trained = [p for p in network.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(totals[-1], trained))
    torch.testing.assert_close(*totals)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_derivative_in_mean_flow_is_along_the_trajectory():
    """Compares with a central difference of F along (x + h v, t + h, s), with attention."""
    network = random_dit()
    objective = MeanFlow(0.0, p=0.0, times=TIMES)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    point = LinearNoising().sample(data, draws.noise, draws.t)
    h = 1e-4
    with torch.no_grad():
        ahead, behind = (
            network(point.x_t + step * point.v_t, draws.t + step, draws.s) for step in (h, -h)
        )
        target = point.v_t - (draws.t - draws.s)[:, None, None, None] * (ahead - behind) / (2 * h)
        expected = ((network(point.x_t, draws.t, draws.s) - target) ** 2).flatten(1).mean(1)
    found = errors(objective, dit_model(network), data, draws)["mean_flow_mse"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_mean_flow_trains_a_network_whose_attention_is_fused():
    """Gradients reach all parameters, although fused kernels have no forward-mode derivative."""
    network = random_dit(double=False)
    objective = MeanFlow(0.5, times=TIMES, guidance=MeanFlowGuidance(2.0, 0.5, 0.3))
    batch = Batch(torch.randn(8, 1, 8, 8), torch.arange(8))
    draws = objective.draw((8, 1, 8, 8), torch.Generator().manual_seed(0))
    objective(dit_model(network), batch, draws, 0.0).total.backward()
    assert all(
        parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad
    )


def linear_in_x(k):
    """A network F(x, t, s, y) = k_y x. Its derivative along the trajectory is k_y dx/dt."""

    def net(x, t, s, labels):
        return k[labels][:, None] * x

    return net


K = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)  # 2 is the null label
LABELS, DROPPED = torch.tensor([0, 1, 0, 1]), torch.tensor([False, False, True, False])


def guided_case(objective):
    """Data and draws, x_t, v_t, and the k of the labels after dropping."""
    data = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = float64(objective.draw((4, 3), torch.Generator().manual_seed(1)))
    draws = dataclasses.replace(draws, dropped=DROPPED)
    x_t, v_t = LinearNoising().add_noise(data, draws.noise, draws.t), draws.noise - data
    return Batch(data, LABELS), draws, x_t, v_t, K[torch.where(DROPPED, 2, LABELS)][:, None]


@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_mean_flow_is_guided_as_in_its_paper(mix):
    """v = omega v_t + (1 - omega - kappa) F(null) + kappa F(y).

    In the paper's symbols, kappa = 1 - mix and omega = mix scale.
    """
    scale = 2.5
    objective = peer("mean_flow", guidance=MeanFlowGuidance(scale, mix, 0.5))
    batch, draws, x_t, v_t, k = guided_case(objective)
    kappa, omega = 1 - mix, mix * scale
    paper = omega * v_t + (1 - omega - kappa) * K[2] * x_t + kappa * K[LABELS][:, None] * x_t
    v = torch.where(DROPPED[:, None], v_t, paper)
    target = v - (draws.t - draws.s)[:, None] * k * v
    flow = model(linear_in_x(K), num_classes=2)
    found = objective(flow, batch, draws, 0.0).parts["mean_flow_mse"]
    torch.testing.assert_close(found, ((k * x_t - target) ** 2).mean(1))


def test_improved_mean_flow_rejects_other_guidance(monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # it checks types in tests only
    with pytest.raises(InputError, match="ImprovedMeanFlowGuidance"):
        ImprovedMeanFlow(guidance=MeanFlowGuidance(2.0))


@pytest.mark.parametrize("name", ["mean_flow", "imf", "alpha_flow"])
def test_objectives_that_take_derivatives_can_be_pickled(name):
    objective = OBJECTIVES[name]()
    assert pickle.loads(pickle.dumps(objective)) == objective


def test_improved_mean_flow_is_guided_as_in_its_paper():
    """v = v_t + (1 - 1 / omega) (F(y) - F(null)), and the derivative is along F(x_t, t, t, y)."""
    scale = 2.5
    objective = peer("imf", guidance=ImprovedMeanFlowGuidance(scale, label_dropout=0.5))
    batch, draws, x_t, v_t, k = guided_case(objective)
    paper = v_t + (1 - 1 / scale) * (K[LABELS][:, None] - K[2]) * x_t
    v = torch.where(DROPPED[:, None], v_t, paper)
    V = k * x_t + (draws.t - draws.s)[:, None] * k * (k * x_t)
    flow = model(linear_in_x(K), num_classes=2)
    found = objective(flow, batch, draws, 0.0).parts["imf_mse"]
    torch.testing.assert_close(found, ((V - v) ** 2).mean(1))


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 1.0), (0.55, None), (1.0, 0.0)])
@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_alpha_flow_is_guided_like_mean_flow(mix, progress, alpha):
    """The target and x_l use v = m (v_t + (omega - 1) (v_t - F(null))) + (1 - m) F(y)."""
    scale = 2.5
    objective = peer("alpha_flow", guidance=MeanFlowGuidance(scale, mix, 0.5))
    batch, draws, x_t, v_t, k = guided_case(objective)
    guided = v_t + (scale - 1) * (v_t - K[2] * x_t)
    mixed = mix * guided + (1 - mix) * K[LABELS][:, None] * x_t
    v = torch.where(DROPPED[:, None], v_t, mixed)
    alpha = objective.alpha(progress) if alpha is None else alpha
    length = (draws.s - draws.t)[:, None]
    target = alpha * v + (1 - alpha) * k * (x_t + alpha * length * v)
    if alpha == 0:
        target = v + length * k * v
    target = torch.where(length == 0, v, target)
    flow = model(linear_in_x(K), num_classes=2)
    found = objective(flow, batch, draws, progress).parts["alpha_flow_mse"]
    torch.testing.assert_close(found, ((k * x_t - target) ** 2).mean(1))


@pytest.mark.parametrize("name", ["flow_matching", "mean_flow", "imf", "alpha_flow", "shortcut"])
def test_samples_without_a_label_in_the_data_are_trained_like_those_whose_label_was_dropped(name):
    objective = peer(name, guidance=GUIDANCE.get(name, Guidance)(3.0, label_dropout=0.5))
    network = random_dit()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    labels = torch.arange(8)
    missing = Batch(data, torch.where(labels % 2 == 0, 10, labels))
    flow = model(network, num_classes=10, shape=(1, 8, 8), average=network)
    none = dataclasses.replace(draws, dropped=torch.zeros(8, dtype=torch.bool))
    dropped = dataclasses.replace(draws, dropped=labels % 2 == 0)
    found, expected = (
        objective(flow, *pair, 0.5) for pair in ((missing, none), (Batch(data, labels), dropped))
    )
    torch.testing.assert_close(found.total, expected.total)
    for part, value in expected.parts.items():
        torch.testing.assert_close(found.parts[part], value)


@pytest.mark.parametrize("p", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("eps", [0.01, 0.3])
@pytest.mark.parametrize(("name", "kind"), [("mean_flow", MeanFlow), ("imf", ImprovedMeanFlow)])
def test_mean_flow_is_weighted_by_the_error_summed_over_dimensions(name, kind, p, eps):
    """loss = sum_d(delta^2) / sg(sum_d(delta^2) + eps)^p"""
    network, objective = random_dit(), kind(0.5, p=p, eps=eps, times=TIMES)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    losses = objective(dit_model(network), Batch(data), draws, 0.0)
    summed = 64 * losses.parts[f"{name}_mse"]
    torch.testing.assert_close(losses.total, (summed / (summed + eps) ** p).mean())


def test_improved_mean_flow_takes_the_derivative_along_the_networks_own_velocity():
    """Compares with a central difference along (x + h F(x, t, t), t + h, s)."""
    network = random_dit()
    objective = ImprovedMeanFlow(0.25, p=0.0, times=TIMES)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    point, s, h = LinearNoising().sample(data, draws.noise, draws.t), draws.s, 1e-4
    with torch.no_grad():
        own = network(point.x_t, point.t, point.t)
        ahead, behind = (network(point.x_t + step * own, point.t + step, s) for step in (h, -h))
        length = (point.t - s)[:, None, None, None]
        V = network(point.x_t, point.t, s) + length * (ahead - behind) / (2 * h)
        expected = ((V - point.v_t) ** 2).flatten(1).mean(1)
    found = errors(objective, dit_model(network), data, draws)["imf_mse"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_alpha_falls_from_one_to_zero_in_its_interval():
    """A sigmoid of steepness 25 over the interval, as published; clamped near 0 and 1."""
    steep = AlphaFlow(begin=0.0, end=0.03)
    assert [steep.alpha(progress) for progress in (0.0, 0.03, 1.0)] == [1.0, 0.0, 0.0]
    objective = AlphaFlow(begin=0.2, end=0.8)
    assert objective.alpha(0.5) == 0.5
    assert objective.alpha(0.55) == pytest.approx(1 - 1 / (1 + exp(-25 * 0.05 / 0.6)))
    unclamped = AlphaFlow(clamp=0.0, steepness=10.0)
    assert unclamped.alpha(1.0) == pytest.approx(1 / (1 + exp(5)))
    with pytest.raises(InputError, match=r"objective\.begin"):
        AlphaFlow(begin=0.5, end=0.5)


@pytest.mark.parametrize(("share", "jumps"), [(0.9, 1), (0.75, 3), (1.0, 0)])
def test_the_share_of_shortcuts_steps_is_not_lost_to_rounding(share, jumps):
    draws = Shortcut(share).draw((10, 2), torch.Generator().manual_seed(0))
    assert int((draws.t > draws.s).sum()) == 10 - draws.n_flow_matching == jumps


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 1.0), (0.55, None), (1.0, 0.0)])
def test_alpha_flow_goes_from_flow_matching_to_mean_flow(progress, alpha):
    network, objective = random_dit(), AlphaFlow(0.0, times=TIMES)
    assert alpha in (None, objective.alpha(progress))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    point, s = LinearNoising().sample(data, draws.noise, draws.t), draws.s
    found = objective(dit_model(network), Batch(data), draws, progress).parts["alpha_flow_mse"]
    if alpha == 0:
        mean_flow = errors(MeanFlow(0.0, p=0.0), dit_model(network), data, draws)
        torch.testing.assert_close(found, mean_flow["mean_flow_mse"])
        return
    with torch.no_grad():
        alpha = objective.alpha(progress)
        l = point.t + alpha * (s - point.t)
        x_l = LinearNoising().add_noise(data, draws.noise, l)
        target = alpha * point.v_t + (1 - alpha) * network(x_l, l, s)
        expected = ((network(point.x_t, point.t, s) - target) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.55, None), (1.0, 1.0)])
@pytest.mark.parametrize("eps", [0.001, 0.3])
def test_alpha_flow_weights_jumps_by_alpha(progress, factor, eps):
    """Jumps have the weight alpha / (squared + eps), and 1 / (squared + eps) at alpha = 0."""
    network, objective = random_dit(), AlphaFlow(0.5, eps=eps, times=TIMES)
    factor = factor or objective.alpha(progress)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)
    draws = float64(objective.draw(data.shape, generator))
    losses = objective(dit_model(network), Batch(data), draws, progress)
    squared = losses.parts["alpha_flow_mse"]
    loss = squared / (squared + eps)
    factors = torch.tensor([1.0] * 4 + [factor] * 4, dtype=torch.float64)
    torch.testing.assert_close(losses.total, (factors * loss).mean())


def test_shortcut_steps_start_at_multiples_of_their_length_and_use_ema_weights():
    objective = peer("shortcut")
    draws = objective.draw((4000, 3), torch.Generator().manual_seed(0))
    t, s = draws.t[2000:].double(), draws.s[2000:].double()
    length = t - s
    assert sorted(set(length.tolist())) == [2.0**-k for k in range(6, -1, -1)]
    assert torch.equal((t / length).round(), t / length)
    assert float(s.min()) == 0
    assert float(t.max()) == 1
    counts = torch.stack([(length == 2.0**-k).sum() for k in range(7)]) / 2000
    assert float((counts - 1 / 7).abs().max()) < 0.03

    def average(x, t, s, labels=None):
        return torch.ones_like(x)

    flow_model = model(lambda x, t, s, *rest: torch.zeros_like(x), average=average)
    losses = objective(flow_model, Batch(torch.zeros(4000, 3)), draws, 0.0)
    assert torch.equal(losses.parts["shortcut_mse"], torch.ones(2000))


def test_the_averaged_network_has_the_ema_weights():
    network = make_network(read_recipe("digits", TINY_DIT))
    nn.init.normal_(network.final_layer.linear.weight)
    ema = Ema(network, decay=0.5, float64=True)
    before = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    inputs = (torch.randn(2, 1, 8, 8), torch.rand(2), torch.zeros(2), torch.tensor([1, 2]))
    torch.testing.assert_close(ema.net(*inputs), before(*inputs))
    assert not ema.net(*inputs).requires_grad


def tiny_unet(name):
    """Settings of an unconditional UNet for an objective."""
    settings = [
        "network.name=unet",
        "network.model_channels=32",
        "network.channel_mult=[1]",
        "network.blocks=1",
        "network.attention=[8]",
        "data.num_classes=0",
        "data.augment=0.1",
        "objective.guidance.scale=1",
    ]
    return settings[:-1] if name == "consistency" else settings  # without guidance


SHORT = [
    "train.batch_size=8",
    "train.log_every=2",
    "checkpoint.every=2",
    "checkpoint.keep_last=9",
    "train.sample_every=0",
    "train.steps=4",
]
SMALL_MLP = ["network.width=16", "network.depth=1"]


@pytest.mark.parametrize("name", PEERS)
def test_each_resumes_bitwise(name, tmp_path):
    """Uses a UNet, with random dropout and augmentation."""
    settings = [f"objective.name={name}", *tiny_unet(name), *SHORT]
    train_and_resume(settings, tmp_path / "run")


def test_training_passes_the_averaged_network_to_shortcut_models(tmp_path, monkeypatch):
    asked, net = [], Ema.net
    monkeypatch.setattr(
        Ema, "net", lambda self, *inputs: asked.append(len(inputs[0])) or net(self, *inputs)
    )
    soflow.train("moons", tmp_path / "run", [*SMALL_MLP, "objective.name=shortcut", *SHORT])
    assert asked == [2] * 8  # two half steps in each of four steps, for a quarter of a batch of 8


@pytest.mark.parametrize("name", PEERS)
def test_each_trains_the_mlp(name, tmp_path):
    run = soflow.train("moons", tmp_path / "run", [*SMALL_MLP, f"objective.name={name}", *SHORT])
    assert [line["step"] for line in run.read_metrics()] == [2, 4]
    weights = soflow.load(run.path, "raw", device="cpu").model.net.state_dict()
    assert float(weights["final_layer.weight"].abs().min()) > 0  # starts at zero


@pytest.mark.parametrize("name", PEERS)
def test_each_uses_the_guidance_of_the_recipe_if_it_has_guidance(name):
    config = read_recipe("digits", [f"objective.name={name}"])
    guidance = getattr(make_objective(config), "guidance", None)
    assert (guidance.scale if guidance else None) == (None if name == "consistency" else 1.15)
    assert config.optimizer == read_recipe("digits").optimizer


@pytest.mark.parametrize("name", ["mean_flow", "imf", "alpha_flow", "shortcut"])
def test_mean_velocities_need_the_euler_parameterization(name):
    with pytest.raises(InputError, match=r"noising\.parameterization=euler"):
        read_recipe("digits", [f"objective.name={name}", "noising.parameterization=trig"])
    objective, flow_model = peer(name), model(lambda x, *rest: x, None, TrigParameterization())
    with pytest.raises(InputError, match="TrigParameterization"):
        objective(flow_model, Batch(torch.zeros(64, 3)), drawn(objective), 0.0)


@pytest.mark.parametrize("parameterization", [EULER, TrigParameterization()])
def test_consistency_training_pairs_points_of_the_same_data_and_noise(parameterization):
    """f(x_t, t, 0) is evaluated at x_t and x_l of one trajectory, also of a curved one."""
    noising, seen = TrigNoising(), []

    def net(x, t, s, labels=None):
        seen.append((x, t, s))
        return x.clone().requires_grad_()

    objective = peer("consistency", MiddleTime("constant", 0.3, 0.3))
    draws = drawn(objective)
    data = torch.randn(64, 3, dtype=torch.float64)
    objective(model(net, noising, parameterization), Batch(data), draws, 0.5)
    (x_l, l, zero), (x_t, t, _) = seen
    torch.testing.assert_close(l, 0.7 * t)
    assert float(zero.abs().max()) == 0
    torch.testing.assert_close(x_l, noising.add_noise(data, draws.noise, l))
    torch.testing.assert_close(x_t, noising.add_noise(data, draws.noise, t))


def test_draws_are_a_function_of_the_generator():
    for name in PEERS:
        first, again = (
            peer(name).draw((32, 3), seeded_generator(1, "draws", 5, torch.device("cpu")))
            for _ in range(2)
        )
        assert all(
            torch.equal(getattr(first, x), getattr(again, x))
            for x in ("noise", "t", "s", "dropped")
        )
        assert bool((first.s <= first.t).all())
        assert torch.equal(first.t[: first.n_flow_matching], first.s[: first.n_flow_matching])


@pytest.mark.parametrize("name", ["soflow", "flow_matching", "shortcut"])
def test_the_gradient_of_guided_flow_matching_flows_only_through_the_prediction(name):
    """The gradient is counted once, not m times: targets and guiding velocities have none."""
    mix, scale, count = 0.25, 2.5, 12
    network = random_dit()
    guidance = Guidance(scale, mix, 0.3, 1.0)
    objective = make_objective(read_recipe("digits", [f"objective.name={name}"]))
    objective = dataclasses.replace(objective, guidance=guidance, p=1.0, eps=0.01)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    batch = Batch(data, torch.arange(count) % 10)
    draws = float64(objective.draw(data.shape, generator))
    draws = dataclasses.replace(
        draws, n_flow_matching=count, s=draws.t, dropped=torch.arange(count) % 3 == 0
    )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    total = objective(dit_model(network), batch, draws, 0.5).total
    ours = torch.autograd.grad(total, trained, allow_unused=True)

    t, keep = draws.t[:, None, None, None], (~draws.dropped)[:, None, None, None]
    x_t, v_t = (1 - t) * batch.data + t * draws.noise, draws.noise - batch.data
    labels = torch.where(draws.dropped, 10, batch.labels)
    v = network(x_t, draws.t, draws.t, labels)
    with torch.no_grad():
        null = network(x_t, draws.t, draws.t, torch.full_like(labels, 10))
        target = torch.where(keep, mix * (v_t + (scale - 1) * (v_t - null)) + (1 - mix) * v, v_t)
    squared = (v - target).square().flatten(1).mean(1)
    expected = torch.autograd.grad(
        (squared / (squared.detach() + 0.01)).mean(), trained, allow_unused=True
    )
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", PEERS)
def test_one_pass_has_a_gradient_and_the_others_have_none(name):
    """Checks the rows of each pass and whether it has a gradient. 8 of 16 samples are jumps."""
    seen = []

    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, t, s, labels=None):
            seen.append((len(x), torch.is_grad_enabled()))
            return self.scale * x

    net = Recording()
    mix = {} if name == "imf" else {"mix": 0.5}
    guidance = {"guidance": GUIDANCE.get(name, Guidance)(2.0, **mix)}
    guidance = {} if name == "consistency" else guidance
    objective = peer(name, **guidance)
    draws = objective.draw((16, 3), torch.Generator().manual_seed(0))
    batch = Batch(torch.randn(16, 3), torch.arange(16) % 4)
    objective(model(net, num_classes=4, average=net), batch, draws, 0.55)
    expected = {
        "flow_matching": [(16, True), (16, False)],
        "shortcut": [(16, True), (8, False), (8, False), (8, False)],
        "mean_flow": [(32, False), (16, True)],
        "imf": [(32, False), (8, False), (8, True), (8, True)],
        "alpha_flow": [(32, False), (8, True), (8, False), (8, True)],
        "consistency": [(16, False), (16, True)],
    }
    assert seen == expected[name]


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize("name", ["soflow", *PEERS])
def test_each_learns_in_bfloat16(name, network):
    """The gradient direction equals that in float32, for attention and for convolutions."""
    settings = TINY_DIT if network == "dit" else [*tiny_unet(name), "network.dropout=0"]
    config = read_recipe("digits", [*settings, f"objective.name={name}"])
    net, objective = make_network(config), make_objective(config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    labels = torch.arange(32) % 10 if config.data.num_classes else None
    batch = Batch(torch.randn(32, 1, 8, 8), labels)
    draws = objective.draw(batch.data.shape, torch.Generator().manual_seed(0))
    gradients = []
    for rounded in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            total = objective(make_model(config, net), batch, draws, 0.0).total
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        parts = torch.autograd.grad(total, trained, allow_unused=True)
        gradients.append(torch.cat([part.flatten().float() for part in parts if part is not None]))
    assert float(torch.cosine_similarity(*gradients, dim=0)) > 0.98


def test_dropped_labels_become_the_null_label_if_guidance_is_active():
    labels, dropped = torch.tensor([3, 0, 9]), torch.tensor([False, True, True])
    draws = dataclasses.replace(drawn(peer("flow_matching"), count=3), dropped=dropped)
    flow_model, batch = model(lambda x, *rest: x, num_classes=10), Batch(torch.zeros(3, 3), labels)
    assert network_labels(flow_model, batch, draws, Guidance(scale=2.0)).tolist() == [3, 10, 10]
    assert network_labels(flow_model, batch, draws, Guidance(scale=1.0)).tolist() == [3, 0, 9]
