"""`soflow report`: one HTML page about one or more runs."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from soflow.errors import InputError
from soflow.system.atomic import replace_file

log = logging.getLogger(__name__)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page (default: RUN/report.html; report.html for several runs)."),
    ] = None,
) -> None:
    """Write a self-contained HTML page with samples, figures and plots."""
    from soflow.data.training_data import make_dataset
    from soflow.evaluation.report import Subject, render
    from soflow.evaluation.tables import EVALUATION
    from soflow.system.progress import counting
    from soflow.system.records import read_json
    from soflow.workflows.load import load

    subjects = []
    with counting("reporting", len(runs)) as on_done:
        for i, path in enumerate(runs):
            run = load(path)
            evaluation = read_json(run.folder.evaluation, EVALUATION) or None
            metrics = run.folder.read_metrics()
            if evaluation is not None and evaluation["checkpoint"] != run.checkpoint.path.name:
                log.info(
                    f"{run.folder.evaluation} is of {evaluation['checkpoint']}, not of {run.checkpoint.path.name}: "
                    f"left out; run soflow evaluate {path} again"
                )
                evaluation = None
            subjects.append(
                Subject(
                    name=str(run.folder.path),
                    model=run.model,
                    dataset=make_dataset(run.config.data),
                    metrics=metrics,
                    evaluation=evaluation,
                    config=run.folder.config.read_text(),
                    seconds=run.checkpoint.train_state().seconds,
                    device=run.device,
                    samplers=run.config.samplers,
                    drawing=run.config.default_sampler,
                    class_names=run.class_names,
                )
            )
            on_done(i + 1)
    file = out or (run.folder.report if len(runs) == 1 else Path("report.html"))
    try:
        replace_file(file, render(subjects).encode())
    except OSError as error:
        raise InputError(
            f"cannot write {file}: {error.strerror}; choose another place with --out"
        ) from None
    print(f"written: {file}")
