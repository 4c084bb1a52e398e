"""`soflow train`: trains a recipe in a run folder, or resumes from the latest checkpoint."""

import logging
import signal
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from soflow.cli.options import require_asked_for

log = logging.getLogger(__name__)

RECIPE = "The name of an included recipe, a YAML file, or a run folder to resume."
CHANGES = "Changes to the recipe, such as train.steps=2000."
OUT = "The run folder (default: runs/RECIPE)."


def train(
    recipe: Annotated[str, Argument(help=RECIPE)],
    overrides: Annotated[list[str] | None, Argument(metavar="KEY=VALUE", help=CHANGES)] = None,
    out: Annotated[Path | None, Option(help=OUT)] = None,
) -> int:
    """Train a recipe in a run folder.

    To resume an interrupted run, run the same command again. To train a finished run further, give
    its folder and a larger number of steps: soflow train RUN train.steps=N.
    """
    from soflow.config import read_recipe

    config = read_recipe(recipe, overrides or [])
    folder = out or default_folder(Path(recipe))

    from soflow.training.signals import Stopped
    from soflow.workflows.train import train

    if config.evaluate.every:
        require_asked_for(config, overrides or [])

    if (Path(recipe) / "config.yaml").is_file() and folder != Path(recipe):
        log.info(
            f"new run in {folder} with the settings of {recipe}; to start from its weights, add "
            f"init_from={recipe}"
        )
    try:
        train(config, folder, overrides or [])
    except Stopped as stopped:
        name = signal.Signals(stopped.signum).name
        log.info(
            f"stopped by {name}, checkpoint written; to resume: soflow train {folder}{imports()}"
        )
        return 128 + stopped.signum
    log.info(f"trained: {folder}; next: soflow evaluate {folder}{imports()}")
    return 0


def default_folder(recipe: Path) -> Path:
    """runs/NAME for a recipe. A run folder, or the config.yaml in one, resumes in place."""
    if (recipe / "config.yaml").is_file():
        return recipe
    if recipe.name == "config.yaml" and (recipe.parent / "checkpoints").is_dir():
        return recipe.parent
    return Path("runs") / recipe.stem


def imports() -> str:
    """The --import options for all modules that registered something."""
    from soflow.data.registry import SOURCES
    from soflow.networks import NETWORKS
    from soflow.objectives import OBJECTIVES

    modules = {name for one in (OBJECTIVES, NETWORKS, SOURCES) for name in one.modules()}
    return "".join(f" --import {name}" for name in sorted(modules))
