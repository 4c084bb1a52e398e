"""The page of a comparison: plots, samples and tables in one self-contained HTML file."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from soflow.comparison import tables
from soflow.comparison.record import Comparison, ObjectiveResults, Point
from soflow.comparison.tables import HEUN, name_of
from soflow.data.conditions import rows_for
from soflow.data.training_data import make_dataset
from soflow.drawing import class_by_class, sample_many
from soflow.evaluation.features import column_names
from soflow.evaluation.html import duration, image, render
from soflow.evaluation.pictures import picture
from soflow.evaluation.plots import as_text, plain
from soflow.evaluation.report import real_by_class
from soflow.evaluation.scorer import as_frequent
from soflow.run.folder import RunFolder
from soflow.sampling import Sampler
from soflow.system.atomic import write_text
from soflow.workflows.load import load

COLORS = {
    "soflow": "#3056d3",
    "jump_flow": "#0f9fb5",
    "mean_flow": "#e07b39",
    "imf": "#b54708",
    "alpha_flow": "#8a6d1b",
    "shortcut": "#2f9e6e",
    "consistency": "#b8469b",
    "flow_matching": "#667085",
}


def write_page(results: Comparison, out: Path) -> None:
    """Writes report.html and table.md, and plots.png and samples.png for other pages."""
    drawn = draw_samples(results, out)
    write_text(out / "report.html", page(results, drawn))
    write_text(out / "table.md", tables.markdown(results))
    plots(results).savefig(out / "plots.png", dpi=110)
    sheets(drawn).savefig(out / "samples.png", dpi=110)


def draw_samples(results: Comparison, out: Path) -> dict[str, Image.Image]:
    """Samples of every objective's first run, and real data, by title."""
    drawn: dict[str, Tensor] = {}
    first = next(iter(results.objectives.values())).runs[0]
    data = make_dataset(RunFolder(out / first.folder).read_config().data)
    for name, objective in results.objectives.items():
        run = load(out / objective.runs[0].folder)
        model, (sampler, nfe) = run.model, run.config.default_sampler
        vectors = len(model.shape) == 1
        columns = min(model.num_classes or 10, 10)
        num = 2000 if vectors else 6 * columns
        labels = class_by_class(num, model.num_classes)
        if vectors and data.labels is not None:
            labels = as_frequent(data.labels, num, model.num_classes)
        cond = None
        if model.cond_shape:
            labels, cond = rows_for(data, num, model.num_classes, model.null_trained)
        samples = sample_many(
            model, num, labels, sampler, nfe, seed=0, device=run.device, cond=cond
        )
        drawn[f"{name_of(name)}, {how(sampler, nfe)}"] = samples
    if data.cond is not None:  # the real samples of these conditions
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
    """The page as HTML."""
    objectives = results.objectives
    seconds = sum(run.seconds for one in objectives.values() for run in one.runs)
    return render(
        "comparison.html",
        title=f"{results.recipe}: {', '.join(map(name_of, objectives))}",
        tiles=[
            (f"{mean(one.one_step):.3g}", f"{name_of(name)}, one step")
            for name, one in objectives.items()
        ],
        training=duration(seconds),
        results=results,
        tables=tables,
        curves=about_curves(results),
        plots=image(plots(results)),
        samples=image(sheets(drawn)),
    )


def how(sampler: Sampler, nfe: int) -> str:
    """How samples were drawn."""
    if sampler == "heun":
        return f"{nfe // 2} Heun steps"
    return "one step" if nfe == 1 else f"{nfe} steps"


def about_curves(results: Comparison) -> str:
    """What the curves show."""
    runs = [run for one in results.objectives.values() for run in one.runs]
    counts = sorted({curve.num for run in runs for curve in run.curves})
    samples = " or ".join(f"{count:,}" for count in counts)
    fewer = any(count < results.num for count in counts)
    return (
        f"Curves are distances of {samples} samples, drawn by the averaged weights in one step "
        "unless the legend says otherwise. "
        + ("So few samples read higher than those of the table. " if fewer else "")
        + "A run on its way is an unfinished run: its schedules are those of the whole length."
    )


def plots(results: Comparison) -> Figure:
    """Distance against network evaluations, training time and samples seen.

    Lines are means over seeds; least to most is shaded.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    against_nfe, against_time, against_samples = plain(figure, columns=3)
    for name, objective in results.objectives.items():
        color, label = COLORS.get(name, "#000000"), as_text(name_of(name))
        plot_evaluations(against_nfe, objective, color, label)
        plot_curves([against_time, against_samples], objective, color, label, results.batch_size)
    against_nfe.set_xscale("log", base=2)
    rows = [row for one in results.objectives.values() for row in one.runs[0].rows]
    ticks = sorted({row.nfe for row in rows if row.nfe is not None})
    against_nfe.set_xticks(ticks, [str(n) for n in ticks])
    against_nfe.minorticks_off()
    against_nfe.set_xlabel(f"network evaluations per sample (squares: {HEUN[1] // 2} Heun steps)")
    against_nfe.set(ylabel="distance to real data", title="at the end")
    against_time.set(xlabel="seconds of training", title="during training")
    against_samples.set(xlabel="thousands of samples seen", title="during training")
    for axes in (against_nfe, against_time, against_samples):
        axes.set(yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", which="both", color="#eceef2", linewidth=0.6)
    for axes in (against_nfe, against_samples):
        axes.legend(frameon=False, fontsize=7.5)
    return figure


def plot_evaluations(axes: Axes, objective: ObjectiveResults, color: str, label: str) -> None:
    """Distances at the end, one line per sampler."""
    first, *_ = samplers = objective.few_step_samplers
    for style, sampler in zip(("o-", "o:"), samplers, strict=False):
        rows = [row for row in objective.runs[0].rows if row.sampler == sampler]
        counts = sorted({1, *(row.nfe for row in rows if row.nfe is not None)})
        # In one step all samplers are the same, and only the first is evaluated.
        found = (objective.distances(sampler, n) or objective.distances(first, n) for n in counts)
        means = [mean(distances) for distances in found]
        axes.plot(counts, means, style, color=color, label=f"{label}, {as_text(sampler)}")
    if heun := objective.distances(*HEUN):
        axes.plot([HEUN[1]], [mean(heun)], "s", color=color)


def plot_curves(
    both: Sequence[Axes], objective: ObjectiveResults, color: str, label: str, batch_size: int
) -> None:
    """Distances during training, against time and against samples.

    Lines are means over seeds, bands from least to most.
    """
    for i, curve in enumerate(objective.runs[0].curves):
        every = [one for run in objective.runs for one in run.curves]
        same = [one.points for one in every if one.samples == curve.samples]
        curves = common(same)
        if len(same) < len(objective.runs) or not curves[0]:
            continue
        distances = np.array([[point.distance for point in points] for points in curves])
        seconds = np.mean([[point.seconds for point in points] for points in curves], axis=0)
        samples = np.array([point.step for point in curves[0]]) * batch_size / 1000
        title = label if curve.nfe == 1 else f"{label}, {how(curve.sampler, curve.nfe)}"
        least, most = distances.min(0), distances.max(0)
        for axes, x in zip(both, (seconds, samples), strict=True):
            axes.plot(x, distances.mean(0), "--" if i else "-", color=color, label=title)
            if len(distances) > 1:
                axes.fill_between(x, least, most, color=color, alpha=0.12, linewidth=0)


def common(curves: Iterable[list[Point]]) -> list[list[Point]]:
    """Of each curve, the points whose steps are in all of them."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [[curve[step] for step in steps] for curve in by_step]


def sheets(pictures: dict[str, Image.Image]) -> Figure:
    """Grids of samples side by side, each under its title."""
    columns = 3 if len(pictures) > 4 else len(pictures)
    rows = -(-len(pictures) // columns)
    height = max(sheet.height / sheet.width for sheet in pictures.values())
    figure = Figure(figsize=(13, rows * (13 / columns * height + 0.4)), layout="constrained")
    for i, (title, sheet) in enumerate(pictures.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(np.asarray(sheet.convert("RGB")), interpolation="nearest")
        axes.set_title(as_text(title), fontsize=10)
        axes.set_axis_off()
    return figure
