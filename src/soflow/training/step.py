"""One optimizer step."""

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
    """The results of a step on the device. Reading them waits until the step is complete."""

    step: int
    names: list[str]  # "loss" and the names of its parts
    numbers: Tensor  # a sum and a count per name; then the processes with finite gradients
    terms: list[dict[str, Term]]  # one dictionary per microbatch of this process
    parameters: list[str]  # parameters with a gradient
    gradients: Tensor  # for each parameter, whether its gradient is finite here


@dataclass(frozen=True)
class StepResult:
    """The results of a step, equal in all processes."""

    loss: float
    means: dict[str, RunningMean]  # the loss and its parts, over all processes
    nonfinite: NonFinite | None


@dataclass
class TrainStep:
    """Makes one optimizer step of a run. The step depends only on its number and the weights."""

    config: Config
    accelerator: Accelerator
    module: nn.Module  # the loss module, wrapped for several processes
    network: nn.Module
    objective: Objective
    optimizer: AcceleratedOptimizer
    ema: Ema
    batches: Batches
    fixed_lr: float | None = None  # overrides the learning-rate schedule

    def __call__(self, step: int) -> Unread:
        """Makes step `step`, counted from 0, on the microbatches of this process.

        If a value is not finite, the weights do not change. The step does not wait for the device,
        unless the optimizer cannot skip an update on the device.
        """
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

        # Forward and backward pass per microbatch. The last backward pass reduces gradients over
        # all processes.
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
        """Whether the optimizer can skip an update by a flag on the device."""
        return getattr(self.optimizer.optimizer, "_step_supports_amp_scaling", False)

    def microbatches(self, step: int) -> Iterator[tuple[Batch, Draws]]:
        """The microbatches of this process with their draws. Each takes every count-th row."""
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
        """The number of microbatches per batch, over all processes."""
        return self.accelerator.num_processes * self.config.train.accumulate

    def indices(self) -> range:
        """The indices of this process's microbatches."""
        return range(self.accelerator.process_index, self.count, self.accelerator.num_processes)

    def reduce(self, step: int, microbatches: list[Losses]) -> Unread:
        """Sums losses, their parts and finiteness flags over microbatches and processes."""
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
        """Whether all values of a step are finite in all processes; a flag on the device."""
        processes = self.accelerator.num_processes
        return unread.numbers.isfinite().all() & (unread.numbers[-1] == processes)

    def read(self, steps: Sequence[Unread]) -> list[StepResult]:
        """Reads the results of steps and waits for the device once. Every process must call it."""
        if not steps:
            return []
        return [
            self.result(unread, numbers)
            for unread, numbers in zip(
                steps, torch.stack([unread.numbers for unread in steps]).tolist(), strict=True
            )
        ]

    def result(self, unread: Unread, numbers: list[float]) -> StepResult:
        """The result of a step, from its numbers on the CPU."""
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
        """Locates the non-finite values of all processes. Every process must call this method."""
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
    """Raises InputError unless the objective returned draws of the right shapes."""
    name = type(objective).__name__
    if not isinstance(draws, Draws):
        raise InputError(f"{name}.draw returns {type(draws).__name__}: it must return soflow.Draws")
    if draws.noise.shape != shape or any(
        one.shape != shape[:1] for one in (draws.t, draws.s, draws.dropped)
    ):
        needed = f"noise {list(shape)}; t, s and dropped [{shape[0]}]"
        raise InputError(f"{name}.draw returns draws of wrong shapes: they must be {needed}")
    if draws.guidance is not None and draws.guidance.shape != (shape[0], 3):
        raise InputError(
            f"{name}.draw returns guidance of shape {list(draws.guidance.shape)}: it must be "
            f"[{shape[0]}, 3]"
        )


def require_losses(losses: object, objective: Objective) -> None:
    """Raises InputError unless the objective returned a loss with a gradient and valid parts."""
    name = type(objective).__name__
    if not isinstance(losses, Losses):
        raise InputError(f"{name} returns {type(losses).__name__}: it must return soflow.Losses")
    total = losses.total
    if not isinstance(total, Tensor) or total.ndim or not total.requires_grad:
        raise InputError(
            f"{name} returns a total that is not a scalar with a gradient: it must be a scalar "
            "tensor that depends on the network"
        )
    for part, value in losses.parts.items():
        if not isinstance(value, Tensor) or value.ndim != 1:
            raise InputError(
                f"{name} returns a part '{part}' that is not a tensor of shape (n,): return one "
                "value per sample"
            )


def detached(term: Term) -> Term:
    """The term without its autograd graph."""
    return Term(term.loss.detach(), term.squared.detach(), term.weight.detach(), term.times)


def are_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """For each tensor, whether the local shard has a finite norm.

    Values whose squares overflow count as non-finite, because AdamW keeps squares of gradients.
    """
    shards = [local_shard(tensor.detach()) for tensor in tensors if tensor is not None]
    return torch.stack(torch._foreach_norm(shards)).isfinite()
