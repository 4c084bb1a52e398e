"""JumpFlow contains SoFlow as a special case, and each of its options does what it documents."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import soflow
from soflow.errors import InputError
from support.objectives import random_dit

SHAPE = (1, 8, 8)


GUIDED = {
    "guidance": soflow.DrawnGuidance(2.0, 0.5, 0.3),
    "p": 0.5,
    "eps": 0.003,
    "times": soflow.SoFlowTimes(soflow.LogitNormal(0.3, 0.7), s=soflow.LogitNormal(-2.0, 0.5)),
    "middle": soflow.MiddleTime("linear", 0.2, 0.05),
}


def losses_of(objective, network):
    model = soflow.FlowModel(network, SHAPE, 10)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(16, *SHAPE, generator=generator, dtype=torch.float64)
    draws = objective.draw(data.shape, generator)
    noise, t, s = (x.double() for x in (draws.noise, draws.t, draws.s))
    draws = dataclasses.replace(draws, noise=noise, t=t, s=s)
    return objective(model, soflow.Batch(data, torch.arange(16) % 10), draws, 0.5)


def gradient(loss, network):
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])


def test_soflow_is_jump_flow_with_weight_one_and_no_direct_jumps():
    network = random_dit()
    plain = soflow.JumpFlow(1.0, direct_share=0.0, flow_matching_share=0.75, **GUIDED)
    ours, theirs = losses_of(plain, network), losses_of(soflow.SoFlow(**GUIDED), network)
    assert torch.equal(ours.total, theirs.total)
    assert torch.equal(gradient(ours.total, network), gradient(theirs.total, network))


def test_the_weight_only_affects_the_consistency_term():
    network = random_dit()
    one, three = (
        gradient(losses_of(soflow.JumpFlow(weight, **GUIDED), network).total, network)
        for weight in (1.0, 3.0)
    )
    terms = losses_of(soflow.JumpFlow(1.0, **GUIDED), network).terms
    matching = gradient(terms["flow_matching"].loss.sum() / 16, network)
    torch.testing.assert_close(three - matching, 3 * (one - matching))
    assert float((one - matching).abs().max()) > 1e-6


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_flow_matching_has_its_own_power(power):
    """Compares with SoFlow, which has one power for both terms."""
    network = random_dit()
    settings = {**GUIDED, "flow_matching_share": 0.75}
    ours = losses_of(soflow.JumpFlow(direct_share=0.0, flow_matching_p=power, **settings), network)
    same, other = (
        losses_of(soflow.SoFlow(**{**settings, "p": p}), network) for p in (power, GUIDED["p"])
    )
    for field in ("loss", "weight", "squared"):
        found, expected = (getattr(one.terms["flow_matching"], field) for one in (ours, same))
        torch.testing.assert_close(found, expected)
    assert torch.equal(ours.terms["consistency"].weight, other.terms["consistency"].weight)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 10), (1.0, 50)])
def test_a_fraction_of_jumps_goes_from_noise_to_data(share, count):
    objective = soflow.JumpFlow(direct_share=share, flow_matching_share=0.5)
    draws = objective.draw((100, 3), torch.Generator().manual_seed(0))
    direct = (draws.t == 1) & (draws.s == 0)
    assert int(direct.sum()) == count
    assert not direct[: draws.n_flow_matching].any()
    paper = soflow.SoFlow(flow_matching_share=0.5).draw((100, 3), torch.Generator().manual_seed(0))
    assert torch.equal(draws.t[~direct], paper.t[~direct])


def jumps_of(objective, network, n_composed):
    """Returns losses of composed jumps alone, and their inputs."""
    model = soflow.FlowModel(network, SHAPE, 10)
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64)
    draws = objective.draw(data.shape, generator)
    assert draws.n_composed == n_composed
    noise, t, s, l = (x.double() for x in (draws.noise, draws.t, draws.s, draws.l))
    draws = dataclasses.replace(draws, noise=noise, t=t, s=s, l=l)
    batch = soflow.Batch(data, torch.arange(8))
    x_t = model.noising.sample(data, noise, t).x_t
    return model, batch, draws, x_t, objective(model, batch, draws, 0.5).terms["composed"]


ALL_COMPOSED = {"flow_matching_share": 0.0, "composed_share": 1.0, "direct_share": 0.25}


def test_a_composed_jump_is_trained_towards_two_jumps():
    objective = soflow.JumpFlow(**ALL_COMPOSED, composed_weight=3.0, p=0.0)
    model, batch, draws, x_t, term = jumps_of(objective, random_dit(), 8)
    t, s, l = draws.t, draws.s, draws.l
    assert ((s <= l) & (l <= t)).all()
    end = model.solution(model.solution(x_t, t, l, batch.labels), l, s, batch.labels)
    error = (model.solution(x_t, t, s, batch.labels) - end) / (t - s).view(-1, 1, 1, 1)
    torch.testing.assert_close(term.squared, error.detach().pow(2).flatten(1).mean(1))
    # Only the jump from x_t has a gradient.
    found = gradient(term.loss.sum(), model.net)
    held = (model.solution(x_t, t, s, batch.labels) - end.detach()) / (t - s).view(-1, 1, 1, 1)
    expected = gradient(1.5 * held.pow(2).flatten(1).mean(1).sum(), model.net)
    torch.testing.assert_close(found, expected)


def test_both_parts_of_a_composed_jump_have_the_null_label_if_it_was_dropped():
    guidance = soflow.DrawnGuidance(2.0, label_dropout=0.5)
    guided = soflow.JumpFlow(**ALL_COMPOSED, guidance=guidance)
    model, batch, draws, _, term = jumps_of(guided, random_dit(), 8)
    assert 0 < int(draws.dropped.sum()) < 8
    shown = dataclasses.replace(batch, labels=torch.where(draws.dropped, 10, batch.labels))
    plain = soflow.JumpFlow(**ALL_COMPOSED)(model, shown, draws, 0.5).terms["composed"]
    torch.testing.assert_close(term.squared, plain.squared)
    torch.testing.assert_close(term.loss, plain.loss)


def test_second_velocity_is_the_derivative_in_s():
    # d_s f(x_t, t, s) = v(f(x_t, t, s), s) is the residual of the solution function in s as r -> 0.
    middle = soflow.MiddleTime("constant", end=1e-6)
    objective = soflow.JumpFlow(**ALL_COMPOSED, second="velocity", middle=middle, p=0.0)
    model, batch, draws, x_t, term = jumps_of(objective, random_dit(), 8)
    t, s = draws.t, draws.s
    with sdpa_kernel(SDPBackend.MATH):
        f, df_ds = torch.func.jvp(
            lambda s: model.solution(x_t, t, s, batch.labels), (s,), (torch.ones_like(s),)
        )
    residual = df_ds - model.velocity(f, s, batch.labels)
    expected = residual.pow(2).flatten(1).mean(1)
    # a difference over 1e-4 of a function with a second derivative of order 10
    torch.testing.assert_close(term.squared, expected.detach(), rtol=1e-2, atol=1e-4)


def test_the_weight_changes_linearly_and_with_the_length_of_jumps():
    objective = soflow.JumpFlow(4.0, weight_at_start=1.0, length_power=2.0)
    assert [objective.weight(k) for k in (0.0, 0.5, 1.0)] == [1.0, 2.5, 4.0]
    assert objective.scheduled(0.5)["w"] == 2.5
    network = random_dit()
    plain = losses_of(soflow.JumpFlow(1.0, **GUIDED), network).terms["consistency"]
    settings = {"weight_at_start": 1.0, "length_power": 2.0, **GUIDED}
    found = losses_of(soflow.JumpFlow(4.0, **settings), network).terms["consistency"]
    length = found.times["t"] - found.times["s"]
    torch.testing.assert_close(found.loss, 2.5 * length**2 * plain.loss)


def test_the_mix_changes_linearly():
    network = random_dit()
    halfway = losses_of(soflow.JumpFlow(**GUIDED, mix_at_end=0.1), network)
    guidance = dataclasses.replace(GUIDED["guidance"], mix=0.3)
    fixed = losses_of(soflow.JumpFlow(**{**GUIDED, "guidance": guidance}), network)
    torch.testing.assert_close(halfway.total, fixed.total)
    assert halfway.total != losses_of(soflow.JumpFlow(**GUIDED), network).total


@pytest.mark.parametrize("guidance", [soflow.DrawnGuidance(), GUIDED["guidance"]])
def test_a_step_along_the_own_velocity_keeps_the_target(guidance):
    """q = target - F_t + (s - l)/(t - l) (F_t - F(x_l)), with x_l = x_t + (l - t) v(x_t, t)."""
    objective = soflow.JumpFlow(own_step=True, p=0.0, flow_matching_share=0.0, guidance=guidance)
    network = random_dit()
    model = soflow.FlowModel(network, SHAPE, 10)
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(6, *SHAPE, generator=generator, dtype=torch.float64)
    draws = objective.draw(data.shape, generator)
    noise, t, s = (x.double() for x in (draws.noise, draws.t, draws.s))
    draws = dataclasses.replace(draws, noise=noise, t=t, s=s)
    labels = torch.arange(6)
    term = objective(model, soflow.Batch(data, labels), draws, 0.5).terms["consistency"]

    point = model.noising.sample(data, noise, t)
    x_t, target, l = point.x_t, point.v_t, objective.middle(t, s, 0.5)
    with torch.no_grad():
        if guidance.active:
            null = torch.full_like(labels, 10)
            velocities = model.velocity(x_t, t, null), model.velocity(x_t, t, labels)
            target = guidance.target(target, *velocities, t, draws.dropped)
            labels = torch.where(draws.dropped, null, labels)
        tall = lambda x: x.view(-1, 1, 1, 1)  # noqa: E731
        x_l = x_t + tall(l - t) * model.velocity(x_t, t, labels)
        F_t, F_l = network(x_t, t, s, labels), network(x_l, l, s, labels)
        q = target - F_t + tall((s - l) / (t - l)) * (F_t - F_l)
    torch.testing.assert_close(term.squared, q.pow(2).flatten(1).mean(1))


def test_a_fraction_of_the_velocities_has_uniform_times():
    objective = soflow.JumpFlow(uniform_share=0.5, flow_matching_share=1.0)
    draws = objective.draw((4000, 1), torch.Generator().manual_seed(0))
    first, rest = draws.t[:2000].sort().values, draws.t[2000:]
    assert float((first - (torch.arange(2000) + 0.5) / 2000).abs().max()) < 1.36 / 2000**0.5
    assert torch.equal(draws.t, draws.s)
    assert float((rest > 0.95).float().mean()) < 0.005


@pytest.mark.parametrize("second", ["jump", "velocity"])
def test_composed_jumps_are_computed_in_float32_under_autocast(second):
    network = random_dit().float()
    objective = soflow.JumpFlow(**ALL_COMPOSED, second=second, p=0.0)
    model, data = soflow.FlowModel(network, SHAPE, 10), torch.randn(32, *SHAPE)
    batch = soflow.Batch(data, torch.arange(32) % 10)
    draws = objective.draw(data.shape, torch.Generator().manual_seed(0))
    plain = objective(model, batch, draws, 1.0).terms["composed"].squared
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(model, batch, draws, 1.0).terms["composed"].squared
    torch.testing.assert_close(found, plain)


def test_the_shortest_jumps_are_finite():
    middle = soflow.MiddleTime("constant", end=1e-6)
    objective = soflow.JumpFlow(**ALL_COMPOSED, second="velocity", middle=middle)
    model, data = soflow.FlowModel(random_dit(), SHAPE, 10), torch.randn(8, *SHAPE).double()
    draws = objective.draw(data.shape, torch.Generator().manual_seed(0))
    s = draws.t - 1e-4
    draws = dataclasses.replace(draws, noise=draws.noise.double(), s=s, l=s)
    losses = objective(model, soflow.Batch(data, torch.arange(8)), draws, 0.5)
    assert losses.total.isfinite()


def test_every_microbatch_has_the_same_terms_or_is_rejected():
    objective = soflow.JumpFlow(flow_matching_share=0.75, composed_share=0.5)
    draws = objective.draw((16, *SHAPE), torch.Generator())
    assert draws.n_composed == 2
    model, data = soflow.FlowModel(random_dit().float(), SHAPE, 10), torch.randn(16, *SHAPE)
    batch = soflow.Batch(data, torch.arange(16) % 10)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert "composed" in objective(model, batch.rows(rows), draws.rows(rows), 0.5).terms
    with pytest.raises(InputError, match="composed_share"):
        objective(model, batch.rows(slice(0, None, 4)), draws.rows(slice(0, None, 4)), 0.5)
    with pytest.raises(InputError, match="composed_share"):
        objective.draw((4, *SHAPE), torch.Generator())


def test_settings_without_effect_are_rejected():
    with pytest.raises(InputError, match="mix_at_end"):
        soflow.JumpFlow(mix_at_end=0.1)
    assert soflow.JumpFlow(**GUIDED, mix_at_end=0.1).scheduled(0.5)["m"] == pytest.approx(0.3)
    for name, value in (("second", "velocity"), ("composed_weight", 0.5)):
        with pytest.raises(InputError, match=name):
            soflow.JumpFlow(**{name: value})
        soflow.JumpFlow(**{name: value}, composed_share=0.5)


def test_scales_are_drawn_only_by_an_objective_that_draws_them():
    objective = soflow.SoFlow(guidance=soflow.DrawnGuidance(max_scale=4.0))
    with pytest.raises(InputError, match="max_scale"):
        losses_of(objective, random_dit())


def test_microbatches_with_other_numbers_of_jumps_add_up_to_the_batch():
    """40 % of 16 samples are 7 jumps: microbatches of 4 have one or two of them."""
    network, objective = random_dit(), soflow.JumpFlow(**GUIDED)
    draws = objective.draw((16, *SHAPE), torch.Generator().manual_seed(0))
    noise, t, s = (x.double() for x in (draws.noise, draws.t, draws.s))
    draws = soflow.Draws(noise, t, s, draws.dropped, draws.n_flow_matching)
    model = soflow.FlowModel(network, SHAPE, 10)
    data = torch.randn(16, *SHAPE, dtype=torch.float64)
    batch = soflow.Batch(data, torch.arange(16) % 10)
    whole = gradient(objective(model, batch, draws, 0.5).total, network)
    rows = [slice(i, None, 4) for i in range(4)]
    assert {4 - draws.rows(part).n_flow_matching for part in rows} == {1, 2}
    parts = [objective(model, batch.rows(part), draws.rows(part), 0.5).total for part in rows]
    torch.testing.assert_close(gradient(sum(parts) / 4, network), whole)
