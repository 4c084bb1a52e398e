"""A network and its objective as one module. Its forward pass computes the loss."""

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
    """A network and its objective as one module. Its forward pass computes the loss.

    Data-parallel wrappers then see one forward and one backward pass per step.

    Args:
        model: The model. Its network must be an `nn.Module`.
        objective: The objective to train with.
        average: The network with EMA weights, such as `ema.net`, for objectives that use it.

    Raises:
        InputError: If the network is not a module, or `objective` does not implement `Objective`.

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
            raise InputError(
                f"model is {in_short(model)}: pass a FlowModel whose net is an nn.Module"
            )
        if isinstance(objective, type) or not isinstance(objective, Objective):
            raise InputError(
                f"objective is {in_short(objective)}: pass an objective, such as soflow.SoFlow()"
            )
        self.network = model.net
        self.objective = objective
        self.model = replace(model, average=average)

    def forward(self, batch: Batch, draws: Draws, progress: float) -> Losses:
        """Computes the loss of a batch.

        Args:
            batch: Samples (B, ...) with their labels (B,) and conditions.
            draws: Noise (B, ...), times (B,) and label drops (B,), from `objective.draw`.
            progress: The fraction k / K of training that is done, from 0 to 1.

        Returns:
            The loss: `total`, a scalar () with a gradient, and its parts.
        """
        return self.objective(self.model, batch, draws, progress)


def prepared(loss: LossModule, config: Config, accelerator: Accelerator) -> nn.Module:
    """The loss module on its device, compiled if configured, and wrapped for several processes."""
    if config.compile:
        compile_blocks(loss.network)
    if config.train.checkpoint_activations:
        checkpoint_blocks(loss.network)
    if config.parallel == "ddp" or accelerator.num_processes == 1:
        return accelerator.prepare(loss)
    # evaluation_mode applies autocast, but not DDP.
    module = accelerator.prepare_model(loss, device_placement=False, evaluation_mode=True)
    blocks = not config.of_objective("whole_network")
    shard_network(loss, accelerator.device, blocks)
    return module
