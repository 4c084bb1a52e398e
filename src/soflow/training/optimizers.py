"""Optimizers and the learning rate as a function of the step."""

from collections.abc import Iterable

import torch
from torch import nn

from soflow.config.schema import OptimizerConfig

#: What AdamW and RAdam keep of a parameter beside its number of updates, `step`.
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW (fused) or RAdam (foreach) over trained parameters, with decoupled weight decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    lr, betas, decay = config.lr, config.betas, config.weight_decay
    if config.name == "adamw":
        return torch.optim.AdamW(trained, lr, betas, weight_decay=decay, fused=True)
    return torch.optim.RAdam(
        trained, lr, betas, weight_decay=decay, decoupled_weight_decay=True, foreach=True
    )


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Rises linearly over the first `warmup` steps, then stays. It has no state to save."""
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup))
