"""Plots of samples that are not images: vectors as points, signals as curves.

Real data, if given, are drawn in gray behind vectors. Axis ranges are those of the real data, or of
the samples if there are no real data. They ignore the most extreme values.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from soflow.evaluation.plots import BLUE, GRAY, GREEN, ORANGE, as_text, plain

DARK = "#667085"
CHANNELS = (BLUE, ORANGE, GREEN, "#8250c4", "#b8469b", DARK)
#: Maximum number of columns in a pair plot, of points in a cloud, and of cells with curves.
PAIRED, POINTS, CELLS = 4, 2000, 60
#: Axes share one scale if their spans differ by less than this factor.
ALIKE = 3.0


def short(name: str, most: int = 18) -> str:
    """A name shortened to `most` characters, escaped for matplotlib."""
    return as_text(name if len(name) <= most else f"{name[: most - 1]}…")


def limits(values: np.ndarray, outside: float = 0.001) -> tuple[float, float]:
    """An axis range with a margin. It ignores a fraction `outside` of the values at each end."""
    low, high = np.quantile(values, [outside, 1 - outside])
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def bare(axes: Axes) -> None:
    """Reduces axes to two spines and few ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(3))
        axis.get_offset_text().set_fontsize(7)


def vectors(samples: Tensor, names: Sequence[str], real: Tensor | None = None) -> Figure:
    """Plots vectors (N, D) with D named columns, and real ones (M, D) behind them, if given."""
    drawn = samples[:POINTS].detach().cpu().numpy()
    behind = None if real is None else real[:POINTS].cpu().numpy()
    if drawn.shape[1] == 1:
        figure = Figure(figsize=(5.5, 3.4), layout="constrained")
        axes = figure.add_subplot()
        histogram(axes, drawn, behind, 0)
        axes.set(xlabel=short(names[0]), ylabel="density")
    elif drawn.shape[1] == 2:
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.add_subplot()
        cloud(axes, drawn, behind, 0, 1)
        equal_units(axes)
        axes.set(xlabel=short(names[0]), ylabel=short(names[1]))
    else:
        figure = pair_plot(drawn, behind, names)
    if behind is not None:
        handles = [Patch(color=color) for color in (BLUE, GRAY)]
        figure.legend(handles, ["samples", "real data"], loc="upper right", frameon=False)
    return figure


def pair_plot(drawn: np.ndarray, behind: np.ndarray | None, names: Sequence[str]) -> Figure:
    """Plots each pair of the first PAIRED columns, with histograms on the diagonal."""
    count = min(drawn.shape[1], PAIRED)
    figure = Figure(figsize=(2.1 * count, 2.0 * count), layout="constrained")
    if drawn.shape[1] > count:
        note = f"columns 1 to {count} of {drawn.shape[1]:,}"
        figure.text(0.98, 0.83, note, ha="right", color=DARK)
    for row in range(count):
        for column in range(row + 1):
            axes = figure.add_subplot(count, count, row * count + column + 1)
            if row == column:
                histogram(axes, drawn, behind, row)
                axes.set_yticks([])
            else:
                cloud(axes, drawn, behind, column, row)
            if row == count - 1:
                axes.set_xlabel(short(names[column]), fontsize=9)
            else:
                axes.tick_params(labelbottom=False)
            if column == 0 and row:
                axes.set_ylabel(short(names[row]), fontsize=9)
            elif column:
                axes.tick_params(labelleft=False)
    return figure


def histogram(axes: Axes, drawn: np.ndarray, behind: np.ndarray | None, column: int) -> None:
    """Plots a histogram of one column: samples as a line, real data as a gray area."""
    bare(axes)
    values = drawn[:, column]
    low, high = limits(values if behind is None else behind[:, column])
    fewest = min(len(values), len(values) if behind is None else len(behind))
    bins = np.linspace(low, high, 1 + min(max(round(fewest**0.5), 10), 40)).tolist()
    if behind is not None:
        axes.hist(behind[:, column], bins, density=True, color=GRAY, alpha=0.6)
    axes.hist(values, bins, density=True, histtype="step", color=BLUE, linewidth=1.3)
    axes.set_xlim(low, high)


def cloud(axes: Axes, drawn: np.ndarray, behind: np.ndarray | None, x: int, y: int) -> None:
    """Plots two columns as points."""
    bare(axes)
    ranged = drawn if behind is None else behind
    if behind is not None:
        drawn = drawn[: len(behind)]  # more samples would hide the real data
        axes.scatter(behind[:, x], behind[:, y], s=5, alpha=0.5, linewidths=0, color=GRAY)
    axes.scatter(drawn[:, x], drawn[:, y], s=4, alpha=0.5, linewidths=0, color=BLUE)
    axes.set(xlim=limits(ranged[:, x]), ylim=limits(ranged[:, y]))


def equal_units(axes: Axes) -> None:
    """Gives both axes the same scale if their spans are similar."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    spans = (right - left, top - bottom)
    if max(spans) < ALIKE * min(spans):
        half, x, y = max(spans) / 2, (left + right) / 2, (bottom + top) / 2
        axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")


def curves(
    samples: Tensor,
    columns: int,
    names: Sequence[str],
    real: Tensor | None = None,
    titles: Sequence[str] = (),
) -> Figure:
    """Plots signals (N, C, L) in cells, with one line per channel and titles above the columns."""
    shown = samples[:CELLS, : len(CHANNELS)].detach().cpu().numpy()
    ranged = shown if real is None else real[:CELLS, : len(CHANNELS)].cpu().numpy()
    spans = np.array([limits(channel, 0.01) for channel in ranged.swapaxes(0, 1)])  # (C, 2)
    alike = np.ptp(spans, axis=1).max() < ALIKE * np.ptp(spans, axis=1).min()
    low, high = spans[:, 0].min(), spans[:, 1].max()
    if not alike:
        shown = (shown - spans[:, :1]) / np.ptp(spans, axis=1)[:, None]
        low, high = 0.0, 1.0
    rows, margin = -(-len(shown) // columns), 0.1 * (high - low)
    width = min(1.3 * columns, 13)
    figure = Figure(figsize=(max(width, 3), 0.9 * rows + 0.6), layout="constrained")
    for i, signal in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        bare(axes)
        for values, color in zip(signal, CHANNELS, strict=False):
            axes.plot(values, color=color, linewidth=0.8)
        axes.set(xlim=(0, signal.shape[1] - 1), ylim=(low - margin, high + margin))
        last = i + columns >= len(shown)
        axes.tick_params(labelbottom=last, labelleft=alike and i % columns == 0)
        if i < len(titles):
            axes.set_title(short(titles[i]), fontsize=8)
    remarks = []
    if not alike:
        remarks.append("each channel is scaled to its own range")
    if samples.shape[1] > shown.shape[1]:
        remarks.append(f"channels 1 to {shown.shape[1]} of {samples.shape[1]:,}")
    if len(samples) > len(shown):
        remarks.append(f"samples 1 to {len(shown)} of {len(samples):,}")
    if remarks:
        figure.supxlabel("; ".join(remarks), fontsize=8, color=DARK)
    if shown.shape[1] > 1:
        texts = [short(name) for name in names[: shown.shape[1]]]
        lines = figure.axes[0].get_lines()
        figure.legend(lines, texts, loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    return figure


def clouds(points: dict[str, Tensor], names: Sequence[str]) -> Figure:
    """Plots clouds of points in the plane side by side, with the same axis ranges."""
    figure = Figure(figsize=(4.2 * len(points), 4.2), layout="constrained")
    every = torch.cat(list(points.values())).numpy()
    for axes, (title, cloud) in zip(
        plain(figure, columns=len(points)), points.items(), strict=True
    ):
        axes.scatter(cloud[:, 0], cloud[:, 1], s=3, alpha=0.4, linewidths=0, color=BLUE)
        axes.set(title=title, xlim=limits(every[:, 0]), ylim=limits(every[:, 1]))
        axes.set(xlabel=short(names[0]), ylabel=short(names[1]))
        equal_units(axes)
    return figure


def journeys(steps: Tensor, times: Sequence[float], names: Sequence[str]) -> Figure:
    """Plots paths (count, times, D) from noise to data: the first two columns, or one over time."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    (axes,) = plain(figure)
    if steps.shape[2] == 1:
        steps = torch.stack([torch.tensor(times).expand(steps.shape[:2]), steps[..., 0]], dim=2)
        axes.set(xlabel="s", ylabel=short(names[0]))
        axes.invert_xaxis()
    else:
        axes.set(xlabel=short(names[0]), ylabel=short(names[1]))
    for path in steps:
        axes.plot(path[:, 0], path[:, 1], color=GRAY, linewidth=0.5, alpha=0.6)
    axes.scatter(steps[:, 0, 0], steps[:, 0, 1], s=5, color=GRAY, label="noise", zorder=3)
    data = steps[:, -1]
    axes.scatter(data[:, 0], data[:, 1], s=7, color=BLUE, label="f(noise, 1, 0)", zorder=3)
    equal_units(axes)
    axes.legend(frameon=False, loc="upper right")
    return figure
