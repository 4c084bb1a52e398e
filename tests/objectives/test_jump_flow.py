"""JumpFlow: SoFlow is a special case, and each of its two changes is what it says."""

import dataclasses

import pytest
import torch

import soflow
from support.objectives import random_dit

SHAPE = (1, 8, 8)


GUIDED = {"guidance": soflow.DrawnGuidance(2.0, 0.5, 0.3), "p": 0.5}


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
    plain = soflow.JumpFlow(1.0, 0.0, p_velocity=0.5, **GUIDED)
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
        torch.testing.assert_close(term.weight, (term.squared + 0.01) ** -p)
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
