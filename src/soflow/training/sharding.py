"""Networks spread over processes: each keeps a share of every tensor, and whole tensors only pass through.

A share is torch's DTensor; every function here takes ordinary tensors as well, and leaves them as they are. Accelerate's own
FSDP2 is of no use: it does nothing on CPUs, and under bfloat16 it rounds the weights themselves, which the consistency pair
needs in float32. So the network is spread by torch's fully_shard.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from soflow.errors import InputError

#: What AdamW and RAdam keep of a parameter.
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


def spread(module: nn.Module, device: torch.device, blocks: bool = True) -> None:
    """Replaces each parameter of the module, the same on all processes, by this one's share of it, on `device`.

    The blocks that a network marks as repeated are whole only while they compute; what is outside of them, as long as the
    module's forward and backward last. blocks: False for all of it as long as that, for objectives that do more with a
    network than call it. (Under autocast, bfloat16 copies of weights stay whole from the forward to the backward, which
    needs them.) Raises InputError where torch cannot.
    """
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise InputError(
            f"parallel=fsdp on CPUs needs a torch newer than this {torch.__version__}: use parallel=ddp"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    repeated = [child for child in module.modules() if getattr(child, "repeated", False)]
    for block in repeated if blocks else []:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


def share(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, which changes with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together from all shares. Every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, spread as `like` is. Every process must do it."""
    return (
        distribute_tensor(tensor, like.device_mesh, like.placements)
        if isinstance(like, DTensor)
        else tensor
    )


def gather_state(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """A state_dict with whole tensors in it, on the CPU; empty where `keep` is False. Every process must ask for it.

    One tensor at a time is put together, so that no device has to hold them all.
    """
    kept: dict[Any, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            value = gather_state(value, keep)
        elif isinstance(value, Tensor):
            value = whole(value.detach())
            value = value.cpu() if keep else None
        if keep:
            kept[key] = value
    return kept


def load_network(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads whole weights."""
    state = network.state_dict()
    network.load_state_dict(
        {
            name: shard_like(value, state[name]) if name in state else value
            for name, value in weights.items()
        }
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what a whole state holds of each parameter, spread as that is. The options stay as they are: the configuration
    says them. Raises ValueError for a state that is not of these parameters, or not of this optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def of(parameter: Tensor, value: Tensor) -> Tensor:
        if value.shape not in (parameter.shape, ()):
            raise ValueError(
                f"the optimizer's state has a tensor {list(value.shape)} for one {list(parameter.shape)}"
            )
        return shard_like(value, parameter) if value.shape == parameter.shape else value

    shares = {}
    for index, values in state["state"].items():
        if index not in range(len(parameters)) or values.keys() != MOMENTS:
            raise ValueError(
                f"the optimizer's state has {', '.join(map(str, values))} of parameter {index}"
            )
        shares[index] = {name: of(parameters[index], value) for name, value in values.items()}
    optimizer.load_state_dict(
        {"state": shares, "param_groups": optimizer.state_dict()["param_groups"]}
    )
