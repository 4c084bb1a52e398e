"""Trains and evaluates the planned runs of a comparison, and records their curves."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from soflow.comparison.cost import Cost
from soflow.comparison.plan import Planned, evaluated_samplers
from soflow.comparison.record import Point, RunEvaluation
from soflow.comparison.tables import HEUN
from soflow.config import Config
from soflow.drawing import draw
from soflow.evaluation.evaluate import EvaluationSettings, evaluate
from soflow.evaluation.scorer import Scoring
from soflow.sampling import Sampler
from soflow.solution import FlowModel
from soflow.system.progress import Progress, Task
from soflow.system.text import clock
from soflow.training.callbacks import Callback, Training
from soflow.workflows.evaluate import write_evaluation
from soflow.workflows.load import load
from soflow.workflows.train import train

log = logging.getLogger(__name__)

#: Maximum number of samples per point of a curve, so that curves cost little training time.
CURVE_SAMPLES = 500
#: The sampler for curves of objectives that do not learn jumps.
COARSE_HEUN: tuple[Sampler, int] = ("heun", 8)


def run_all(
    planned: Sequence[Planned],
    costs: Mapping[str, Cost],
    scoring: Scoring,
    heun: bool,
    progress: Progress,
) -> None:
    """Trains and evaluates all runs that are not finished."""
    # The expected training seconds of the remaining runs.
    expected = {
        run.folder: 0.0
        if run.evaluation_file.is_file()
        else run.config.train.steps * costs[run.name].summary.seconds_per_step
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
        left = f"{clock(pace * sum(expected.values()))} left in total"
        if not done:  # the pace of later runs includes evaluation
            left += ", plus evaluation"
        log.info(f"{title}, {run.config.train.steps:,} steps; about {left}")
        train_run(run, scoring, heun, title, progress)
        evaluate_run(run, scoring, heun, progress)
        done += expected.pop(run.folder)


@dataclass(frozen=True)
class RecordCurves(Callback):
    """Callback that adds a point to the curves of a run whenever sample pictures are drawn."""

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
    """Trains one run. Its curves record the distance of a few samples over training."""
    titled = partial(titled_progress, progress, title)
    train(
        run.config, run.folder.path, progress=titled, callbacks=[RecordCurves(run, scoring, heun)]
    )


def curve_samplers(config: Config, heun: bool) -> list[tuple[Sampler, int]]:
    """The samplers for curves: one step, or 4 Heun steps if the objective does not learn jumps.

    With `heun`, also the 32 Heun steps that serve as a reference.
    """
    first = config.samplers[0]
    cheap = COARSE_HEUN if first == "euler" else (first, 1)
    return [cheap, HEUN] if heun and "heun" in config.samplers else [cheap]


def evaluate_run(run: Planned, scoring: Scoring, heun: bool, progress: Progress) -> None:
    """Evaluates a trained run in the same way as `soflow evaluate`."""
    loaded, config = load(run.folder.path), run.config
    samplers = evaluated_samplers(config, heun)
    models = {"ema": loaded.model}
    settings = EvaluationSettings(nfe=config.evaluate.nfe, num=config.evaluate.num)
    title = f"evaluating {run.name}, seed {run.seed}"
    titled = partial(titled_progress, progress, title)
    found = evaluate(models, samplers, scoring, settings, loaded.device, titled)
    evaluation = found.model_copy(update={"checkpoint": loaded.checkpoint.path.name})
    write_evaluation(run.folder, evaluation)  # `soflow report` reads this file
    seconds = loaded.checkpoint.train_state().seconds
    RunEvaluation(**dict(evaluation), seconds=seconds).write(run.evaluation_file)
    one = evaluation.rows[0]
    log.info(f"  {one.sampler}, NFE {one.nfe}: distance {one.distance:.4g} after {seconds:.0f} s")


def titled_progress(
    progress: Progress, title: str, _: str, total: int, done: int = 0
) -> AbstractContextManager[Task]:
    """Replaces the title of a progress display."""
    return progress(title, total, done)
