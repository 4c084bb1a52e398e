"""Training methods side by side: one recipe, trained by each method over several seeds, evaluated in the same way.

All have the same network and initial weights, data in the same order, batch and optimizer, and the same number of steps or,
with the budget "time", as many steps as SoFlow's training time has room for.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from PIL import Image

from soflow.comparison.cost import Cost, base_of, measure
from soflow.comparison.page import markdown, name_of, page, plots, sheets
from soflow.config import Config, read_objectives
from soflow.data.training_data import make_dataset, with_classes
from soflow.errors import InputError
from soflow.evaluation.evaluate import EvaluationSettings, evaluate
from soflow.evaluation.pictures import picture
from soflow.evaluation.record import Evaluation
from soflow.evaluation.references import make_scoring
from soflow.evaluation.report import real_by_class
from soflow.evaluation.scorer import Scoring
from soflow.run.checkpoint import TrainState, checkpoints
from soflow.run.folder import RunFolder
from soflow.run.resume import require_same_settings
from soflow.sampling import Sampler, class_by_class, draw, sample_many
from soflow.solution import FlowModel
from soflow.system import processes
from soflow.system.atomic import require_writable, write_json, write_text
from soflow.system.devices import default_device
from soflow.system.progress import Progress as TrainingProgress
from soflow.system.progress import silent
from soflow.system.records import damaged, finite, is_like, read_json
from soflow.workflows.load import load, make_decoder
from soflow.workflows.train import train

log = logging.getLogger(__name__)

Budget = Literal["steps", "time"]
METHODS = ("soflow", "mean_flow", "shortcut", "consistency", "flow_matching")
#: What every run's figures must be told with.
TOLD = ("metric", "num", "features", "reference", "real", "warnings", "versions", "machine")
#: What curve.json is: of each sampler the steps, and at each the seconds and the distance.
CURVE = {
    ...: lambda points: (
        is_like(points, {...: [finite]})
        and all(
            step.isdecimal() and len(step) < 19 and len(point) == 2
            for step, point in points.items()
        )
    )
}
#: Times in a run at which the distance is measured, for the curves.
POINTS = 8


class Progress:
    """What a comparison tells as it goes on; this one keeps silent."""

    def note(self, text: str) -> None: ...

    def training(self, title: str) -> TrainingProgress:
        """The progress of one run's training."""
        return silent

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """For work of countable parts: the result hears how many are done."""
        return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Planned:
    """One run of the comparison. Its figures are in compared.json, the distances on the way in curve.json."""

    name: str
    config: Config
    folder: RunFolder

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def figures(self) -> Path:
        return self.folder.path / "compared.json"

    @property
    def curve(self) -> Path:
        return self.folder.path / "curve.json"


def compare(
    recipe: str,
    out: str | Path,
    methods: Sequence[str] = METHODS,
    seeds: int = 3,
    budget: Budget = "steps",
    overrides: Sequence[str] = (),
    rounds: int = 3,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains the recipe by each of the methods, `seeds` times, in folders under `out`; returns what results.json holds.

    budget: "steps" gives every method the recipe's steps, "time" the seconds that SoFlow takes for them. rounds: of
    measuring costs. Called again it goes on where it stopped, and adds methods and seeds to those that are there.

    Raises InputError for settings that cannot be used or that differ from those a run was begun with, RunError for a run
    that fails.
    """
    progress, out = progress or Progress(), Path(out)
    if processes.count() > 1:
        raise InputError("a comparison runs in one process: start soflow compare without torchrun")
    if min(seeds, rounds, len(methods)) < 1:
        raise InputError(
            "a comparison needs one method, one seed and one round of measuring, or more of them"
        )
    configs = read_objectives(recipe, methods, overrides)
    if budget == "time" and "soflow" not in configs:
        raise InputError(
            "the budget 'time' is the time that soflow takes: name soflow among the methods"
        )
    shared = next(iter(configs.values()))
    data = make_dataset(shared.data)  # which says what cannot be trained on
    configs = {name: with_classes(config, data) for name, config in configs.items()}
    decode = make_decoder(data.encoder, default_device())
    require_writable(out)
    require_same_as_begun(configs, seeds, budget, out)
    compared = make_scoring(shared, data.encoder, decode, baseline=True)
    costs = measure(configs, out / "cost.json", rounds, progress.counting)
    planned = plan(configs, seeds, budget, out, costs)

    to_come = [run for run in planned if not finished(run)]
    left = Left({run.folder.path: run.config.train.steps * costs[run.name].step for run in to_come})
    for number, run in enumerate(planned):
        title = f"run {number + 1} of {len(planned)}: {run.name}, seed {run.seed}"
        if run not in to_come:
            log.info(f"{title}: done before")
            continue
        log.info(f"{title}, {run.config.train.steps:,} steps; {left.in_words()} left in all")
        train_and_evaluate(run, compared, title, progress)
        left.finish(run.folder.path)
    results = gather(recipe, budget, planned, costs, overrides)
    write_json(out / "results.json", results)
    return results


def plan(
    configs: dict[str, Config],
    seeds: int,
    budget: Budget,
    out: Path,
    costs: dict[str, Cost] | None = None,
) -> list[Planned]:
    """All runs, seed by seed, so that what is there after a stop is a comparison, too.

    Within SoFlow's time a method has as many steps as its ratio of costs says; a run that was begun keeps those it has.
    Without costs only the runs whose steps are known are told.
    """
    planned = []
    for seed in range(seeds):
        for name, config in configs.items():
            seed_of_run = config.train.seed + seed
            folder, steps = RunFolder(out / f"{name}-seed-{seed_of_run}"), config.train.steps
            if budget == "time" and name != "soflow":
                if folder.config.is_file():
                    steps = folder.read_config().train.steps
                elif costs is not None:
                    steps = max(1, round(steps / median(costs[name].ratios())))
                else:
                    continue
            train = {"steps": steps, "seed": seed_of_run, "sample_every": ceil(steps / POINTS)}
            nfe = {"nfe": tuple(sorted({1, *config.evaluate.nfe}))}
            changed = {
                "train": config.train.model_copy(update=train),
                "evaluate": config.evaluate.model_copy(update=nfe),
            }
            planned.append(Planned(name, config.model_copy(update=changed), folder))
    return planned


def require_same_as_begun(
    configs: dict[str, Config], seeds: int, budget: Budget, out: Path
) -> None:
    """Raises InputError where a run is there that was trained or evaluated with other settings."""
    for run in plan(configs, seeds, budget, out):
        if run.folder.config.is_file() and checkpoints(run.folder.checkpoints):
            begun = run.folder.read_config()
            require_same_settings(begun, run.config, run.folder)
            if begun.evaluate != run.config.evaluate:
                raise InputError(
                    f"{run.folder.path} was begun with other settings in evaluate: figures of both would be mixed; "
                    "compare anew in another folder with --out"
                )


def finished(run: Planned) -> bool:
    """Whether this very run is trained to its end and evaluated."""
    return run.folder.config.is_file() and bool(read_json(run.figures))


def train_and_evaluate(run: Planned, compared: Scoring, title: str, progress: Progress) -> None:
    """Trains one run, with distances on the way, and evaluates it."""
    scorer = compared.scorer
    config, objective = run.config, run.config.objective
    settings: Any = run.config.evaluate
    looks: list[tuple[Sampler, int]] = list(
        dict.fromkeys([(objective.samplers[0], 1), config.default_sampler])
    )

    def watch(state: TrainState, model: FlowModel, device: torch.device) -> None:
        labels = class_by_class(settings.num, model.num_classes)
        points = read_json(run.curve)
        for sampler, nfe in looks:
            samples = draw(model, settings.num, labels, sampler, nfe, seed=0, device=device)
            distance = scorer.distance(scorer.gather(samples, settings.num))
            points.setdefault(f"{sampler} {nfe}", {})[str(state.step)] = [state.seconds, distance]
        write_json(run.curve, points)

    train(config, run.folder.path, progress=progress.training(title), watch=watch)
    loaded = load(run.folder.path)
    rows = rows_of(objective.samplers, settings.nfe)
    beside = compared.baseline
    real = [] if beside is None else [len(beside.data)]
    with progress.counting(
        f"evaluating {run.name}, seed {run.seed}", work(scorer, [settings.num] * len(rows) + real)
    ) as on_done:
        results = evaluate(
            {"ema": loaded.model}, objective.samplers, scorer, beside, Protocol(settings.nfe, settings.num),
            loaded.device, on_done, compared.points,
        )  # fmt: skip
    results = {"checkpoint": loaded.checkpoint.path.name, **results}
    write_json(run.folder.evaluation, results)  # for soflow report
    seconds = loaded.checkpoint.train_state().seconds
    write_json(run.figures, {**found.model_dump(mode="json"), "seconds": seconds})
    one = found.rows[0]
    log.info(
        f"  {one.sampler} in {one.nfe}: distance {one.distance:.4g} after {seconds:.0f} s of training"
    )


def gather(
    recipe: str,
    budget: Budget,
    planned: list[Planned],
    costs: dict[str, Cost],
    overrides: Sequence[str],
) -> dict[str, Any]:
    """Everything results.json holds."""
    methods: dict[str, Any] = {}
    for run in planned:
        figures, curve = read_json(run.figures), read_json(run.curve)
        method = methods.setdefault(
            run.name,
            {"steps": run.config.train.steps, "cost": costs[run.name].figures(), "runs": []},
        )
        Evaluation.read(run.figures)  # raises RunError for a damaged file
        if not is_like(curve, CURVE):
            raise damaged(run.curve)
        method["runs"].append(
            {
                "folder": run.folder.path.name,
                "seed": run.seed,
                **{key: figures[key] for key in ("seconds", "rows", "diagnostics")},
                "curve": {
                    look: [[int(step), *point] for step, point in points.items()]
                    for look, points in curve.items()
                },
            }
        )
        told = {key: figures[key] for key in TOLD}
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "budget": budget,
        "base": base_of(methods),
        "seeds": sorted({run.seed for run in planned}),
        "batch_size": planned[0].config.train.batch_size,
        **told,
        "machine": {
            **told["machine"],
            "cores": os.cpu_count(),
            "device": costs[planned[0].name].measured[0].device,
        },
        "methods": methods,
    }


def write_page(results: dict[str, Any], out: Path) -> None:
    """Writes report.html, table.md and the pictures for other pages: plots.png, samples.png."""
    drawn: dict[str, Image.Image] = {}
    for name, method in results["methods"].items():
        run = load(out / method["runs"][0]["folder"])
        shape, classes, (sampler, nfe) = (
            run.model.shape,
            run.model.num_classes,
            run.config.default_sampler,
        )
        columns = min(classes or 10, 10)
        num = 6 * columns if len(shape) > 1 else 2000
        samples = sample_many(
            run.model, num, class_by_class(num, classes), sampler, nfe, seed=0, device=run.device
        )
        drawn[f"{name_of(name)}, {'one step' if nfe == 1 else f'{nfe // 2} Heun steps'}"] = picture(
            samples, columns
        )
    real = make_dataset(run.config.data)
    shown = (
        real_by_class(real, columns, num // columns) if len(shape) > 1 else real.samples(slice(num))
    )
    drawn["real data"] = picture(run.model.decode(shown.to(run.device)).cpu(), columns)
    write_text(out / "report.html", page(results, drawn))
    write_text(out / "table.md", markdown(results))
    plots(results).savefig(out / "plots.png", dpi=110)
    sheets(drawn).savefig(out / "samples.png", dpi=110)


class Left:
    """The time left: what was expected of the runs to come, in units of how the finished ones kept to it."""

    def __init__(self, expected: dict[Path, float]) -> None:
        self.expected = expected
        self.done = self.taken = 0.0
        self.start = time.perf_counter()

    def finish(self, path: Path) -> None:
        self.done += self.expected.pop(path)
        self.taken = time.perf_counter() - self.start

    def in_words(self) -> str:
        seconds = sum(self.expected.values()) * (self.taken / self.done if self.done else 1.0)
        return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"
