"""Measures the costs of several configurations in turn, each in fresh processes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import torch

from soflow.assemble import make_network
from soflow.comparison.counting import Counts, count, without_data
from soflow.comparison.measure import SECONDS, Measurement, Request, Times
from soflow.config import Config
from soflow.errors import RunError
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.system.devices import default_device
from soflow.system.progress import Progress, track
from soflow.system.records import Record
from soflow.training.automatic import resolve

#: Most processes that load their libraries side by side, so that they fit into the memory.
PROCESSES = 6
#: Arguments of Python for a measurement, and for one with plain attention.
PROGRAM = ("-m", "soflow.comparison.measure")
PLAIN_ATTENTION = (*PROGRAM, "math")


class Measurements(Record):
    """All rounds, by name: what `soflow bench --out` writes."""

    measured: dict[str, list[Measurement]]


def bench(
    configs: Mapping[str, Config],
    rounds: int,
    programs: Mapping[str, Sequence[str]] = MappingProxyType({}),
    progress: Progress = track,
    seconds: float = SECONDS,
) -> dict[str, list[Measurement]]:
    """Measures each configuration `rounds` times, in turn, so that drift affects all alike.

    Up to PROCESSES processes load their libraries side by side, and then measure one by one.

    Args:
        configs: What to measure, by name; precision=auto and compile=auto as in training here.
        rounds: Measurements of each.
        programs: Arguments of Python for some of them, in place of PROGRAM.
        progress: Shows how many measurements are done.
        seconds: Training steps are measured for so long in each.

    Returns:
        `rounds` measurements of each configuration.

    Raises:
        InputError: For a network whose sizes do not fit together.
        RunError: If a measurement fails.
    """
    device = default_device()
    configs = {name: resolve(without_data(x), device)[0] for name, x in configs.items()}
    with torch.device("meta"):
        for config in configs.values():
            make_network(config)  # reports wrong sizes before anything starts
    counts: dict[str, Counts] = {}
    measured: dict[str, list[Measurement]] = {name: [] for name in configs}
    done = 0
    with progress("measuring steps", rounds * len(configs)) as task:
        for group in rounds * groups(list(configs)):
            with ExitStack() as stack:
                workers = {
                    name: stack.enter_context(worker(programs.get(name, PROGRAM))) for name in group
                }
                counts = counts or {name: count(config) for name, config in configs.items()}
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
    """A process that measures once; it is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUTF8": "1",  # its stdin and stdout on Windows, too
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], name: str, config: Config, seconds: float) -> Times:
    """Has the process measure, and waits for it."""
    modules = [*OBJECTIVES.modules(), *NETWORKS.modules()]
    request = Request(modules=modules, config=config.model_dump(mode="json"), seconds=seconds)
    out, errors = process.communicate(request.model_dump_json())
    if process.returncode:
        reason = (errors.strip().splitlines() or ["killed, perhaps for memory"])[-1]
        raise RunError(f"the measurement of {name} failed: {reason}")
    return Times.model_validate_json(out.splitlines()[-1])
