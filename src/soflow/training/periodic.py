"""Evaluations and sample grids during training, with EMA weights."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from soflow.errors import InputError, RunError
from soflow.run.checkpoint import TrainState
from soflow.solution import FlowModel
from soflow.system.memory import out_of_memory_explained

log = logging.getLogger(__name__)

#: Advice if sampling runs out of memory.
ROOM = "to leave memory for sampling, set a larger train.accumulate or a smaller train.batch_size"
#: Draws a sample grid. Takes the state, the EMA weights and the device. Returns the model with
#: these weights and the file of the picture.
Draw = Callable[[TrainState, dict[str, Tensor], torch.device], tuple[FlowModel, Path]]
#: Evaluates the model. Takes the EMA weights and the device. Returns metrics by name; lower values
#: of the first metric are better.
Measure = Callable[[dict[str, Tensor], torch.device], dict[str, float]]


@contextmanager
def may_fail(what: str, step: int) -> Iterator[None]:
    """Turns the failure of an evaluation or a sample grid into a warning. Training continues."""
    try:
        with out_of_memory_explained(ROOM):
            yield
    except (InputError, RunError, OSError) as error:
        log.warning(f"step {step}: no {what}: {error}")


@dataclass
class PeriodicResults:
    """The metrics of an evaluation, and a sample grid with the model that drew it."""

    metrics: dict[str, float] = field(default_factory=dict)
    drawn: tuple[FlowModel, Path] | None = None


def evaluate_and_draw(
    measure: Measure | None,
    draw: Draw | None,
    state: TrainState,
    weights: dict[str, Tensor],
    device: torch.device,
    results: PeriodicResults,
) -> None:
    """Evaluates the model and draws samples. A signal may interrupt it; it is then repeated."""
    if measure is not None:
        with may_fail("evaluation", state.step):
            results.metrics.update(measure(weights, device))
    if draw is not None:
        with may_fail("sample grid", state.step):
            results.drawn = draw(state, weights, device)


def keep_best(state: TrainState, metrics: Mapping[str, float], num: int) -> None:
    """Updates the best value in the state with the first finite metric, from `num` samples."""
    name = next((name for name, value in metrics.items() if isfinite(value)), None)
    if name is None:
        return
    value, what = metrics[name], f"{name} of {num}"
    better = state.best is None or what != state.best_of or value < state.best
    if better:
        state.best, state.best_of, state.best_step = value, what, state.step
    log.info(f"step {state.step}: {name} {value:.4g}{', best so far' * better}")
