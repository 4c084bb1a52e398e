"""Trains variants of a recipe with several seeds, and evaluates all runs in the same way.

A variant is an objective, or a named set of settings. Everything else is equal: network, initial
weights, data order, batch size, optimizer and number of steps. With the budget "time", all variants
get equal training time instead of equal steps: the time of the base, which is SoFlow or, without
SoFlow, the first variant.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from soflow.comparison import OBJECTIVES
from soflow.comparison.cost import BASE, Cost, base_of, costs_of
from soflow.comparison.plan import (
    Planned,
    plan,
    require_base,
    require_same_as_begun,
)
from soflow.comparison.record import (
    Budget,
    Comparison,
    ObjectiveResults,
    RunResults,
)
from soflow.comparison.runs import run_all
from soflow.config import Config
from soflow.config.reading import BEFORE, COMPARISON, keys_of
from soflow.config.variants import Variants, folder_name, read_compared
from soflow.data import own
from soflow.data.dataset import Dataset
from soflow.data.training_data import completed, make_dataset
from soflow.errors import InputError, in_short, require_whole
from soflow.evaluation.references import make_scoring
from soflow.evaluation.scorer import Scoring
from soflow.run.folder import RunFolder
from soflow.run.resume import keep_older
from soflow.system import processes
from soflow.system.atomic import require_writable
from soflow.system.devices import default_device
from soflow.system.isolation import isolated, random_state_kept
from soflow.system.progress import Progress, track
from soflow.training.automatic import resolve
from soflow.workflows.load import make_decoder

log = logging.getLogger(__name__)

#: Rounds and seconds per round of cost measurements. Runs of fewer than SHORT steps take less.
MEASURING, MEASURING_IF_SHORT, SHORT = (3, 2.0), (1, 0.5), 500


@isolated
@random_state_kept()
def compare(
    recipe: str,
    out: str | Path,
    objectives: Sequence[str] | None = None,
    seeds: int = 3,
    budget: Budget = "steps",
    overrides: Sequence[str] = (),
    rounds: int | None = None,
    heun: bool = False,
    progress: Progress = track,
    variants: Variants | None = None,
    only: Sequence[str] = (),
    data: Any = None,
) -> Comparison:
    """Trains and evaluates objectives, or variants of a recipe, under equal conditions.

    Run folders and results.json are written to `out`. Call it again to resume an interrupted
    comparison, or to add objectives, variants or seeds.

    Args:
        recipe: Name of an included recipe, a YAML file or a run folder.
        out: Folder to write to.
        objectives: Names of objectives. By default, all of soflow's.
        seeds: Number of runs of each objective or variant, with different seeds.
        budget: "steps" trains all runs for the recipe's steps. "time" gives all runs the training
            time of SoFlow, or of the first variant if SoFlow is not compared.
        overrides: `key=value` for all runs, or `name:key=value` for one objective or variant.
        rounds: Number of cost measurements of each objective or variant. By default, 3, or 1 for
            short runs.
        heun: Whether to also evaluate 32 Heun steps of each model's own ODE, and how well its jumps
            agree with them. New runs also evaluate it during training. This is slow. Flow matching
            is always evaluated with Heun steps.
        progress: Displays the progress.
        variants: Variants to compare instead of `objectives`, or a YAML file with them: settings of
            the recipe to change, by name. Keys are nested or dotted, such as `{"p = 0":
            {"objective": {"p": 0}}, "Muon": {"optimizer.name": "muon"}}`. A variant with another
            objective keeps the guidance scale and label dropout of the recipe's objective.
        only: Names of the variants to compare. By default, all.
        data: Custom data instead of the recipe's, as in `soflow.train`. Pass the same data again to
            resume the comparison.

    Returns:
        The results, as written to results.json.

    Raises:
        InputError: If settings are invalid or differ from those of existing runs in `out`, or
            several processes are used.
        RunError: If a run fails or a file is damaged.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
        SystemExit: After SIGTERM, once a checkpoint is written.

    Example:
        >>> import soflow
        >>> settings = ["train.steps=2", "train.batch_size=8", "evaluate.num=50"]
        >>> found = soflow.compare(
        ...     "moons", "runs/compare", ["soflow", "flow_matching"], seeds=1, overrides=settings,
        ...     rounds=1, progress=soflow.silent,
        ... )
        >>> list(found.objectives)
        ['soflow', 'flow_matching']
    """
    out = Path(out).expanduser()
    if RunFolder(out).config.is_file():
        raise InputError(f"{out} is a run folder: choose another folder for the comparison")
    if processes.count() > 1:
        raise InputError("a comparison runs in one process: start soflow compare without torchrun")
    if variants is not None and objectives is not None:
        raise InputError("objectives and variants cannot be combined: pass only one of them")
    names = OBJECTIVES if objectives is None else objectives
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise InputError(f"objectives={in_short(names)}: pass a list of names")
    if not isinstance(only, Sequence) or isinstance(only, str):
        raise InputError(f"only={in_short(only)}: pass a list of names")
    if not names:
        raise InputError("objectives is empty: pass at least one name")
    require_whole(1, seeds=seeds, rounds=1 if rounds is None else rounds)
    if budget not in get_args(Budget):
        raise InputError(f"budget is {in_short(budget)}: choose steps or time")
    read = read_compared(recipe, names, variants, only, overrides)
    settings = {name: variant.settings for name, variant in read.items()}
    if budget == "time":
        every = read_compared(recipe, names, variants, (), overrides)
        require_base(settings, BASE if variants is None else base_of(every), out)
    configs = {name: variant.config for name, variant in read.items()}
    with given_to_all(data, configs, overrides) as configs:
        dataset = make_dataset(next(iter(configs.values())).data)
        configs = {name: completed(config, dataset) for name, config in configs.items()}
        shared = next(iter(configs.values()))
        configs, note = chosen_settings(configs, settings, out, keys_of(overrides))
        require_writable(out)
        require_same_as_begun(configs, dataset, seeds, budget, out)
        if note:
            log.info(note)
        if unguided := unlike_the_others(configs):
            log.info(f"{', '.join(unguided)}: trained without guidance, unlike the others")
        scoring = scoring_of(shared, dataset)
        usual, seconds = MEASURING if shared.train.steps >= SHORT else MEASURING_IF_SHORT
        costs = costs_of(configs, out / COMPARISON, rounds or usual, progress, seconds)
        planned = list(plan(configs, seeds, budget, out, costs))
        run_all(planned, costs, scoring, heun, progress)
    results = gather(recipe, overrides, budget, planned, costs, settings)
    results.write(out / "results.json")
    return results


@contextmanager
def given_to_all(
    data: Any, configs: dict[str, Config], overrides: Sequence[str]
) -> Iterator[dict[str, Config]]:
    """Yields the configurations with data passed from Python, if there are any."""
    if data is None:
        yield configs
        return
    own.require_unnamed(keys_of(overrides))
    with own.given(data, next(iter(configs.values()))) as first:  # all have the same data
        yield {
            name: config.model_copy(update={"data": first.data}) for name, config in configs.items()
        }


def scoring_of(config: Config, dataset: Dataset) -> Scoring:
    """The scorer for all runs, with held-out real data."""
    decode = make_decoder(dataset.encoder, dataset.scaling, default_device())
    return make_scoring(config, dataset.encoder, decode, baseline=True, scaling=dataset.scaling)


def unlike_the_others(configs: Mapping[str, Config]) -> list[str]:
    """The names of variants that train without guidance, if others are guided."""
    guided = {
        name: config.guidance_scale > 1 or config.drawn_guidance is not None
        for name, config in configs.items()
    }
    return [name for name in configs if not guided[name]] if any(guided.values()) else []


def chosen_settings(
    configs: dict[str, Config],
    settings: Mapping[str, Mapping[str, Any]],
    out: Path,
    given: Sequence[str],
) -> tuple[dict[str, Config], str]:
    """Sets `precision` and `compile` as in existing runs or for this machine. Returns a note."""

    def started(name: str) -> Config | None:
        files = sorted(out.glob(f"{folder_name(name)}-seed-*/config.yaml"))
        return RunFolder(files[0].parent).read_config() if files else None

    # A new variant computes like the existing ones that do not set these keys themselves.
    taken_over = {"precision", "compile", *BEFORE}
    usual = [name for name in configs if not taken_over & set(settings[name])]
    first = next((config for name in usual if (config := started(name)) is not None), None)
    chosen = {}
    for name, one in configs.items():
        like = started(name) or first
        older = keep_older(one, like, [*given, *settings[name]])
        chosen[name] = resolve(older, default_device(), like)
    notes = dict.fromkeys(note for _, note in chosen.values() if note)
    return {name: config for name, (config, _) in chosen.items()}, "; ".join(notes)


def gather(
    recipe: str,
    overrides: Sequence[str],
    budget: Budget,
    planned: list[Planned],
    costs: dict[str, Cost],
    settings: Mapping[str, dict[str, Any]],
) -> Comparison:
    """Collects the content of results.json from the files of all runs."""
    by_objective: dict[str, list[RunResults]] = {}
    for run in planned:
        evaluation, curves = run.read_evaluation(), run.read_curves().curves
        name = run.folder.path.name
        results = RunResults(**dict(evaluation), folder=name, seed=run.seed, curves=curves)
        by_objective.setdefault(run.name, []).append(results)
    steps = {run.name: run.config.train.steps for run in planned}
    objectives = {
        name: ObjectiveResults(
            steps=steps[name], cost=costs[name].summary, runs=runs, settings=settings[name]
        )
        for name, runs in by_objective.items()
    }
    device = costs[planned[0].name].measured[0].device
    machine = evaluation.machine.model_copy(update={"cores": os.cpu_count(), "device": device})
    # The batch size of the recipe: prefer a variant that does not change it.
    usual, *_ = sorted(planned, key=lambda run: "train.batch_size" in settings[run.name])
    # All runs share one protocol: take it from the last evaluation.
    protocol = {**dict(evaluation), "machine": machine, "seeds": sorted({r.seed for r in planned})}
    return Comparison(
        **protocol,
        recipe=recipe,
        overrides=list(overrides),
        budget=budget,
        base=base_of(by_objective),
        batch_size=usual.config.train.batch_size,
        objectives=objectives,
    )
