"""One step of an objective on data shaped like digits, with fixed random numbers."""

import torch

from soflow.assemble import make_model, make_network, make_objective
from soflow.config import read_recipe
from soflow.symbols import Batch


def prepare(settings):
    """Returns a network without zero weights, and its loss as a function without arguments."""
    config = read_recipe("digits", settings)
    torch.manual_seed(0)
    network, objective = make_network(config), make_objective(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    generator = torch.Generator().manual_seed(0)
    draws = objective.draw((16, 1, 8, 8), generator)
    labels = torch.arange(16) % 10 if config.data.num_classes else None
    batch = Batch(torch.randn(16, 1, 8, 8, generator=generator), labels)
    return network, lambda: objective(make_model(config, network), batch, draws, 0.5).total
