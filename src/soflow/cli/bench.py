"""`soflow bench`: what a training step of each method costs, and a sample, side by side; or what a training will need."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from soflow.cli.options import at_least
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.comparison.estimate import Estimate
    from soflow.comparison.measure import Measurement
    from soflow.config import Config

ALL = "soflow,mean_flow,shortcut,consistency,flow_matching"
#: What stands below a table of estimates.
MEANING = """hours: GPU-hours over GPUs. samples: those that one GPU works on at a time. GiB: of one GPU, estimated. states:
weights, gradients, moments, average, and the buckets in which processes exchange gradients. kept: what the backward pass
needs of the forward pass. Left out: temporaries, what the allocator holds beside, data."""


def bench(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, a YAML file, or a run folder.")
    ] = "digits",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes to it; METHOD:KEY=VALUE for one method alone. With --estimate also further recipes.",
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help=f"Methods; the others are held against the first (default: {ALL}; of --estimate: the recipe's)."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.")] = 3,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Measure nothing: count what the whole training needs, memory and GPU-hours.",
        ),
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(help="Of --estimate: GPUs that share a batch (default: 1).")
    ] = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            help="Of --estimate: what one GPU reaches, in place of a share of an H100's peak."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.json for all figures.")] = None,
) -> None:
    """Measure training steps and one-step sampling, each method in fresh processes, on random data.

    On a GPU also SoFlow with the plain attention that MeanFlow must have, beside its own, fused one.

    With --estimate nothing is measured, and no GPU is needed: operations and memory are counted.
    """
    at_least(rounds, 1, "--rounds")
    if out is not None and (out.suffix != ".json" or not out.absolute().parent.is_dir()):
        raise InputError(f"--out is {out}: it must be a .json file in a folder that is there")
    if estimate:
        count(
            recipe, overrides or [], objectives, 1 if gpus is None else gpus, flops_per_second, out
        )
        return
    if gpus is not None or flops_per_second is not None:
        raise InputError(
            "--gpus and --flops-per-second belong to --estimate: add it, or leave them out"
        )

    from soflow.config import read_objectives
    from soflow.system.progress import counting

    configs = read_objectives(recipe, (objectives or ALL).split(","), overrides or [])

    import torch

    from soflow.comparison.measure import PLAIN_ATTENTION
    from soflow.comparison.measure import bench as run

    programs = {}
    if (
        torch.cuda.is_available() and "soflow" in configs
    ):  # what fused attention, which MeanFlow cannot have, is worth
        configs["soflow, plain attention"] = configs["soflow"]
        programs["soflow, plain attention"] = PLAIN_ATTENTION
    with counting("measuring", rounds * len(configs)) as on_done:
        measured = run(configs, rounds, on_done, programs)
    show(recipe, measured, next(iter(configs.values())).train.batch_size)
    if out is not None:
        write({name: [asdict(one) for one in ones] for name, ones in measured.items()}, out)


def write(figures: dict[str, object], out: Path) -> None:
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written: {out}")


def count(
    recipe: str,
    words: list[str],
    objectives: str | None,
    gpus: int,
    flops_per_second: float | None,
    out: Path | None,
) -> None:
    """`soflow bench --estimate`."""
    from soflow.config import read_objectives, read_recipe
    from soflow.system.progress import counting

    at_least(gpus, 1, "--gpus")
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
            methods = read_objectives(one, objectives.split(","), overrides)
            configs |= {f"{one}, {name}": config for name, config in methods.items()}

    from soflow.comparison.estimate import assumption
    from soflow.comparison.estimate import estimate as run

    estimates: dict[str, Estimate] = {}
    with counting("counting", len(configs)) as on_done:
        for name, config in configs.items():
            estimates[name] = run(config, gpus, flops_per_second)
            on_done(len(estimates))
    show_estimates(estimates, assumption(flops_per_second))
    if out is not None:
        figures: dict[str, object] = {name: one.plain() for name, one in estimates.items()}
        write({"assumption": assumption(flops_per_second), **figures}, out)


def show_estimates(estimates: dict[str, Estimate], assumption: str) -> None:
    """A row a recipe on stdout, and below it what the figures are and what they rest on."""
    from rich.console import Console
    from rich.table import Table

    from soflow.comparison.estimate import COLUMNS, cells

    first = next(iter(estimates.values()))
    table = Table(
        title=f"estimates, not measured: {first.gpus} {'GPU' if first.gpus == 1 else 'GPUs'}"
    )
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    for name, one in estimates.items():
        table.add_row(*cells(name, one))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(f"Estimated hours: of the operations alone, at {assumption}.")
    print(MEANING)


def show(recipe: str, measured: dict[str, list[Measurement]], batch_size: int) -> None:
    """The medians as a table on stdout, times and memory beside their ratio to the first method's of the same round."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(measured.values()))
    table = Table(
        title=f"{recipe}: a step of {batch_size} samples on {first[0].device}, medians of {len(first)} rounds"
    )
    table.add_column("method")
    for column in (
        "s/step",
        "ratio",
        "spread",
        "samples/s",
        "MiB",
        "ratio",
        "MFLOP/sample",
        "of peak",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for name, ones in measured.items():
        step, memory = (
            median(getattr(one, key) for one in ones) for key in ("seconds_per_step", "peak_bytes")
        )
        ratios = [
            one.seconds_per_step / base.seconds_per_step
            for one, base in zip(ones, first, strict=True)
        ]
        shares = [
            one.flops_per_sample * batch_size / one.seconds_per_step / one.peak_flops_per_second
            for one in ones
        ]
        table.add_row(
            name,
            f"{step:.4g}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{batch_size / step:,.0f}",
            f"{memory / 2**20:,.0f}",
            f"{memory / median(one.peak_bytes for one in first):.2f}",
            f"{ones[0].flops_per_sample / 1e6:,.1f}",
            f"{median(shares):.0%}",
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    sampling = [
        median(getattr(one, key) for one in first)
        for key in ("one_step_samples_per_second", "bare_forward_ratio")
    ]
    print(
        f"one-step sampling: {sampling[0]:,.0f} samples/s, {sampling[1]:.3f} of the bare network's forward pass"
    )
    print(
        "MiB: the process's peak. of peak: of a large float32 matrix product in the same process."
    )
