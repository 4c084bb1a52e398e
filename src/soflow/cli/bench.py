"""`soflow bench`: what a training step and a sample cost, or what a whole training will need."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from soflow.cli.options import at_least
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.comparison.estimate import Estimates
    from soflow.comparison.measure import Measurement
    from soflow.config import Config

ALL = "soflow,mean_flow,shortcut,consistency,flow_matching"
#: Printed below a table of estimates.
MEANING = """\
hours: GPU-hours over GPUs. samples: on one GPU at a time. GiB: on one GPU, estimated. states:
weights, gradients, moments, average, and the buckets in which processes exchange gradients. kept:
what the backward pass needs of the forward pass. Not counted: temporaries, what the allocator
reserves, data."""
#: Printed below a table of measurements.
MEASURED = """\
MiB: the process's peak. of peak: of a large float32 matrix product in the same process."""

RECIPE = "A shipped recipe's name, a YAML file, or a run folder."
OVERRIDES = (
    "Changes to it; OBJECTIVE:KEY=VALUE for one objective. With --estimate also more recipes."
)
OBJECTIVES = (
    "Objectives, separated by commas; ratios are to the first "
    f"(default: {ALL}; with --estimate the recipe's)."
)
ESTIMATE = "Measure nothing: count what the whole training needs, memory and GPU-hours."
GPUS = "With --estimate: GPUs that share a batch (default: 1)."
RATE = "With --estimate: what one GPU reaches (default: a share of an H100's peak)."


def bench(
    recipe: Annotated[str, typer.Argument(help=RECIPE)] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help=OVERRIDES)
    ] = None,
    objectives: Annotated[str | None, typer.Option(help=OBJECTIVES)] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.")] = 3,
    estimate: Annotated[bool, typer.Option("--estimate", help=ESTIMATE)] = False,
    gpus: Annotated[int | None, typer.Option(help=GPUS)] = None,
    flops_per_second: Annotated[float | None, typer.Option(help=RATE)] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.json for all figures.")] = None,
) -> None:
    """Measure training steps and one-step sampling on random data, in fresh processes.

    On a GPU, SoFlow is also measured with plain attention, the only kind that MeanFlow can use.

    With --estimate nothing is measured, and no GPU is needed: operations and memory are counted.
    """
    at_least(rounds, 1, "--rounds")
    if out is not None and (out.suffix != ".json" or not out.absolute().parent.is_dir()):
        raise InputError(f"--out is {out}: name a .json file in a folder that exists")
    if estimate:
        count(recipe, overrides or [], objectives, gpus, flops_per_second, out)
        return
    if gpus is not None or flops_per_second is not None:
        raise InputError(
            "--gpus and --flops-per-second belong to --estimate: add it, or leave them out"
        )

    from soflow.config import read_objectives

    configs = read_objectives(recipe, (objectives or ALL).split(","), overrides or [])

    import torch

    from soflow.comparison.bench import PLAIN_ATTENTION, Measurements
    from soflow.comparison.bench import bench as run

    programs = {}
    if torch.cuda.is_available() and "soflow" in configs:
        configs["soflow, plain attention"] = configs["soflow"]
        programs["soflow, plain attention"] = PLAIN_ATTENTION
    measured = run(configs, rounds, programs)
    show(recipe, measured, next(iter(configs.values())).train.batch_size)
    if out is not None:
        Measurements(measured=measured).write(out)
        print(f"written: {out}")


def count(
    recipe: str,
    words: list[str],
    objectives: str | None,
    gpus: int | None,
    flops_per_second: float | None,
    out: Path | None,
) -> None:
    """`soflow bench --estimate`."""
    from soflow.config import read_objectives, read_recipe

    count = at_least(1 if gpus is None else gpus, 1, "--gpus")
    if flops_per_second is not None and not 0 < flops_per_second < float("inf"):
        raise InputError(
            f"--flops-per-second is {flops_per_second}: it must be above 0, such as 2e14"
        )
    recipes = [recipe, *(word for word in words if "=" not in word)]
    overrides = [word for word in words if "=" in word]
    configs: dict[str, Config] = {}
    for one in recipes:
        if objectives is None:
            configs[one] = read_recipe(one, overrides)
        else:
            by_objective = read_objectives(one, objectives.split(","), overrides)
            configs |= {f"{one}, {name}": config for name, config in by_objective.items()}

    from soflow.comparison.estimate import Estimates, assumption, estimate
    from soflow.system.progress import track

    estimates = {}
    with track("counting", len(configs)) as task:
        for name, config in configs.items():
            estimates[name] = estimate(config, count, flops_per_second)
            task.update(len(estimates), name)
    found = Estimates(assumption=assumption(flops_per_second), estimates=estimates)
    show_estimates(found)
    if out is not None:
        found.write(out)
        print(f"written: {out}")


def show_estimates(found: Estimates) -> None:
    """Prints one row per recipe, and what the figures mean and rest on."""
    from rich.console import Console
    from rich.table import Table

    from soflow.comparison.estimate import COLUMNS, cells

    gpus = next(iter(found.estimates.values())).gpus
    table = Table(title=f"estimates, not measured: {gpus} {'GPU' if gpus == 1 else 'GPUs'}")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    for name, one in found.estimates.items():
        table.add_row(*cells(name, one))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(f"Estimated hours: of the operations alone, at {found.assumption}.")
    print(MEANING)


def show(recipe: str, measured: dict[str, list[Measurement]], batch_size: int) -> None:
    """Prints medians, and ratios to the first objective's measurement of the same round."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(measured.values()))
    step = f"a step of {batch_size} samples on {first[0].device}"
    table = Table(title=f"{recipe}: {step}, medians of {len(first)} rounds")
    table.add_column("objective")
    for column in [
        "s/step",
        "ratio",
        "spread",
        "samples/s",
        "MiB",
        "ratio",
        "MFLOP/sample",
        "of peak",
    ]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, ones in measured.items():
        seconds = median(one.seconds_per_step for one in ones)
        memory = median(one.peak_bytes for one in ones)
        pairs = list(zip(ones, first, strict=True))
        ratios = [one.seconds_per_step / base.seconds_per_step for one, base in pairs]
        flops = batch_size * ones[0].flops_per_sample
        reached = [flops / one.seconds_per_step / one.peak_flops_per_second for one in ones]
        table.add_row(
            name,
            f"{seconds:.4g}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{batch_size / seconds:,.0f}",
            f"{memory / 2**20:,.0f}",
            f"{memory / median(base.peak_bytes for base in first):.2f}",
            f"{ones[0].flops_per_sample / 1e6:,.1f}",
            f"{median(reached):.0%}",
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    rate = median(one.one_step_samples_per_second for one in first)
    bare = median(one.bare_forward_ratio for one in first)
    print(
        f"one-step sampling: {rate:,.0f} samples/s, {bare:.3f} of the bare network's forward pass"
    )
    print(MEASURED)
