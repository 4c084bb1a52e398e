"""JumpFlow: SoFlow is a special case, and each of its two changes is what it says."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import soflow
from support.objectives import random_dit

SHAPE = (1, 8, 8)


GUIDED = {"guidance": soflow.Guidance(2.0, 0.5, 0.3), "p": 0.5}


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


def test_soflow_is_the_case_of_weight_one_and_no_direct_jumps():
    network = random_dit()
    plain = soflow.JumpFlow(1.0, direct_share=0.0, p_velocity=0.5, **GUIDED)
    ours, theirs = losses_of(plain, network), losses_of(soflow.SoFlow(**GUIDED), network)
    assert torch.equal(ours.total, theirs.total)
    assert torch.equal(gradient(ours.total, network), gradient(theirs.total, network))


def test_the_weight_is_of_the_consistency_term_alone():
    network = random_dit()
    one, three = (
        gradient(losses_of(soflow.JumpFlow(weight, **GUIDED), network).total, network)
        for weight in (1.0, 3.0)
    )
    terms = losses_of(soflow.JumpFlow(1.0, **GUIDED), network).terms
    matching = gradient(terms["flow_matching"].loss.sum() / 16, network)
    torch.testing.assert_close(three - matching, 3 * (one - matching))
    assert float((one - matching).abs().max()) > 1e-6


def test_the_velocity_has_a_power_of_its_own():
    network = random_dit()
    found = {p: losses_of(soflow.JumpFlow(p_velocity=p, **GUIDED), network) for p in (0.0, 0.7)}
    for p, losses in found.items():
        term = losses.terms["flow_matching"]
        balance = (term.squared.mean() + 0.01) ** (p - 0.5)
        torch.testing.assert_close(term.weight, balance * (term.squared + 0.01) ** -p)
        torch.testing.assert_close(term.loss, term.weight * term.squared)
    assert torch.equal(*(x.terms["consistency"].loss for x in found.values()))


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 10), (1.0, 50)])
def test_a_share_of_the_jumps_goes_from_noise_to_data(share, count):
    objective = soflow.JumpFlow(direct_share=share, flow_matching_share=0.5)
    draws = objective.draw((100, 3), torch.Generator().manual_seed(0))
    direct = (draws.t == 1) & (draws.s == 0)
    assert int(direct.sum()) == count
    assert not direct[: draws.n_flow_matching].any()
    paper = soflow.SoFlow(flow_matching_share=0.5).draw((100, 3), torch.Generator().manual_seed(0))
    assert torch.equal(draws.t[~direct], paper.t[~direct])


def jumps_of(objective, network, n_composed):
    """Losses of composed jumps alone, and what they were computed from."""
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
    # Only the jump from x_t learns.
    found = gradient(term.loss.sum(), model.net)
    held = (model.solution(x_t, t, s, batch.labels) - end.detach()) / (t - s).view(-1, 1, 1, 1)
    expected = gradient(1.5 * held.pow(2).flatten(1).mean(1).sum(), model.net)
    torch.testing.assert_close(found, expected)


def test_with_a_velocity_second_it_is_the_derivative_in_s():
    # d_s f(x_t, t, s) = v(f(x_t, t, s), s): the residual of the solution map in s, as r -> 0.
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
    torch.testing.assert_close(term.squared, expected.detach(), rtol=1e-3, atol=1e-6)
