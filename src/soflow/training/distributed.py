"""Several processes: how they start and end, and networks that are sharded over them.

A shard is a DTensor; every function here also takes ordinary tensors and leaves them as they are.
Networks are sharded by torch's fully_shard rather than by Accelerate's FSDP2, which does nothing on
CPUs and rounds the weights themselves to bfloat16, while the consistency pair needs float32.
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
    """Raises InputError if `accelerate launch` is set to wrap the network itself.

    Checkpoints do not support that.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch is set to use {name}: launch without it (--multi_gpu); "
                "parallel=fsdp shards a network over processes"
            )


def make_accelerator(config: Config, folder: RunFolder) -> Accelerator:
    """The Accelerator of a run.

    Raises:
        InputError: If the batch cannot be split equally.
    """
    # Accelerate keeps the precision of a process's first run; this may be another run.
    AcceleratorState._reset_state()
    train = config.train
    accelerator = Accelerator(
        # Without cpu=True there is no process group on machines without a GPU.
        cpu=processes.count() > 1 and not torch.cuda.is_available(),
        mixed_precision="bf16" if config.precision.startswith("bf16") else "no",
        gradient_accumulation_steps=train.accumulate,
        project_dir=str(folder.path),
    )
    if train.batch_size % (accelerator.num_processes * train.accumulate):
        raise InputError(
            f"train.batch_size={train.batch_size} cannot be split equally over "
            f"{accelerator.num_processes} processes with train.accumulate={train.accumulate}"
        )
    return accelerator


def same_everywhere(value: T) -> T:
    """The first process's value. Every process must call it."""
    if processes.count() == 1:
        return value
    PartialState(cpu=not torch.cuda.is_available())  # the process group
    (value,) = broadcast_object_list([value])
    return value


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Raises RunError in place of torch's errors after another process has ended."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no class of their own.
        if isinstance(error, DistError) or "gloo" in str(error):
            raise RunError(
                "another process of this run has ended or does not answer; its own message, if "
                "any, has the cause; the same command resumes from the last checkpoint"
            ) from error
        raise


def shard_network(module: nn.Module, device: torch.device, blocks: bool = True) -> None:
    """Replaces each parameter, the same on all processes, by this process's shard on `device`.

    Repeated blocks are gathered only while they compute, the rest for the whole forward and
    backward pass. Under autocast, bfloat16 copies of weights stay gathered until the backward pass.

    Args:
        blocks: False gathers everything for the whole step, for objectives that do more with a
            network than call it.

    Raises:
        InputError: If this torch cannot shard on CPUs.
    """
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        version = torch.__version__
        raise InputError(f"parallel=fsdp on CPUs needs torch above {version}: use parallel=ddp")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    repeated = [child for child in module.modules() if getattr(child, "repeated", False)]
    for block in repeated if blocks else []:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor gathered from all shards. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, the same on all processes, sharded like `like`. Every process must call it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def gather_number(accelerator: Accelerator, number: int) -> list[int]:
    """The number that each process has. Every process must call it."""
    if accelerator.num_processes == 1:
        return [number]
    return accelerator.gather(torch.tensor([number], device=accelerator.device)).tolist()


def full_state(state: Mapping[Any, Any], keep: bool) -> Mapping[Any, Any]:
    """A state_dict of full tensors: the state itself, unless it is sharded.

    Every process must call it.
    """
    values = [*state.values(), *(v for m in state.get("state", {}).values() for v in m.values())]
    return gather_state(state, keep) if any(isinstance(v, DTensor) for v in values) else state


def gather_state(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """A state_dict of full tensors on the CPU; empty if `keep` is False.

    Every process must call it. Tensors are gathered one at a time, so that no device holds all.
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
    """Loads full weights."""
    like = {**weights, **network.state_dict()}
    shards = {name: shard_like(value, like[name]) for name, value in weights.items()}
    network.load_state_dict(shards)


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], shapes: Sequence[Shapes]
) -> None:
    """Loads the tensors of a full state; options stay as the configuration sets them.

    Args:
        optimizer: The optimizer.
        state: What `full_state` made of its state.
        shapes: What it keeps of each of its parameters.

    Raises:
        ValueError: If the state belongs to other parameters or another optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def sharded(parameter: Tensor, value: Tensor, expected: tuple[int, ...]) -> Tensor:
        if value.shape != expected:
            found = f"{list(value.shape)} in place of {list(expected)}"
            raise ValueError(f"the optimizer state has {found} for a parameter")
        return shard_like(value, parameter) if value.shape == parameter.shape else value

    shards = {}
    for index, kept in state["state"].items():
        if index not in range(len(parameters)) or kept.keys() != shapes[index].keys():
            found = ", ".join(map(str, kept))
            raise ValueError(f"the optimizer state has {found} of parameter {index}")
        shards[index] = {
            name: sharded(parameters[index], value, shapes[index][name])
            for name, value in kept.items()
        }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": shards, "param_groups": groups})
