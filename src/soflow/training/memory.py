"""Advice when training runs out of memory."""

from torch import nn

from soflow.config import Config
from soflow.training.activations import repeated_blocks

#: Advice if memory runs out before the first step.
TOO_LARGE = (
    "the network and its EMA weights do not fit: choose a smaller network, or set parallel=fsdp on "
    "several devices; a smaller train.batch_size or another precision does not help"
)


def memory_advice(config: Config, network: nn.Module) -> str:
    """The settings that reduce the memory of a step, with their current values."""
    train, precision = config.train, config.precision
    jacobian = config.of_objective("forward_derivative")
    ways = [f"a larger train.accumulate (now {train.accumulate}), which changes only rounding"]
    if repeated_blocks(network) and not jacobian and not train.checkpoint_activations:
        ways.append("train.checkpoint_activations=true")
    if not precision.startswith("bf16"):
        ways.append(f"precision=bf16 (now {precision})")
    return f"set {', '.join(ways)}, or a smaller train.batch_size (now {train.batch_size})"
