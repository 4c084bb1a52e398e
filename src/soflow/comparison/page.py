"""What a comparison of methods looks like: tables in Markdown, plots, and one self-contained page of both."""

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from soflow.evaluation.plots import as_text, plain
from soflow.evaluation.html import duration as minutes
from soflow.evaluation.html import image

NOT_FID = (
    "Distances here are not FID: that name belongs to one network's features under one protocol."
)
COLORS = {
    "soflow": "#3056d3",
    "mean_flow": "#e07b39",
    "shortcut": "#2f9e6e",
    "consistency": "#b8469b",
    "flow_matching": "#667085",
}
HEUN = ("heun", 64)


def name_of(method: str) -> str:
    """As people write it."""
    return {"soflow": "SoFlow", "mean_flow": "MeanFlow"}.get(method, method.replace("_", " "))


def over_seeds(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation: '1.29 ± 0.16'; of a single value the value."""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}g}{spread}"


def values(method: dict[str, Any], sampler: str, nfe: int, key: str = "distance") -> list[float]:
    """One figure of a sampler, a seed each; empty where the method has no such sampler."""
    rows = [
        row
        for run in method["runs"]
        for row in run["rows"]
        if (row["sampler"], row["nfe"]) == (sampler, nfe)
    ]
    return [row[key] for row in rows if row.get(key) is not None]


def few_step_samplers(method: dict[str, Any]) -> list[str]:
    return list(
        dict.fromkeys(
            row["sampler"] for row in method["runs"][0]["rows"] if row["sampler"] != "heun"
        )
    )


def quality_rows(results: dict[str, Any]) -> list[list[str]]:
    """Header and a row for each method's sampler: distance at each number of evaluations, mean and spread over seeds."""
    methods = results["methods"]
    few = sorted(
        {
            row["nfe"]
            for method in methods.values()
            for row in method["runs"][0]["rows"]
            if row["sampler"] != "heun"
        }
    )
    rows = [["method", "sampler", *(f"NFE {n}" for n in few), "32 Heun steps", "recognized, NFE 1"]]
    for name, method in methods.items():
        first, *_ = samplers = few_step_samplers(method)
        for sampler in samplers:
            cells = [values(method, sampler, n) for n in few]
            own = values(method, *HEUN) if sampler == first else []
            share = values(method, sampler, 1, "recognized")
            told = [over_seeds(x) if x else "" for x in (*cells, own, share)]
            rows.append([name_of(name), sampler, *told])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def cost_rows(results: dict[str, Any]) -> list[list[str]]:
    """Header and a row for each method: what training and a sample cost."""
    rows = [
        [
            "method",
            "steps",
            "training",
            "ms/step",
            "time of a step",
            "MiB",
            "memory",
            "MFLOP/sample",
            "ms/sample",
        ]
    ]
    for name, method in results["methods"].items():
        cost = method["cost"]
        least, middle, most = cost["step_ratio"]
        rows.append(
            [
                name_of(name),
                f"{method['steps']:,}",
                over_seeds([run["seconds"] for run in method["runs"]]) + " s",
                f"{1000 * cost['seconds_per_step']:.3g}",
                f"{middle:.2f} ({least:.2f} to {most:.2f})",
                f"{cost['peak_bytes'] / 2**20:,.0f}",
                f"{cost['memory_ratio'][1]:.2f}",
                f"{cost['flops_per_sample'] / 1e6:,.3g}",
                f"{1000 / cost['one_step_samples_per_second']:.3g}",
            ]
        )
    return rows


def in_words(results: dict[str, Any]) -> list[str]:
    """What the tables show, in paragraphs."""
    machine, real, seeds = results["machine"], results["real"], results["seeds"]
    equal = (
        "the same steps"
        if results["budget"] == "steps"
        else "as many steps as SoFlow's training time has room for"
    )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return [
        f"Recipe {results['recipe']}{' with ' + ' '.join(results['overrides']) if results['overrides'] else ''}: the same "
        f"network and initial weights, data in the same order, batches of {results['batch_size']}, the same optimizer, "
        f"{equal}. {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))}); ± is the standard "
        "deviation over them.",
        f"{results['metric']} of {results['num']:,} samples to {results['reference']['count']:,} real ones "
        f"({results['reference']['dataset']}, {results['reference']['split']} split); smaller is better. "
        f"{real['count']:,} held-out real samples: {real['distance']:.3g}"
        + (f", recognized {real['recognized']:.3f}." if real.get("recognized") is not None else ".")
        + "".join(f" Not reliable: {warning}." for warning in results.get("warnings", [])),
        f"Machine: {machine['device']}, {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"{versions}. Costs are medians of {next(iter(results['methods'].values()))['cost']['rounds']} rounds, ratios to "
        f"{name_of(results['base'])}'s (least to most); MiB is the process's peak, ms/sample one-step sampling in batches.",
    ]


def markdown(results: dict[str, Any]) -> str:
    """Both tables, and what they show."""
    text, figures, costs = in_words(results)
    return f"{text}\n\n{figures}\n\n{table(quality_rows(results))}\n\n{costs}\n\n{table(cost_rows(results))}\n"


def table(rows: list[list[str]]) -> str:
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def plots(results: dict[str, Any]) -> Figure:
    """Distance against network evaluations, training time and samples seen: means over seeds, least to most shaded."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    against_nfe, against_time, against_samples = plain(figure, columns=3)
    for name, method in results["methods"].items():
        color, label = COLORS.get(name, "#000000"), as_text(name_of(name))
        for style, sampler in zip(("o-", "o:"), few_step_samplers(method), strict=False):
            rows = [row["nfe"] for row in method["runs"][0]["rows"] if row["sampler"] == sampler]
            counts = sorted({*rows, 1})
            sampled = [
                values(method, sampler, n) or values(method, few_step_samplers(method)[0], n)
                for n in counts
            ]
            against_nfe.plot(
                counts,
                [mean(x) for x in sampled],
                style,
                color=color,
                label=f"{label}, {as_text(sampler)}",
            )
        if own := values(method, *HEUN):
            against_nfe.plot([HEUN[1]], [mean(own)], "s", color=color)
        for look in method["runs"][0]["curve"]:
            curves = common(run["curve"].get(look, []) for run in method["runs"])
            style = "--" if look == "heun 64" else "-"
            one = label + (", 32 Heun steps" if look == "heun 64" else "")
            steps, distances = (
                [point[0] for point in curves[0]],
                np.array([[point[2] for point in curve] for curve in curves]),
            )
            seconds = np.mean([[point[1] for point in curve] for curve in curves], axis=0)
            shaded(against_time, seconds, distances, style, color, one)
            shaded(
                against_samples,
                np.array(steps) * results["batch_size"] / 1000,
                distances,
                style,
                color,
                one,
            )
    against_nfe.set_xscale("log", base=2)
    ticks = sorted(
        {row["nfe"] for method in results["methods"].values() for row in method["runs"][0]["rows"]}
    )
    against_nfe.set_xticks(ticks, [str(n) for n in ticks])
    against_nfe.minorticks_off()
    against_nfe.set(
        xlabel="network evaluations a sample (squares: 32 Heun steps)",
        ylabel="distance to real data",
    )
    against_time.set(xlabel="seconds of training")
    against_samples.set(xlabel="thousands of samples seen")
    for axes, title in (
        (against_nfe, "at the end"),
        (against_time, "in one step"),
        (against_samples, "in one step"),
    ):
        axes.set(yscale="log", title=title)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", which="both", color="#eceef2", linewidth=0.6)
    for axes in (against_nfe, against_samples):
        axes.legend(frameon=False, fontsize=7.5)
    return figure


def common(curves: Iterable[Any]) -> list[list[Any]]:
    """The points that all of the curves have, by step: (step, seconds, distance) each."""
    by_step = [{point[0]: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    return [[curve[step] for step in steps] for curve in by_step]


def shaded(axes: Axes, x: Any, distances: Any, style: str, color: str, label: str) -> None:
    """The mean over seeds, (seeds, points) -> (points,), and from least to most."""
    axes.plot(x, distances.mean(0), style, color=color, label=label)
    if len(distances) > 1:
        axes.fill_between(
            x, distances.min(0), distances.max(0), color=color, alpha=0.12, linewidth=0
        )


def sheets(pictures: dict[str, Image.Image]) -> Figure:
    """Grids of samples side by side, each under its title."""
    columns = 3 if len(pictures) > 4 else len(pictures)
    rows = -(-len(pictures) // columns)
    height = max(picture.height / picture.width for picture in pictures.values())
    figure = Figure(figsize=(13, rows * (13 / columns * height + 0.4)), layout="constrained")
    for i, (title, picture) in enumerate(pictures.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
        axes.set_title(as_text(title), fontsize=10)
        axes.set_axis_off()
    return figure


def page(results: dict[str, Any], pictures: dict[str, Image.Image]) -> str:
    """The whole page."""
    text, distances, costs = in_words(results)
    title = f"{results['recipe']}: {', '.join(name_of(name) for name in results['methods'])}"
    style = (files("soflow.evaluation") / "templates" / "page.css").read_text()
    best = {
        name: mean(values(method, few_step_samplers(method)[0], 1))
        for name, method in results["methods"].items()
    }
    tiles = "".join(
        f"<div><b>{x:.3g}</b>{escape(name_of(name))}, one step</div>" for name, x in best.items()
    )
    seconds = sum(
        run["seconds"] for method in results["methods"].values() for run in method["runs"]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body><main>'
        f"<h1>{escape(title)}</h1><div class=tiles>{tiles}</div><p>{escape(text)} {minutes(seconds)} of training in all.</p>"
        f"<h2>Distance</h2><p>{escape(distances)}</p>{embed(plots(results))}"
        "<p>On the way to its end a run's one-step distance is that of an unfinished run: schedules and averages are those "
        f"of the whole length.</p>{html_table(quality_rows(results))}"
        f"<h2>Samples</h2><p>Unselected, from the same noise, seed {results['seeds'][0]}.</p>{embed(sheets(pictures))}"
        f"<h2>Cost</h2><p>{escape(costs)}</p>{html_table(cost_rows(results))}"
        f"<footer>Made by soflow. {NOT_FID if results['metric'] != 'FID' else ''}</footer></main></body></html>"
    )


def embed(figure: Figure) -> str:
    return f'<figure class=plot><img alt="plot" src="{image(figure)}"></figure>'


def html_table(rows: list[list[str]]) -> str:
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}" for cell in header)
    return (
        f"<div class=scroll><table><tr>{head}"
        + "".join("<tr>" + "".join(f"<td>{escape(c)}" for c in row) for row in body)
        + "</table></div>"
    )
