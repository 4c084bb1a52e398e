"""The report of a comparison: plots, samples and tables in one self-contained HTML file."""

from pathlib import Path
from statistics import mean

import torch
from PIL import Image
from torch import Tensor

from soflow.comparison import tables
from soflow.comparison.plots import FEW, plots, sheets
from soflow.comparison.record import Comparison
from soflow.comparison.tables import how, name_of
from soflow.data.conditions import RowsOfData, rows_for
from soflow.data.dataset import Dataset
from soflow.data.training_data import make_dataset
from soflow.drawing import class_by_class, sample_many
from soflow.evaluation.features import column_names
from soflow.evaluation.html import duration, image, render
from soflow.evaluation.pictures import picture
from soflow.evaluation.report import real_by_class
from soflow.evaluation.scorer import as_frequent
from soflow.solution import FlowModel
from soflow.system.atomic import write_text
from soflow.workflows.load import load


def write_page(results: Comparison, out: Path) -> None:
    """Writes report.html and table.md, and plots.png and samples.png for use elsewhere."""
    drawn = draw_samples(results, out)
    write_text(out / "report.html", page(results, drawn))
    write_text(out / "table.md", tables.markdown(results))
    plots(results).savefig(out / "plots.png", dpi=110)
    sheets(drawn).savefig(out / "samples.png", dpi=110)


def draw_samples(results: Comparison, out: Path) -> dict[str, Image.Image]:
    """Draws samples from the first run of each objective. Returns pictures with titles as keys."""
    folders = {name: out / one.runs[0].folder for name, one in results.objectives.items()}
    first = load(next(iter(folders.values())))
    data, shape = make_dataset(first.config.data), first.model.shape
    columns = min(first.model.num_classes or 10, 10)
    num = 2000 if len(shape) == 1 else 6 * columns

    drawn: dict[str, Tensor] = {}
    for name, folder in folders.items():
        run = load(folder)
        sampler, nfe = run.config.default_sampler
        labels, cond = inputs(run.model, data, num, columns)
        drawn[f"{name_of(name)}, {how(sampler, nfe)}"] = sample_many(
            run.model, num, labels, sampler, nfe, seed=0, device=run.device, cond=cond
        )

    real = first.model.decode(real_samples(data, num, columns).to(first.device)).cpu()
    names = column_names(shape, first.scaling)
    behind = None if shape == (2,) else real
    pictures = {title: picture(samples, columns, names, behind) for title, samples in drawn.items()}
    return pictures | {"real data": picture(real, columns, names)}


def inputs(
    model: FlowModel, data: Dataset, num: int, columns: int
) -> tuple[Tensor | None, RowsOfData | None]:
    """The labels and conditions of `num` samples: images are drawn class by class."""
    if model.cond_shape:
        return rows_for(data, num, model.num_classes, model.null_trained)
    if len(model.shape) == 1 and data.labels is not None:
        return as_frequent(data.labels, num, model.num_classes), None
    return class_by_class(num, columns if model.num_classes else 0), None


def real_samples(data: Dataset, num: int, columns: int) -> Tensor:
    """Real samples in the order of the drawn ones."""
    if data.cond is not None:
        return data.samples(torch.arange(num) * len(data) // num)
    if len(data.shape) == 1:
        return data.samples(slice(num))
    return real_by_class(data, columns, num // columns)


def page(results: Comparison, drawn: dict[str, Image.Image]) -> str:
    """Renders the report as HTML."""
    objectives = results.objectives
    shown = objectives
    title = ", ".join(map(name_of, objectives))
    if len(objectives) > FEW:
        best = min(objectives, key=lambda name: mean(objectives[name].one_step))
        shown = {name: objectives[name] for name in (results.base, best)}
        title = f"{len(objectives)} variants"
    seconds = sum(run.seconds for one in objectives.values() for run in one.runs)
    return render(
        "comparison.html",
        title=f"{results.recipe}: {title}",
        tiles=[
            (f"{mean(one.one_step):.3g}", f"{name_of(name)}, one step")
            for name, one in shown.items()
        ],
        training=duration(seconds),
        results=results,
        tables=tables,
        curves=about_curves(results),
        plots=image(plots(results)),
        samples=image(sheets(drawn)),
    )


def about_curves(results: Comparison) -> str:
    """Sentences on the curves."""
    runs = [run for one in results.objectives.values() for run in one.runs]
    counts = sorted({curve.num for run in runs for curve in run.curves})
    samples = " or ".join(f"{count:,}" for count in counts)
    fewer = any(count < results.num for count in counts)
    return (
        f"Curves show distances of {samples} samples, drawn with the EMA weights in one step "
        "unless the legend says otherwise. "
        + ("With fewer samples, distances are higher than in the table. " if fewer else "")
        + "A point during training is not the result of a shorter run, because schedules depend on "
        "the total number of steps."
    )
