"""What training a recipe needs, from counting alone: no measurement, no GPU. Every figure from here is an estimate.

Operations and kept activations are counted on tensors that have shapes and no content, so it costs nothing whatever the
network's size. What a GPU makes of the operations is an assumption, PEAK and SHARE, and stands beside every figure.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from soflow.assemble import make_model, make_network
from soflow.comparison.measure import COUNTED, random_step
from soflow.config import Config
from soflow.errors import InputError
from soflow.objectives.base import Losses

#: The GPU that hours are stated for, its operations a second in matrix products of each kind, and the share that is reached.
GPU = "H100 SXM"
PEAK = {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12}
SHARE = 0.3


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    buckets: int  # in which several processes exchange gradients: DistributedDataParallel copies them there
    moments: int  # of the optimizer
    average: int
    activations: int  # kept from the forward pass for the backward

    @property
    def states(self) -> int:
        """All but the activations: whatever the batch."""
        return self.total - self.activations

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Estimate:
    """What a training needs."""

    precision: str
    gpus: int
    parameters: int  # trained
    flops_per_sample: float  # of a training step, forward and backward
    flops: dict[
        str, float
    ]  # of the whole training, by the kind of matrix product: float32, tf32, bfloat16
    gpu_seconds: float  # of the operations alone
    samples: int  # a GPU's at a time: the batch over GPUs and train.accumulate
    memory: Memory

    def plain(self) -> dict[str, Any]:
        """As numbers for a file."""
        sums = {"states": self.memory.states, "total": self.memory.total}
        return {"estimate": True, **asdict(self), "memory": {**asdict(self.memory), **sums}}


#: What `cells` holds.
COLUMNS = (
    "recipe",
    "precision",
    "parameters",
    "GFLOP/sample",
    "EFLOP in all",
    "GPU-hours",
    "hours",
    "samples",
    "states",
    "kept",
    "GiB",
)


def cells(name: str, one: Estimate) -> list[str]:
    """An estimate as a row of a table, memory in GiB."""
    hours = one.gpu_seconds / 3600
    memory = (
        f"{size / 2**30:,.2f}"
        for size in (one.memory.states, one.memory.activations, one.memory.total)
    )
    return [
        name,
        one.precision,
        f"{one.parameters / 1e6:,.1f}M",
        three_digits(one.flops_per_sample / 1e9),
        three_digits(sum(one.flops.values()) / 1e18),
        three_digits(hours),
        three_digits(hours / one.gpus),
        f"{one.samples}",
        *memory,
    ]


def three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def assumption(flops_per_second: float | None = None) -> str:
    """In words, what the hours rest on."""
    if flops_per_second is not None:
        return f"{flops_per_second / 1e12:,.4g} TFLOP/s on each GPU, as given"
    rates = ", ".join(
        f"{SHARE * rate / 1e12:,.3g} TFLOP/s in {kind}" for kind, rate in PEAK.items()
    )
    return f"{SHARE:.0%} of the peak of an {GPU}, which is assumed, not measured: {rates}"


def estimate(config: Config, gpus: int = 1, flops_per_second: float | None = None) -> Estimate:
    """What the training that `config` describes needs on so many GPUs.

    flops_per_second: what a GPU reaches, in place of the assumption. Raises InputError for a network that cannot be, and for
    a batch that cannot be split.
    """
    config = config.model_copy(
        update={"compile": False}
    )  # counted where torch works off one operation after the other
    batch, shares = config.train.batch_size, gpus * config.train.accumulate
    if batch % shares:
        raise InputError(
            f"train.batch_size={batch} cannot be split into equal parts for {gpus} GPUs "
            f"with train.accumulate={config.train.accumulate}"
        )
    a_sample = count_by_kind(config)
    flops = {kind: count * batch * config.train.steps for kind, count in a_sample.items()}
    rates = PEAK if flops_per_second is None else dict.fromkeys(PEAK, flops_per_second / SHARE)
    with torch.device("meta"):
        network = make_network(config)
    return Estimate(
        precision=config.precision,
        gpus=gpus,
        parameters=sum(
            parameter.numel() for parameter in network.parameters() if parameter.requires_grad
        ),
        flops_per_sample=sum(a_sample.values()),
        flops=flops,
        gpu_seconds=sum(count / (SHARE * rates[kind]) for kind, count in flops.items()),
        samples=batch // shares,
        memory=memory(config, network, gpus, kept_for_backward(config, batch // shares)),
    )


def memory(config: Config, network: nn.Module, gpus: int, activations: int) -> Memory:
    """Bytes on each of so many GPUs; parallel=fsdp gives each a part of all that belongs to a parameter."""
    sharded = getattr(config, "parallel", "ddp") == "fsdp"
    parts = gpus if sharded else 1
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = size(trained)
    double = 2 if config.ema.float64 else 1
    return Memory(
        weights=size([*network.parameters(), *network.buffers()]) // parts,
        gradients=gradients // parts,
        buckets=gradients if gpus > 1 and not sharded else 0,
        moments=2 * gradients // parts,  # AdamW and RAdam alike
        average=double * gradients // parts,
        activations=activations,
    )


def size(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def without_content(config: Config, count: int) -> Iterator[tuple[nn.Module, Callable[[], Losses]]]:
    """The network, and the loss of a step of so many samples, under the configuration's precision, to be called inside."""
    objective, batch, draws = random_step(config, count)
    bf16 = config.precision.startswith("bf16")
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = make_network(config)
        model = make_model(config, network)

        def loss() -> Losses:
            with autocast:
                return objective(model, batch, draws, 0.5)

        yield network, loss


def kept_for_backward(config: Config, count: int) -> int:
    """Bytes of what autograd keeps of the forward pass of so many samples, each piece of memory once, without weights."""
    with without_content(config, count) as (network, loss):
        own = {key(tensor) for tensor in (*network.parameters(), *network.buffers())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if (
                key(tensor) not in own and not tensor._is_zerotensor()
            ):  # zeros that forward-mode derivatives only stand for
                kept[key(tensor)] = (
                    tensor  # the tensor, too: memory that is given back could come again under its key
                )
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def key(tensor: Tensor) -> int:
    """Equal for tensors that share their memory."""
    return tensor.untyped_storage()._cdata


def count_by_kind(config: Config) -> dict[str, float]:
    """Operations a sample of the loss and its gradient, by the kind of matrix product that a GPU would use."""
    with (
        without_content(config, COUNTED) as (_, loss),
        attention_as_products(),
        Products() as products,
    ):
        loss().total.backward()
    float32 = "tf32" if "tf32" in config.precision else "float32"
    names = {torch.bfloat16: "bfloat16", torch.float32: float32}
    return {names[dtype]: count / COUNTED for dtype, count in products.counted.items()}


class Products(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions by the type of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.counted[args[0].dtype] += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def attention_as_products() -> Iterator[None]:
    """Attention as the matrix products it is, and these in bfloat16 where its inputs are."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
