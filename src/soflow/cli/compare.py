"""`soflow compare`: training methods side by side, over several seeds."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from soflow.cli.bench import ALL
from soflow.cli.options import at_least, require_asked_for
from soflow.errors import InputError

if TYPE_CHECKING:
    from soflow.comparison.compare import Progress


def compare(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, a YAML file, or a run folder.")
    ] = "digits",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes to it; METHOD:KEY=VALUE for one method alone."
        ),
    ] = None,
    objectives: Annotated[str, typer.Option(help="Methods, with commas between.")] = ALL,
    seeds: Annotated[int, typer.Option(help="How many runs of each.")] = 3,
    budget: Annotated[
        str,
        typer.Option(
            help="steps: the same steps for all; time: as many as SoFlow's training time has room for."
        ),
    ] = "steps",
    rounds: Annotated[int, typer.Option(help="Measurements of each method's cost, in turn.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder (default: runs/compare-RECIPE, with -time behind)."),
    ] = None,
) -> None:
    """Train a recipe by several methods and compare what they draw and cost. Running it again goes on."""
    at_least(seeds, 1, "--seeds")
    at_least(rounds, 1, "--rounds")
    if budget not in ("steps", "time"):
        raise InputError(f"--budget is '{budget}': choose steps or time")
    within: Literal["steps", "time"] = "time" if budget == "time" else "steps"
    name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    folder = out or Path("runs") / f"compare-{name}{'-time' if budget == 'time' else ''}"

    from soflow.config import read_objectives

    names = [name.strip() for name in objectives.split(",")]
    configs = read_objectives(
        recipe, names, overrides or []
    )  # a mistake here is reported before torch is loaded
    features = next(iter(configs.values())).evaluate.features
    named = f"evaluate.features={features}"
    require_asked_for(features, named, asked=named in (overrides or []))

    from soflow.comparison.compare import compare as run
    from soflow.comparison.compare import write_page
    from soflow.training.signals import Stopped

    try:
        results = run(
            recipe, folder, names, seeds, within, overrides or [], rounds, make_progress()
        )
    except Stopped as stopped:
        print(
            f"stopped, checkpoint written; the same command goes on from it, in {folder}",
            file=sys.stderr,
        )
        raise typer.Exit(128 + stopped.signum) from None
    write_page(results, folder)
    show(results)
    print(f"written: {folder}/report.html, table.md, results.json")


def make_progress() -> Progress:
    """What is told on stderr: a bar a run on a terminal, a line a run elsewhere."""
    from soflow.comparison.compare import Progress
    from soflow.system.progress import Progress as TrainingProgress
    from soflow.system.progress import counting, track

    class Told(Progress):
        def note(self, text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        def training(self, title: str) -> TrainingProgress:
            return track if sys.stderr.isatty() else super().training(title)

        def counting(self, what: str, total: int) -> AbstractContextManager[Any]:
            return counting(what, total)

    return Told()


def show(results: dict[str, Any]) -> None:
    """Both tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    from soflow.comparison.page import cost_rows, quality_rows

    console = Console(width=None if sys.stdout.isatty() else 125)
    for rows, title in ((quality_rows(results), results["metric"]), (cost_rows(results), "cost")):
        shown = Table(title=title)
        for i, column in enumerate(rows[0]):
            shown.add_column(column, justify="right" if i > 1 else "left")
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
