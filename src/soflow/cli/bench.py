"""`soflow bench`: what a training step of each method costs, and a sample, side by side."""

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
    from soflow.bench import Measurement

ALL = "soflow,mean_flow,shortcut,consistency,flow_matching"


def bench(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a YAML file, or a run folder.")] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it; METHOD:KEY=VALUE for one method alone.")
    ] = None,
    objectives: Annotated[str, typer.Option(help="Methods; the others are held against the first.")] = ALL,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.")] = 3,
    out: Annotated[Path | None, typer.Option(help="FILE.json for all figures.")] = None,
) -> None:
    """Measure training steps and one-step sampling, each method in fresh processes, on random data.

    On a GPU also SoFlow with the plain attention that MeanFlow must have, beside its own, fused one.
    """
    at_least(rounds, 1, "--rounds")
    if out is not None and (out.suffix != ".json" or not out.absolute().parent.is_dir()):
        raise InputError(f"--out is {out}: it must be a .json file in a folder that is there")

    from soflow.config import read_methods
    from soflow.progress import counting

    configs = read_methods(recipe, objectives.split(","), overrides or [])

    import torch

    from soflow.bench import PLAIN_ATTENTION
    from soflow.bench import bench as run

    programs = {}
    if torch.cuda.is_available() and "soflow" in configs:  # what fused attention, which MeanFlow cannot have, is worth
        configs["soflow, plain attention"] = configs["soflow"]
        programs["soflow, plain attention"] = PLAIN_ATTENTION
    with counting("measuring", rounds * len(configs)) as on_done:
        measured = run(configs, rounds, on_done, programs)
    show(recipe, measured, next(iter(configs.values())).train.batch_size)
    if out is not None:
        figures = {name: [asdict(one) for one in ones] for name, ones in measured.items()}
        out.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"written: {out}")


def show(recipe: str, measured: dict[str, list[Measurement]], batch_size: int) -> None:
    """The medians as a table on stdout, times and memory beside their ratio to the first method's of the same round."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(measured.values()))
    table = Table(title=f"{recipe}: a step of {batch_size} samples on {first[0].device}, medians of {len(first)} rounds")
    table.add_column("method")
    for column in ("s/step", "ratio", "spread", "samples/s", "MiB", "ratio", "MFLOP/sample", "of peak"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, ones in measured.items():
        step, memory = (median(getattr(one, key) for one in ones) for key in ("seconds_per_step", "peak_bytes"))
        ratios = [one.seconds_per_step / base.seconds_per_step for one, base in zip(ones, first, strict=True)]
        shares = [one.flops_per_sample * batch_size / one.seconds_per_step / one.peak_flops_per_second for one in ones]
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
    sampling = [median(getattr(one, key) for one in first) for key in ("one_step_samples_per_second", "bare_forward_ratio")]
    print(f"one-step sampling: {sampling[0]:,.0f} samples/s, {sampling[1]:.3f} of the bare network's forward pass")
    print("MiB: the process's peak. of peak: of a large float32 matrix product in the same process.")
