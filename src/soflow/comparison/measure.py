"""Measures the cost of training steps and of sampling on random data, in a process of its own.

    python -m soflow.comparison.measure [math]

runs one measurement. It prints "ready", reads a `Request` from stdin and prints `Times`. With
"math" it uses plain attention, the only kind that supports forward-mode derivatives.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from statistics import median

import psutil
import torch
from pydantic import JsonValue
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.assemble import make_model, make_network, make_objective
from soflow.comparison.counting import Counts, random_dataset
from soflow.config import Config
from soflow.config.reading import validate
from soflow.drawing import class_by_class
from soflow.run.folder import RunFolder
from soflow.sampling import one_step
from soflow.system.progress import silent
from soflow.system.records import Record
from soflow.training.compile import compiled
from soflow.training.precision import float32_products
from soflow.training.trainer import Trainer

#: Minimum seconds of training steps in one measurement (half as many for sampling), number of
#: warm-up steps, and minimum number of measured steps.
SECONDS, WARM_UP, LEAST_STEPS = 2.0, 2, 3
#: Steps between two synchronizations on a GPU.
GPU_BLOCK = 5


class Request(Record):
    """The request to a measuring process."""

    modules: list[str]  # modules that register custom objectives and networks
    config: dict[str, JsonValue]
    seconds: float = SECONDS


class Times(Record):
    """The results of one measuring process."""

    seconds_per_step: float  # median
    peak_bytes: int  # peak memory during training: the process (CPU) or the allocator (GPU)
    peaks: dict[str, float]  # FLOP/s of large matrix products, by precision
    one_step_samples_per_second: float
    bare_forward_ratio: float  # speed of one-step sampling relative to the bare network
    device: str


class Measurement(Times, Counts):
    """The cost of a configuration: measured times and counted operations."""

    def share_of_peak(self, batch_size: int) -> float:
        """The ideal step time at peak FLOP/s, divided by the measured step time."""
        ideal = sum(flops / self.peaks[kind] for kind, flops in self.flops_by_kind.items())
        return batch_size * ideal / self.seconds_per_step


def measure(config: Config, plain_attention: bool = False, least_seconds: float = SECONDS) -> Times:
    """Measures training steps of the real trainer, then one-step sampling, in this process.

    The steps are those in the middle of training, because the cost of an objective with a schedule
    can change: alpha-Flow starts as flow matching and ends with Jacobian-vector products.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.create()
        trainer = make_trainer(config, run)
        trainer.module.train()
        times: list[float] = []
        with sdpa_kernel(SDPBackend.MATH) if plain_attention else nullcontext():
            device, network = trainer.device, trainer.network
            # On a GPU, synchronize only after several steps, as in training.
            block = GPU_BLOCK if device.type == "cuda" else 1
            enough = WARM_UP + LEAST_STEPS
            while len(times) < enough or block * sum(times[WARM_UP:]) < least_seconds:
                trainer.state.step = config.train.steps // 2
                start = time.perf_counter()
                for _ in range(block):
                    trainer.timed_step()
                trainer.read()
                times.append((time.perf_counter() - start) / block)
        peak = peak_bytes(device)
        rate, ratio = sampling_rate(config, network, device, least_seconds / 2)
        trainer.close()
    return Times(
        seconds_per_step=median(times[WARM_UP:]),
        peak_bytes=peak,
        peaks=peak_rates(config.precision, device),
        one_step_samples_per_second=rate,
        bare_forward_ratio=ratio,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def make_trainer(config: Config, run: RunFolder) -> Trainer:
    """A trainer on random data, without progress bar and sample grids."""
    return Trainer(
        model=make_model(config, make_network(config)),
        objective=make_objective(config, compiled if config.compile else None),
        dataset=random_dataset(config, 2 * config.train.batch_size),
        augment=None,
        config=config,
        folder=run,
        progress=silent,
    )


def peak_bytes(device: torch.device) -> int:
    """The peak memory so far: of the allocator on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss starts at the value of the parent process
        (line,) = (
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_rates(precision: str, device: torch.device) -> dict[str, float]:
    """FLOP/s of a large square matrix product, the best of five, by precision.

    Only the precisions that training steps use with this setting are measured.
    """
    tf32 = "tf32" in precision and device.type == "cuda"
    rates = {"tf32" if "tf32" in precision else "float32": peak_rate(torch.float32, tf32, device)}
    if precision.startswith("bf16"):
        rates["bfloat16"] = peak_rate(torch.bfloat16, tf32, device)
    return rates


def peak_rate(dtype: torch.dtype, tf32: bool, device: torch.device) -> float:
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    with float32_products(tf32, device):
        return 2 * side**3 / min(seconds(lambda: matrix @ matrix, device) for _ in range(5))


@torch.no_grad()
def sampling_rate(
    config: Config, network: nn.Module, device: torch.device, least_seconds: float
) -> tuple[float, float]:
    """Samples per second of one-step sampling, and its speed relative to the bare network."""
    model, count = make_model(config, network.eval()), config.train.batch_size
    noise = torch.randn(count, *config.data.shape, device=device)
    labels = class_by_class(count, config.data.num_classes)
    labels = None if labels is None else labels.to(device)
    bound, shape = model, config.data.cond_shape
    if shape:
        bound = model.conditioned(torch.zeros(count, *shape, device=device))
    t, s = torch.ones(count, device=device), torch.zeros(count, device=device)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < WARM_UP + LEAST_STEPS or sum(map(sum, pairs[WARM_UP:])) < least_seconds:
        bare = seconds(lambda: bound.net(noise, t, s, labels), device)
        pairs.append((seconds(lambda: one_step(bound, noise, labels), device), bare))
    timed = pairs[WARM_UP:]
    rate = count / median(sampled for sampled, _ in timed)
    return rate, median(bare / sampled for sampled, bare in timed)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of the work, until the device has finished."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def answer(plain_attention: bool = False) -> None:
    """Answers one request from comparison/bench.py."""
    print("ready", flush=True)
    request = Request.model_validate_json(sys.stdin.read())
    for module in request.modules:
        import_module(module)
    times = measure(validate(request.config), plain_attention, request.seconds)
    print(times.model_dump_json())


if __name__ == "__main__":
    answer(plain_attention=sys.argv[1:] == ["math"])
