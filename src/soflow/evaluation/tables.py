"""What an evaluation found, for people: the table, its title, and what stands beside it."""

from collections.abc import Callable
from typing import Any

from soflow.system.records import finite, is_like, natural, number

FIGURES = {
    "distance": finite,
    "reliable": lambda value: isinstance(value, bool),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), (number, None)),
    **dict.fromkeys(
        ("distance_spread", "distance_at_real_count", "spatial_distance", "kernel_distance"),
        (number, None),
    ),
    **dict.fromkeys(("inception_score", "recognized", "milliseconds_per_sample"), (number, None)),
}
ROW = {**FIGURES, "weights": str, "sampler": str, "nfe": natural, "milliseconds_per_sample": number}
OF = {"dataset": str, "split": str, "count": natural}
#: What evaluation.json of a run must be, so that it can be shown: files in a run folder may be anybody's.
EVALUATION = {
    "checkpoint": str,
    "metric": str,
    "num": natural,
    "features": {"checksum": (str, None)},
    "reference": {**OF, "points": natural},
    "rows": lambda rows: bool(rows) and is_like(rows, [ROW]),
    "real": ({**FIGURES, **OF, "warnings": [str], "reference": OF}, None),
    "diagnostics": {...: number},
    "warnings": [str],
    "versions": {...: str},
    "machine": {"device": str, "processor": str, "threads": natural},
    "seeds": ([natural], None),
}


def table(results: dict[str, Any]) -> list[list[str]]:
    """The figures for people, header first, the last row real data's where there are any; columns that say nothing are left
    out. ms are milliseconds a sample.

    Where there are fewer real samples than drawn ones, the distance of as few drawn ones stands there, too.
    """
    rows, real = list(results["rows"]), results["real"]
    if real is not None:
        which = f"real, {real['split']}" if real["split"] else "real"
        alike = real["distance"] if rows[0].get("distance_at_real_count") is not None else None
        rows.append(
            {**real, "weights": "", "sampler": which, "nfe": None, "distance_at_real_count": alike}
        )
    fid = results["metric"] == "FID"
    few_mark = (
        ""
        if real is None or real["reliable"] or rows[0].get("distance_at_real_count") is None
        else " *"
    )
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "weights": lambda row: (
            row["weights"] if len({one["weights"] for one in results["rows"]}) > 1 else ""
        ),
        "sampler": lambda row: row["sampler"],
        "NFE": lambda row: "" if row["nfe"] is None else str(row["nfe"]),
        short(results["metric"]): lambda row: (
            with_spread(row["distance"], row.get("distance_spread")) + mark(row)
        ),
        f"of {real['count'] if real else 0:,}": lambda row: (
            shown(row.get("distance_at_real_count"), ".4g") + few_mark
        ),
        "sFID" if fid else "sFD": lambda row: shown(row.get("spatial_distance"), ".4g"),
        "KID" if fid else "KD": lambda row: shown(row.get("kernel_distance"), ".3g"),
        "IS": lambda row: shown(row.get("inception_score"), ".4g"),
        **{
            name: named(name)
            for name in ("precision", "recall", "density", "coverage", "recognized")
        },
        "ms": lambda row: shown(row.get("milliseconds_per_sample"), ".3f"),
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    kept = [name for name, column in cells.items() if any(column)]
    return [kept, *([cells[name][i] for name in kept] for i in range(len(rows)))]


def mark(row: dict[str, Any]) -> str:
    return "" if row["reliable"] else " *"


def named(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: shown(row.get(name), ".3f")


def shown(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def with_spread(value: float | int, spread: float | int | None) -> str:
    """A value with its standard deviation, where there is one: 1.26 ± 0.02."""
    return f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")


def short(metric: str) -> str:
    return {"FID": "FID", "energy distance": "energy"}.get(metric, "FD")


def title(results: dict[str, Any]) -> str:
    """What the figures are of."""
    reference = results["reference"]
    which = " ".join(filter(None, (reference["dataset"], reference.get("split"))))
    count = f"{reference['count']:,}" if reference["count"] else "an unknown number of"
    return f"{results['metric']} of {results['num']:,} samples to {count} real ones ({which})"


def reading_aid(results: dict[str, Any]) -> str:
    """What stands beside the figures, in some sentences."""
    real, reference = results["real"], results["reference"]
    told = dict.fromkeys([*results["warnings"], *(real["warnings"] if real is not None else [])])
    text = "".join(f"* {warning}. " for warning in told)
    if real is not None:
        which = (
            "samples of the training split of"
            if real["split"] == "train"
            else "held-out samples of"
        )
        text += f"real: {real['count']:,} {which} {real['dataset']} ({real['split']})"
        others = real["reference"]
        same = all(reference.get(key) == value for key, value in others.items())
        text += ". " if same else f", held against the other {others['count']:,}. "
        if results["rows"][0].get("distance_at_real_count") is not None:
            text += f"So small a set reads high: hold it against as few drawn ones, 'of {real['count']:,}'. "
    if results["metric"] != "energy distance":
        several = len(results.get("seeds", [0])) > 1
        text += f"±: one standard deviation, {'over seeds' if several else 'from halves of the samples'}. "
    if results["metric"] not in ("FID", "energy distance"):
        text += "FD on these features is no FID, and not to be set beside one. "
    if reference.get("points"):
        text += f"Neighbours among {reference['points']:,} real ones. "
    return text + (
        "ms: milliseconds a sample." if "milliseconds_per_sample" in results["rows"][0] else ""
    )
