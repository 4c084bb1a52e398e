"""The exponential moving average of the weights, which is what gets sampled from."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soflow.errors import InputError, in_short, require_whole
from soflow.system.devices import has_float64
from soflow.training.distributed import full_tensor, local_shard, shard_like


class Ema:
    """The exponential moving average of a network's weights, which samples are drawn from.

    After every `every` steps, average <- d average + (1 - d) weights, with d = decay^every.
    At the start, d is less: the half-life of the average, in steps, is

        min( ln(1/2) / ln(decay), rampup * steps so far )

    so that the initial weights, which are noise, are soon forgotten. It is a function of the step:
    there is nothing to save or restore. `rampup` 0 is the average of the paper.

    Averages trained parameters; buffers and fixed parameters are copied. Of a sharded network,
    each process averages its local shards. Source: SoFlow; EDM for float64 and the start-up.

    Args:
        network: The network. Its weights are copied now, and read at each update.
        decay: The decay of the average, per step.
        every: Steps between two updates.
        float64: Whether to keep the average in float64.
        rampup: The half-life at the start, as a fraction of the steps so far; 0 is off.

    Raises:
        InputError: If `float64` is set, and the device of the network has no float64.

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
            raise InputError(f"network is {in_short(network)}: give a module, such as model.net")
        require_whole(1, every=every)
        if not 0 <= decay <= 1 or rampup < 0:
            given = f"decay is {decay}, and rampup {rampup}"
            raise InputError(f"{given}: decay lies between 0 and 1, rampup is 0 or more")
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
        """Updates the average with the weights after `step`, counted from 0."""
        if (step + 1) % self.every:
            return
        averages = [local_shard(average) for average in self.average.values()]
        weights = [local_shard(p.detach()).to(self.dtype) for p in self.trained.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """The decay d of the update after `step`, counted from 0, after `step` earlier steps."""
        decay = self.decay**self.every
        if not self.rampup:
            return decay
        half_life = max(self.rampup * step, 1e-8)
        return min(decay, 0.5 ** (self.every / half_life))  # the shorter half-life

    @torch.no_grad()
    def net(self, x: Tensor, t: Tensor, s: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """F(x, t, s, labels) with averaged weights, without gradient: (B, ...) -> (B, ...).

        Every process must call it.
        """
        weights = {
            name: full_tensor(average.to(self.trained[name].dtype))
            for name, average in self.average.items()
        }
        return torch.func.functional_call(self.network, weights, (x, t, s, *args), inputs)

    def averaged_network(self) -> nn.Module:
        """A copy of the network with averaged weights, without gradients, in evaluation mode."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.state_dict())
        return network.requires_grad_(False).eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The network's state with averaged weights, which the network can load.

        It is sharded as the network is.
        """
        averages = {self.trained[name]: average for name, average in self.average.items()}
        named = self.network.named_parameters(remove_duplicate=False)  # tied ones have two names
        averaged = {name: averages[p] for name, p in named if p in averages}
        return {**self.network.state_dict(), **averaged}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the averaged weights from what `state_dict` gave."""
        for name, average in self.average.items():
            found, expected = list(state[name].shape), list(average.shape)
            if found != expected:
                raise ValueError(f"the average of {name} is {found}, not {expected}")
            average.copy_(shard_like(state[name], average))


def require_float64(devices: Iterable[torch.device]) -> None:
    """Raises InputError if one of the devices computes no float64, as Apple's do not."""
    for device in devices:
        if not has_float64(device):
            raise InputError(
                f"ema.float64=true: the device {device} has no float64; set ema.float64=false"
            )
