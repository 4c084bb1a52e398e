"""One optimizer step, in the order of events."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch import Tensor, nn

from soflow.config import Config
from soflow.data.batches import Batches, seed_of, seeded_generator
from soflow.errors import InputError
from soflow.objectives.base import Draws, Losses, Objective, Term
from soflow.run.checkpoint import RunningMean
from soflow.symbols import Batch
from soflow.training.distributed import local_shard
from soflow.training.ema import Ema
from soflow.training.nonfinite import BadRow, NonFinite, bad_rows
from soflow.training.optimizers import learning_rate


@dataclass(frozen=True)
class Unread:
    """The numbers of a step, on the device: reading them waits until it has computed them."""

    step: int
    names: list[str]  # the loss, and its parts
    numbers: Tensor  # sums of these, how many values they are of, processes with finite gradients
    terms: list[dict[str, Term]]  # of this process's microbatches
    parameters: list[str]  # with a gradient
    gradients: Tensor  # whether each of these is finite, in this process


@dataclass(frozen=True)
class StepResult:
    """What a step gave; the same in every process."""

    loss: float
    means: dict[str, RunningMean]  # of the loss and its parts, over all processes
    nonfinite: NonFinite | None


@dataclass
class TrainStep:
    """One step of a run, as a function of its number."""

    config: Config
    accelerator: Accelerator
    module: nn.Module  # network and objective, wrapped for several processes
    network: nn.Module
    objective: Objective
    optimizer: AcceleratedOptimizer
    ema: Ema
    batches: Batches
    fixed_lr: float | None = None  # in place of the schedule's

    def __call__(self, step: int) -> Unread:
        """Does step `step`, counted from 0, on this process's microbatches of the batch.

        If a number is not finite, the weights stay as they are. Nothing here waits for the device,
        unless the optimizer cannot skip an update there.
        """
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

        # Forward and backward per microbatch; the last backward adds up gradients of all processes.
        stream = f"dropout of process {accelerator.process_index}"
        torch.manual_seed(seed_of(config.train.seed, stream, step))
        microbatches: list[Losses] = []
        for batch, draws in self.microbatches(step):
            with accelerator.accumulate(self.module):
                losses = self.module(batch, draws, step / config.train.steps)
                require_losses(losses, self.objective)
                accelerator.backward(losses.total)
            microbatches.append(losses)

        unread = self.reduce(step, microbatches)

        if config.optimizer.clip:
            accelerator.clip_grad_norm_(self.network.parameters(), config.optimizer.clip)
        skip = ~self.is_finite(unread)
        if self.skips_on_device:
            self.optimizer.optimizer.found_inf = skip.float()
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step)
        return unread

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if self.fixed_lr is not None:
            return self.fixed_lr
        return learning_rate(self.config.optimizer, step, self.config.train.steps)

    @property
    def skips_on_device(self) -> bool:
        """Whether the optimizer takes a number on the device that says "skip this update"."""
        return getattr(self.optimizer.optimizer, "_step_supports_amp_scaling", False)

    def microbatches(self, step: int) -> Iterator[tuple[Batch, Draws]]:
        """This process's microbatches, with their draws: every count-th row of the batch."""
        train = self.config.train
        shape = (train.batch_size, *self.config.data.shape)
        generator = seeded_generator(train.seed, "draws", step, self.accelerator.device)
        draws = self.objective.draw(shape, generator)
        require_draws(draws, shape, self.objective)
        for index in self.indices():
            rows = slice(index, None, self.count)
            yield self.batches.microbatch(step, index, self.count), draws.rows(rows)

    @property
    def count(self) -> int:
        """Microbatches of a batch, over all processes."""
        return self.accelerator.num_processes * self.config.train.accumulate

    def indices(self) -> range:
        """Which microbatches are this process's."""
        return range(self.accelerator.process_index, self.count, self.accelerator.num_processes)

    def reduce(self, step: int, microbatches: list[Losses]) -> Unread:
        """Sums losses, their parts and their finiteness over microbatches and processes."""
        values = [{"loss": losses.total.detach()[None], **losses.parts} for losses in microbatches]
        names = list(values[0])
        per_name = [[part[name] for part in values] for name in names]
        sums = torch.stack([torch.stack([x.sum() for x in parts]).sum() for parts in per_name])
        counted = [sums.new_full((1,), sum(map(len, parts))) for parts in per_name]
        with_gradient = {n: p for n, p in self.network.named_parameters() if p.grad is not None}
        gradients = are_finite(parameter.grad for parameter in with_gradient.values())
        finite = gradients.all()[None].to(sums.device)
        mine = torch.cat([sums.float(), *counted, finite.float()])
        return Unread(
            step=step,
            names=names,
            numbers=self.accelerator.reduce(mine, "sum"),
            terms=[
                {name: detached(term) for name, term in losses.terms.items()}
                for losses in microbatches
            ],
            parameters=list(with_gradient),
            gradients=gradients,
        )

    def is_finite(self, unread: Unread) -> Tensor:
        """Whether all numbers of a step are finite in all processes, on the device."""
        processes = self.accelerator.num_processes
        return unread.numbers.isfinite().all() & (unread.numbers[-1] == processes)

    def read(self, steps: Sequence[Unread]) -> list[StepResult]:
        """Reads the numbers of steps, waiting for the device once. Every process must call it."""
        if not steps:
            return []
        return [
            self.result(unread, numbers)
            for unread, numbers in zip(
                steps, torch.stack([unread.numbers for unread in steps]).tolist(), strict=True
            )
        ]

    def result(self, unread: Unread, numbers: list[float]) -> StepResult:
        """What a step gave, from its numbers."""
        names, (*values, finite_in) = unread.names, numbers
        totals, counts = values[: len(names)], values[len(names) :]
        means = {
            name: RunningMean(total, count)
            for name, total, count in zip(names, totals, counts, strict=True)
        }
        finite = all(map(isfinite, totals)) and finite_in == self.accelerator.num_processes
        nonfinite = None if finite else self.find_nonfinite(unread, means)
        return StepResult(means["loss"].value, means, nonfinite)

    def find_nonfinite(self, unread: Unread, means: dict[str, RunningMean]) -> NonFinite:
        """Names what is not finite in any process. Every process must call it."""
        numbers = self.batches.indices(unread.step)
        rows: list[BadRow] = []
        for index, terms in zip(self.indices(), unread.terms, strict=True):
            for row, what, times in bad_rows(terms, len(numbers) // self.count):
                row = index + row * self.count
                rows.append(BadRow(row, int(numbers[row]), what, times))
        finite = zip(unread.parameters, unread.gradients.tolist(), strict=True)
        wrong = [name for name, good in finite if not good]
        return NonFinite(
            step=unread.step + 1,
            rows=sorted(gather_object(rows)),
            parameters=list(dict.fromkeys(gather_object(wrong))),
            means=[name for name, mean in means.items() if not isfinite(mean.total)],
        )


def require_draws(draws: object, shape: tuple[int, ...], objective: Objective) -> None:
    """Raises InputError if an objective draws something else, or for another batch."""
    name = type(objective).__name__
    if not isinstance(draws, Draws):
        raise InputError(f"{name}.draw gives {type(draws).__name__}: it must give soflow.Draws")
    if draws.noise.shape != shape or any(
        one.shape != shape[:1] for one in (draws.t, draws.s, draws.dropped)
    ):
        needed = f"noise {list(shape)}; t, s and dropped [{shape[0]}]"
        raise InputError(f"{name}.draw gives draws of other shapes than it must, {needed}")
    if draws.guidance is not None and draws.guidance.shape != (shape[0], 3):
        raise InputError(f"{name}.draw gives a guidance that is not of the shape [{shape[0]}, 3]")


def require_losses(losses: object, objective: Objective) -> None:
    """Raises InputError unless the objective returned a loss with a gradient and valid parts."""
    name = type(objective).__name__
    if not isinstance(losses, Losses):
        raise InputError(f"{name} gives {type(losses).__name__}: it must give soflow.Losses")
    total = losses.total
    if not isinstance(total, Tensor) or total.ndim or not total.requires_grad:
        raise InputError(
            f"{name} gives a total that is no scalar with a gradient: it must depend on the network"
        )
    for part, value in losses.parts.items():
        if not isinstance(value, Tensor) or value.ndim != 1:
            raise InputError(f"{name} gives a part '{part}' that is no tensor (n,)")


def detached(term: Term) -> Term:
    """The term without the graph that it was computed by."""
    return Term(term.loss.detach(), term.squared.detach(), term.weight.detach(), term.times)


def are_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Of each tensor, whether all numbers in this process's shard, and their squares, are finite.

    AdamW keeps the squares of gradients.
    """
    shards = [local_shard(tensor.detach()) for tensor in tensors if tensor is not None]
    return torch.stack(torch._foreach_norm(shards)).isfinite()
