"""Optimizers and the learning rate as a function of the step."""

from collections.abc import Iterable
from math import cos, pi

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


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of `step`, counted from 0, of `steps`. It has no state to save.

    It rises linearly over the first `warmup` steps. Then it is constant, or falls to lr_end:

        lr (lr_end + (1 - lr_end) g(u)),  g = 1 - u (linear) or (1 + cos(pi u)) / 2 (cosine),
        with u from 0 at the end of the warm-up to 1 at the last step
    """
    if step < config.warmup:
        return config.lr * ((step + 1) / config.warmup)
    u = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    falls = {"constant": 1.0, "linear": 1 - u, "cosine": (1 + cos(pi * u)) / 2}
    g, end = falls[config.lr_schedule], config.lr_end
    return config.lr if g == 1 else config.lr * (end + (1 - end) * g)
