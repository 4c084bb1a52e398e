"""The report's plots, as matplotlib figures."""

from itertools import cycle
from math import nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soflow.evaluation.record import Evaluation, Row

#: The lines of metrics.jsonl.
Curve = list[dict[str, float]]

BLUE, ORANGE, GREEN, GRAY = "#3056d3", "#e07b39", "#2f9e6e", "#98a2b3"
COLORS = {"renoise": BLUE, "ode": ORANGE, "euler": "#8250c4"}


def plain(figure: Figure, *, columns: int = 1) -> list[Axes]:
    """Adds axes side by side, without top and right spines, with a light grid."""
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#eceef2", linewidth=0.8)
        one.set_axisbelow(True)
    return axes


def as_text(name: str) -> str:
    """Escapes a name so that matplotlib does not read it as a formula."""
    return name.replace("$", r"\$")


def training(metrics: Curve) -> list[Figure]:
    """Plots of the losses and of each distance measured during training."""
    if not metrics:
        return []
    names = dict.fromkeys(name for line in metrics for name in line if is_distance(name))
    return [losses(metrics), *(distance_in_training(metrics, name) for name in names)]


def is_distance(name: str) -> bool:
    """Whether a logged value is a distance from an evaluation."""
    return name in ("FID", "energy distance") or name.startswith("FD-")


def losses(metrics: Curve) -> Figure:
    """Plots the mean squared errors of the loss terms, and the total loss, over training steps."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    errors, total = plain(figure, columns=2)
    steps = [line["step"] for line in metrics]
    names = list(dict.fromkeys(name for line in metrics for name in line if name.endswith("_mse")))
    values = {name: [line.get(name, nan) for line in metrics] for name in (*names, "loss")}
    for name, color in zip(names, cycle((BLUE, ORANGE, GREEN)), strict=False):
        label = name.removesuffix("_mse").replace("_", " ")
        errors.plot(steps, values[name], color=color, label=as_text(label))
    errors.set(xlabel="step", ylabel="mean squared error", yscale="log")
    errors.legend(frameon=False)
    total.plot(steps, values["loss"], color=GRAY)
    total.set(xlabel="step", ylabel="total loss (including surrogate)")
    return figure


def distance_in_training(metrics: Curve, name: str) -> Figure:
    """Plots a distance of samples from the EMA weights over training steps."""
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    (axes,) = plain(figure)
    points = [(line["step"], line[name]) for line in metrics if name in line]
    axes.plot(*zip(*points, strict=True), "o-", color=BLUE)
    axes.set(xlabel="step", ylabel=as_text(name))
    axes.set_ylim(bottom=0)
    return figure


def heun_steps(row: Row) -> int:
    """The number of Heun steps of a row. Each takes two network evaluations."""
    return (row.nfe or 0) // 2


def distance_against_nfe(evaluation: Evaluation) -> Figure:
    """Plots distance over NFE, with horizontal lines for the model's own ODE and real data."""
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    (axes,) = plain(figure)
    weights, real = evaluation.rows[0].weights, evaluation.real
    rows = [row for row in evaluation.rows if row.weights == weights and row.nfe is not None]
    for sampler, color in COLORS.items():
        if any(row.sampler == sampler for row in rows):
            same_jump = {"renoise", "ode"} if sampler in ("renoise", "ode") else {sampler}
            alike = [
                row
                for row in rows
                if row.sampler == sampler or (row.nfe == 1 and row.sampler in same_jump)
            ]
            points = sorted((row.nfe or 0, row.distance) for row in alike)
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=sampler)
    for row in rows:
        if row.sampler == "heun":
            label = f"own ODE, {heun_steps(row)} Heun steps"
            axes.axhline(row.distance, color=GREEN, linestyle="--", label=label)
    if real is not None:
        axes.axhline(real.distance, color=GRAY, linestyle=":", label="held-out real data")
    counts = sorted({row.nfe or 0 for row in rows if row.sampler != "heun"})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set(xlabel="network evaluations per sample (NFE)", ylabel="distance to real data")
    axes.set_ylim(bottom=0.0 if real is None else min(0.0, 1.5 * real.distance))
    axes.legend(frameon=False)
    return figure
