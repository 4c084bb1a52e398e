"""Estimates the time and memory of a training by counting, without a measurement or a GPU.

Operations and saved activations are counted with fake tensors, so large networks take no memory.
The speed of a GPU is an assumption, PEAK and SHARE, which is printed with the estimates.
"""

from math import prod

import torch
from pydantic import computed_field
from torch import Tensor, nn

from soflow.assemble import make_network
from soflow.comparison.counting import count_by_kind, fake_training_step, trained
from soflow.config import Config
from soflow.errors import InputError
from soflow.system.records import Count, Record
from soflow.training.optimizers import kept_shapes

#: The assumed GPU, its peak FLOP/s by precision of matrix products, and the assumed fraction of the
#: peak that training reaches.
GPU = "H100 SXM"
PEAK = {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12}
SHARE = 0.3


class Memory(Record):
    """Bytes on one GPU."""

    weights: Count
    gradients: Count
    buckets: Count  # gradient buckets of DistributedDataParallel
    moments: Count  # optimizer state
    average: Count  # EMA weights
    activations: Count  # saved for the backward pass

    @computed_field  # type: ignore[prop-decorator]
    @property
    def states(self) -> int:
        """Bytes that do not depend on the batch size."""
        return self.weights + self.gradients + self.buckets + self.moments + self.average

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        """Bytes of states and activations."""
        return self.states + self.activations


class Estimate(Record):
    """The estimated cost of a training run."""

    precision: str
    gpus: Count
    parameters: Count  # trainable parameters
    flops_per_sample: float  # FLOPs of a training step, forward and backward
    flops: dict[str, float]  # FLOPs of the training run, by precision of matrix products
    gpu_seconds: float  # for the counted operations only
    samples: Count  # microbatch on one GPU
    memory: Memory


class Estimates(Record):
    """Estimates by recipe, and the assumption behind their hours."""

    assumption: str
    estimates: dict[str, Estimate]


#: The header for `cells`.
COLUMNS = (
    *("recipe", "precision", "parameters", "GFLOP/sample", "EFLOP total", "GPU-hours"),
    *("hours", "microbatch", "states", "activations", "GiB"),
)


def cells(name: str, one: Estimate) -> list[str]:
    """Formats an estimate as a table row, with memory in GiB."""
    hours, memory = one.gpu_seconds / 3600, one.memory
    flops = (one.flops_per_sample / 1e9, sum(one.flops.values()) / 1e18)
    return [
        name,
        one.precision,
        f"{one.parameters / 1e6:,.1f}M",
        *map(three_digits, (*flops, hours, hours / one.gpus)),
        f"{one.samples}",
        *(f"{n / 2**30:,.2f}" for n in (memory.states, memory.activations, memory.total)),
    ]


def three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def assumption(flops_per_second: float | None = None) -> str:
    """Describes the assumed FLOP/s of a GPU."""
    if flops_per_second is not None:
        return f"{flops_per_second / 1e12:,.4g} TFLOP/s on each GPU, as given"
    rates = [f"{SHARE * rate / 1e12:,.3g} TFLOP/s in {kind}" for kind, rate in PEAK.items()]
    known = f"{SHARE:.0%} of the peak of an {GPU} (an assumption, not a measurement)"
    return f"{known}: {', '.join(rates)}"


def estimate(config: Config, gpus: int = 1, flops_per_second: float | None = None) -> Estimate:
    """Estimates the cost of a training run.

    Args:
        config: Configuration of the training.
        gpus: Number of GPUs that share a batch.
        flops_per_second: FLOP/s that one GPU reaches. By default, SHARE of PEAK.

    Returns:
        The estimate.

    Raises:
        InputError: If sizes of the network do not fit together, or the batch size is not a multiple
            of GPUs times accumulation steps.
    """
    if config.precision == "auto":
        config = config.model_copy(update={"precision": "bf16-tf32"})  # the choice on a GPU
    batch, parts = config.train.batch_size, gpus * config.train.accumulate
    if batch % parts:
        raise InputError(
            f"train.batch_size={batch} cannot be split into equal microbatches for {gpus} GPUs "
            f"with train.accumulate={config.train.accumulate}: choose a multiple of {parts}"
        )
    per_sample = count_by_kind(config)
    flops = {kind: count * batch * config.train.steps for kind, count in per_sample.items()}
    rates = {kind: flops_per_second or SHARE * peak for kind, peak in PEAK.items()}
    with torch.device("meta"):
        network = make_network(config)
    return Estimate(
        precision=config.precision,
        gpus=gpus,
        parameters=sum(one.numel() for one in trained(network)),
        flops_per_sample=sum(per_sample.values()),
        flops=flops,
        gpu_seconds=sum(count / rates[kind] for kind, count in flops.items()),
        samples=batch // parts,
        memory=memory(config, network, gpus, kept_for_backward(config, batch // parts)),
    )


def memory(config: Config, network: nn.Module, gpus: int, activations: int) -> Memory:
    """Bytes on each GPU. With parallel=fsdp, each GPU holds a shard of each tensor."""
    sharded = config.parallel == "fsdp"
    parts = gpus if sharded else 1
    gradients = size(trained(network))
    return Memory(
        weights=size([*network.parameters(), *network.buffers()]) // parts,
        gradients=gradients // parts,
        buckets=gradients if gpus > 1 and not sharded else 0,
        moments=optimizer_state(config, network) // parts,
        average=(2 if config.ema.float64 else 1) * gradients // parts,
        activations=activations,
    )


def optimizer_state(config: Config, network: nn.Module) -> int:
    """Bytes of the optimizer state in float32, without scalars.

    Raises:
        InputError: If this torch lacks the optimizer, or the optimizer rejects its options.
    """
    shapes = kept_shapes(config.optimizer, network)
    return 4 * sum(prod(shape) for kept in shapes for shape in kept.values() if shape)


def size(tensors: list[Tensor]) -> int:
    """Total bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kept_for_backward(config: Config, count: int) -> int:
    """Bytes that autograd saves in the forward pass of `count` samples, without weights."""
    with fake_training_step(config, count) as (network, *_, loss):
        own = {key(tensor) for tensor in (*network.parameters(), *network.buffers())}
        # Holding the tensors keeps their memory from being reused under the same key.
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            # Zeros of forward-mode derivatives take no memory.
            if key(tensor) not in own and not tensor._is_zerotensor():
                kept[key(tensor)] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def key(tensor: Tensor) -> int:
    """A key that is equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata
