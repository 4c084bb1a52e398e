"""`soflow compare`: objectives, or variants of a recipe, side by side over several seeds."""

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

CHANGES = "Changes to it; NAME:KEY=VALUE for one objective or variant."
VARIANTS = "A YAML file of variants in place of objectives: NAME: {objective: {p: 0}, ...}."
ONLY = "Names of variants in the file, separated by commas (default: all)."
BUDGET = "steps: the same for all; time: as many as fit into the time of SoFlow, or the first."
OBJECTIVES = f"Objectives, separated by commas (default: {ALL})."
ROUNDS = "Measurements of each cost, in turn (default: 3; 1 for trainings under 500 steps)."
HEUN = "Also evaluate 32 Heun steps of each model's own velocity (slow)."
OUT = "The folder (default: runs/compare-RECIPE[-VARIANTS][-time])."


def compare(
    recipe: Annotated[str, Argument(help=RECIPE)] = "digits",
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    objectives: Annotated[str | None, Option(help=OBJECTIVES)] = None,
    variants: Annotated[Path | None, Option(help=VARIANTS)] = None,
    only: Annotated[str | None, Option(help=ONLY)] = None,
    seeds: Annotated[int, Option(help="Runs of each.")] = 3,
    budget: Annotated[Literal["steps", "time"], Option(help=BUDGET)] = "steps",
    rounds: Annotated[int | None, Option(help=ROUNDS)] = None,
    heun: Annotated[bool, Option("--heun", help=HEUN)] = False,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Train a recipe by several objectives, and compare their samples and costs.

    With --variants, compare named sets of settings in place of objectives.

    The same command continues a comparison that was interrupted.
    """
    if objectives is not None and variants is not None:
        raise InputError("--objectives and --variants: give one of them")
    if only is not None and variants is None:
        raise InputError("--only selects variants: give --variants, too")
    at_least(1, seeds=seeds, rounds=rounds)
    name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    parts = ["compare", name, *([variants.stem] if variants else []), budget]
    folder = out or Path("runs") / "-".join(parts).removesuffix("-steps")

    from soflow.config.variants import read_compared

    names = names_in(objectives or ALL)
    chosen = [] if only is None else names_in(only)
    changes = overrides or []
    # Mistakes are reported before torch is loaded.
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
            f"stopped, checkpoint written; the same command continues from it, in {folder}",
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
