"""Activation checkpointing gives the same gradients with less memory."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import soflow
from soflow.comparison.estimate import kept_for_backward
from soflow.config import read_recipe
from soflow.errors import InputError
from soflow.run.checkpoint import checkpoints
from soflow.system.progress import silent
from soflow.training.activations import checkpoint_blocks
from support.settings import TINY_DIT
from support.steps import prepare
from support.whole_runs import DIT, SHORT, UNET, assert_same_tensors, unguided

CHECKPOINTED = "train.checkpoint_activations=true"


def step(settings, checkpointed):
    """Returns the loss, all gradients, and the bytes kept by the forward pass."""
    network, loss_of = prepare(settings)
    if checkpointed:
        checkpoint_blocks(network)
    network.train()
    kept = []
    torch.manual_seed(1)  # for dropout
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda x: x):
        loss = loss_of()
    loss.backward()
    return loss.detach(), [p.grad for p in network.parameters() if p.grad is not None], sum(kept)


@pytest.mark.parametrize("name", ["soflow", "flow_matching", "shortcut", "consistency"])
@pytest.mark.parametrize("network", ["dit", "in context", "unet"])
def test_gradients_are_equal_and_memory_is_smaller(name, network):
    chosen = {
        "dit": TINY_DIT,
        "in context": ["network.name=in_context_dit", *TINY_DIT],
        "unet": ["data.num_classes=0", *UNET[2:], *unguided(name)],
    }
    settings = [f"objective.name={name}", *chosen[network]]
    (loss, gradients, kept), (other_loss, others, fewer) = (
        step(settings, checkpointed) for checkpointed in (False, True)
    )
    assert loss == other_loss
    assert all(one.equal(two) for one, two in zip(gradients, others, strict=True))
    assert fewer < kept / 2


def test_a_run_can_resume_with_it(tmp_path):
    whole = soflow.train("digits", tmp_path / "whole", [*DIT, *SHORT], progress=silent)
    other = soflow.train("digits", tmp_path / "x", [*DIT, *SHORT, CHECKPOINTED], progress=silent)
    last = [checkpoints(run.checkpoints)[-1] for run in (whole, other)]
    assert_same_tensors(*last)


def test_estimates_count_kept_and_recomputed_activations():
    kept, fewer = (
        kept_for_backward(read_recipe("digits", [*TINY_DIT, "network.depth=4", *more]), 16)
        for more in ([], [CHECKPOINTED])
    )
    assert fewer < kept / 4


def test_it_is_rejected_where_it_does_not_work():
    with pytest.raises(InputError, match=r"checkpoint_activations.*mean_flow"):
        read_recipe("digits", [CHECKPOINTED, "objective.name=mean_flow"])
    with pytest.raises(InputError, match="Linear"):
        checkpoint_blocks(nn.Linear(2, 2))
