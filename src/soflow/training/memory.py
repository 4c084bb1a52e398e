"""What to do if a training step needs more memory than there is."""

from torch import nn

from soflow.config import Config
from soflow.training.activations import repeated_blocks

#: What to do if there is no memory for what a run needs before its first step.
TOO_LARGE = (
    "the network with its average does not fit: choose a smaller network, or parallel=fsdp on "
    "several devices (no train.batch_size or precision helps here)"
)


def memory_advice(config: Config, network: nn.Module) -> str:
    """The settings that lower the memory of a step, with the values that they have now."""
    train, precision = config.train, config.precision
    jacobian = config.of_objective("forward_derivative")
    ways = [f"a larger train.accumulate (now {train.accumulate}), which changes rounding alone"]
    if repeated_blocks(network) and not jacobian and not train.checkpoint_activations:
        ways.append("train.checkpoint_activations=true")
    ways.append("precision=bf16" if not precision.startswith("bf16") else "another precision")
    return (
        f"set {', '.join(ways)} (now {precision}), or a smaller train.batch_size "
        f"(now {train.batch_size})"
    )
