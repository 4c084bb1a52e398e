"""`soflow compare`: objectives side by side, over several seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Exit, Option

from soflow.cli.bench import ALL
from soflow.cli.options import RECIPE, at_least, print_table, require_asked_for

if TYPE_CHECKING:
    from soflow.comparison.record import Comparison

CHANGES = "Changes to it; OBJECTIVE:KEY=VALUE for one objective."
BUDGET = "steps: the same steps for all; time: as many as fit into SoFlow's training time."
ROUNDS = "Measurements of each cost, in turn (default: 3; 1 for trainings under 500 steps)."
HEUN = "Also evaluate 32 Heun steps of each model's own velocity (slow)."
OUT = "The folder (default: runs/compare-RECIPE, or ...-time)."


def compare(
    recipe: Annotated[str, Argument(help=RECIPE)] = "digits",
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    objectives: Annotated[str, Option(help="Objectives, separated by commas.")] = ALL,
    seeds: Annotated[int, Option(help="Runs of each objective.")] = 3,
    budget: Annotated[Literal["steps", "time"], Option(help=BUDGET)] = "steps",
    rounds: Annotated[int | None, Option(help=ROUNDS)] = None,
    heun: Annotated[bool, Option("--heun", help=HEUN)] = False,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> None:
    """Train a recipe by several objectives, and compare their samples and costs.

    The same command continues a comparison that was interrupted.
    """
    at_least(1, seeds=seeds, rounds=rounds)
    name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    folder = out or Path("runs") / f"compare-{name}{'-time' if budget == 'time' else ''}"

    from soflow.config import read_objectives

    names = [name.strip() for name in objectives.split(",")]
    changes = overrides or []
    # Mistakes are reported before torch is loaded.
    configs = read_objectives(recipe, names, changes)
    require_asked_for(next(iter(configs.values())), changes)

    from soflow.comparison.compare import compare
    from soflow.comparison.page import write_page
    from soflow.training.signals import Stopped

    try:
        results = compare(recipe, folder, names, seeds, budget, changes, rounds, heun)
    except Stopped as stopped:
        print(
            f"stopped, checkpoint written; the same command continues from it, in {folder}",
            file=sys.stderr,
        )
        raise Exit(128 + stopped.signum) from None
    write_page(results, folder)
    show(results)
    print(f"written: {folder}/report.html, table.md, results.json")


def show(results: Comparison) -> None:
    """Prints both tables."""
    from soflow.comparison.tables import cost_rows, quality_rows

    print_table(results.metric, quality_rows(results), left=2)
    print_table("cost", cost_rows(results), left=2)
