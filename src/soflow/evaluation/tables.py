"""An evaluation as text and as HTML: the table, its title, and the remarks below it."""

from collections.abc import Callable, Sequence
from statistics import mean

from markupsafe import Markup

from soflow.evaluation.record import Evaluation, Figures, GuidanceUsed, RealRow, Reference, Row

#: A column: the cell of each row.
Column = Callable[[Row | RealRow], str]
#: Headers of the column of distances, by metric.
SHORT = {"FID": "FID", "energy distance": "energy"}


def table(evaluation: Evaluation) -> list[list[str]]:
    """The figures as text, header first, the row of real data last, without empty columns."""
    rows: list[Row | RealRow] = [*evaluation.rows]
    if evaluation.real is not None:
        rows.append(evaluation.real)
    cells = {name: [column(row) for row in rows] for name, column in columns(evaluation).items()}
    kept = {name: column for name, column in cells.items() if any(column)}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]


def columns(evaluation: Evaluation) -> dict[str, Column]:
    real, fid = evaluation.real, evaluation.metric == "FID"
    several = len({row.weights for row in evaluation.rows}) > 1
    few = "" if real is None else f"of {real.count:,}"

    def drawn(cell: Callable[[Row], str]) -> Column:
        return lambda row: cell(row) if isinstance(row, Row) else ""

    def figure(name: str, form: str) -> Column:
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
        "sFID" if fid else "sFD": figure("spatial_distance", ".4g"),
        "KID" if fid else "KD": figure("kernel_distance", ".3g"),
        "SW2": figure("sliced_wasserstein", ".3g"),
        "marginals": average,
        "worst": worst,
        "IS": figure("inception_score", ".4g"),
        **{name: figure(name, ".3f") for name in fractions},
        "ms": drawn(lambda row: shown(row.milliseconds_per_sample, ".3f")),
    }


def real_name(row: RealRow) -> str:
    return f"real, {row.split}" if row.split else "real"


def shorten(name: str, most: int = 24) -> str:
    """A column's name that leaves room for figures."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def mark(row: Figures) -> str:
    return "" if row.reliable else " *"


def shown(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def distance(row: Figures) -> str:
    """The distance with its standard deviation, if there is one: 1.26 ± 0.02."""
    spread = "" if row.distance_spread is None else f" ± {row.distance_spread:.2g}"
    return f"{row.distance:.4g}{spread}{mark(row)}"


def title(evaluation: Evaluation) -> str:
    """What the figures describe."""
    metric, reference = evaluation.metric, evaluation.reference
    count = f"{reference.count:,}" if reference.count else "an unknown number of"
    return f"{metric} of {evaluation.num:,} samples to {count} real ones ({reference.name})"


def remarks(evaluation: Evaluation) -> str:
    """What a reader of the figures must know, in some sentences."""
    real, reference, first = evaluation.real, evaluation.reference, evaluation.rows[0]
    metric = evaluation.metric
    warnings = [*evaluation.warnings, *(real.warnings if real is not None else [])]
    said = [f"* {warning}." for warning in dict.fromkeys(warnings)]
    if evaluation.guidance is not None:
        said.append(about_guidance(evaluation.guidance))
    if real is not None:
        said.append(about_real(real, reference))
        if first.distance_at_real_count is not None:
            said.append(
                "A small set has a larger distance: "
                f"compare it with as few drawn samples, 'of {real.count:,}'."
            )
    if metric != "energy distance":
        how = "over seeds" if len(evaluation.seeds) > 1 else "from halves of the samples"
        said.append(f"±: one standard deviation, {how}.")
        if metric != "FID":
            said.append("FD by these features is no FID and cannot be compared with one.")
    if reference.points:
        said.append(f"Neighbors are searched among {reference.points:,} real samples.")
    if first.marginals is not None:
        said.append(about_columns(evaluation))
    if first.milliseconds_per_sample is not None:
        said.append("ms: milliseconds per sample.")
    return " ".join(said)


def about_guidance(used: GuidanceUsed) -> str:
    """How strongly samples were guided."""
    scale = "each sample's own" if used.scale is None else f"{used.scale:g}"
    where = "" if (used.start, used.end) == (0, 1) else f" for t in {used.start:g} .. {used.end:g}"
    return f"Guidance scale: {scale}{where}."


def about_columns(evaluation: Evaluation) -> str:
    """What the Wasserstein distances mean."""
    equal = f"{evaluation.wasserstein_points:,}"
    scaled = evaluation.features.scaling is not None
    unit = "values scaled as for training" if scaled else "the data's own values"
    return (
        f"SW2: sliced Wasserstein-2 distance of {equal} samples and as many real ones. "
        "marginals: the Wasserstein-1 distance of single columns or channels, their mean and "
        f"the worst one. All distances are of {unit}."
    )


def about_real(real: RealRow, reference: Reference) -> str:
    """Which real data the table shows."""
    kind = "samples of the training split" if real.split == "train" else "held-out samples"
    text = f"real: {real.count:,} {kind} of {real.dataset} ({real.split})"
    other = real.reference
    same = (other.name, other.count) == (reference.name, reference.count)
    return f"{text}." if same else f"{text}, compared with the other {other.count:,}."


def as_html(evaluation: Evaluation) -> str:
    """The table with its title and remarks, for notebooks."""
    head, *rows = table(evaluation)
    lines = [row_of("th", head), *(row_of("td", row) for row in rows)]
    diagnostics = [
        f"{name.replace('_', ' ')}: {value:.4f}" for name, value in evaluation.diagnostics.items()
    ]
    below = [
        Markup('<p style="max-width: 60em">{}</p>').format(line)
        for line in (remarks(evaluation), ", ".join(diagnostics))
        if line
    ]
    found = Markup("<p><b>{}</b></p><table>{}</table>{}").format(
        title(evaluation), Markup("").join(lines), Markup("").join(below)
    )
    return str(found)


def row_of(tag: str, cells: Sequence[str]) -> Markup:
    """A row of cells, escaped."""
    cell = Markup(f"<{tag}>{{}}</{tag}>")
    return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(text) for text in cells))
