"""Trains variants of a recipe over several seeds, and evaluates all runs alike.

Variants are objectives, or named sets of settings. All else is the same: network and initial
weights, data in the same order, batch, optimizer and number of steps. With the budget "time", each
gets as many steps as fit into the seconds of the base, which is SoFlow or else the first variant.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from soflow.comparison import OBJECTIVES
from soflow.comparison.cost import BASE, Cost, base_of, costs_of
from soflow.comparison.plan import (
    Planned,
    evaluated_samplers,
    plan,
    require_base,
    require_same_as_begun,
)
from soflow.comparison.record import (
    Budget,
    Comparison,
    ObjectiveResults,
    Point,
    RunEvaluation,
    RunResults,
)
from soflow.comparison.tables import HEUN
from soflow.config import Config
from soflow.config.reading import BEFORE, keys_of
from soflow.config.variants import Variants, folder_name, read_compared
from soflow.data.training_data import completed, make_dataset
from soflow.drawing import draw
from soflow.errors import InputError, in_short
from soflow.evaluation.evaluate import EvaluationSettings, evaluate
from soflow.evaluation.html import duration
from soflow.evaluation.references import make_scoring
from soflow.evaluation.scorer import Scoring
from soflow.run.folder import RunFolder
from soflow.run.resume import keep_older
from soflow.sampling import Sampler
from soflow.solution import FlowModel
from soflow.system import processes
from soflow.system.atomic import require_writable
from soflow.system.devices import default_device
from soflow.system.isolation import isolated, random_state_kept
from soflow.system.progress import Progress, Task, track
from soflow.training.automatic import resolve
from soflow.training.callbacks import Callback, Training
from soflow.workflows.evaluate import write_evaluation
from soflow.workflows.load import load, make_decoder
from soflow.workflows.train import train

log = logging.getLogger(__name__)

#: Rounds of measuring costs and seconds of each, and both for trainings under SHORT steps.
MEASURING, MEASURING_IF_SHORT, SHORT = (3, 2.0), (1, 0.5), 500
#: Samples at each point of a curve: few, so that curves slow a training little.
CURVE_SAMPLES = 500
#: The sampler of the curves of objectives that learn no jumps.
COARSE_HEUN: tuple[Sampler, int] = ("heun", 8)


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
) -> Comparison:
    """Compares objectives or variants of a recipe, in run folders under `out`.

    Writes results.json there. A comparison that was interrupted continues, and objectives, variants
    and seeds can be added to one.

    Args:
        recipe: A shipped recipe's name, a YAML file or a run folder.
        out: The folder.
        objectives: Names of objectives; by default SoFlow, JumpFlow, MeanFlow, shortcut,
            consistency and flow matching.
        seeds: Runs of each objective or variant.
        budget: "steps": the recipe's steps for all; "time": as many as fit into the seconds of
            SoFlow, or of the first variant if there is no variant SoFlow.
        overrides: `key=value` for all, or `name:key=value` for one objective or variant.
        rounds: Measurements of each one's cost; by default 3, or 1 for short trainings.
        heun: Also evaluates 32 Heun steps of each model's own velocity, and the consistency of its
            jumps with it; of new runs also during training. Slow. Flow matching always gets them.
        progress: Shows what is going on.
        variants: What to compare in place of `objectives`: settings by name, with nested or dotted
            keys, such as `{"p = 0": {"objective": {"p": 0}}, "Muon": {"optimizer.name": "muon"}}`,
            or a YAML file of them. They change the recipe. A variant with another objective takes
            over how strongly the recipe's own guides.
        only: Names of the variants to compare; all if empty.

    Returns:
        The content of results.json.

    Raises:
        InputError: For settings that cannot be used, or that differ from those of runs in `out`.
        RunError: If a run fails or a file is damaged.

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
    if processes.count() > 1:
        raise InputError("a comparison runs in one process: start soflow compare without torchrun")
    if variants is not None and objectives is not None:
        raise InputError("objectives and variants: give one of them")
    names = OBJECTIVES if objectives is None else objectives
    if isinstance(names, str):
        raise InputError(f"objectives is '{names}': give a list of names")
    if isinstance(only, str):
        raise InputError(f"only is '{only}': give a list of names")
    if min(seeds, len(names), 1 if rounds is None else rounds) < 1:
        raise InputError("objectives, seeds and rounds: a comparison needs at least one of each")
    if budget not in get_args(Budget):
        raise InputError(f"budget is {in_short(budget)}: choose steps or time")
    read = read_compared(recipe, names, variants, only, overrides)
    settings = {name: variant.settings for name, variant in read.items()}
    if budget == "time":
        every = read_compared(recipe, names, variants, (), overrides)
        require_base(settings, BASE if variants is None else base_of(every), out)
    data = make_dataset(next(iter(read.values())).config.data)
    configs = {name: completed(variant.config, data) for name, variant in read.items()}
    shared = next(iter(configs.values()))
    configs, note = chosen_settings(configs, settings, out, keys_of(overrides))
    decode = make_decoder(data.encoder, data.scaling, default_device())
    require_writable(out)
    require_same_as_begun(configs, seeds, budget, out)
    if note:
        log.info(note)
    scoring = make_scoring(shared, data.encoder, decode, baseline=True, scaling=data.scaling)
    usual, seconds = MEASURING if shared.train.steps >= SHORT else MEASURING_IF_SHORT
    costs = costs_of(configs, out / "cost.json", rounds or usual, progress, seconds)
    planned = list(plan(configs, seeds, budget, out, costs))

    # The seconds that costs predict for the runs to come.
    expected = {
        run.folder: 0.0
        if run.evaluation_file.is_file()
        else run.config.train.steps * costs[run.name].figures.seconds_per_step
        for run in planned
        if not run.is_finished(heun)
    }
    done, start = 0.0, time.perf_counter()
    for number, run in enumerate(planned, 1):
        title = f"run {number} of {len(planned)}: {run.name}, seed {run.seed}"
        if run.folder not in expected:
            log.info(f"{title}: already done")
            continue
        pace = (time.perf_counter() - start) / done if done else 1.0
        left = duration(pace * sum(expected.values()))
        log.info(f"{title}, {run.config.train.steps:,} steps; about {left} left in all")
        train_run(run, scoring, heun, title, progress)
        evaluate_run(run, scoring, heun, progress)
        done += expected.pop(run.folder)
    results = gather(recipe, overrides, budget, planned, costs, settings)
    results.write(out / "results.json")
    return results


def chosen_settings(
    configs: dict[str, Config],
    settings: Mapping[str, Mapping[str, Any]],
    out: Path,
    given: Sequence[str],
) -> tuple[dict[str, Config], str]:
    """`precision` and `compile` as runs in `out` have them or as suits the machine, and a note."""

    def begun(name: str) -> Config | None:
        files = sorted(out.glob(f"{folder_name(name)}-seed-*/config.yaml"))
        return RunFolder(files[0].parent).read_config() if files else None

    # A variant that is new computes like the others, but not like one with a choice of its own.
    taken_over = {"precision", "compile", *BEFORE}
    usual = [name for name in configs if not taken_over & set(settings[name])]
    first = next((config for name in usual if (config := begun(name)) is not None), None)
    chosen = {}
    for name, one in configs.items():
        like = begun(name) or first
        older = keep_older(one, like, [*given, *settings[name]])
        chosen[name] = resolve(older, default_device(), like)
    notes = dict.fromkeys(note for _, note in chosen.values() if note)
    return {name: config for name, (config, _) in chosen.items()}, "; ".join(notes)


@dataclass(frozen=True)
class Curves(Callback):
    """Adds a point to the curves of a run at each sample grid."""

    run: Planned
    scoring: Scoring
    heun: bool

    def on_sample(self, training: Training, model: FlowModel, picture: Path) -> None:
        config, scorer, state = training.config, self.scoring.scorer, training.state
        num = min(config.evaluate.num, CURVE_SAMPLES)
        labels, cond, _ = self.scoring.draw_inputs(None, num, model)
        kept = self.run.read_curves()
        for sampler, nfe in curve_samplers(config, self.heun):
            samples = draw(model, num, labels, sampler, nfe, seed=0, device=model.device, cond=cond)
            distance = scorer.distance(scorer.gather(samples, num))
            point = Point(step=state.step, seconds=state.seconds, distance=distance)
            kept = kept.with_point(sampler, nfe, num, point)
        kept.write(self.run.curves_file)


def train_run(run: Planned, scoring: Scoring, heun: bool, title: str, progress: Progress) -> None:
    """Trains one run, with the distance of a few samples at every point of its curves."""
    titled = partial(titled_progress, progress, title)
    train(run.config, run.folder.path, progress=titled, callbacks=[Curves(run, scoring, heun)])


def curve_samplers(config: Config, heun: bool) -> list[tuple[Sampler, int]]:
    """The samplers of the curves: one step, or 4 Heun steps if the objective learns no jumps."""
    first = config.samplers[0]
    cheap = COARSE_HEUN if first == "euler" else (first, 1)
    return [cheap, HEUN] if heun and "heun" in config.samplers else [cheap]


def evaluate_run(run: Planned, scoring: Scoring, heun: bool, progress: Progress) -> None:
    """Evaluates a trained run, as soflow evaluate does."""
    loaded, config = load(run.folder.path), run.config
    samplers = evaluated_samplers(config, heun)
    models = {"ema": loaded.model}
    settings = EvaluationSettings(nfe=config.evaluate.nfe, num=config.evaluate.num)
    title = f"evaluating {run.name}, seed {run.seed}"
    titled = partial(titled_progress, progress, title)
    found = evaluate(models, samplers, scoring, settings, loaded.device, titled)
    evaluation = found.model_copy(update={"checkpoint": loaded.checkpoint.path.name})
    write_evaluation(run.folder, evaluation)  # for soflow report
    seconds = loaded.checkpoint.train_state().seconds
    RunEvaluation(**dict(evaluation), seconds=seconds).write(run.evaluation_file)
    one = evaluation.rows[0]
    log.info(f"  {one.sampler}, NFE {one.nfe}: distance {one.distance:.4g} after {seconds:.0f} s")


def gather(
    recipe: str,
    overrides: Sequence[str],
    budget: Budget,
    planned: list[Planned],
    costs: dict[str, Cost],
    settings: Mapping[str, dict[str, Any]],
) -> Comparison:
    """The content of results.json, from the files of all runs."""
    by_objective: dict[str, list[RunResults]] = {}
    for run in planned:
        evaluation, curves = run.read_evaluation(), run.read_curves().curves
        name = run.folder.path.name
        results = RunResults(**dict(evaluation), folder=name, seed=run.seed, curves=curves)
        by_objective.setdefault(run.name, []).append(results)
    steps = {run.name: run.config.train.steps for run in planned}
    objectives = {
        name: ObjectiveResults(
            steps=steps[name], cost=costs[name].figures, runs=runs, settings=settings[name]
        )
        for name, runs in by_objective.items()
    }
    device = costs[planned[0].name].measured[0].device
    machine = evaluation.machine.model_copy(update={"cores": os.cpu_count(), "device": device})
    # Of a variant without a batch size of its own, if there is one
    usual, *_ = sorted(planned, key=lambda run: "train.batch_size" in settings[run.name])
    # All runs are evaluated alike: the protocol is that of any.
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


def titled_progress(
    progress: Progress, title: str, _: str, total: int, done: int = 0
) -> AbstractContextManager[Task]:
    """Progress under a title of the comparison's own."""
    return progress(title, total, done)
