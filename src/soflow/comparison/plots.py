"""Plots of a comparison, and its samples side by side."""

from collections.abc import Iterable, Sequence
from itertools import cycle, product
from statistics import mean
from textwrap import fill
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from soflow.comparison.record import Comparison, ObjectiveResults, Point
from soflow.comparison.tables import HEUN, few_step_sampler, how, name_of
from soflow.evaluation.plots import as_text, plain

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
#: Colors and markers of variants. The marker changes when all colors are used up.
PALETTE = (
    "#c0343a", "#5ab4e5", "#7a4fbf", "#9bbf30", "#f0a500", "#1c7c7d", "#e88fb4", "#5d4037",
    "#13315c", "#4caf50",
)  # fmt: skip
MARKERS = ("o", "^", "D", "v", "P", "X")
#: Maximum number of variants with a legend inside the plots. More have one legend below the plots.
INSIDE = 3
#: Maximum number of variants with bands around the lines.
FEW = 6
#: Maximum number of variants whose curves are drawn. More variants have one row of dots each.
MOST = 12
#: Columns of the legend and of the sample grids when there are many variants.
LEGEND_COLUMNS, COLUMNS = 4, 4


class Style(NamedTuple):
    """The style of a variant."""

    color: str
    marker: str
    label: str


def plots(results: Comparison) -> Figure:
    """Plots distance over NFE, training time and training samples.

    Lines are means over seeds. With few variants, bands show minimum to maximum. With very many
    variants, only the distances after training are drawn.
    """
    if len(results.objectives) > MOST:
        return dots(results)
    styles = styles_of(results)
    below, bands = len(styles) > INSIDE, len(styles) <= FEW
    legend = 0.22 * -(-len(styles) // LEGEND_COLUMNS) if below else 0.0
    figure = Figure(figsize=(13, 4.2 + legend), layout="constrained")
    against_nfe, against_time, against_samples = plain(figure, columns=3)
    for name, objective in results.objectives.items():
        style, batch_size = styles[name], results.batch_size_of(name)
        plot_evaluations(against_nfe, objective, style)
        plot_curves([against_time, against_samples], objective, style, batch_size, bands)
    against_nfe.set_xscale("log", base=2)
    rows = [row for one in results.objectives.values() for row in one.runs[0].rows]
    ticks = sorted({row.nfe for row in rows if row.nfe is not None})
    against_nfe.set_xticks(ticks, [str(n) for n in ticks])
    against_nfe.minorticks_off()
    squares = f" (squares: {HEUN[1] // 2} Heun steps)" if HEUN[1] in ticks else ""
    against_nfe.set_xlabel(f"network evaluations per sample{squares}")
    against_nfe.set(ylabel="distance to real data", title="after training")
    against_time.set(xlabel="training time in seconds", title="during training")
    against_samples.set(xlabel="training samples in thousands", title="during training")
    for axes in (against_nfe, against_time, against_samples):
        axes.set(yscale="log")
        label_distances(axes.yaxis)
        axes.grid(axis="y", which="both", color="#eceef2", linewidth=0.6)
    if below:
        against_nfe.set_title("after training (dotted: renoise)")
        runs = [run for one in results.objectives.values() for run in one.runs]
        if any(curve.sampler == HEUN[0] for run in runs for curve in run.curves):
            against_samples.set_title(f"during training (dashed: {how(*HEUN)})")
        figure.legend(
            handles=[
                Line2D([], [], color=style.color, marker=style.marker, label=style.label)
                for style in styles.values()
            ],
            loc="outside lower center",
            ncols=LEGEND_COLUMNS,
            frameon=False,
            fontsize=8,
        )
    else:
        for axes in (against_nfe, against_samples):
            axes.legend(frameon=False, fontsize=7.5)
    return figure


def label_distances(axis: Axis) -> None:
    """Labels a logarithmic axis of distances at 1, 2 and 5 times powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda distance, _: f"{distance:g}"))
    axis.set_minor_formatter(NullFormatter())


def dots(results: Comparison) -> Figure:
    """Plots the distances of one sampler after training, one row per variant.

    All variants have the same sampler, if there is one that all have. Dots are means over seeds.
    Lines show minimum to maximum of one step.
    """
    variants = list(results.objectives.values())
    figure = Figure(figsize=(10, 1.1 + 0.25 * len(variants)), layout="constrained")
    (axes,) = plain(figure)
    base = results.objectives[results.base]
    axes.axvline(mean(base.one_step), color="#98a2b3", linewidth=0.8, linestyle="--")
    rows = [row for one in variants for row in one.runs[0].rows]
    few = {row.nfe for row in rows if row.nfe is not None and row.sampler != HEUN[0]}
    for i, one in enumerate(variants):
        axes.plot([min(one.one_step), max(one.one_step)], [i, i], color=PALETTE[0], linewidth=1.5)
    for count, color, marker in zip(sorted(few), cycle(PALETTE), cycle(MARKERS), strict=False):
        found = [
            one.distances(few_step_sampler(results, name), count) if count > 1 else one.one_step
            for name, one in results.objectives.items()
        ]
        plot_dots(axes, found, color, marker, label_of(results, count))
    plot_dots(axes, [one.distances(*HEUN) for one in variants], "#667085", "s", how(*HEUN))
    axes.set_yticks(range(len(variants)), [as_text(name_of(name)) for name in results.objectives])
    base_name = as_text(name_of(results.base))
    axes.set(xscale="log", xlabel=f"distance to real data (dashed: {base_name}, one step)")
    axes.set_ylim(len(variants) - 0.5, -0.5)
    label_distances(axes.xaxis)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def label_of(results: Comparison, count: int) -> str:
    """The label of the distances with `count` network evaluations, with the sampler if it is one.

    One step does not depend on the sampler.
    """
    samplers = {few_step_sampler(results, name) for name in results.objectives}
    only = f", {min(samplers)}" if len(samplers) == 1 and count > 1 else ""
    return how("ode", count) + only


def plot_dots(
    axes: Axes, distances: list[list[float]], color: str, marker: str, label: str
) -> None:
    """Plots the mean distance of each variant in its row, if it has any."""
    rows = [i for i, found in enumerate(distances) if found]
    if rows:
        means = [mean(distances[i]) for i in rows]
        axes.plot(means, rows, marker, color=color, markersize=5, label=label)


def styles_of(results: Comparison) -> dict[str, Style]:
    """Styles by name. Objectives with default settings have fixed colors."""
    found: dict[str, Style] = {}
    own, others = dict(COLORS), cycle(product(MARKERS, PALETTE))
    for name, one in results.objectives.items():
        objective = str(one.settings.get("objective.name", name))
        color = own.pop(objective, None) if set(one.settings) <= {"objective.name"} else None
        marker, color = next(others) if color is None else ("o", color)
        found[name] = Style(color, marker, as_text(name_of(name)))
    return found


def plot_evaluations(axes: Axes, objective: ObjectiveResults, style: Style) -> None:
    """Plots distances after training, one line per sampler."""
    first, *_ = samplers = objective.few_step_samplers
    color, marker, label = style
    for sampler in samplers:
        line = ":" if sampler == "renoise" else "-"
        rows = [row for row in objective.runs[0].rows if row.sampler == sampler]
        counts = sorted({1, *(row.nfe for row in rows if row.nfe is not None)})
        # With one step, renoise and ode are the same, so only the first sampler is evaluated.
        found = (objective.distances(sampler, n) or objective.distances(first, n) for n in counts)
        means = [mean(distances) for distances in found]
        text = f"{label}, {as_text(sampler)}"
        axes.plot(counts, means, marker + line, color=color, markersize=5, label=text)
    if heun := objective.distances(*HEUN):
        axes.plot([HEUN[1]], [mean(heun)], "s", color=color)


def plot_curves(
    both: Sequence[Axes], objective: ObjectiveResults, style: Style, batch_size: int, bands: bool
) -> None:
    """Plots distances during training, over time and over samples.

    Lines are means over seeds. Bands show minimum to maximum.
    """
    color, marker, label = style
    for i, curve in enumerate(objective.runs[0].curves):
        every = [one for run in objective.runs for one in run.curves]
        same = [one.points for one in every if one.samples == curve.samples]
        curves = common(same)
        if len(same) < len(objective.runs) or not curves[0]:
            continue
        distances = np.array([[point.distance for point in points] for points in curves])
        seconds = np.mean([[point.seconds for point in points] for points in curves], axis=0)
        samples = np.array([point.step for point in curves[0]]) * batch_size / 1000
        points = "" if bands else marker
        title = label if curve.nfe == 1 else f"{label}, {how(curve.sampler, curve.nfe)}"
        least, most = distances.min(0), distances.max(0)
        for axes, x in zip(both, (seconds, samples), strict=True):
            line = "--" if i else "-"
            means = distances.mean(0)
            axes.plot(x, means, line, marker=points, markersize=4, color=color, label=title)
            if bands and len(distances) > 1:
                axes.fill_between(x, least, most, color=color, alpha=0.12, linewidth=0)


def common(curves: Iterable[list[Point]]) -> list[list[Point]]:
    """Keeps the points of each curve whose steps occur in all curves."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [[curve[step] for step in steps] for curve in by_step]


def sheets(pictures: dict[str, Image.Image]) -> Figure:
    """Arranges sample grids side by side, each with its title."""
    many = 3 if len(pictures) <= 9 else COLUMNS
    columns = many if len(pictures) > 4 else len(pictures)
    rows = -(-len(pictures) // columns)
    height = max(sheet.height / sheet.width for sheet in pictures.values())
    figure = Figure(figsize=(13, rows * (13 / columns * height + 0.4)), layout="constrained")
    for i, (title, sheet) in enumerate(pictures.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(np.asarray(sheet.convert("RGB")), interpolation="nearest")
        axes.set_title(fill(as_text(title), 140 // columns), fontsize=10)
        axes.set_axis_off()
    return figure
