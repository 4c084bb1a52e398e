"""Looks at the averaged weights during training: evaluations and sample grids."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from soflow.config import Config
from soflow.errors import InputError, RunError
from soflow.run.checkpoint import TrainState

log = logging.getLogger(__name__)

#: Called when a sample grid is due, with the state, the averaged weights and the device.
Watch = Callable[[TrainState, dict[str, Tensor], torch.device], None]
#: Called when an evaluation is due, with the averaged weights and the device. Returns figures by
#: name; the lower the first one, the better.
Measure = Callable[[dict[str, Tensor], torch.device], dict[str, float]]


@dataclass(frozen=True)
class Look:
    """What is due after a step. It changes nothing, so it may be cut short and done again."""

    step: int
    draws: bool
    measures: bool

    @staticmethod
    def after(step: int, config: Config, measure: Measure | None) -> "Look":
        final, every = step == config.train.steps, config.train.sample_every
        return Look(
            step=step,
            draws=final or (every > 0 and step % every == 0),
            measures=measure is not None and (final or step % config.evaluate.every == 0),
        )

    def take(
        self,
        state: TrainState,
        weights: dict[str, Tensor],
        device: torch.device,
        watch: Watch,
        measure: Measure | None,
    ) -> dict[str, float]:
        """The figures of the evaluation, if it is due; draws samples, if they are due."""
        figures: dict[str, float] = {}
        if self.measures and measure is not None:
            try:
                figures = measure(weights, device)
            except (InputError, RunError, OSError) as error:
                log.warning(f"step {self.step} has no figure: {error}")
        if self.draws:
            try:
                watch(state, weights, device)
            except (InputError, RunError, OSError) as error:
                log.warning(f"step {self.step} has no picture: {error}")
        return figures


def keep_best(state: TrainState, figures: Mapping[str, float], num: int) -> None:
    """Notes in the state whether the first finite figure, of `num` samples, is the best so far."""
    finite = [(name, figure) for name, figure in figures.items() if isfinite(figure)]
    for name, figure in finite[:1]:
        what = f"{name} of {num}"
        better = state.best is None or what != state.best_of or figure < state.best
        if better:
            state.best, state.best_of, state.best_step = figure, what, state.step
        log.info(f"step {state.step}: {name} {figure:.4g}{', the best so far' * better}")
