"""Text and HTML of an evaluation: the table, its title, and the remarks below it."""

from collections.abc import Callable
from statistics import mean

from markupsafe import Markup

from soflow.evaluation.html import html_table
from soflow.evaluation.record import Evaluation, GuidanceUsed, Metrics, RealRow, Reference, Row

#: Makes the cell of a row in one column.
Column = Callable[[Row | RealRow], str]
#: Heading of the column of distances, by metric. Other metrics have "FD".
SHORT = {"FID": "FID", "energy distance": "energy"}


def table(evaluation: Evaluation) -> list[list[str]]:
    """The metrics as text: the header first, real data last. Empty columns are left out."""
    rows: list[Row | RealRow] = [*evaluation.rows]
    if evaluation.real is not None:
        rows.append(evaluation.real)
    cells = {name: [column(row) for row in rows] for name, column in columns(evaluation).items()}
    kept = {name: column for name, column in cells.items() if any(column)}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]


def columns(evaluation: Evaluation) -> dict[str, Column]:
    real, fid = evaluation.real, evaluation.metric == "FID"
    several = len({row.weights for row in evaluation.rows}) > 1
    few = "" if real is None else equal_heading(real)

    def drawn(cell: Callable[[Row], str]) -> Column:
        return lambda row: cell(row) if isinstance(row, Row) else ""

    def metric(name: str, form: str) -> Column:
        return lambda row: shown(getattr(row, name), form)

    def alike(row: Row | RealRow) -> str:
        if real is None or evaluation.rows[0].distance_at_real_count is None:
            return ""
        value = row.distance if isinstance(row, RealRow) else row.distance_at_real_count
        return shown(value, ".4g") + mark(real)

    def average(row: Row | RealRow) -> str:
        values = list((row.marginals or {}).values())
        return format(mean(values), ".3g") if values else ""

    def worst(row: Row | RealRow) -> str:
        values = row.marginals or {}
        name = max(values, key=values.__getitem__, default="")
        return f"{values[name]:.3g} {shorten(name)}" if name else ""

    fractions = ("precision", "recall", "density", "coverage", "recognized")
    return {
        "weights": drawn(lambda row: row.weights if several else ""),
        "sampler": lambda row: row.sampler if isinstance(row, Row) else real_name(row),
        "NFE": drawn(lambda row: shown(row.nfe, "d")),
        SHORT.get(evaluation.metric, "FD"): distance,
        few: alike,
        "sFID" if fid else "sFD": metric("spatial_distance", ".4g"),
        "KID" if fid else "KD": metric("kernel_distance", ".3g"),
        "SW2": metric("sliced_wasserstein", ".3g"),
        "marginals": average,
        "worst": worst,
        "IS": metric("inception_score", ".4g"),
        **{name: metric(name, ".3f") for name in fractions},
        "ms": drawn(lambda row: shown(row.milliseconds_per_sample, ".3f")),
    }


def equal_heading(real: RealRow) -> str:
    """The heading of distances from the number of held-out real samples."""
    return f"n={real.count:,}"


def real_name(row: RealRow) -> str:
    return f"real, {row.split}" if row.split else "real"


def shorten(name: str, most: int = 24) -> str:
    """Shortens a long column name to leave room for metrics."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def mark(row: Metrics) -> str:
    return "" if row.reliable else " *"


def shown(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def distance(row: Metrics) -> str:
    """The distance with its standard deviation, if known, such as 1.26 ± 0.02."""
    spread = "" if row.distance_spread is None else f" ± {row.distance_spread:.2g}"
    return f"{row.distance:.4g}{spread}{mark(row)}"


def title(evaluation: Evaluation) -> str:
    """A title with the metric, the number of samples and the reference."""
    metric, reference = evaluation.metric, evaluation.reference
    count = f"{reference.count:,}" if reference.count else "an unknown number of"
    return f"{metric} between {evaluation.num:,} samples and {count} real ones ({reference.name})"


def remarks(evaluation: Evaluation) -> str:
    """Sentences that explain the table."""
    real, reference, first = evaluation.real, evaluation.reference, evaluation.rows[0]
    metric = evaluation.metric
    warnings = [*evaluation.warnings, *(real.warnings if real is not None else [])]
    said = [f"* {warning}." for warning in dict.fromkeys(warnings)]
    if evaluation.guidance is not None:
        said.append(about_guidance(evaluation.guidance))
    if evaluation.times is not None:
        said.append(f"Times of the jumps: {', '.join(f'{time:g}' for time in evaluation.times)}.")
    if real is not None:
        said.append(about_real(real, reference))
        if first.distance_at_real_count is not None:
            few = "vary more" if metric == "energy distance" else "are biased upwards"
            said.append(
                f"Distances computed from few samples {few}. Compare the real row with the column "
                f"'{equal_heading(real)}', which uses equally few samples."
            )
    if metric == "energy distance":
        distances = [row.distance for row in (*evaluation.rows, *([real] if real else []))]
        if min(distances) < 0:
            said.append("A negative energy distance cannot be distinguished from 0.")
    else:
        how = "over seeds" if len(evaluation.seeds) > 1 else "from halves of the samples"
        said.append(f"±: one standard deviation, {how}.")
        if metric != "FID":
            said.append("FD with these features is not FID and cannot be compared with FID.")
    if reference.points:
        said.append(f"Nearest neighbors are searched among {reference.points:,} real samples.")
    if first.marginals is not None:
        said.append(about_columns(evaluation))
    if first.milliseconds_per_sample is not None:
        said.append("ms: milliseconds per sample.")
    return " ".join(said)


def about_guidance(used: GuidanceUsed) -> str:
    """A sentence on the guidance of the samples."""
    scale = "different for each sample" if used.scale is None else f"{used.scale:g}"
    where = "" if (used.start, used.end) == (0, 1) else f" for t in {used.start:g} .. {used.end:g}"
    return f"Guidance scale: {scale}{where}."


def about_columns(evaluation: Evaluation) -> str:
    """Sentences on the Wasserstein distances."""
    equal = f"{evaluation.wasserstein_points:,}"
    scaled = evaluation.features.scaling is not None
    unit = "standardized as for training" if scaled else "in their original units"
    return (
        f"SW2: sliced Wasserstein-2 distance between {equal} samples and equally many real ones. "
        "marginals: mean Wasserstein-1 distance of single columns or channels. worst: the largest "
        f"one. All distances are computed from values {unit}."
    )


def about_real(real: RealRow, reference: Reference) -> str:
    """A sentence on the real data in the table."""
    kind = "samples of the training split" if real.split == "train" else "held-out samples"
    text = f"real: {real.count:,} {kind} of {real.dataset} ({real.split})"
    other = real.reference
    same = (other.name, other.count) == (reference.name, reference.count)
    return f"{text}." if same else f"{text}, compared with the other {other.count:,} samples."


def markdown_table(rows: list[list[str]]) -> str:
    """Formats a table in Markdown. The first row is the header."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    header, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def markdown(evaluation: Evaluation) -> str:
    """The title, the table and the remarks in Markdown."""
    return f"{title(evaluation)}\n\n{markdown_table(table(evaluation))}\n\n{remarks(evaluation)}"


def as_html(evaluation: Evaluation) -> str:
    """The table with its title and remarks as HTML, for notebooks."""
    diagnostics = [
        f"{name.replace('_', ' ')}: {value:.4f}" for name, value in evaluation.diagnostics.items()
    ]
    below = [
        Markup('<p style="max-width: 60em">{}</p>').format(line)
        for line in (remarks(evaluation), ", ".join(diagnostics))
        if line
    ]
    found = Markup("<p><b>{}</b></p>{}{}").format(
        title(evaluation), html_table(table(evaluation)), Markup("").join(below)
    )
    return str(found)
