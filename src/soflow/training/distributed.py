"""Distributed training: launch checks, errors when a rank is lost, and sharded networks.

A shard is a DTensor. Functions that gather or shard return ordinary tensors unchanged.
Networks are sharded with torch's fully_shard. Accelerate's FSDP2 does nothing on CPUs and rounds
the weights to bfloat16, but the consistency pair needs weights in float32.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed import DistError
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from soflow.config import Config
from soflow.errors import InputError, RunError
from soflow.run.folder import RunFolder
from soflow.system import processes
from soflow.training.optimizers import Shapes

T = TypeVar("T")


def require_plain_launch() -> None:
    """Raises InputError if `accelerate launch` is configured to wrap the network.

    Checkpoints do not support such wrappers.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch is configured to use {name}: launch with --multi_gpu instead; "
                "to shard the network, set parallel=fsdp"
            )


def make_accelerator(config: Config, folder: RunFolder) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        InputError: If the batch cannot be split into equal microbatches.
    """
    # The state is shared by the whole process and keeps the precision of the first run.
    AcceleratorState._reset_state()
    train = config.train
    accelerator = Accelerator(
        # Without cpu=True there is no process group on machines without a GPU. Apple's GPUs, which
        # accelerate would choose, are not supported.
        cpu=not torch.cuda.is_available()
        and (processes.count() > 1 or torch.backends.mps.is_available()),
        mixed_precision="bf16" if config.precision.startswith("bf16") else "no",
        gradient_accumulation_steps=train.accumulate,
        project_dir=str(folder.path),
    )
    if train.batch_size % (accelerator.num_processes * train.accumulate):
        raise InputError(
            f"train.batch_size={train.batch_size} cannot be split equally over "
            f"{accelerator.num_processes} processes with train.accumulate={train.accumulate}: use "
            f"a multiple of {accelerator.num_processes * train.accumulate}"
        )
    return accelerator


def same_everywhere(value: T) -> T:
    """The value of the first process. Every process must call this function."""
    if processes.count() == 1:
        return value
    PartialState(cpu=not torch.cuda.is_available())  # creates the process group
    (value,) = broadcast_object_list([value])
    return value


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Raises RunError instead of torch's errors if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo do not have their own class.
        if isinstance(error, DistError) or "gloo" in str(error):
            raise RunError(
                "another process of this run has ended or does not respond: see its message for "
                "the cause; to resume from the last checkpoint, run the same command again"
            ) from error
        raise


def shard_network(module: nn.Module, device: torch.device, blocks: bool = True) -> None:
    """Replaces each parameter by this process's shard on `device`.

    The parameters must be equal in all processes. Repeated blocks are gathered only while they
    compute. Other parameters are gathered for the whole forward and backward pass. Under autocast,
    bfloat16 copies of weights stay gathered until the backward pass.

    Args:
        module: The network, or a module that contains it.
        device: The device of this process.
        blocks: Whether to gather repeated blocks one at a time. False gathers all parameters for
            the whole step, for objectives that access the network other than by calling it.

    Raises:
        InputError: If this version of torch cannot shard on CPUs.
    """
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        version = torch.__version__
        raise InputError(
            f"parallel=fsdp on CPUs needs a torch newer than {version}: set parallel=ddp"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    repeated = [child for child in module.modules() if getattr(child, "repeated", False)]
    for block in repeated if blocks else []:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


def local_shard(tensor: Tensor) -> Tensor:
    """The local shard of a tensor, with shared memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers the full tensor from all shards. Every process must call this function."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shards a full tensor, equal in all processes, like `like`. Every process must call it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def gather_number(accelerator: Accelerator, number: int) -> list[int]:
    """The numbers of all processes. Every process must call this function."""
    if accelerator.num_processes == 1:
        return [number]
    return accelerator.gather(torch.tensor([number], device=accelerator.device)).tolist()


def full_state(state: Mapping[Any, Any], keep: bool) -> Mapping[Any, Any]:
    """A state_dict with full tensors. Returns the state itself if it is not sharded.

    Every process must call this function.
    """
    values = [*state.values(), *(v for m in state.get("state", {}).values() for v in m.values())]
    return gather_state(state, keep) if any(isinstance(v, DTensor) for v in values) else state


def gather_state(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """A state_dict with full tensors on the CPU; empty if `keep` is False.

    Every process must call this function. It gathers one tensor at a time, so that no device holds
    all of them.
    """
    kept: dict[Any, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            value = gather_state(value, keep)
        elif isinstance(value, Tensor):
            value = full_tensor(value.detach())
            value = value.cpu() if keep else None
        if keep:
            kept[key] = value
    return kept


def load_network(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads full weights into a network, which may be sharded."""
    like = {**weights, **network.state_dict()}
    shards = {name: shard_like(value, like[name]) for name, value in weights.items()}
    network.load_state_dict(shards)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], shapes: Sequence[Shapes]
) -> None:
    """Loads the tensors of a full state. The options keep their configured values.

    Args:
        optimizer: The optimizer.
        state: The state from `full_state`.
        shapes: The shapes of the tensors that the optimizer keeps for each parameter.

    Raises:
        ValueError: If the state belongs to other parameters or another optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def sharded(parameter: Tensor, value: Tensor, expected: tuple[int, ...]) -> Tensor:
        if value.shape != expected:
            found = f"a tensor {list(value.shape)} instead of {list(expected)}"
            raise ValueError(f"the optimizer state has {found} for a parameter")
        return shard_like(value, parameter) if value.shape == parameter.shape else value

    shards = {}
    for index, kept in state["state"].items():
        if index not in range(len(parameters)) or kept.keys() != shapes[index].keys():
            found = ", ".join(map(str, kept))
            raise ValueError(f"the optimizer state has {found} for parameter {index}")
        shards[index] = {
            name: sharded(parameters[index], value, shapes[index][name])
            for name, value in kept.items()
        }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": shards, "param_groups": groups})
