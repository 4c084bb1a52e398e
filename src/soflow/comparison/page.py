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
from soflow.data.conditions import rows_for
from soflow.data.training_data import make_dataset
from soflow.drawing import class_by_class, sample_many
from soflow.evaluation.features import column_names
from soflow.evaluation.html import duration, image, render
from soflow.evaluation.pictures import picture
from soflow.evaluation.report import real_by_class
from soflow.evaluation.scorer import as_frequent
from soflow.run.folder import RunFolder
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
    drawn: dict[str, Tensor] = {}
    first = next(iter(results.objectives.values())).runs[0]
    data = make_dataset(RunFolder(out / first.folder).read_config().data)
    for name, objective in results.objectives.items():
        run = load(out / objective.runs[0].folder)
        model, (sampler, nfe) = run.model, run.config.default_sampler
        vectors = len(model.shape) == 1
        columns = min(model.num_classes or 10, 10)
        num = 2000 if vectors else 6 * columns
        labels = class_by_class(num, columns if model.num_classes else 0)
        if vectors and data.labels is not None:
            labels = as_frequent(data.labels, num, model.num_classes)
        cond = None
        if model.cond_shape:
            labels, cond = rows_for(data, num, model.num_classes, model.null_trained)
        samples = sample_many(
            model, num, labels, sampler, nfe, seed=0, device=run.device, cond=cond
        )
        drawn[f"{name_of(name)}, {how(sampler, nfe)}"] = samples
    if data.cond is not None:  # the real samples with the same conditions
        chosen = data.samples(torch.arange(num) * len(data) // num)
    elif vectors:
        chosen = data.samples(slice(num))
    else:
        chosen = real_by_class(data, columns, num // columns)
    real = model.decode(chosen.to(run.device)).cpu()
    names = column_names(model.shape, run.scaling)
    behind = None if real.shape[1:] == (2,) else real
    pictures = {title: picture(samples, columns, names, behind) for title, samples in drawn.items()}
    return pictures | {"real data": picture(real, columns, names)}


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
        + "An early point differs from the end of a shorter run, because schedules span the whole "
        "run."
    )
