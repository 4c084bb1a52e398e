"""`soflow compare`: objectives side by side, over several seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soflow.cli.bench import ALL
from soflow.cli.options import at_least, one_of, require_asked_for

if TYPE_CHECKING:
    from soflow.comparison.record import Comparison

RECIPE = "A shipped recipe's name, a YAML file, or a run folder."
OVERRIDES = "Changes to it; OBJECTIVE:KEY=VALUE for one objective."
BUDGET = "steps: the same steps for all; time: as many as fit into SoFlow's training time."
ROUNDS = "Measurements of each cost, in turn (default: 3; 1 for trainings under 500 steps)."
HEUN = "Also draw by 32 Heun steps on the way, which is slow."


def compare(
    recipe: Annotated[str, typer.Argument(help=RECIPE)] = "digits",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help=OVERRIDES)
    ] = None,
    objectives: Annotated[str, typer.Option(help="Objectives, separated by commas.")] = ALL,
    seeds: Annotated[int, typer.Option(help="Runs of each objective.")] = 3,
    budget: Annotated[str, typer.Option(help=BUDGET)] = "steps",
    rounds: Annotated[int | None, typer.Option(help=ROUNDS)] = None,
    heun_curves: Annotated[bool, typer.Option("--heun-curves", help=HEUN)] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder (default: runs/compare-RECIPE, or ...-time)."),
    ] = None,
) -> None:
    """Train a recipe by several objectives, and compare their samples and costs.

    The same command continues a comparison that was interrupted.
    """
    at_least(seeds, 1, "--seeds")
    at_least(1 if rounds is None else rounds, 1, "--rounds")
    within = one_of(budget, ("steps", "time"), "--budget")
    name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    folder = out or Path("runs") / f"compare-{name}{'-time' if budget == 'time' else ''}"

    from soflow.config import read_objectives

    names = [name.strip() for name in objectives.split(",")]
    # Mistakes are reported before torch is loaded.
    configs = read_objectives(recipe, names, overrides or [])
    features = next(iter(configs.values())).evaluate.features
    named = f"evaluate.features={features}"
    require_asked_for(features, named, asked=named in (overrides or []))

    from soflow.comparison.compare import compare as run
    from soflow.comparison.page import write_page
    from soflow.training.signals import Stopped

    try:
        results = run(recipe, folder, names, seeds, within, overrides or [], rounds, heun_curves)
    except Stopped as stopped:
        print(
            f"stopped, checkpoint written; the same command continues from it, in {folder}",
            file=sys.stderr,
        )
        raise typer.Exit(128 + stopped.signum) from None
    write_page(results, folder)
    show(results)
    print(f"written: {folder}/report.html, table.md, results.json")


def show(results: Comparison) -> None:
    """Prints both tables."""
    from rich.console import Console
    from rich.table import Table

    from soflow.comparison.tables import cost_rows, quality_rows

    console = Console(width=None if sys.stdout.isatty() else 125)
    for rows, title in ((quality_rows(results), results.metric), (cost_rows(results), "cost")):
        shown = Table(title=title)
        for i, column in enumerate(rows[0]):
            shown.add_column(column, justify="right" if i > 1 else "left")
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
