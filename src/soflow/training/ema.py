"""The exponential moving average (EMA) of the weights. Samples are drawn with EMA weights."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soflow.errors import InputError, in_short, require_whole
from soflow.system.devices import has_float64
from soflow.training.distributed import full_tensor, local_shard, shard_like


class Ema:
    """The exponential moving average (EMA) of a network's weights, for sampling.

    Every `every` steps, average <- d average + (1 - d) weights, with d = decay^every. Early in
    training, d is smaller: the half-life of the average, in steps, is

        min( ln(1/2) / ln(decay), rampup * steps so far )

    so that the average soon forgets the random initial weights. d depends only on the step, so it
    needs no saved state. `rampup=0` gives the average of the paper.

    The average covers trained parameters. Buffers and frozen parameters are copied. If the network
    is sharded, each process averages its local shards. Sources: SoFlow for the average; EDM for
    float64 and the ramp-up.

    Args:
        network: The network. Its weights are copied now, and read at each update.
        decay: The decay of the average per step, between 0 and 1.
        every: The number of steps between two updates.
        float64: Whether to keep the average in float64.
        rampup: The largest half-life early in training, as a fraction of the steps so far; 0
            disables the ramp-up.

    Raises:
        InputError: If `network` is not a module, if a number is out of range, or if `float64` is
            set and the device of the network does not support float64.

    Example:
        >>> import soflow, torch
        >>> network = soflow.MLP(shape=(2,))
        >>> ema = soflow.Ema(network, decay=0.999)
        >>> for step in range(10):
        ...     # an optimizer step
        ...     ema.update(step)
        >>> average = ema.averaged_network()
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.9999,
        every: int = 1,
        float64: bool = False,
        rampup: float = 0.05,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(f"network is {in_short(network)}: pass a module, such as model.net")
        require_whole(1, every=every)
        if not 0 <= decay <= 1 or rampup < 0:
            given = f"decay is {decay} and rampup is {rampup}"
            raise InputError(f"{given}: decay must be in [0, 1], rampup at least 0")
        self.network = network
        self.decay, self.every, self.rampup = decay, every, rampup
        self.dtype = torch.float64 if float64 else torch.float32
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if float64:
            require_float64({p.device for p in self.trained.values()})
        self.average = {
            name: p.detach().to(self.dtype, copy=True) for name, p in self.trained.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the current weights.

        Args:
            step: The number of the step that was just completed, counted from 0.
        """
        if (step + 1) % self.every:
            return
        averages = [local_shard(average) for average in self.average.values()]
        weights = [local_shard(p.detach()).to(self.dtype) for p in self.trained.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """The decay d of the update after a step.

        Args:
            step: The number of the step, counted from 0.

        Returns:
            The decay d.
        """
        decay = self.decay**self.every
        if not self.rampup:
            return decay
        half_life = max(self.rampup * step, 1e-8)
        return min(decay, 0.5 ** (self.every / half_life))  # the shorter half-life

    @torch.no_grad()
    def net(self, x: Tensor, t: Tensor, s: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """Evaluates the network with EMA weights, without gradients.

        Every process must call this method.

        Args:
            x: Samples, (B, ...).
            t: Times of the samples, (B,).
            s: Target times, (B,).
            args: Further positional inputs of the network, such as labels (B,).
            inputs: Further named inputs of the network.

        Returns:
            F(x, t, s, ...), shaped like x.
        """
        weights = {
            name: full_tensor(average.to(self.trained[name].dtype))
            for name, average in self.average.items()
        }
        return torch.func.functional_call(self.network, weights, (x, t, s, *args), inputs)

    def averaged_network(self) -> nn.Module:
        """A copy of the network with EMA weights, in evaluation mode, without gradients.

        Returns:
            The network.
        """
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.state_dict())
        return network.requires_grad_(False).eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The state_dict of the network with EMA weights. The network can load it.

        If the network is sharded, so are these tensors.

        Returns:
            Tensors by name.
        """
        averages = {self.trained[name]: average for name, average in self.average.items()}
        named = self.network.named_parameters(remove_duplicate=False)  # tied: two names each
        averaged = {name: averages[p] for name, p in named if p in averages}
        return {**self.network.state_dict(), **averaged}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the EMA weights from a state_dict.

        Args:
            state: Tensors by name, from `state_dict`.

        Raises:
            ValueError: If a tensor has another shape than the parameter of this name.
        """
        for name, average in self.average.items():
            found, expected = list(state[name].shape), list(average.shape)
            if found != expected:
                raise ValueError(f"the average of {name} has shape {found}, not {expected}")
            average.copy_(shard_like(state[name], average))


def require_float64(devices: Iterable[torch.device]) -> None:
    """Raises InputError if one of the devices does not support float64, such as Apple's GPUs."""
    for device in devices:
        if not has_float64(device):
            raise InputError(
                f"ema.float64 is true, but the device {device} does not support float64: set "
                "ema.float64=false"
            )
