"""`soflow compare`: compares objectives, or variants of a recipe, over several seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Exit, Option

from soflow.cli.bench import ALL
from soflow.cli.options import RECIPE, at_least, print_table, require_asked_for
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.comparison.record import Comparison

CHANGES = (
    "Changes to the recipe, such as train.steps=2000; NAME:KEY=VALUE changes a key for one "
    "objective or variant."
)
VARIANTS = (
    "A YAML file of named variants to compare instead of objectives: "
    "NAME: {objective: {p: 0}, ...}."
)
ONLY = "Names of the variants to compare, separated by commas (default: all in the file)."
BUDGET = (
    "steps: the same number of training steps for all; time: as many steps as fit into the "
    "training time of SoFlow, or of the first objective or variant if SoFlow is not compared."
)
OBJECTIVES = f"Objectives to compare, separated by commas (default: {ALL})."
SEEDS = "Number of training runs per objective or variant, each with another seed."
ROUNDS = (
    "Number of cost measurements per objective or variant (default: 3; 1 for training runs of "
    "fewer than 500 steps)."
)
HEUN = "Also evaluate samples from each model's own velocity, integrated with 32 Heun steps (slow)."
OUT = "The folder for results (default: runs/compare-RECIPE[-VARIANTS][-time])."


def compare(
    recipe: Annotated[str, Argument(help=RECIPE)] = "digits",
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    objectives: Annotated[str | None, Option(help=OBJECTIVES)] = None,
    variants: Annotated[Path | None, Option(help=VARIANTS)] = None,
    only: Annotated[str | None, Option(help=ONLY)] = None,
    seeds: Annotated[int, Option(help=SEEDS)] = 3,
    budget: Annotated[Literal["steps", "time"], Option(help=BUDGET)] = "steps",
    rounds: Annotated[int | None, Option(help=ROUNDS)] = None,
    heun: Annotated[bool, Option("--heun", help=HEUN)] = False,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Train a recipe with several objectives, and compare samples and costs.

    With --variants, compare named sets of settings instead of objectives.

    To resume an interrupted comparison, run the same command again.
    """
    if objectives is not None and variants is not None:
        raise InputError("--objectives and --variants cannot be combined: leave out one of them")
    if only is not None and variants is None:
        raise InputError("--only selects variants from a file: also set --variants FILE")
    at_least(1, seeds=seeds, rounds=rounds)
    name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    parts = ["compare", name, *([variants.stem] if variants else []), budget]
    folder = out or Path("runs") / "-".join(parts).removesuffix("-steps")

    from soflow.config.variants import read_compared

    names = names_in(objectives or ALL)
    chosen = [] if only is None else names_in(only)
    changes = overrides or []
    read = read_compared(recipe, names, variants, chosen, changes)
    require_asked_for(next(iter(read.values())).config, changes)

    from soflow.comparison.compare import compare
    from soflow.comparison.page import write_page
    from soflow.training.signals import Stopped

    try:
        results = compare(
            recipe,
            folder,
            None if variants else names,
            seeds,
            budget,
            changes,
            rounds,
            heun,
            variants=variants,
            only=chosen,
        )
    except Stopped as stopped:
        print(
            f"stopped, checkpoint written in {folder}; to resume, run the same command again",
            file=sys.stderr,
        )
        raise Exit(128 + stopped.signum) from None
    write_page(results, folder)
    show(results)
    print(f"written: {folder}/report.html, table.md, results.json")


def names_in(text: str) -> list[str]:
    """'one, another' -> the two names."""
    return [name.strip() for name in text.split(",")]


def show(results: Comparison) -> None:
    """Prints both tables."""
    from soflow.comparison.tables import cost_rows, overview_rows, quality_rows

    rows = overview_rows(results) if results.variants else quality_rows(results)
    print_table(results.metric, rows, left=2)
    print_table("cost", cost_rows(results), left=2)
