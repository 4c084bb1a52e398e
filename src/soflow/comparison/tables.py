"""A comparison as tables and text, for Markdown, the terminal and the page."""

from statistics import mean, stdev

from soflow.comparison.record import Comparison
from soflow.sampling import HEUN_STEPS, Sampler

#: The yardstick: Heun steps of the model's own velocity.
HEUN: tuple[Sampler, int] = ("heun", 2 * HEUN_STEPS)


#: Objectives whose names are written otherwise than in settings.
NAMES = {
    "soflow": "SoFlow",
    "jump_flow": "JumpFlow",
    "mean_flow": "MeanFlow",
    "imf": "improved MeanFlow",
    "alpha_flow": "alpha-Flow",
}


def name_of(objective: str) -> str:
    """The name in prose."""
    return NAMES.get(objective, objective.replace("_", " "))


def over_seeds(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation, '1.29 ± 0.16'; a single value alone; '' without values."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}g}{spread}"


def quality_rows(results: Comparison) -> list[list[str]]:
    """Distances as a table, header first: one row per objective and sampler."""
    every = [row for one in results.objectives.values() for row in one.runs[0].rows]
    few = sorted({row.nfe for row in every if row.sampler != "heun" and row.nfe is not None})
    steps = [f"NFE {n}" for n in few]
    rows = [["objective", "sampler", *steps, f"{HEUN_STEPS} Heun steps", "recognized, NFE 1"]]
    for name, objective in results.objectives.items():
        for i, sampler in enumerate(objective.few_step_samplers):
            distances = [objective.distances(sampler, n) for n in few]
            heun = objective.distances(*HEUN) if i == 0 else []
            first = objective.rows(sampler, 1)
            recognized = [row.recognized for row in first if row.recognized is not None]
            figures = map(over_seeds, [*distances, heun, recognized])
            rows.append([name_of(name), sampler, *figures])
    header, *body = rows
    shown = [i for i in range(len(header)) if any(row[i] for row in body)]
    return [[row[i] for i in shown] for row in rows]


def cost_rows(results: Comparison) -> list[list[str]]:
    """Costs as a table, header first: one row per objective."""
    header = "objective|steps|training|ms/step|time of a step|MiB|memory|MFLOP/sample|ms/sample"
    rows = [header.split("|")]
    for name, objective in results.objectives.items():
        cost = objective.cost
        least, middle, most = cost.step_ratio
        rows.append(
            [
                name_of(name),
                f"{objective.steps:,}",
                over_seeds([run.seconds for run in objective.runs]) + " s",
                f"{1000 * cost.seconds_per_step:.3g}",
                f"{middle:.2f} ({least:.2f} to {most:.2f})",
                f"{cost.peak_bytes / 2**20:,.0f}",
                f"{cost.memory_ratio[1]:.2f}",
                f"{cost.flops_per_sample / 1e6:,.3g}",
                f"{1000 / cost.one_step_samples_per_second:.3g}",
            ]
        )
    return rows


def about(results: Comparison) -> str:
    """What is equal between the objectives."""
    seeds, overrides = results.seeds, " ".join(results.overrides)
    budget = "the same steps"
    if results.budget == "time":
        budget = "as many steps as SoFlow's training time has room for"
    return (
        f"Recipe {results.recipe}{' with ' + overrides if overrides else ''}: the same network "
        "and initial weights, data in the same order, "
        f"batches of {results.batch_size}, the same optimizer, {budget}. "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))}); "
        "± is the standard deviation over them."
    )


def about_distances(results: Comparison) -> str:
    """What the distances are of."""
    real, reference = results.real, results.reference
    recognized = "" if real.recognized is None else f", recognized {real.recognized:.3f}"
    warnings = "".join(f" Not reliable: {warning}." for warning in results.warnings)
    return (
        f"{results.metric} of {results.num:,} samples to {reference.count:,} real ones "
        f"({reference.dataset}, {reference.split} split); smaller is better. "
        f"{real.count:,} held-out real samples: {real.distance:.3g}{recognized}.{warnings}"
    )


def about_costs(results: Comparison) -> str:
    """Where costs were measured, and how."""
    machine = results.machine
    rounds = next(iter(results.objectives.values())).cost.rounds
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return (
        f"Machine: {machine.device}, {machine.processor}, {machine.cores} cores, "
        f"{machine.threads} threads; {versions}. Costs are medians of {rounds} rounds, "
        f"ratios to {name_of(results.base)}'s (least to most); MiB is the process's peak, "
        "ms/sample one-step sampling in batches."
    )


def markdown(results: Comparison) -> str:
    """Both tables, each below the text that explains it."""
    quality = [about_distances(results), table(quality_rows(results))]
    cost = [about_costs(results), table(cost_rows(results))]
    return "\n\n".join([about(results), *quality, *cost]) + "\n"


def table(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    header, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])
