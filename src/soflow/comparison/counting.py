"""Counts operations and parameters with fake tensors, which have shapes but no data."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from soflow.assemble import make_model, make_network, make_objective
from soflow.config import Config
from soflow.config.reading import validate
from soflow.data.augment import AugmentPipe
from soflow.data.batches import seeded_generator
from soflow.data.dataset import Dataset
from soflow.drawing import class_by_class
from soflow.errors import InputError
from soflow.objectives.base import Draws, Losses
from soflow.objectives.passes import Inputs
from soflow.symbols import Batch
from soflow.system.records import Count, Record
from soflow.training.activations import checkpoint_blocks

#: Samples of the counted step. In a larger batch, these are every n-th sample.
COUNTED = 64


class Counts(Record):
    """Costs that are counted, not measured."""

    flops_per_sample: float  # FLOPs of a training step, forward and backward
    flops_by_kind: dict[str, float]  # the same, by precision: float32, tf32 or bfloat16
    forward_flops_per_sample: float  # FLOPs of one network evaluation
    parameters: Count


def with_default_sizes(config: Config) -> Config:
    """Fills in sizes that the data would decide: 3 channels and no classes.

    Raises:
        InputError: If another size depends on the data.
    """
    channels, *sizes = config.data.shape
    if -1 in sizes or (channels == -1 and not sizes):
        raise InputError(
            f"data.shape is {list(config.data.shape)}: set all sizes, because no data are read here"
        )
    shape = [3 if channels == -1 else channels, *sizes]
    values = config.model_dump()
    values["data"] |= {"shape": shape, "num_classes": max(0, config.data.num_classes)}
    return validate(values)


def random_dataset(config: Config, count: int) -> Dataset:
    """A dataset of standard normal data and conditions, with labels in turn."""
    labels = class_by_class(count, config.data.num_classes)
    names = tuple(str(label) for label in range(config.data.num_classes))
    data, shape = torch.randn(count, *config.data.shape), config.data.cond_shape
    cond = torch.randn(count, *shape) if shape else None
    return Dataset("random", "train", data, labels, names, cond=cond)


@contextmanager
def fake_training_step(
    config: Config, count: int, every: int = 1
) -> Iterator[tuple[nn.Module, Batch, Draws, Callable[[], Losses]]]:
    """The network, batch, draws and loss of a training step, with fake tensors.

    Even large networks take no memory, only the data and the random numbers do. Call the loss
    inside the block.

    Args:
        config: The settings.
        count: The number of samples.
        every: The samples are every n-th sample of a batch, the last one included.
    """
    objective, dataset = make_objective(config), random_dataset(config, count)
    data = dataset.samples()
    generator = seeded_generator(0, "draws", 0, torch.device("cpu"))
    draws = objective.draw((every * count, *data.shape[1:]), generator)
    draws = draws.rows(slice(every - 1, None, every))
    augment = torch.zeros(count, AugmentPipe.num_labels) if config.data.augment else None
    batch = Batch(data, dataset.labels, augment, dataset.conditions())
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = make_network(config)
        if config.train.checkpoint_activations:
            checkpoint_blocks(network)
        model = make_model(config, network)

        def loss() -> Losses:
            bf16 = config.precision.startswith("bf16")
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return objective(model, batch, draws, 0.5)

        yield network, batch, draws, loss


def trained(network: nn.Module) -> list[Tensor]:
    """The trainable parameters."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def count(config: Config) -> Counts:
    """Counts parameters and operations per sample. Attention counts as its matrix products.

    Raises:
        InputError: If the sizes of the network do not fit together.
    """
    by_kind = count_by_kind(config)
    with (
        fake_training_step(config, COUNTED, spacing(config)) as (network, batch, draws, _),
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
        FlopCounterMode(display=False) as forward,
    ):
        inputs = Inputs.of(batch, batch.data, draws.t, draws.s, batch.labels, draws.guidance)
        inputs.through(network)
    return Counts(
        flops_per_sample=sum(by_kind.values()),
        flops_by_kind=by_kind,
        forward_flops_per_sample=forward.get_total_flops() / COUNTED,
        parameters=sum(one.numel() for one in trained(network)),
    )


def spacing(config: Config) -> int:
    """The spacing of the counted samples in a batch."""
    return max(1, config.train.batch_size // COUNTED)


def count_by_kind(config: Config) -> dict[str, float]:
    """Operations per sample of the loss and its gradient, by precision of the matrix products."""
    with (
        fake_training_step(config, COUNTED, spacing(config)) as (*_, loss),
        attention_as_products(),
        Products() as products,
    ):
        loss().total.backward()
    float32 = "tf32" if "tf32" in config.precision else "float32"
    names = {torch.bfloat16: "bfloat16", torch.float32: float32}
    return {names[dtype]: count / COUNTED for dtype, count in products.counted.items()}


class Products(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions by dtype."""

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
    """Computes attention as matrix products, in bfloat16 if its inputs are bfloat16."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
