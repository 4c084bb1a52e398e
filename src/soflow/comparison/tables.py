"""Tables and text of a comparison, for Markdown, the terminal and the HTML report."""

import json
from statistics import mean, stdev

from markupsafe import Markup

from soflow.comparison.record import Comparison
from soflow.evaluation.html import html_table
from soflow.evaluation.tables import markdown_table
from soflow.objectives import OBJECTIVES
from soflow.sampling import HEUN_STEPS, Sampler

#: Sampler and NFE of the reference solution: Heun steps of the model's own ODE.
HEUN: tuple[Sampler, int] = ("heun", 2 * HEUN_STEPS)


#: Names of objectives in text, if they differ from the name in settings.
NAMES = {
    "soflow": "SoFlow",
    "jump_flow": "JumpFlow",
    "mean_flow": "MeanFlow",
    "imf": "improved MeanFlow",
    "alpha_flow": "alpha-Flow",
}


def name_of(name: str) -> str:
    """The name of an objective in text. Names of variants are unchanged."""
    return NAMES.get(name, name.replace("_", " ") if name in OBJECTIVES else name)


def how(sampler: Sampler, nfe: int) -> str:
    """Describes a sampler, such as 'one step'."""
    if sampler == "heun":
        return f"{nfe // 2} Heun steps"
    return "one step" if nfe == 1 else f"{nfe} steps"


def over_seeds(values: list[float], digits: int = 3) -> str:
    """Formats mean and standard deviation, such as '1.29 ± 0.16'. Returns '' without values."""
    if not values:
        return ""
    spread = f" ± {rounded(stdev(values), 2)}" if len(values) > 1 else ""
    return f"{rounded(mean(values), digits)}{spread}"


def rounded(value: float, digits: int) -> str:
    """Formats a number with `digits` significant digits, such as '0.0123' or '3,770'."""
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text


def what(results: Comparison) -> str:
    """The heading of the first column."""
    return "variant" if results.variants else "objective"


def few_steps(results: Comparison) -> list[int]:
    """The NFE values of the few-step samplers."""
    every = [row for one in results.objectives.values() for row in one.runs[0].rows]
    return sorted({row.nfe for row in every if row.sampler != "heun" and row.nfe is not None})


def quality_header(results: Comparison) -> list[str]:
    """The header for `quality_row`."""
    first, *more = (f"NFE {n}" for n in few_steps(results))
    ratio = f"ratio to {name_of(results.base)}"
    heun = f"{HEUN_STEPS} Heun steps"
    return [what(results), "sampler", first, ratio, *more, heun, "recognized, NFE 1"]


def quality_row(results: Comparison, name: str, sampler: str, whole: bool) -> list[str]:
    """Distances of one sampler of a variant.

    A whole row also has the distances that do not depend on the sampler: one step, its ratio to the
    base, and Heun steps.
    """
    one = results.objectives[name]
    first, *more = (one.distances(sampler, n) for n in few_steps(results))
    ratios = results.ratios(name) if whole and len(results.objectives) > 1 else []
    heun = one.distances(*HEUN) if whole else []
    first = one.one_step if whole else first
    rows = one.rows(one.few_step_samplers[0], 1) if whole else []
    recognized = [row.recognized for row in rows if row.recognized is not None]
    ratio = f"{mean(ratios):.3f}" if ratios else ""
    if name == results.base and ratios:
        ratio = "1"
    elif len(ratios) > 1:
        ratio += f" ± {stdev(ratios):.3f}"
    return [
        *(name_of(name), sampler, over_seeds(first), ratio),
        *map(over_seeds, [*more, heun, recognized]),
    ]


def real_row(results: Comparison) -> list[str]:
    """The row of held-out real samples: the distance that perfect samples would have."""
    real = results.real
    recognized = "" if real.recognized is None else f"{real.recognized:.3g}"
    empty = [""] * (len(quality_header(results)) - 4)
    return ["real data", "", f"{real.distance:.3g}", *empty, recognized]


def quality_rows(results: Comparison) -> list[list[str]]:
    """The table of distances: a header, one row per variant and sampler, and one of real data."""
    rows = [
        quality_row(results, name, sampler, whole=sampler == one.few_step_samplers[0])
        for name, one in results.objectives.items()
        for sampler in one.few_step_samplers
    ]
    return filled_columns([quality_header(results), *rows, real_row(results)])


def overview_rows(results: Comparison) -> list[list[str]]:
    """The overview: a header, one row per variant with one sampler, and one of real data."""
    rows = [[*quality_header(results), "step time ratio"]]
    for name, one in results.objectives.items():
        time = f"{one.cost.step_ratio[1]:.2f}"
        rows.append([*quality_row(results, name, few_step_sampler(results, name), True), time])
    rows.append([*real_row(results), ""])
    return filled_columns(rows)


def few_step_sampler(results: Comparison, name: str) -> str:
    """The sampler that represents a variant: one that all have, `ode` if possible, or its first."""
    every = [one.few_step_samplers for one in results.objectives.values()]
    shared = [sampler for sampler in every[0] if all(sampler in samplers for samplers in every)]
    if "ode" in shared:
        return "ode"
    return shared[0] if shared else results.objectives[name].few_step_samplers[0]


def filled_columns(rows: list[list[str]]) -> list[list[str]]:
    """Removes columns that are empty below the header."""
    header, *body = rows
    shown = [i for i in range(len(header)) if any(row[i] for row in body)]
    return [[row[i] for i in shown] for row in rows]


def settings_rows(results: Comparison) -> list[list[str]]:
    """The table of settings: a header, then one row per variant with its changes to the recipe."""
    rows = [["variant", "settings"]]
    for name, one in results.objectives.items():
        texts = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in one.settings.items()
        ]
        rows.append([name_of(name), ", ".join(texts) or "as in the recipe"])
    return rows


def cost_rows(results: Comparison) -> list[list[str]]:
    """The table of costs: a header, then one row per variant."""
    header = "steps|training|ms/step|step time ratio|MiB|memory ratio|MFLOP/sample|ms/sample"
    rows = [[what(results), *header.split("|")]]
    for name, objective in results.objectives.items():
        cost = objective.cost
        least, middle, most = cost.step_ratio
        rows.append(
            [
                name_of(name),
                f"{objective.steps:,}",
                over_seeds([run.seconds for run in objective.runs]) + " s",
                rounded(1000 * cost.seconds_per_step, 3),
                f"{middle:.2f}" + (f" ({least:.2f} to {most:.2f})" if cost.rounds > 1 else ""),
                f"{cost.peak_bytes / 2**20:,.0f}",
                f"{cost.memory_ratio[1]:.2f}",
                f"{cost.flops_per_sample / 1e6:,.3g}",
                f"{1000 / cost.one_step_samples_per_second:.3g}",
            ]
        )
    return rows


def about(results: Comparison) -> str:
    """Sentences on the settings that all variants share."""
    seeds, overrides = results.seeds, " ".join(results.overrides)
    return (
        f"Recipe {results.recipe}{' with ' + overrides if overrides else ''}: "
        f"{', '.join(equal_parts(results))}. "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))}); "
        "± is the standard deviation over seeds. Ratios of distances are computed for each seed "
        "and then averaged."
    )


def equal_parts(results: Comparison) -> list[str]:
    """The parts that all variants share."""
    every = results.objectives.values()
    changed = {key for one in every for key in one.settings}

    def same(*keys: str) -> bool:
        return not any(key.startswith(keys) for key in changed)

    parts = []
    # Some objectives add inputs to the network, so the settings alone do not decide.
    if same("network.") and len({one.cost.parameters for one in every}) == 1:
        parts.append("the same network" + (" and initial weights" if same("init_") else ""))
    if same("train.batch_size"):
        parts.append(f"data in the same order, batches of {results.batch_size}")
    if same("optimizer."):
        parts.append("the same optimizer")
    if results.budget == "time":
        base = name_of(results.base)
        parts.append(f"the training time of {base}")
    elif same("train.steps"):
        parts.append("the same number of steps")
    return parts or ["the same data"]


def about_distances(results: Comparison) -> str:
    """Sentences on the distances."""
    real, reference = results.real, results.reference
    recognized = "" if real.recognized is None else f", recognized {real.recognized:.3f}"
    warnings = "".join(f" Unreliable: {warning}." for warning in results.warnings)
    return (
        f"{results.metric} between {results.num:,} samples and {reference.count:,} real ones "
        f"({reference.dataset}, {reference.split} split). Lower is better. "
        f"{real.count:,} held-out real samples: {real.distance:.3g}{recognized}.{warnings}"
    )


def about_costs(results: Comparison) -> str:
    """Sentences on how and where costs were measured."""
    machine = results.machine
    rounds = next(iter(results.objectives.values())).cost.rounds
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    measured = f"Costs are medians over {rounds} rounds" if rounds > 1 else "Costs: one round"
    return (
        f"Machine: {machine.device}, {machine.processor}, {machine.cores} cores, "
        f"{machine.threads} threads; {versions}. {measured}. Ratios "
        f"are relative to {name_of(results.base)}, with minimum to maximum in parentheses. MiB is "
        "the peak memory, ms/sample the time of one-step sampling in batches."
    )


def markdown(results: Comparison) -> str:
    """Markdown with all tables, each below its explanation."""
    parts = [about(results), about_distances(results)]
    if results.variants:
        parts += [
            markdown_table(overview_rows(results)),
            markdown_table(settings_rows(results)),
            "All samplers:",
        ]
    parts += [
        markdown_table(quality_rows(results)),
        about_costs(results),
        markdown_table(cost_rows(results)),
    ]
    return "\n\n".join(parts) + "\n"


def as_html(results: Comparison) -> str:
    """The table of distances with its explanation as HTML, for notebooks."""
    rows = overview_rows(results) if results.variants else quality_rows(results)
    text = Markup('<p style="max-width: 60em">{}</p>')
    parts = [text.format(about(results)), html_table(rows), text.format(about_distances(results))]
    return str(Markup("").join(parts))
