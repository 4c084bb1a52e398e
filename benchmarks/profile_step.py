"""Profiles a training step by operator.

    python benchmarks/profile_step.py cifar10 train.batch_size=4 [KEY=VALUE ...]

The trainer runs one warm-up step on random data, then the profiled step.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from soflow.comparison.measure import make_trainer
from soflow.config import read_recipe
from soflow.run.folder import RunFolder
from soflow.system.devices import default_device
from soflow.training.automatic import resolve

#: Operators below this fraction of the time are not printed.
LEAST = 0.005


def main() -> None:
    recipe, *overrides = sys.argv[1:] or ["digits"]
    config, note = resolve(read_recipe(recipe, overrides), default_device())
    print(note, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.create()
        trainer = make_trainer(config, run)
        trainer.module.train()
        on_gpu = trainer.device.type == "cuda"
        trainer.timed_step()
        trainer.read()
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as seen:
            trainer.timed_step()
            trainer.read()
        trainer.close()
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, name) for event in seen.key_averages()}
    whole = sum(times.values())
    print(f"{whole / 1e6:.3f} s per step, torch {torch.__version__}")
    for operator, time in sorted(times.items(), key=lambda item: -item[1]):
        if time >= LEAST * whole:
            print(f"{time / whole:6.1%}  {operator}")


if __name__ == "__main__":
    main()
