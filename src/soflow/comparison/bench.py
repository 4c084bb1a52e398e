"""Measures the costs of several configurations in turn, each in fresh processes."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import torch

from soflow.assemble import make_network
from soflow.comparison.measure import SECONDS, Counts, Measurement, Request, Times, count
from soflow.config import Config
from soflow.errors import RunError
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.system.progress import Progress, track
from soflow.system.records import Record

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

    The processes of a round load their libraries side by side, and then measure one by one.

    Args:
        configs: What to measure, by name.
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
    with torch.device("meta"):
        for config in configs.values():
            make_network(config)  # reports wrong sizes before anything starts
    counts: dict[str, Counts] = {}
    measured: dict[str, list[Measurement]] = {name: [] for name in configs}
    with progress("measuring steps", rounds * len(configs)) as task:
        for done in range(0, rounds * len(configs), len(configs)):
            with ExitStack() as stack:
                workers = {
                    name: stack.enter_context(Worker(name, programs.get(name, PROGRAM)))
                    for name in configs
                }
                counts = counts or {name: count(config) for name, config in configs.items()}
                for worker in workers.values():
                    worker.wait_until_ready()
                for i, (name, worker) in enumerate(workers.items()):
                    times = worker.measure(configs[name], seconds)
                    both = {**times.model_dump(), **counts[name].model_dump()}
                    measured[name].append(Measurement.model_validate(both))
                    task.update(done + i + 1, name)
    return measured


class Worker:
    """A process that measures once."""

    def __init__(self, name: str, program: Sequence[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_until_ready(self) -> None:
        """Waits until the process has loaded its libraries."""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def measure(self, config: Config, seconds: float) -> Times:
        """Has the process measure, and waits for it."""
        modules = [*OBJECTIVES.modules(), *NETWORKS.modules()]
        request = Request(modules=modules, config=config.model_dump(mode="json"), seconds=seconds)
        out, errors = self.process.communicate(request.model_dump_json())
        if self.process.returncode:
            reason = (errors.strip().splitlines() or ["killed, perhaps for memory"])[-1]
            raise RunError(f"the measurement of {self.name} failed: {reason}")
        return Times.model_validate_json(out.splitlines()[-1])
