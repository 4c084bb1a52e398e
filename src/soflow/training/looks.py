"""Looks at the averaged weights during training: evaluations and sample grids."""

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

#: What to do if there is no memory for samples.
ROOM = "leave room beside training by a larger train.accumulate or a smaller train.batch_size"
#: Draws a sample grid, with the state, the averaged weights and the device. Returns the model with
#: these weights, and the picture's file.
Draw = Callable[[TrainState, dict[str, Tensor], torch.device], tuple[FlowModel, Path]]
#: Called when an evaluation is due, with the averaged weights and the device. Returns figures by
#: name; the lower the first one, the better.
Measure = Callable[[dict[str, Tensor], torch.device], dict[str, float]]


@contextmanager
def may_fail(what: str, step: int) -> Iterator[None]:
    """Training goes on without an evaluation or a sample grid that fails."""
    try:
        with out_of_memory_explained(ROOM):
            yield
    except (InputError, RunError, OSError) as error:
        log.warning(f"step {step} has no {what}: {error}")


@dataclass
class Looks:
    """What was seen: figures of an evaluation, and a sample grid with the model that drew it."""

    figures: dict[str, float] = field(default_factory=dict)
    drawn: tuple[FlowModel, Path] | None = None


def look(
    measure: Measure | None,
    draw: Draw | None,
    state: TrainState,
    weights: dict[str, Tensor],
    device: torch.device,
    looks: Looks,
) -> None:
    """Evaluates and draws what is due. It may be cut short and done again."""
    if measure is not None:
        with may_fail("figure", state.step):
            looks.figures.update(measure(weights, device))
    if draw is not None:
        with may_fail("picture", state.step):
            looks.drawn = draw(state, weights, device)


def keep_best(state: TrainState, figures: Mapping[str, float], num: int) -> None:
    """Notes in the state whether the first finite figure, of `num` samples, is the best so far."""
    name = next((name for name, figure in figures.items() if isfinite(figure)), None)
    if name is None:
        return
    figure, what = figures[name], f"{name} of {num}"
    better = state.best is None or what != state.best_of or figure < state.best
    if better:
        state.best, state.best_of, state.best_step = figure, what, state.step
    log.info(f"step {state.step}: {name} {figure:.4g}{', the best so far' * better}")
