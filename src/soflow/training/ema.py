"""The exponential moving average of the weights, which is what gets sampled from."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from soflow.config.schema import EmaConfig
from soflow.errors import InputError
from soflow.system.devices import has_float64
from soflow.training.distributed import full_tensor, local_shard, shard_like


class Ema:
    """average <- d average + (1 - d) weights, with d = decay^every, after every `every` steps.

    Averages trained parameters; buffers and fixed parameters are copied. Of a sharded network,
    each process averages its local shards. Source: SoFlow; EDM for the float64 form.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        self.network = network
        self.config = config
        self.dtype = torch.float64 if config.float64 else torch.float32
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if config.float64:
            require_float64({p.device for p in self.trained.values()})
        self.average = {
            name: p.detach().to(self.dtype, copy=True) for name, p in self.trained.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the weights after `step`, counted from 0."""
        if (step + 1) % self.config.every:
            return
        averages = [local_shard(average) for average in self.average.values()]
        weights = [local_shard(p.detach()).to(self.dtype) for p in self.trained.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.config.decay**self.config.every)

    @torch.no_grad()
    def net(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """F(x, t, s, labels) with averaged weights, no gradient. Every process must call it."""
        weights = {
            name: full_tensor(average.to(self.trained[name].dtype))
            for name, average in self.average.items()
        }
        return torch.func.functional_call(self.network, weights, (x, t, s, labels, augment))

    def state_dict(self) -> dict[str, Tensor]:
        """The network's state with averaged weights, sharded as the network is."""
        return {**self.network.state_dict(), **self.average}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
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
