"""What a training step and a sample cost: each method in a fresh process, in turn, on random data of the recipe's shape.

python -m soflow.comparison.measure [math]   one measurement: reads a configuration from stdin, writes its figures to stdout (JSON);
                                math: with plain attention, as a method that needs its derivative must have it
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from soflow.assemble import make_model, make_network, make_objective
from soflow.config import Config
from soflow.data.augment import AugmentPipe
from soflow.data.batches import seeded_generator
from soflow.data.dataset import Dataset
from soflow.errors import RunError
from soflow.objectives.base import Draws, Objective
from soflow.run.folder import RunFolder
from soflow.sampling import class_by_class, one_step
from soflow.symbols import Batch
from soflow.training.compile import compiled
from soflow.system.progress import silent
from soflow.training.trainer import Trainer

#: Seconds of training steps in one measurement, and of sampling, after WARM_UP of them; at least LEAST_STEPS.
SECONDS, WARM_UP, LEAST_STEPS = 4.0, 2, 3
#: What Python runs for a measurement; and with plain attention.
PROGRAM, PLAIN_ATTENTION = (
    ("-m", "soflow.comparison.measure"),
    ("-m", "soflow.comparison.measure", "math"),
)
#: Samples in the step whose operations are counted, and side of the matrices whose product is the machine's peak.
COUNTED, MATRIX = 64, 2048


@dataclass(frozen=True)
class Measurement:
    """One process's figures of one method."""

    seconds_per_step: float  # median
    peak_bytes: int  # of the whole process on a CPU, of the allocator on a GPU, while training
    flops_per_sample: float  # of a training step, forward and backward
    forward_flops_per_sample: float  # of one call of the network
    parameters: int
    peak_flops_per_second: float  # of a large matrix product in this process
    one_step_samples_per_second: float
    bare_forward_ratio: (
        float  # one-step sampling's throughput over that of the network alone, median of pairs
    )
    device: str


def random_dataset(config: Config, count: int) -> Dataset:
    """Normal data of the configuration's shape; labels in turn."""
    labels = class_by_class(count, config.data.num_classes)
    names = tuple(str(label) for label in range(config.data.num_classes))
    return Dataset("random", "train", torch.randn(count, *config.data.shape), labels, names)


def random_step(config: Config, count: int) -> tuple[Objective, Batch, Draws]:
    """The objective, random data of the configuration's shape, and the draws of a step of so many samples."""
    objective, dataset = make_objective(config), random_dataset(config, count)
    data = dataset.samples()
    draws = objective.draw(data.shape, seeded_generator(0, "draws", 0, torch.device("cpu")))
    augment = torch.zeros(count, AugmentPipe.num_labels) if config.data.augment else None
    return objective, Batch(data, dataset.labels, augment), draws


def measure(config: Config, plain_attention: bool = False) -> Measurement:
    """Trains by the trainer itself, then counts, then samples."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.create()
        trainer = Trainer(
            model=make_model(config, make_network(config)),
            objective=make_objective(config, compiled if config.compile else None),
            dataset=random_dataset(config, 2 * config.train.batch_size),
            augment=None,
            config=config,
            folder=run,
            progress=silent,
            watch=lambda state, weights, device: None,
        )
        trainer.module.train()
        times: list[float] = []
        with sdpa_kernel(SDPBackend.MATH) if plain_attention else nullcontext():
            while len(times) < WARM_UP + LEAST_STEPS or sum(times[WARM_UP:]) < SECONDS:
                before = trainer.state.seconds
                trainer.timed_step()  # reads the loss, and so waits for the device
                times.append(trainer.state.seconds - before)
        device, network = trainer.device, trainer.network
        peak = peak_bytes(device)
        flops, forward = count_flops(config)
        rate, ratio = sampling_rate(config, network, device)
        trainer.close()
    return Measurement(
        seconds_per_step=median(times[WARM_UP:]),
        peak_bytes=peak,
        flops_per_sample=flops,
        forward_flops_per_sample=forward,
        parameters=sum(
            parameter.numel() for parameter in network.parameters() if parameter.requires_grad
        ),
        peak_flops_per_second=peak_rate(device),
        one_step_samples_per_second=rate,
        bare_forward_ratio=ratio,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the allocator on a GPU, resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # Linux, whose ru_maxrss begins with that of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def count_flops(config: Config) -> tuple[float, float]:
    """Operations a sample, of the loss and its gradient and of one forward pass; attention as the matrix products it is.

    Counted on tensors that have shapes and no content, so that it costs nothing whatever the network's size.
    """
    config = config.model_copy(
        update={"compile": False}
    )  # operations are counted where torch works off one by one
    objective, batch, draws = random_step(config, COUNTED)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        network = make_network(config)
        model = make_model(config, network)
        with FlopCounterMode(display=False) as whole:
            objective(model, batch, draws, 0.5).total.backward()
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            network(batch.data, draws.t, draws.s, batch.labels, batch.augment)
    return whole.get_total_flops() / COUNTED, forward.get_total_flops() / COUNTED


def peak_rate(device: torch.device) -> float:
    """Operations a second of a large float32 matrix product, the best of five."""
    matrix = torch.randn(MATRIX, MATRIX, device=device)
    return 2 * MATRIX**3 / min(seconds(lambda: matrix @ matrix, device) for _ in range(5))


@torch.no_grad()
def sampling_rate(
    config: Config, network: torch.nn.Module, device: torch.device
) -> tuple[float, float]:
    """Samples a second of one-step sampling, and its ratio to the network's own forward pass on the same batch."""
    model, count = make_model(config, network.eval()), config.train.batch_size
    noise = torch.randn(count, *config.data.shape, device=device)
    labels = class_by_class(count, config.data.num_classes)
    labels = None if labels is None else labels.to(device)
    t, s = torch.ones(count, device=device), torch.zeros(count, device=device)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < WARM_UP + LEAST_STEPS or sum(map(sum, pairs[WARM_UP:])) < SECONDS:
        bare = seconds(lambda: network(noise, t, s, labels), device)
        pairs.append((seconds(lambda: one_step(model, noise, labels), device), bare))
    timed = pairs[WARM_UP:]
    return count / median(sampled for sampled, _ in timed), median(
        bare / sampled for sampled, bare in timed
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long the work takes, with all that it has started."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bench(
    configs: Mapping[str, Config],
    rounds: int,
    on_done: Callable[[int], None] = lambda done: None,
    programs: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, list[Measurement]]:
    """`rounds` measurements of each configuration, in turn, so that a machine whose speed drifts drifts for all of them.

    `on_done` hears how many are done of rounds * len(configs). programs: what Python is to run for some of them in place of
    PROGRAM. Raises InputError for a network that cannot be, RunError
    where a measurement fails.
    """
    with torch.device("meta"):
        for config in configs.values():
            make_network(config)  # a network that cannot be is said before any process starts
    measured: dict[str, list[Measurement]] = {name: [] for name in configs}
    for done in range(rounds * len(configs)):
        name = list(configs)[done % len(configs)]
        process = subprocess.run(
            [sys.executable, *programs.get(name, PROGRAM)],
            input=configs[name].model_dump_json(),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["killed, perhaps for memory"])[-1]
            raise RunError(f"the measurement of {name} failed: {reason}")
        measured[name].append(Measurement(**json.loads(process.stdout.splitlines()[-1])))
        on_done(done + 1)
    return measured


if __name__ == "__main__":
    print(
        json.dumps(
            asdict(
                measure(
                    Config.model_validate_json(sys.stdin.read()),
                    plain_attention=sys.argv[1:] == ["math"],
                )
            )
        )
    )
