"""`soflow bench`: measures training steps and sampling, or estimates a whole training run."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from soflow.cli.options import RECIPE, at_least, print_table, require_writable_file
from soflow.comparison import OBJECTIVES
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.comparison.bench import Measurements
    from soflow.comparison.estimate import Estimates
    from soflow.comparison.measure import Measurement

ALL = ",".join(OBJECTIVES)
#: Printed below a table of estimates.
MEANING = """\
hours: GPU-hours divided by the number of GPUs. microbatch: samples on one GPU. GiB: estimated
memory on one GPU. states: weights, gradients, optimizer moments, EMA weights and the buckets in
which processes exchange gradients. activations: stored for the backward pass. Not counted:
temporary tensors, memory that the allocator reserves, data."""
#: Printed below a table of measurements.
MEASURED = """\
min-max: of the time ratio over rounds. MiB: peak memory of the GPU allocator, or of the process on
a CPU. of peak: operations per second, compared with large matrix products of the same precision in
the same process."""
COLUMNS = "objective|s/step|time ratio|min-max|samples/s|MiB|memory ratio|MFLOP/sample|of peak"

CHANGES = (
    "Changes to the recipe, such as train.batch_size=64; OBJECTIVE:KEY=VALUE changes a key for one "
    "objective. With --estimate, further recipes may follow."
)
NAMES = (
    "Objectives to compare, separated by commas; ratios are relative to the first "
    f"(default: {ALL}; with --estimate, the recipe's own objective)."
)
ROUNDS = "Number of measurements per objective; the objectives take turns (default: 3)."
ESTIMATE = (
    "Measure nothing. Count operations and memory of the whole training run, and estimate its "
    "GPU-hours."
)
GPUS = "With --estimate: number of GPUs that share a batch (default: 1)."
RATE = (
    "With --estimate: operations per second that one GPU reaches, such as 2e14 "
    "(default: a fraction of the peak of an H100)."
)
OUT = "File for all measurements; its name ends in .json."


def bench(
    recipe: Annotated[str, Argument(help=RECIPE)] = "digits",
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    objectives: Annotated[str | None, Option(help=NAMES)] = None,
    rounds: Annotated[int | None, Option(help=ROUNDS)] = None,
    estimate: Annotated[bool, Option("--estimate", help=ESTIMATE)] = False,
    gpus: Annotated[int | None, Option(help=GPUS)] = None,
    flops_per_second: Annotated[float | None, Option(help=RATE)] = None,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Measure the cost of training steps and one-step sampling.

    Each objective trains on random data in a new process. On a GPU, SoFlow is also measured with
    plain attention, because MeanFlow cannot use fused attention.

    With --estimate, the command counts operations and memory instead. This needs no GPU.
    """
    at_least(1, rounds=rounds, gpus=gpus)
    if out is not None:
        require_writable_file(out, ".json")
    found: Estimates | Measurements
    if estimate and rounds is not None:
        raise InputError("--rounds has no effect with --estimate: leave out one of them")
    if estimate:
        found = count(recipe, overrides or [], objectives, gpus or 1, flops_per_second)
    elif gpus is None and flops_per_second is None:
        found = measure(recipe, overrides or [], objectives or ALL, rounds or 3)
    else:
        raise InputError(
            "--gpus and --flops-per-second need --estimate: add --estimate, or leave them out"
        )
    if out is not None:
        found.write(out)
        print(f"written: {out}")


def measure(recipe: str, overrides: list[str], objectives: str, rounds: int) -> Measurements:
    """Measures the objectives and prints a table."""
    from soflow.config import read_objectives

    configs = read_objectives(recipe, objectives.split(","), overrides)

    import torch

    from soflow.comparison.bench import PLAIN_ATTENTION, Measurements, bench

    programs = {}
    if torch.cuda.is_available() and "soflow" in configs:
        configs["soflow, plain attention"] = configs["soflow"]
        programs["soflow, plain attention"] = PLAIN_ATTENTION
    measured = bench(configs, rounds, programs)
    show(recipe, measured, next(iter(configs.values())).train.batch_size)
    return Measurements(measured=measured)


def count(
    recipe: str, words: list[str], objectives: str | None, gpus: int, flops_per_second: float | None
) -> Estimates:
    """Estimates training runs without measuring, and prints a table."""
    from soflow.config import read_objectives, read_recipe

    if flops_per_second is not None and not 0 < flops_per_second < float("inf"):
        raise InputError(
            f"--flops-per-second is {flops_per_second}: it must be positive, such as 2e14"
        )
    overrides = [word for word in words if "=" in word]
    configs = {}
    for one in [recipe, *(word for word in words if "=" not in word)]:
        if objectives is None:
            configs[one] = read_recipe(one, overrides)
        else:
            by_objective = read_objectives(one, objectives.split(","), overrides)
            configs |= {f"{one}, {name}": config for name, config in by_objective.items()}

    from soflow.comparison.counting import with_default_sizes
    from soflow.comparison.estimate import COLUMNS, Estimates, assumption, cells, estimate
    from soflow.system.progress import track

    estimates = {}
    with track("counting", len(configs)) as task:
        for name, config in configs.items():
            estimates[name] = estimate(with_default_sizes(config), gpus, flops_per_second)
            task.update(len(estimates), name)
    found = Estimates(assumption=assumption(flops_per_second), estimates=estimates)
    title = f"estimates, not measured: {gpus} {'GPU' if gpus == 1 else 'GPUs'}"
    rows = [COLUMNS, *(cells(name, one) for name, one in estimates.items())]
    print_table(title, rows, left=2)
    print(f"Hours count only the operations, at {found.assumption}.\n{MEANING}")
    return found


def show(recipe: str, measured: dict[str, list[Measurement]], batch_size: int) -> None:
    """Prints medians, and ratios to the first objective's measurement of the same round."""
    from soflow.comparison.cost import CostSummary

    first = next(iter(measured.values()))
    base = CostSummary.of(first, first)
    rows = [COLUMNS.split("|")]
    for name, ones in measured.items():
        cost = CostSummary.of(ones, first)
        least, middle, most = cost.step_ratio
        reached = [one.share_of_peak(batch_size) for one in ones]
        cells = [
            f"{cost.seconds_per_step:.4g}",
            f"{middle:.2f}",
            f"{least:.2f}-{most:.2f}",
            f"{batch_size / cost.seconds_per_step:,.0f}",
            f"{cost.peak_bytes / 2**20:,.0f}",
            f"{cost.peak_bytes / base.peak_bytes:.2f}",
            f"{cost.flops_per_sample / 1e6:,.1f}",
            f"{median(reached):.0%}",
        ]
        rows.append([name, *cells])
    step = f"a step of {batch_size} samples on {first[0].device}"
    print_table(f"{recipe}: {step}, medians of {len(first)} rounds", rows, left=1)
    bare = median(one.bare_forward_ratio for one in first)
    print(
        f"one-step sampling: {base.one_step_samples_per_second:,.0f} samples/s, "
        f"{bare:.3f} of the speed of the network's forward pass alone\n{MEASURED}"
    )
