"""Training methods side by side: one recipe, trained by each method over several seeds, evaluated in the same way.

All have the same network and initial weights, data in the same order, batch and optimizer, and the same number of steps or,
with the budget "time", as many steps as SoFlow's training time has room for.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from PIL import Image

from soflow import runs
from soflow.assemble import make_dataset
from soflow.bench import Measurement, bench
from soflow.config import Config, read_methods
from soflow.errors import InputError, RunError
from soflow.evaluation.evaluate import Judge, evaluate, rows_of
from soflow.evaluation.features import load_features
from soflow.evaluation.report import real_by_class
from soflow.evaluation.side_by_side import markdown, name_of, page, plots, sheets
from soflow.pictures import picture
from soflow.sampling import Method, class_by_class, sample_many
from soflow.solution import FlowModel
from soflow.training.checkpoint import TrainState
from soflow.training.display import Display, SilentDisplay
from soflow.training.run_folder import RunFolder

Budget = Literal["steps", "time"]
METHODS = ("soflow", "mean_flow", "shortcut", "consistency", "flow_matching")
#: Times in a run at which the distance is measured, for the curves.
POINTS = 8


class Progress:
    """What a comparison tells as it goes on; this one keeps silent."""

    def note(self, text: str) -> None: ...

    def training(self, title: str) -> Display:
        """The display of one run's training."""
        return SilentDisplay()

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """For work of countable parts: the result hears how many are done."""
        return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Cost:
    """What a method costs, and what SoFlow (or the first method) cost in the same rounds."""

    measured: list[Measurement]
    beside: list[Measurement]

    @property
    def step(self) -> float:
        """Seconds a step, the median."""
        return median(one.seconds_per_step for one in self.measured)

    def ratios(self, key: str = "seconds_per_step") -> list[float]:
        """What it cost in units of the other, a round each."""
        return [getattr(one, key) / getattr(other, key) for one, other in zip(self.measured, self.beside, strict=True)]


@dataclass(frozen=True)
class Planned:
    """One run of the comparison."""

    name: str
    seed: int
    config: Config
    folder: RunFolder


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
    configs = read_methods(recipe, methods, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a comparison runs in one process: start soflow compare without torchrun")
    if budget == "time" and "soflow" not in configs:
        raise InputError("the budget 'time' is the time that soflow takes: name soflow among the methods")
    require_writable(out)
    shared = next(iter(configs.values()))
    reference, held_out = make_dataset(shared.data), make_dataset(shared.data, "test")
    judge = Judge(load_features(shared.evaluate.features, reference, progress.note), reference)
    costs = measure(configs, out, rounds, progress)
    planned = plan(configs, costs, seeds, budget, out)

    left = Left({run.folder.path: run.config.train.steps * costs[run.name].step for run in planned})
    for number, run in enumerate(planned):
        title = f"run {number + 1} of {len(planned)}: {run.name}, seed {run.seed}"
        if finished(run):
            progress.note(f"{title}: done before")
            left.skip(run.folder.path)
            continue
        progress.note(f"{title}, {run.config.train.steps:,} steps; {left.in_words()} left in all")
        train_and_evaluate(run, judge, held_out, title, progress)
        left.finish(run.folder.path)
    results = gather(recipe, budget, planned, costs, overrides)
    write_json(out / "results.json", results)
    return results


def measure(configs: dict[str, Config], out: Path, rounds: int, progress: Progress) -> dict[str, Cost]:
    """What a step of each method costs, side by side with SoFlow (or the first method); kept in cost.json."""
    file = out / "cost.json"
    kept = read_json(file)
    told = {name: config.model_dump(mode="json") for name, config in configs.items()}
    missing = {name: config for name, config in configs.items() if kept.get(name, {}).get("config") != told[name]}
    if missing:
        base = "soflow" if "soflow" in configs else next(iter(configs))
        asked = {base: configs[base], **missing}
        with progress.counting("measuring steps", rounds * len(asked)) as on_done:
            measured = bench(asked, rounds, on_done)
        for name in missing:
            ones, others = ([asdict(one) for one in measured[which]] for which in (name, base))
            kept[name] = {"config": told[name], "measured": ones, "beside": others}
        write_json(file, kept)
    return {
        name: Cost(*([Measurement(**one) for one in kept[name][which]] for which in ("measured", "beside")))
        for name in configs
    }


def plan(configs: dict[str, Config], costs: dict[str, Cost], seeds: int, budget: Budget, out: Path) -> list[Planned]:
    """All runs, seed by seed, so that what is there after a stop is a comparison, too."""
    planned = []
    for k in range(seeds):
        for name, config in configs.items():
            steps = config.train.steps
            if budget == "time":  # as many as SoFlow's seconds have room for
                steps = max(1, round(steps / median(costs[name].ratios())))
            train = {"steps": steps, "seed": config.train.seed + k, "sample_every": ceil(steps / POINTS)}
            config_k = config.model_copy(update={"train": config.train.model_copy(update=train)})
            planned.append(
                Planned(name, config_k.train.seed, config_k, RunFolder(out / f"{name}-seed-{config_k.train.seed}"))
            )
    return planned


def finished(run: Planned) -> bool:
    """Whether this very run is trained to its end and evaluated."""
    if not run.folder.config.is_file() or run.folder.read_config() != run.config:
        return False
    evaluation = run.folder.read_evaluation()
    return evaluation is not None and evaluation["checkpoint"] == f"step-{run.config.train.steps:08d}"


def train_and_evaluate(run: Planned, judge: Judge, held_out: Any, title: str, progress: Progress) -> None:
    """Trains one run, with distances on the way in curve.json, and evaluates it into its evaluation.json."""
    config, curve = run.config, run.folder.path / "curve.json"
    objective, settings = config.objective, config.evaluate
    looks: list[tuple[Method, int]] = list(dict.fromkeys([(objective.samplers[0], 1), config.drawing]))

    def watch(state: TrainState, model: FlowModel, device: torch.device) -> None:
        labels = class_by_class(settings.num, model.num_classes)
        points = read_json(curve)
        for sampler, nfe in looks:
            samples = sample_many(model, settings.num, labels, sampler, nfe, seed=0, device=device)
            points.setdefault(f"{sampler} {nfe}", {})[str(state.step)] = [state.seconds, judge(samples, labels)[0]]
        write_json(curve, points)

    runs.train(config, run.folder.path, display=progress.training(title), watch=watch)
    loaded = runs.load(run.folder.path)
    rows = rows_of(objective.samplers, settings.nfe)
    with progress.counting(f"evaluating {run.name}, seed {run.seed}", settings.num * len(rows)) as on_batch:
        results = evaluate(
            loaded.model, objective.samplers, judge, held_out, settings.nfe, settings.num, 0, loaded.device, on_batch
        )
    run.folder.write_evaluation({"checkpoint": loaded.checkpoint.path.name, "weights": "ema", **results})
    one = results["rows"][0]
    seconds = loaded.checkpoint.train_state().seconds
    progress.note(f"  {one['sampler']} in {one['nfe']}: distance {one['distance']:.4g} after {seconds:.0f} s of training")


def gather(
    recipe: str, budget: Budget, planned: list[Planned], costs: dict[str, Cost], overrides: Sequence[str]
) -> dict[str, Any]:
    """Everything results.json holds."""
    methods: dict[str, Any] = {}
    for run in planned:
        evaluation = run.folder.read_evaluation()
        assert evaluation is not None
        *_, last = run.folder.read_metrics()
        method = methods.setdefault(
            run.name, {"steps": run.config.train.steps, "cost": figures(costs[run.name]), "runs": []}
        )
        curve = read_json(run.folder.path / "curve.json")
        method["runs"].append(
            {
                "folder": run.folder.path.name,
                "seed": run.seed,
                "seconds": last["seconds"],
                "rows": evaluation["rows"],
                "curve": {look: [[int(step), *point] for step, point in points.items()] for look, points in curve.items()},
            }
        )
    first = planned[0]
    evaluation = first.folder.read_evaluation()
    assert evaluation is not None
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "budget": budget,
        "seeds": sorted({run.seed for run in planned}),
        "batch_size": first.config.train.batch_size,
        **{key: evaluation[key] for key in ("metric", "num", "reference", "real", "versions")},
        "machine": {**evaluation["machine"], "cores": os.cpu_count(), "device": costs[first.name].measured[0].device},
        "methods": methods,
    }


def write_page(results: dict[str, Any], out: Path) -> None:
    """Writes report.html, table.md and the pictures for other pages: plots.png, samples.png."""
    drawn: dict[str, Image.Image] = {}
    for name, method in results["methods"].items():
        run = runs.load(out / method["runs"][0]["folder"])
        shape, classes, (sampler, nfe) = run.model.shape, run.model.num_classes, run.config.drawing
        columns = min(classes or 10, 10)
        num = 6 * columns if len(shape) > 1 else 2000
        samples = sample_many(run.model, num, class_by_class(num, classes), sampler, nfe, seed=0, device=run.device)
        drawn[f"{name_of(name)}, {'one step' if nfe == 1 else f'{nfe // 2} Heun steps'}"] = picture(samples, columns)
    real = make_dataset(run.config.data)
    drawn["real data"] = picture(
        real_by_class(real, columns, num // columns) if len(shape) > 1 else real.data[:num], columns
    )
    write_text(out / "report.html", page(results, drawn))
    write_text(out / "table.md", markdown(results))
    plots(results).savefig(out / "plots.png", dpi=110)
    sheets(drawn).savefig(out / "samples.png", dpi=110)


def figures(cost: Cost) -> dict[str, Any]:
    """A method's cost in plain numbers; ratios to SoFlow's (or the first method's) as least, median, most."""

    def middle(key: str) -> float:
        return median(getattr(one, key) for one in cost.measured)

    def spread(key: str) -> list[float]:
        ratios = cost.ratios(key)
        return [min(ratios), median(ratios), max(ratios)]

    return {
        "seconds_per_step": cost.step,
        "step_ratio": spread("seconds_per_step"),
        "peak_bytes": middle("peak_bytes"),
        "memory_ratio": spread("peak_bytes"),
        "flops_per_sample": middle("flops_per_sample"),
        "parameters": cost.measured[0].parameters,
        "one_step_samples_per_second": middle("one_step_samples_per_second"),
        "rounds": len(cost.measured),
    }


class Left:
    """The time left: what was expected of the runs to come, in units of how the finished ones kept to it."""

    def __init__(self, expected: dict[Path, float]) -> None:
        self.expected = expected
        self.done = self.taken = 0.0
        self.start = time.perf_counter()

    def skip(self, path: Path) -> None:
        del self.expected[path]

    def finish(self, path: Path) -> None:
        self.done += self.expected.pop(path)
        self.taken = time.perf_counter() - self.start

    def in_words(self) -> str:
        seconds = sum(self.expected.values()) * (self.taken / self.done if self.done else 1.0)
        return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.0f} min"


def require_writable(out: Path) -> None:
    """Makes the folder. Raises InputError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder with --out") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write to {out}: no permission; choose another folder with --out")


def read_json(file: Path) -> dict[str, Any]:
    """What the file holds, {} where there is none. Raises RunError for a damaged one."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise RunError(f"{file} is damaged: delete it and run the same command again")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Written beside and renamed, so that the file is always a whole one."""
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}; make room, then run the same command again") from None
