"""A network and its objective as one module, whose forward is a whole loss."""

from dataclasses import replace

from torch import nn

from soflow.objectives.base import Draws, Losses, Objective
from soflow.solution import FlowModel
from soflow.symbols import Batch, Net


class LossModule(nn.Module):
    """Data-parallel wrappers see one forward and one backward per step, and every gradient."""

    def __init__(self, model: FlowModel, objective: Objective, average: Net | None = None) -> None:
        super().__init__()
        assert isinstance(model.net, nn.Module)
        self.network = model.net
        self.objective = objective
        self.model = replace(model, average=average)

    def forward(self, batch: Batch, draws: Draws, progress: float) -> Losses:
        return self.objective(self.model, batch, draws, progress)
