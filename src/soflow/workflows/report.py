"""Writes an HTML page about one or more runs."""

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from soflow.data.dataset import Dataset
from soflow.data.training_data import make_dataset
from soflow.errors import InputError, RunError
from soflow.evaluation.features import column_names
from soflow.evaluation.plots import Curve
from soflow.evaluation.record import Evaluation
from soflow.evaluation.report import Subject, page
from soflow.run.folder import RunFolder
from soflow.system.atomic import replace_file
from soflow.system.isolation import isolated, random_state_kept
from soflow.system.progress import Progress, track
from soflow.workflows.load import Run, load

log = logging.getLogger(__name__)

#: Lines of metrics.jsonl; each value is a number.
CURVE = TypeAdapter(Curve)


@isolated
@random_state_kept()
def report(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | Path | None = None,
    progress: Progress = track,
) -> Path:
    """Writes a self-contained HTML page about runs.

    Args:
        runs: One run folder, or several.
        out: The HTML file. By default, report.html in the run folder, or in the current folder for
            several runs.
        progress: Shows the progress.

    Returns:
        The path of the page.

    Raises:
        InputError: If a run does not exist, or the page cannot be written.
        RunError: If a file of a run is damaged.

    Example:
        >>> import soflow
        >>> print(soflow.report("runs/moons", progress=soflow.silent))
        runs/moons/report.html
    """
    if isinstance(runs, str | PathLike):
        runs = [runs]
    if not runs:
        raise InputError("runs is empty: pass one or more run folders")
    subjects = []
    with progress("reporting", len(runs)) as task:
        for done, path in enumerate(runs):
            subjects.append(subject_of(Path(path)))
            task.update(done + 1)
    default = Path(subjects[0].name) / "report.html" if len(runs) == 1 else Path("report.html")
    file = Path(out).expanduser() if out else default
    try:
        replace_file(file, page(subjects).encode())
    except OSError as error:
        raise InputError(
            f"cannot write {file}: {error.strerror}; choose another file (--out)"
        ) from None
    return file


def subject_of(path: Path) -> Subject:
    """Collects what the page shows about a run."""
    run = load(path)
    dataset, missing = data_of(run)
    return Subject(
        name=str(run.folder.path),
        model=run.model,
        dataset=dataset,
        metrics=read_curve(run.folder),
        evaluation=read_evaluation(run.folder, run.checkpoint.path.name),
        config=run.folder.config.read_text(encoding="utf-8"),
        seconds=run.checkpoint.train_state().seconds,
        device=run.device,
        samplers=run.config.samplers,
        drawing=run.config.default_sampler,
        class_names=run.class_names,
        columns=column_names(run.model.shape, run.scaling),
        missing=missing,
    )


def data_of(run: Run) -> tuple[Dataset | None, str]:
    """The training data of a run; None and the reason if it cannot be read."""
    try:
        return make_dataset(run.config.data), ""
    except (InputError, RunError, OSError) as error:
        log.info(f"{error}; the report of {run.folder.path} shows no real data")
        return None, str(error)


def read_curve(folder: RunFolder) -> Curve:
    try:
        return CURVE.validate_python(folder.read_metrics())
    except ValidationError:
        raise RunError(f"{folder.metrics} is damaged: one of its values is not a number") from None


def read_evaluation(folder: RunFolder, checkpoint: str) -> Evaluation | None:
    """The evaluation of a checkpoint; None if the file belongs to another checkpoint."""
    evaluation = Evaluation.read(folder.evaluation)
    if evaluation is not None and evaluation.checkpoint != checkpoint:
        log.info(
            f"{folder.evaluation} is for {evaluation.checkpoint}, not {checkpoint}, and is left "
            f"out: run soflow evaluate {folder.path} again"
        )
        return None
    return evaluation
