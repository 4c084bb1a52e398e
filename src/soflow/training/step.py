"""One optimizer step, in the order of events."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from soflow.config import Config
from soflow.data.batches import Batches, seed_of, seeded_generator
from soflow.objectives.base import Draws, Losses, Objective
from soflow.run.checkpoint import RunningMean
from soflow.symbols import Batch
from soflow.training.distributed import local_shard
from soflow.training.ema import Ema
from soflow.training.optimizers import learning_rate

#: Rows and parameters that a message names.
NAMED = 8


@dataclass(frozen=True, order=True)
class BadRow:
    """A row of the global batch with a loss or an error that is not finite."""

    row: int
    number: int  # of the sample in the data
    what: str  # such as "consistency loss is nan"
    times: str  # such as "t=0.7, l=0.6, s=0.2"


@dataclass(frozen=True)
class NonFinite:
    """What is not finite in a step; the same in every process."""

    step: int
    rows: list[BadRow]
    parameters: list[str]  # whose gradients are not finite
    means: list[str]  # of the log

    def __str__(self) -> str:
        if self.rows:
            first, several = self.rows[0], len(self.rows) > 1
            rows = enumeration([row.row for row in self.rows])
            numbers = enumeration([row.number for row in self.rows])
            s, at = ("s", "the first at ") if several else ("", "")
            return (
                f"the {first.what} at step {self.step}, in row{s} {rows} of the batch "
                f"(number{s} {numbers} of the data; {at}{first.times})"
            )
        what, names = ("gradient", self.parameters) if self.parameters else ("mean", self.means)
        return f"the {what} of {enumeration(names)} is not finite at step {self.step}"


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
    optimizer: torch.optim.Optimizer
    ema: Ema
    batches: Batches

    def __call__(self, step: int) -> StepResult:
        """Does step `step`, counted from 0, on this process's microbatches of the batch.

        If a number is not finite, the weights stay as they are and the result says which.
        """
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step)

        # Forward and backward per microbatch; the last backward adds up gradients of all processes.
        stream = f"dropout of process {accelerator.process_index}"
        torch.manual_seed(seed_of(config.train.seed, stream, step))
        microbatches: list[Losses] = []
        for batch, draws in self.microbatches(step):
            with accelerator.accumulate(self.module):
                losses = self.module(batch, draws, step / config.train.steps)
                accelerator.backward(losses.total)
            microbatches.append(losses)

        result = self.reduce(step, microbatches)

        if result.nonfinite is None:
            if config.optimizer.clip:
                accelerator.clip_grad_norm_(self.network.parameters(), config.optimizer.clip)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step)
        return result

    def microbatches(self, step: int) -> Iterator[tuple[Batch, Draws]]:
        """This process's microbatches, with their draws: every count-th row of the batch."""
        train = self.config.train
        shape = (train.batch_size, *self.config.data.shape)
        generator = seeded_generator(train.seed, "draws", step, self.accelerator.device)
        draws = self.objective.draw(shape, generator)
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

    def reduce(self, step: int, microbatches: list[Losses]) -> StepResult:
        """Sums losses, their parts and their finiteness over microbatches and processes."""
        values = [{"loss": losses.total.detach()[None], **losses.parts} for losses in microbatches]
        names = list(values[0])
        per_name = [[part[name] for part in values] for name in names]
        sums = torch.stack([torch.stack([x.sum() for x in parts]).sum() for parts in per_name])
        counted = sums.new_tensor([sum(map(len, parts)) for parts in per_name], dtype=torch.float32)
        gradients = all_finite(parameter.grad for parameter in self.network.parameters())
        mine = torch.cat([sums.float(), counted, gradients.to(sums.device)[None]])
        *numbers, finite_in = self.accelerator.reduce(mine, "sum").tolist()

        totals, counts = numbers[: len(names)], numbers[len(names) :]
        means = {
            name: RunningMean(total, count)
            for name, total, count in zip(names, totals, counts, strict=True)
        }
        finite = all(map(isfinite, totals)) and finite_in == self.accelerator.num_processes
        nonfinite = None if finite else self.find_nonfinite(step, microbatches, means)
        return StepResult(means["loss"].value, means, nonfinite)

    def find_nonfinite(
        self, step: int, microbatches: list[Losses], means: dict[str, RunningMean]
    ) -> NonFinite:
        """Names what is not finite in any process. Every process must call it."""
        numbers = self.batches.indices(step)
        rows: list[BadRow] = []
        for index, losses in zip(self.indices(), microbatches, strict=True):
            for row, what, times in bad_rows(losses, len(numbers) // self.count):
                row = index + row * self.count
                rows.append(BadRow(row, int(numbers[row]), what, times))
        wrong = [
            name
            for name, parameter in self.network.named_parameters()
            if parameter.grad is not None and not all_finite([parameter.grad])
        ]
        return NonFinite(
            step=step + 1,
            rows=sorted(gather_object(rows)),
            parameters=list(dict.fromkeys(gather_object(wrong))),
            means=[name for name, mean in means.items() if not isfinite(mean.total)],
        )


def bad_rows(losses: Losses, size: int) -> Iterator[tuple[int, str, str]]:
    """The rows of a microbatch that are not finite: row, what it is, and its times.

    Terms share the `size` rows, one after the other; a term may also concern all of them.
    """
    first = 0
    for name, term in losses.terms.items():
        values = {"loss": term.loss.detach(), "squared error": term.squared, "weight": term.weight}
        finite = torch.stack(list(values.values())).isfinite()  # (3, n)
        for i in (~finite.all(0)).nonzero().flatten().tolist():
            what = next(key for key, value in values.items() if not value[i].isfinite())
            times = ", ".join(f"{time}={float(at[i]):.4g}" for time, at in term.times.items())
            value = float(values[what][i].detach())
            yield first + i, f"{name.replace('_', ' ')} {what} is {value}", times
        first = (first + len(term.loss)) % size


def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """1.0 if all numbers in this process's shards, and their squares, are finite, else 0.0.

    AdamW keeps the squares of gradients.
    """
    shards = [local_shard(tensor.detach()) for tensor in tensors if tensor is not None]
    return torch.stack(torch._foreach_norm(shards)).isfinite().all().float()


def enumeration(names: Sequence[object]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
