"""A network whose outputs depend on all inputs, for tests of objectives."""

from torch import nn

from soflow.assemble import make_network
from soflow.config import read_recipe
from support.settings import TINY_DIT


def random_dit(double=True):
    """A DiT of the recipe digits whose outputs depend on all inputs."""
    network = make_network(read_recipe("digits", TINY_DIT))
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return network.double() if double else network
