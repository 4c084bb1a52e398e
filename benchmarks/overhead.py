"""Compares the trainer with a minimal training loop.

    python benchmarks/overhead.py [RECIPE] [KEY=VALUE ...]

Both loops train the same network with the same objective and optimizer. They are measured in turn,
so drift of the machine's speed affects both. The minimal loop uses prepared batches and random
draws, and has no EMA weights, gradient clipping, logging or checks.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from soflow.assemble import make_augment, make_model, make_network, make_objective
from soflow.config import Config, read_recipe
from soflow.data.batches import Batches, seeded_generator
from soflow.data.training_data import make_dataset
from soflow.run.folder import RunFolder
from soflow.system.progress import Task, silent
from soflow.training.optimizers import make_optimizer
from soflow.training.trainer import Trainer

BLOCKS, STEPS = 15, 10


def bare_loop(config: Config, device: torch.device) -> Callable[[], None]:
    """Returns a function that runs STEPS steps of a minimal loop."""
    network = make_network(config).to(device)
    model = make_model(config, network)
    objective = make_objective(config)
    optimizer = make_optimizer(config.optimizer, network)
    batches = Batches(
        make_dataset(config.data), config.train.batch_size, 0, make_augment(config), device
    )
    shape = (config.train.batch_size, *config.data.shape)
    made = [
        (
            batches.microbatch(step),
            objective.draw(shape, seeded_generator(0, "draws", step, device)),
        )
        for step in range(STEPS)
    ]

    def block() -> None:
        for step, (batch, draws) in enumerate(made):
            objective(model, batch, draws, step / config.train.steps).total.backward()
            optimizer.step()
            optimizer.zero_grad()

    return block


def library_loop(config: Config, folder: Path) -> tuple[Callable[[], None], torch.device]:
    """Returns a function that runs STEPS steps of the trainer and writes a log line."""
    run = RunFolder(folder)
    run.create()
    trainer = Trainer(
        model=make_model(config, make_network(config)),
        objective=make_objective(config),
        dataset=make_dataset(config.data),
        augment=make_augment(config),
        config=config,
        folder=run,
        progress=silent,
    )

    def block() -> None:
        for _ in range(STEPS):
            trainer.timed_step()
        trainer.read()
        trainer.log({}, Task())

    return block, trainer.device


def seconds(block: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    block()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    recipe, *overrides = sys.argv[1:] or ["digits"]
    config = read_recipe(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder:
        library, device = library_loop(config, Path(folder))
        bare = bare_loop(config, device)
        bare(), library()  # warm up
        pairs = []
        for i in range(BLOCKS):
            print(f"\rblock {i + 1} of {BLOCKS}", end="", file=sys.stderr, flush=True)
            pairs.append((seconds(library, device), seconds(bare, device)))
        print(file=sys.stderr)
    ratios = sorted(one / other for one, other in pairs)
    print(f"{recipe} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"library {1000 * median(one for one, _ in pairs):.1f} ms/step")
    print(f"bare    {1000 * median(other for _, other in pairs):.1f} ms/step")
    spread = f"from {ratios[0]:.3f} to {ratios[-1]:.3f} over {BLOCKS} pairs of {STEPS} steps"
    print(f"ratio   {median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
