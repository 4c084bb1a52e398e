"""The trainer: one loop for every method. It knows networks, batches and objectives only by their contracts."""

import gc
import json
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from soflow import processes
from soflow.config import Config
from soflow.data.augment import AugmentPipe
from soflow.data.batches import Batches, seed_of, seeded_generator
from soflow.data.dataset import Dataset
from soflow.errors import InputError, RunError
from soflow.objectives.base import Losses, LossModule, Objective
from soflow.training.checkpoint import TrainState, newest_good, save_checkpoint
from soflow.training.compile import compile_blocks, compile_errors_explained
from soflow.training.display import Display
from soflow.training.ema import Ema
from soflow.training.optimizers import learning_rate, make_optimizer
from soflow.training.peers import require_plain_launch
from soflow.training.precision import float32_products
from soflow.training.run_folder import RunFolder
from soflow.training.sharding import load_network, load_optimizer, share, spread, whole_state
from soflow.training.signals import Stopped, StopRequest, stop_request

#: Called where a sample grid is due, with how far training is, the averaged weights and the device.
Watch = Callable[[TrainState, dict[str, Tensor], torch.device], None]
#: Called where an evaluation is due, with the averaged weights and the device: figures by name, the first one to be lowered.
Measure = Callable[[dict[str, Tensor], torch.device], dict[str, float]]


class Trainer:
    """Trains `network` by `objective` on `dataset` as `config` says, in `folder`, going on from what lies there."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        dataset: Dataset,
        augment: AugmentPipe | None,
        config: Config,
        folder: RunFolder,
        display: Display,
        watch: Watch,
        measure: Measure | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.watch = watch
        self.measure = measure
        require_plain_launch()
        AcceleratorState._reset_state()  # Accelerate keeps the precision of a process's first run; this may be another run
        self.accelerator = Accelerator(
            cpu=processes.count() > 1 and not torch.cuda.is_available(),  # else no process group there
            mixed_precision="bf16" if config.precision.startswith("bf16") else "no",
            gradient_accumulation_steps=config.train.accumulate,
            log_with=list(config.train.trackers) or None,
            project_dir=str(folder.path),
        )
        self.device = self.accelerator.device
        shares = self.accelerator.num_processes * config.train.accumulate
        if config.train.batch_size % shares:
            raise InputError(
                f"train.batch_size={config.train.batch_size} cannot be split into equal parts for "
                f"{self.accelerator.num_processes} processes with train.accumulate={config.train.accumulate}"
            )
        self.display = display
        self.batches = Batches(dataset, config.train.batch_size, config.train.seed, augment, self.device, config.data.flip)
        self.objective = objective
        self.network = network
        self.state = TrainState()
        if config.compile:
            compile_blocks(network)
        loss = LossModule(network, objective)
        if config.parallel == "fsdp" and self.accelerator.num_processes > 1:
            # evaluation_mode: autocast, and no DDP around it
            self.module = self.accelerator.prepare_model(loss, device_placement=False, evaluation_mode=True)
            spread(loss, self.device, blocks=not config.objective.whole_network)
            self.optimizer = self.accelerator.prepare(make_optimizer(config.optimizer, network.parameters()))
        else:
            optimizer = make_optimizer(config.optimizer, network.to(self.device).parameters())
            self.module, self.optimizer = self.accelerator.prepare(loss, optimizer)
        self.ema = Ema(network, config.ema)
        loss.average = self.ema.net
        self.resume()

    def resume(self) -> None:
        """Takes up the newest good checkpoint, if there is one."""
        checkpoint, problems = newest_good(self.folder.checkpoints)
        for problem in problems:
            self.display.note(f"{problem}; passing over it")
        if len(set(self.of_all(checkpoint.step if checkpoint else -1))) > 1:
            raise RunError(
                f"the processes do not see the same checkpoints: {self.folder.path} must be on a disk that all share"
            )
        if checkpoint is None:
            return
        load_network(self.network, checkpoint.weights("raw"))
        self.ema.load_state_dict(checkpoint.weights("ema"))
        load_optimizer(self.optimizer, checkpoint.optimizer_state())
        self.state = checkpoint.train_state()
        self.display.note(f"going on from {checkpoint.path}")

    def run(self) -> None:
        """Trains to the last step. Raises Stopped after a signal, RunError for a loss that is not a number."""
        config, steps = self.config.train, self.config.train.steps
        if self.state.step >= steps:
            return
        self.module.train()
        if self.accelerator.is_main_process:
            self.folder.forget_metrics_after(self.state.step)
        self.accelerator.init_trackers("", init_kwargs={"tensorboard": {"purge_step": self.state.step + 1}})
        self.display.start(self.state.step, steps)
        try:
            with stop_request() as request:
                while self.state.step < steps and request.signum is None:
                    self.timed_step()
                    done = self.state.step
                    measured = self.measure is not None and (done == steps or done % self.config.evaluate.every == 0)
                    figures = self.measured() if measured else {}
                    if done % config.log_every == 0 or done == steps or measured:
                        self.log(figures)
                    # before the checkpoint: whatever ends the process in between, going on from the last one does both
                    if done == steps or (config.sample_every and done % config.sample_every == 0):
                        self.sample()
                    if done % self.config.checkpoint.every == 0 or done == steps or measured:
                        self.save()
                    self.agree_to_stop(request)
                if request.signum is not None and self.state.step < steps:
                    self.save()  # while signals still only ask: a second SIGTERM must not cost this checkpoint
                    raise Stopped(request.signum)
        finally:
            self.display.stop()

    def close(self) -> None:
        """Ends trackers and the process group. The data-parallel wrapper holds on to the group, so it must go first: a
        group that outlives its end aborts the process as it exits.
        """
        self.accelerator.free_memory()
        del self.module, self.optimizer
        gc.collect()
        self.accelerator.end_training()

    def agree_to_stop(self, request: StopRequest) -> None:
        """A signal that reached any process stops all of them after the same step."""
        request.signum = max(self.of_all(request.signum or 0)) or None

    def of_all(self, number: int) -> list[int]:
        """A number of each process. Every process must ask for it."""
        if self.accelerator.num_processes == 1:
            return [number]
        return self.accelerator.gather(torch.tensor([number], device=self.device)).tolist()

    def timed_step(self) -> None:
        start = time.perf_counter()
        with compile_errors_explained(), float32_products("tf32" in self.config.precision, self.device):
            loss = self.step(self.state.step)
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.seconds += seconds
        self.count("seconds", seconds, 1)
        self.display.step(self.state.step, loss, self.config.train.batch_size / seconds)

    def step(self, step: int) -> float:
        """One optimizer step, counted from 0, on this process's shares of the global batch; returns the loss."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step)
        torch.manual_seed(seed_of(config.train.seed, f"dropout of process {accelerator.process_index}", step))
        shape = (config.train.batch_size, *config.data.shape)
        draws = self.objective.draw(shape, seeded_generator(config.train.seed, "draws", step, self.device))

        loss, shares = 0.0, accelerator.num_processes * config.train.accumulate
        for part in range(config.train.accumulate):
            index = part * accelerator.num_processes + accelerator.process_index
            batch = self.batches.share(step, index, shares)
            with accelerator.accumulate(self.module):
                losses = self.module(batch, draws.rows(slice(index, None, shares)), step / config.train.steps)
                loss += self.read(losses) / config.train.accumulate
                accelerator.backward(losses.total)
                if config.optimizer.clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.network.parameters(), config.optimizer.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.update(step)
        return loss

    def read(self, losses: Losses) -> float:
        """Adds a loss and its parts, over all processes, to the running means. Raises RunError if it is not a number."""
        parts = {"loss": losses.total.detach()[None], **losses.parts}
        sums = torch.stack(
            [part.sum() for part in parts.values()] + [losses.total.new_tensor(float(len(p))) for p in parts.values()]
        )
        numbers = self.accelerator.reduce(sums.float(), "sum").tolist()
        for name, total, count in zip(parts, numbers, numbers[len(parts) :], strict=False):
            self.count(name, total, count)
        loss = numbers[0] / numbers[len(parts)]
        if not math.isfinite(loss):
            self.fail(f"loss is {loss}")
        return loss

    def fail(self, what: str) -> None:
        """Ends a run whose numbers went wrong."""
        good, _ = newest_good(self.folder.checkpoints)
        last = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        raise RunError(
            f"the {what} at step {self.state.step + 1}; {last}; try a smaller optimizer.lr, a longer optimizer.warmup, "
            "optimizer.clip=1, or precision=fp32, in a new folder"
        )

    def count(self, name: str, total: float, count: float) -> None:
        """Adds to the running mean of a logged value."""
        running = self.state.sums.setdefault(name, [0.0, 0.0])
        running[0] += total
        running[1] += count

    def log(self, figures: dict[str, float]) -> None:
        """One line of metrics.jsonl: means since the line before, and what was measured."""
        means = {name: total / count for name, (total, count) in self.state.sums.items() if count}
        self.state.sums = {}
        seconds_per_step = means.pop("seconds")
        metrics: dict[str, Any] = {
            "step": self.state.step,
            **means,
            **figures,
            "lr": learning_rate(self.config.optimizer, self.state.step - 1),
            "seconds": self.state.seconds,
            "steps_per_second": 1 / seconds_per_step,
            "samples_per_second": self.config.train.batch_size / seconds_per_step,
        }
        if self.accelerator.is_main_process:
            with self.folder.metrics.open("a") as stream:
                stream.write(json.dumps(metrics) + "\n")
        self.accelerator.log({name: value for name, value in metrics.items() if name != "step"}, step=self.state.step)
        self.display.log(metrics)

    def save(self) -> None:
        """Writes a checkpoint: the first process does, of whole tensors to which all have given their share."""
        finite = all(bool(share(p).isfinite().all()) for p in self.network.parameters())
        if not all(self.of_all(finite)):
            self.fail("weights are no longer finite numbers")
        main = self.accelerator.is_main_process
        weights, ema, optimizer = (whole_state(x.state_dict(), main) for x in (self.network, self.ema, self.optimizer))
        if main:
            try:
                save_checkpoint(
                    self.folder.checkpoints, self.state, weights, ema, optimizer, self.config.checkpoint.keep_last
                )
            except OSError as error:
                raise RunError(
                    f"cannot write the checkpoint of step {self.state.step} to {self.folder.checkpoints}: {error.strerror}; "
                    "earlier ones are untouched; make room, then run the same command again"
                ) from None
        self.accelerator.wait_for_everyone()

    def sample(self) -> None:
        """Shows the averaged weights to `watch`, in the first process while the others wait."""
        main = self.accelerator.is_main_process
        weights = whole_state(self.ema.state_dict(), main)
        if main:
            self.watch(self.state, weights, self.device)
        self.accelerator.wait_for_everyone()

    def measured(self) -> dict[str, float]:
        """Figures of the averaged weights, in the first process while the others wait; notes which are the best so far."""
        assert self.measure is not None
        main = self.accelerator.is_main_process
        weights, figures = whole_state(self.ema.state_dict(), main), dict[str, float]()
        if main:
            try:
                figures = self.measure(weights, self.device)
            except (InputError, RunError) as error:
                self.display.note(f"step {self.state.step} has no figure: {error}")
        for name, distance in list(figures.items())[:1]:
            what = f"{name} of {self.config.evaluate.num_while_training}"
            better = self.state.best is None or what != self.state.best_of or distance < self.state.best
            if better:
                self.state.best, self.state.best_of, self.state.best_step = distance, what, self.state.step
            self.display.note(f"step {self.state.step}: {name} {distance:.4g}{', the best so far' if better else ''}")
        self.accelerator.wait_for_everyone()
        return figures


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError with the install line for a tracker whose package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"train.trackers names {name}, which is not installed: pip install 'soflow[track]'")
