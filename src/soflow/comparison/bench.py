"""Measures the cost of several configurations in turn, each in a fresh process."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import torch

from soflow.assemble import make_network
from soflow.comparison.counting import Counts, count, with_default_sizes
from soflow.comparison.measure import SECONDS, Measurement, Request, Times
from soflow.config import Config
from soflow.errors import RunError
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.system.devices import default_device
from soflow.system.progress import Progress, track
from soflow.system.records import Record
from soflow.training.automatic import resolve

#: Maximum number of processes that load their libraries in parallel, to limit memory use.
PROCESSES = 6
#: Arguments to Python for a measurement, and for a measurement with plain attention.
PROGRAM = ("-m", "soflow.comparison.measure")
PLAIN_ATTENTION = (*PROGRAM, "math")


class Measurements(Record):
    """The measurements of all rounds by name, as `soflow bench --out` writes them."""

    measured: dict[str, list[Measurement]]


def bench(
    configs: Mapping[str, Config],
    rounds: int,
    programs: Mapping[str, Sequence[str]] = MappingProxyType({}),
    progress: Progress = track,
    seconds: float = SECONDS,
) -> dict[str, list[Measurement]]:
    """Measures each configuration `rounds` times, in turn, so that drift affects all equally.

    Up to PROCESSES processes load their libraries in parallel. Then they measure one by one.

    Args:
        configs: Configurations to measure, by name. As in training, `precision=auto` and
            `compile=auto` are resolved for this machine.
        rounds: Number of measurements of each configuration.
        programs: Arguments to Python for some configurations, by name. By default, PROGRAM.
        progress: Displays the number of finished measurements.
        seconds: Duration of the training steps in each measurement, in seconds.

    Returns:
        `rounds` measurements of each configuration, by name.

    Raises:
        InputError: If the sizes of a network do not fit together.
        RunError: If a measurement fails.
    """
    device = default_device()
    configs = {name: resolve(with_default_sizes(x), device)[0] for name, x in configs.items()}
    with torch.device("meta"):
        for config in configs.values():
            make_network(config)  # reports wrong sizes before any process starts
    counts: dict[str, Counts] = {}
    measured: dict[str, list[Measurement]] = {name: [] for name in configs}
    done = 0
    with progress("measuring steps", rounds * len(configs)) as task:
        for group in rounds * groups(list(configs)):
            with ExitStack() as stack:
                workers = {
                    name: stack.enter_context(worker(programs.get(name, PROGRAM))) for name in group
                }
                for name in group:
                    counts[name] = counts.get(name) or count(configs[name])
                for process in workers.values():
                    assert process.stdout is not None
                    process.stdout.readline()  # "ready": the libraries are loaded
                for name, process in workers.items():
                    times = ask(process, name, configs[name], seconds)
                    measured[name].append(Measurement(**dict(times), **dict(counts[name])))
                    done += 1
                    task.update(done, name)
    return measured


def groups(names: list[str]) -> list[list[str]]:
    """The names in groups of at most PROCESSES."""
    return [names[i : i + PROCESSES] for i in range(0, len(names), PROCESSES)]


@contextmanager
def worker(program: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Starts a process that measures once, and kills it at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUTF8": "1",  # for stdin and stdout on Windows
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], name: str, config: Config, seconds: float) -> Times:
    """Sends the request to the process and waits for its measurement."""
    modules = [*OBJECTIVES.modules(), *NETWORKS.modules()]
    request = Request(modules=modules, config=config.model_dump(mode="json"), seconds=seconds)
    out, errors = process.communicate(request.model_dump_json())
    if process.returncode:
        reason = (errors.strip().splitlines() or ["killed, perhaps out of memory"])[-1]
        raise RunError(f"the measurement of {name} failed: {reason}")
    return Times.model_validate_json(out.splitlines()[-1])
