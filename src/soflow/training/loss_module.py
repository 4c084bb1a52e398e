"""A network and its objective as one module, whose forward is a whole loss."""

from dataclasses import replace

from accelerate import Accelerator
from torch import nn

from soflow.config import Config
from soflow.errors import InputError, in_short
from soflow.objectives.base import Draws, Losses, Objective
from soflow.solution import FlowModel
from soflow.symbols import Batch, Net
from soflow.training.activations import checkpoint_blocks
from soflow.training.compile import compile_blocks
from soflow.training.distributed import shard_network


class LossModule(nn.Module):
    """A network and its objective as one module, whose forward is a whole loss.

    Data-parallel wrappers thereby see one forward and one backward pass per step.

    Args:
        model: The model. Its network must be an `nn.Module`.
        objective: What it is trained by.
        average: The network with averaged weights, such as `ema.net`, for objectives that use it.

    Example:
        >>> import soflow, torch
        >>> model = soflow.FlowModel(soflow.MLP(shape=(2,)), shape=(2,))
        >>> loss = soflow.LossModule(model, soflow.SoFlow())
        >>> batch = soflow.Batch(torch.randn(8, 2))
        >>> draws = loss.objective.draw(batch.data.shape, torch.Generator())
        >>> loss(batch, draws, progress=0.0).total.backward()
    """

    def __init__(self, model: FlowModel, objective: Objective, average: Net | None = None) -> None:
        super().__init__()
        if not isinstance(model, FlowModel) or not isinstance(model.net, nn.Module):
            raise InputError(f"model is {in_short(model)}: give a FlowModel of a module")
        if isinstance(objective, type) or not isinstance(objective, Objective):
            raise InputError(f"objective is {in_short(objective)}: give one, such as SoFlow()")
        self.network = model.net
        self.objective = objective
        self.model = replace(model, average=average)

    def forward(self, batch: Batch, draws: Draws, progress: float) -> Losses:
        """The loss of a batch at `progress` = k / K of training."""
        return self.objective(self.model, batch, draws, progress)


def prepared(loss: LossModule, config: Config, accelerator: Accelerator) -> nn.Module:
    """The loss on its device, compiled if wanted, and wrapped for several processes."""
    if config.compile:
        compile_blocks(loss.network)
    if config.train.checkpoint_activations:
        checkpoint_blocks(loss.network)
    if config.parallel == "ddp" or accelerator.num_processes == 1:
        return accelerator.prepare(loss)
    # evaluation_mode: autocast, but no DDP
    module = accelerator.prepare_model(loss, device_placement=False, evaluation_mode=True)
    blocks = not config.of_objective("whole_network")
    shard_network(loss, accelerator.device, blocks)
    return module
